"""Thresholds for any ratio: quantiles of the routers' scores at a few anchor settings.

A token takes step t if its score exceeds the quantile 1 - ρ_t of the step's scores. How scores are
distributed depends on the ratios of every step before, in this layer and below it. So each layer
keeps a table per anchor: every combination of `LEVELS` over the steps. Between anchors the
quantile functions are interpolated, linearly in each ratio; at an anchor the table is exact.

Scores rather than weights: they rise together, and scores do not tie where a sigmoid saturates.

Shapes: A anchors, T-1 steps after the first pass, Q quantiles.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

QUANTILES = 129  # evenly spaced from the smallest score to the largest
LEVELS = (0.0, 0.5, 1.0)
FEW_LEVELS = (0.0, 1.0)
MOST_ANCHORS = 81


def anchor_settings(steps: int) -> list[tuple[float, ...]]:
    """The ratios of every anchor; `steps` is T-1. Beyond four steps ratios have two levels.

    Raises:
        ValueError: more steps than two levels each can cover.
    """
    return list(itertools.product(_levels(steps), repeat=steps))


def anchor_weights(select_ratios: Sequence[float]) -> list[float]:
    """The share of each anchor in a setting: multilinear interpolation, summing to 1."""
    levels = _levels(len(select_ratios))
    per_step = [
        [max(0.0, _closeness(ratio, levels, at)) for at in levels] for ratio in select_ratios
    ]
    return [math.prod(shares) for shares in itertools.product(*per_step)]


def quantiles_of(scores: Tensor) -> Tensor:
    """The distribution of some scores (any shape) as their Q quantiles, float32."""
    ordered = scores.detach().flatten().float().sort().values
    return _interpolate(ordered, torch.linspace(0, 1, QUANTILES, device=ordered.device))


def thresholds_at(tables_AXQ: Tensor, select_ratios: Sequence[float]) -> Tensor:
    """The score that a share ρ_t of the tokens exceeds at each step, (T-1,), float32.

    Args:
        tables_AXQ: a layer's quantiles, (A, T-1, Q).
        select_ratios: ρ_t in 0..1.
    """
    weights_A = tables_AXQ.new_tensor(anchor_weights(select_ratios), dtype=torch.float32)
    quantiles_XQ = torch.einsum("a,axq->xq", weights_A, tables_AXQ.float())
    rest_X = 1 - weights_A.new_tensor(list(select_ratios))
    return torch.stack([_interpolate(q, at) for q, at in zip(quantiles_XQ, rest_X, strict=True)])


def _interpolate(ordered: Tensor, at: Tensor) -> Tensor:
    """Values at the given places, 0..1, of an evenly spaced sequence."""
    place = at * (len(ordered) - 1)
    below = place.floor().long()
    above = place.ceil().long()
    return torch.lerp(ordered[below], ordered[above], place - below)


def _levels(steps: int) -> tuple[float, ...]:
    for levels in (LEVELS, FEW_LEVELS):
        if len(levels) ** steps <= MOST_ANCHORS:
            return levels
    raise ValueError("thinking_steps=8 and more")


def _closeness(ratio: float, levels: Sequence[float], at: float) -> float:
    """1 at the level, falling to 0 at its neighbours."""
    spacing = levels[1] - levels[0]
    return 1 - abs(ratio - at) / spacing
