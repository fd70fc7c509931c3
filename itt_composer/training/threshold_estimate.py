"""Thresholds in training: a running estimate, and evaluation under them beside top-k's."""

import contextlib
import time

import torch
from composer.core import Algorithm, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from itt_composer.data.stored_rows import batches_of
from itt_composer.data.token_rows import sample_order
from itt_composer.models.calibration import calibrate, update_estimate
from itt_composer.models.composer_model import unwrap
from itt_composer.models.layer import ThinkingStep
from itt_composer.models.modeling import IttForCausalLM
from itt_composer.models.thresholds import quantiles_of
from itt_composer.training.watching.progress_bar import format_time, progress_of

# The evaluators: by the rule of training, and by thresholds.
BY_OWN_RULE, BY_THRESHOLD = "eval", "eval_threshold"


def from_all_ranks(scores: Tensor) -> Tensor:
    """Return every rank's scores (any shape, the same on all), flat, on every rank."""
    return torch.cat(list(dist.all_gather(scores.detach().flatten())))


class ThresholdEstimate(Algorithm):
    """Follows the distribution of the routers' scores, so that every checkpoint has thresholds.

    Every `interval` batches the quantiles of the scores in each rank's first microbatch move the
    estimate. Which batches depends on the batch number alone, and the estimate is part of the
    model's state: a resumed run goes on exactly. After the last batch, before it is saved, a
    calibration on validation rows takes the estimate's place. Under the evaluator
    `eval_threshold` the model routes by thresholds, under any other by its own rule.

    Args:
        interval: batches from one look to the next.
        decay: what remains of the estimate at each look, 0..1.
        calibration_rows: validation rows for the calibration, over all ranks.

    Example:
        >>> Trainer(..., algorithms=[ThresholdEstimate(interval=10, decay=0.9)])
    """

    def __init__(self, interval: int = 10, decay: float = 0.9, calibration_rows: int = 256):
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0..1 and below 1, not {decay}")
        self.interval = interval
        self.decay = decay
        self.calibration_rows = calibration_rows
        self._watching = contextlib.ExitStack()
        self._measured: dict[tuple[int, int], Tensor] = {}
        self._rule = ""

    def match(self, event: Event, state: State) -> bool:
        if event in (Event.EVAL_START, Event.EVAL_END):
            return state.dataloader_label == BY_THRESHOLD
        if event == Event.BATCH_END:
            elapsed = state.get_elapsed_duration()
            return elapsed is not None and elapsed >= 1
        if state.timestamp.batch.value % self.interval:
            return False
        if event == Event.BEFORE_FORWARD:
            return not self._measured
        return event in (Event.BEFORE_TRAIN_BATCH, Event.AFTER_FORWARD, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        if event == Event.EVAL_START:
            self._rule = model.config.router_selection
            model.set_router_selection("threshold")
        elif event == Event.EVAL_END:
            model.config.router_selection = self._rule
        elif event == Event.BATCH_END:
            self._calibrate(model, state)
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._watching.close()  # a batch that ran out of memory starts anew
            self._measured.clear()
        elif event == Event.BEFORE_FORWARD:
            self._watching.enter_context(model.watching(self._measure))
        elif event == Event.AFTER_FORWARD:
            self._watching.close()
        else:
            self._update(model)

    def _calibrate(self, model: IttForCausalLM, state: State) -> None:
        started = time.monotonic()
        is_first = dist.get_global_rank() == 0
        batches = self._calibration_batches(state)
        if is_first:
            rows = sum(len(batch["input_ids"]) for batch in batches) * dist.get_world_size()
            print(f"calibrating the thresholds on {rows:,} validation rows", flush=True)
        with get_precision_context(state.precision):
            calibrate(model, batches, from_all_ranks, progress_of(state, "calibrating"))
        if is_first:
            print(f"calibrated in {format_time(time.monotonic() - started)}", flush=True)

    def _calibration_batches(self, state: State) -> list[dict[str, Tensor]]:
        """Return this rank's part of a sample of the validation rows, on its device.

        They are the last of the order in which validation takes its rows, so that with
        `train.eval_batches` thresholds are evaluated on other rows, as far as there are any.
        """
        rows = state.evaluators[0].dataloader.dataloader.dataset
        batch_size = state.evaluators[0].dataloader.dataloader.batch_size
        ranks = dist.get_world_size()
        indices = sample_order(rows.samples_per_stream)[-self.calibration_rows :].tolist()
        if len(indices) < ranks:  # every rank needs one, the same number of all
            indices = (indices * ranks)[:ranks]
        own = indices[dist.get_global_rank() :: ranks][: max(1, len(indices) // ranks)]
        return [state.device.batch_to_device(batch) for batch in batches_of(rows, own, batch_size)]

    def _measure(self, done: ThinkingStep) -> None:
        assert done.scores_BS is not None
        self._measured[done.layer_idx, done.step] = done.scores_BS.detach()

    def _update(self, model: IttForCausalLM) -> None:
        for (layer_idx, step), scores_BS in self._measured.items():
            quantiles_Q = quantiles_of(from_all_ranks(scores_BS))
            if quantiles_Q.isfinite().all():  # of a batch that `loss_guard` skips they may not be
                update_estimate(model.model.layers[layer_idx], step - 1, quantiles_Q, self.decay)
        self._measured.clear()
