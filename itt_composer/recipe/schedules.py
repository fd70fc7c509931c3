"""Schedules of capacity annealing (Algorithm 1 of the paper) as pure functions.

Ratios and temperature depend on the progress through the annealing span alone: 0 at its start, 1
at its end and after. Nothing here imports torch, so that a recipe is checked and a schedule drawn
cheaply.
"""

import math
from collections.abc import Sequence
from typing import Literal

from itt_composer.basics.errors import FieldError

Shape = Literal["linear", "cosine"]
Levels = int | Literal["continuous"]


def shaped(progress: float, shape: Shape) -> float:
    """Return how far a schedule has come, 0..1: straight, or slowly at both ends ("cosine").

    Args:
        progress: share of the annealing span that has passed, at least 0; above 1 counts as 1.
    """
    if progress >= 1:
        return 1.0
    return (1 - math.cos(math.pi * progress)) / 2 if shape == "cosine" else progress


def quantised(share: float, levels: Levels) -> float:
    """Round `share` (0..1) to one of `levels` values from 0 to 1 at equal distances.

    Each level holds an equal part of 0..1, so a straight schedule stays equally long on every
    level, the start and the target included. "continuous" leaves the share as it is.
    """
    if levels == "continuous":
        return share
    return min(math.floor(share * levels), levels - 1) / (levels - 1)


def between(start: float, end: float, share: float) -> float:
    """Interpolate: `start` at share 0, exactly `end` at 1."""
    return end if share == 1 else start + (end - start) * share


def ratios_at(
    progress: float,
    start: float | Sequence[float],
    targets: Sequence[float],
    shape: Shape = "linear",
    levels: Levels = "continuous",
) -> list[float]:
    """Return the ρ_t in force.

    All steps change level together: over the whole span there are at most `levels` lists.

    Args:
        progress: see `shaped`.
        start: ρ_t at the start, one number or one per step. A step whose target is lower than the
            one number keeps its target.
        targets: ρ_t at the end, one per step.
        shape: of the way between them.
        levels: number of different values, the first and the last included.
    """
    share = quantised(shaped(progress, shape), levels)
    starts = per_step(start, len(targets), limits=targets)
    return [between(*ends, share) for ends in zip(starts, targets, strict=True)]


def temperature_at(progress: float, start: float, end: float, shape: Shape = "linear") -> float:
    """Return the routers' temperature in force."""
    return between(start, end, shaped(progress, shape))


def per_step(
    ratio: float | Sequence[float], steps: int, limits: Sequence[float] = ()
) -> list[float]:
    """Return one number for each step, at most its limit; a list stays as it is."""
    if isinstance(ratio, Sequence):
        return list(ratio)
    return [min([ratio, *limits[step : step + 1]]) for step in range(steps)]


def check_ratios(
    start: float | Sequence[float],
    target: float | Sequence[float] | None,
    select_ratios: Sequence[float],
) -> None:
    """Refuse ratios that do not fit the model's steps or do not rise.

    Args:
        start: `start_ratio` of the recipe.
        target: `target_ratio`; None means `select_ratios`.
        select_ratios: ρ_t of the model.

    Raises:
        FieldError: a list of another length, or a start above its target.
    """
    steps = len(select_ratios)
    for name, given in (("start_ratio", start), ("target_ratio", target)):
        if isinstance(given, Sequence) and len(given) != steps:
            raise FieldError(
                f"{name} has {len(given)} value{'s' if len(given) != 1 else ''}, but "
                f"thinking_steps={steps + 1} needs {steps}: "
                "one for each step after the first pass, or a single number for all",
                *(name, "thinking_steps"),
            )
    targets = select_ratios if target is None else per_step(target, steps)
    if isinstance(start, Sequence):
        for step, (first, last) in enumerate(zip(start, targets, strict=True), start=1):
            if first > last:
                raise FieldError(
                    f"start_ratio of step {step} is {first}, above the {last} it should rise to",
                    *("start_ratio", "select_ratios" if target is None else "target_ratio"),
                )
