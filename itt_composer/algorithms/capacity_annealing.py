"""Capacity annealing (Algorithm 1 of the paper): coarse thinking first, then finer.

The share of tokens that take a step grows from a start value to its ρ_t, and the temperature of
the routers falls, over the first part of training.
"""

from collections.abc import Sequence

from composer.core import Algorithm, Event, State, Time, TimeUnit
from composer.loggers import Logger

from itt_composer.models.composer_model import unwrap


def anneal(start: float, end: float, progress: float) -> float:
    """Linear from `start` at progress 0 to `end` at 1 and after.

    Args:
        progress: share of the annealing span that has passed, at least 0.
    """
    return end if progress >= 1 else start + (end - start) * progress


def anneal_select_ratios(
    start_ratio: float, targets: Sequence[float], progress: float
) -> list[float]:
    """The ρ_t in force. A step whose target lies below `start_ratio` keeps its target."""
    return [anneal(min(start_ratio, target), target, progress) for target in targets]


class CapacityAnnealing(Algorithm):
    """Sets the routers' capacity and temperature before each batch, and after the last one.

    What is in force depends on the batch's time alone, so a resumed run goes on exactly. Logs
    `capacity_annealing/select_ratio/step_<t>` and `capacity_annealing/temperature`.

    Args:
        start_ratio: share of the tokens that take a step at the start, 0..1.
        start_temperature: divides the routers' scores at the start; above 1 flattens weights.
        end_temperature: the same after annealing.
        duration: span of the annealing, a share of training ("0.1dur") or a time ("5000ba").

    Example:
        >>> Trainer(..., algorithms=[CapacityAnnealing(duration="0.1dur")])
    """

    def __init__(
        self,
        start_ratio: float = 0.1,
        start_temperature: float = 2.0,
        end_temperature: float = 1.0,
        duration: str = "0.1dur",
    ):
        if not 0 <= start_ratio <= 1:
            raise ValueError(f"start_ratio must lie in 0..1, not {start_ratio}")
        for name, value in (("start", start_temperature), ("end", end_temperature)):
            if value <= 0:
                raise ValueError(f"{name}_temperature must be positive, not {value}")
        self.duration = Time.from_input(duration)
        if self.duration.value <= 0:
            raise ValueError(f"duration must be positive, not {duration}")
        self.start_ratio = start_ratio
        self.start_temperature = start_temperature
        self.end_temperature = end_temperature
        self.targets: list[float] | None = None

    @property
    def find_unused_parameters(self) -> bool:
        """At ratio 0 a router takes no part in the step, which DDP must be told."""
        return self.start_ratio == 0

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BATCH_START, Event.FIT_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if self.targets is None:
            self.targets = list(model.config.select_ratios)
        progress = self._progress(state)
        ratios = anneal_select_ratios(self.start_ratio, self.targets, progress)
        temperature = anneal(self.start_temperature, self.end_temperature, progress)
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
