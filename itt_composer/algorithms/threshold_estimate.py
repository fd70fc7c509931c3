"""Thresholds in training: a running estimate, and evaluation under them beside top-k's."""

import contextlib
from collections import defaultdict

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from itt_composer.calibration import update_estimate, watched_scores
from itt_composer.models.composer_model import unwrap
from itt_composer.models.layer import IttDecoderLayer
from itt_composer.models.thresholds import quantiles_of

# The evaluator whose batches are routed by thresholds.
BY_THRESHOLD = "eval_threshold"


def mean_over_ranks(quantiles: Tensor) -> Tensor:
    """The mean of what every rank measured, on every rank."""
    dist.all_reduce(quantiles)
    return quantiles / dist.get_world_size()


class ThresholdEstimate(Algorithm):
    """Follows the distribution of the routers' scores, so that every checkpoint has thresholds.

    Every `interval` batches the scores' quantiles in that batch, averaged over the ranks, move the
    estimate. Which batches depends on the batch number alone, and the estimate is part of the
    model's state: a resumed run goes on exactly. Under the evaluator `eval_threshold` the model
    routes by thresholds, under any other by its own rule.

    Args:
        interval: batches from one look to the next.
        decay: what remains of the estimate at each look, 0..1.

    Example:
        >>> Trainer(..., algorithms=[ThresholdEstimate(interval=10, decay=0.9)])
    """

    def __init__(self, interval: int = 10, decay: float = 0.9):
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0..1 and below 1, not {decay}")
        self.interval = interval
        self.decay = decay
        self._watching = contextlib.ExitStack()
        self._measured: dict[tuple[IttDecoderLayer, int], list[Tensor]] = defaultdict(list)
        self._rule = ""

    def match(self, event: Event, state: State) -> bool:
        if event in (Event.EVAL_START, Event.EVAL_END):
            return state.dataloader_label == BY_THRESHOLD
        is_due = state.timestamp.batch.value % self.interval == 0
        return (event == Event.BEFORE_TRAIN_BATCH and is_due) or (
            event == Event.AFTER_TRAIN_BATCH and bool(self._measured)
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if event == Event.EVAL_START:
            self._rule = model.config.router_selection
            model.set_router_selection("threshold")
        elif event == Event.EVAL_END:
            model.config.router_selection = self._rule
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._watching.close()  # a batch that ran out of memory starts anew
            self._measured.clear()
            self._watching.enter_context(watched_scores(model, self._measure))
        else:
            self._watching.close()
            self._update()

    def _measure(self, layer: IttDecoderLayer, step: int, scores_BS: Tensor) -> None:
        self._measured[layer, step].append(quantiles_of(scores_BS))

    def _update(self) -> None:
        """One exchange between the ranks for all layers and steps."""
        means = [torch.stack(batches).mean(dim=0) for batches in self._measured.values()]
        together = mean_over_ranks(torch.stack(means))
        for (layer, step), quantiles_Q in zip(self._measured, together, strict=True):
            update_estimate(layer, step, quantiles_Q, self.decay)
        self._measured.clear()
