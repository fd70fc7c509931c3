"""Capacity annealing (Algorithm 1 of the paper): coarse thinking first, then finer.

The share of tokens that take a step grows from a start value to its ρ_t, and the temperature of
the routers falls, over the first part of training. The schedule itself is `schedules.py`.
"""

from collections.abc import Sequence
from typing import get_args

from composer.core import Algorithm, Event, State, Time, TimeUnit
from composer.loggers import Logger

from itt_composer.models.composer_model import unwrap
from itt_composer.recipe.schedules import (
    Levels,
    Shape,
    check_ratios,
    per_step,
    ratios_at,
    temperature_at,
)


class CapacityAnnealing(Algorithm):
    """Sets the routers' capacity and temperature before each batch, and after the last one.

    What is in force depends on the batch's time alone, so a resumed run goes on exactly. The model
    is saved with what is then in force, so a finished one with its targets. Logs
    `capacity_annealing/select_ratio/step_<t>` and `capacity_annealing/temperature`.

    Args:
        start_ratio: share of the tokens that take a step at the start, above 0; one number for
            all steps, or one per step.
        target_ratio: the same at the end; None takes the model's own `select_ratios`. 1 goes on to
            full capacity.
        start_temperature: divides the routers' scores at the start; above 1 flattens weights.
        end_temperature: the same after annealing.
        duration: span of the annealing, a share of training ("0.1dur") or a time ("5000ba").
        shape: "linear", or "cosine" for slow ends.
        levels: number of different ratios that a step goes through, the first and the last
            included, since each costs a compilation under `torch.compile`; "continuous": a ratio
            of its own in each batch. The temperature always changes from batch to batch.

    Raises:
        ValueError: an impossible setting, by name. At the first batch: lists that do not fit the
            model's steps.

    Example:
        >>> Trainer(..., algorithms=[CapacityAnnealing(duration="0.1dur")])
    """

    def __init__(
        self,
        start_ratio: float | Sequence[float] = 0.1,
        target_ratio: float | Sequence[float] | None = None,
        start_temperature: float = 2.0,
        end_temperature: float = 1.0,
        duration: str = "0.1dur",
        shape: Shape = "linear",
        levels: Levels = 8,
    ):
        for name, given in (("start_ratio", start_ratio), ("target_ratio", target_ratio)):
            # A router at 0 would have neither gradients nor scores to estimate thresholds from.
            if given is not None and not all(0 < ratio <= 1 for ratio in per_step(given, 1)):
                raise ValueError(f"{name} must lie above 0 and be at most 1, not {given}")
        for name, value in (("start", start_temperature), ("end", end_temperature)):
            if value <= 0:
                raise ValueError(f"{name}_temperature must be positive, not {value}")
        if shape not in get_args(Shape):
            raise ValueError(f"shape must be one of {', '.join(get_args(Shape))}, not {shape}")
        if levels != "continuous" and levels < 2:
            raise ValueError(f"levels must be at least 2, the start and the target, not {levels}")
        self.duration = Time.from_input(duration)
        if self.duration.value <= 0:
            raise ValueError(f"duration must be positive, not {duration}")
        self.start_ratio = start_ratio
        self.target_ratio = target_ratio
        self.start_temperature = start_temperature
        self.end_temperature = end_temperature
        self.shape = shape
        self.levels = levels
        self._targets: list[float] = []

    def match(self, event: Event, state: State) -> bool:
        if event == Event.BATCH_END:  # the last one: before it is evaluated and saved
            elapsed = state.get_elapsed_duration()
            return elapsed is not None and elapsed >= 1
        # A run that was killed just before its end is only evaluated when it is started again.
        return event in (Event.BATCH_START, Event.EVAL_STANDALONE_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if not self._targets:
            own = list(model.config.select_ratios)
            check_ratios(self.start_ratio, self.target_ratio, own)
            target = self.target_ratio
            self._targets = own if target is None else per_step(target, len(own))
        progress = self._progress(state)
        ratios = ratios_at(progress, self.start_ratio, self._targets, self.shape, self.levels)
        temperature = temperature_at(
            progress, self.start_temperature, self.end_temperature, self.shape
        )
        model.set_select_ratios(ratios)
        model.set_router_temperature(temperature)
        metrics = {
            f"capacity_annealing/select_ratio/step_{step}": ratio
            for step, ratio in enumerate(ratios, start=1)
        }
        logger.log_metrics({**metrics, "capacity_annealing/temperature": temperature})

    def _progress(self, state: State) -> float:
        if self.duration.unit == TimeUnit.DURATION:
            elapsed = state.get_elapsed_duration()
            assert elapsed is not None, "the trainer has a max_duration"
            return elapsed.value / self.duration.value
        return state.timestamp.get(self.duration.unit).value / self.duration.value
