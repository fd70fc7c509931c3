"""Computes thresholds for any ratio from quantiles of the routers' scores at a few anchor settings.

A token takes step t if its score exceeds the quantile 1 - ρ_t of the step's scores. How scores are
distributed depends on the ratios of every step before, in this layer and below it. So each layer
keeps a table per anchor: the setting with ρ = 1/2 at every step, and those that differ from it
in one step or two, where ρ is 0 or 1. For other settings the change that a ρ_t makes to the
quantile function is interpolated by a parabola through 0, 1/2 and 1; changes of single steps and
of pairs add up. So a table is exact at its anchor, and what three steps do together is left out.

Scores rather than weights: they rise together, and scores do not tie where a sigmoid saturates.

Shapes: A anchors, T-1 steps after the first pass, Q quantiles.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

QUANTILES = 129  # evenly spaced from the smallest score to the largest
MIDDLE = 0.5
OUTER_RATIOS = (0.0, 1.0)


def anchor_settings(steps: int) -> list[list[float]]:
    """Return the ratios of the 1 + 2·n + 4·n(n-1)/2 anchors; `steps` is n = T-1."""
    settings = []
    for changes in _changes(steps):
        ratios = [MIDDLE] * steps
        for step, end in changes:
            ratios[step] = end
        settings.append(ratios)
    return settings


def anchor_weights(select_ratios: Sequence[float]) -> list[float]:
    """Weigh each anchor for a setting, in the order of `anchor_settings`; the weights sum to 1."""
    # Lagrange's polynomials of the two ends, and their sum, for each step.
    ends = [{0.0: (2 * x - 1) * (x - 1), 1.0: x * (2 * x - 1)} for x in select_ratios]
    both = [sum(at.values()) for at in ends]
    weights = []
    for changes in _changes(len(select_ratios)):
        weight, changed = 1.0, [step for step, _ in changes]
        for step, end in changes:
            weight *= ends[step][end]
        others = [share for step, share in enumerate(both) if step not in changed]
        if len(changes) < 2:
            rest = 1 - sum(others)
            if not changes:
                rest += sum(first * second for first, second in combinations(others, 2))
            weight *= rest
        weights.append(weight)
    return weights


def quantiles_of(scores: Tensor) -> Tensor:
    """Return the Q quantiles of some scores (any shape), float32."""
    ordered = scores.detach().flatten().float().sort().values
    return _interpolate(ordered, torch.linspace(0, 1, QUANTILES, device=ordered.device))


def thresholds_at(tables_AXQ: Tensor, select_ratios: Sequence[float]) -> Tensor:
    """Return the score that a share ρ_t of the tokens exceeds at each step, (T-1,), float32.

    Args:
        tables_AXQ: a layer's quantiles, (A, T-1, Q).
        select_ratios: ρ_t in 0..1.
    """
    tables_AXQ = tables_AXQ.float()
    weights_A = tables_AXQ.new_tensor(anchor_weights(select_ratios))
    quantiles_XQ = torch.einsum("a,axq->xq", weights_A, tables_AXQ)
    rest_X = 1 - weights_A.new_tensor(list(select_ratios))
    return torch.stack([_interpolate(q, at) for q, at in zip(quantiles_XQ, rest_X, strict=True)])


def _interpolate(ordered: Tensor, at: Tensor) -> Tensor:
    """Interpolate an evenly spaced sequence at the given places, 0..1."""
    place = at * (len(ordered) - 1)
    below, above = place.floor().long(), place.ceil().long()
    return torch.lerp(ordered[below], ordered[above], place - below)


def _changes(steps: int) -> list[tuple[tuple[int, float], ...]]:
    """List what each anchor changes: no step, one or two, each to one of the ends."""
    single = [(step, end) for step in range(steps) for end in OUTER_RATIOS]
    pairs = [(one, other) for one, other in combinations(single, 2) if one[0] != other[0]]
    return [(), *((change,) for change in single), *pairs]
