"""What each step of each thinking layer does: who is selected, how sure the router is, what moves.

Shapes: B batch, S sequence, D hidden size, T thinking steps, N steps of all
layers, M moments.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from itt_composer.models.composer_model import unwrap
from itt_composer.models.layer import ThinkingStep
from itt_composer.training.watching.intervals import BatchInterval


class Moments(NamedTuple):
    """Means over all tokens; the mean of two ranks' moments is that of their common batch.

    Attributes:
        selected: 1 for a token that took the step.
        weight: w; 0 without a router.
        weight_squared: w².
        change: ‖Y[t] − Y[t-1]‖ / ‖Y[t-1]‖ of a token that took the step, else 0.
        selected_again: 1 for a token that took this step and the one before it.
    """

    selected: Tensor
    weight: Tensor
    weight_squared: Tensor
    change: Tensor
    selected_again: Tensor


class SeenStep(NamedTuple):
    """A step of this rank's microbatch; see `statistics_of`."""

    moments: Moments
    has_router: bool
    has_step_before: bool


@torch.no_grad()
def moments_of(done: ThinkingStep, before_BS: Tensor | None) -> Moments:
    """Moments of one step, each a scalar in float64: weights may differ very little.

    Args:
        done: the step.
        before_BS: which tokens took the step before it in this layer; None for the first one.
    """
    is_selected_BS = done.is_selected_BS
    change_BS = torch.linalg.vector_norm(done.new_BSD - done.old_BSD, dim=-1, dtype=torch.float32)
    state_BS = torch.linalg.vector_norm(done.old_BSD, dim=-1, dtype=torch.float32)
    weights_BS = torch.zeros_like(state_BS) if done.weights_BS is None else done.weights_BS
    again_BS = torch.zeros_like(is_selected_BS) if before_BS is None else before_BS
    by_token = Moments(
        selected=is_selected_BS,
        weight=weights_BS,
        weight_squared=weights_BS.double().square(),
        change=torch.where(is_selected_BS, change_BS / state_BS, 0.0),
        selected_again=is_selected_BS & again_BS,
    )
    return Moments(*(values_BS.mean(dtype=torch.float64) for values_BS in by_token))


def statistics_of(
    moments: Sequence[float], has_router: bool, has_step_before: bool
) -> dict[str, float]:
    """The figures that are logged of a step; what has no meaning for it is left out.

    Args:
        moments: as in `Moments`.
        has_router: whether there are weights.
        has_step_before: whether the layer took another step before it, the first pass apart.
    """
    selected, weight, weight_squared, change, selected_again = moments
    statistics = {"share_selected": selected}
    if has_router:
        statistics["weight_mean"] = weight
        statistics["weight_std"] = max(weight_squared - weight**2, 0.0) ** 0.5
    if selected > 0:
        statistics["update_norm"] = change / selected
        if has_step_before:
            statistics["overlap"] = selected_again / selected
    return statistics


def step_encoding_means(step_encoding_TD: Tensor) -> Tensor:
    """Return the mean of each φ_t, (T,), on every rank; all must call it, sharded or not."""
    means_T = step_encoding_TD.detach().float().mean(dim=-1)
    return means_T.full_tensor() if isinstance(means_T, DTensor) else means_T


class ThinkingStats(Callback):
    """Logs `thinking/layer_<i>/step_<t>/<figure>` every `interval` batches.

    Figures are of the first microbatch of every rank, which stands for the batch. Step 0 is the
    first pass. A dense model logs nothing.

    Args:
        interval: time between logs, in batches ("50ba"); the first batch is logged too.
    """

    def __init__(self, interval: str = "50ba"):
        self._interval = BatchInterval(interval)
        self._watching = contextlib.ExitStack()
        self._seen: dict[tuple[int, int], SeenStep] = {}
        self._last_BS: dict[int, Tensor] = {}

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self._stop()  # a batch that ran out of memory starts anew
        self._seen.clear()
        if self._interval.is_due(state):
            self._watching.enter_context(unwrap(state.model).watching(self._note))

    def after_forward(self, state: State, logger: Logger) -> None:
        self._stop()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if self._seen:
            logger.log_metrics({**self._figures(), **self._step_encodings(state)})
            self._seen.clear()

    def _note(self, done: ThinkingStep) -> None:
        before_BS = self._last_BS.get(done.layer_idx)
        self._last_BS[done.layer_idx] = done.is_selected_BS
        self._seen[done.layer_idx, done.step] = SeenStep(
            moments_of(done, before_BS), done.weights_BS is not None, before_BS is not None
        )

    def _stop(self) -> None:
        self._watching.close()
        self._last_BS.clear()

    def _figures(self) -> dict[str, float]:
        """Return the statistics of every step that was seen, over all ranks."""
        table_NM = torch.stack([torch.stack(seen.moments) for seen in self._seen.values()])
        dist.all_reduce(table_NM)
        table = (table_NM / dist.get_world_size()).tolist()
        metrics = {}
        for ((layer, step), seen), moments in zip(self._seen.items(), table, strict=True):
            figures = statistics_of(moments, seen.has_router, seen.has_step_before)
            for name, value in figures.items():
                metrics[f"thinking/layer_{layer}/step_{step}/{name}"] = value
        return metrics

    def _step_encodings(self, state: State) -> dict[str, float]:
        metrics = {}
        for layer in unwrap(state.model).thinking_layers:
            if layer.step_encoding is not None:
                for step, mean in enumerate(step_encoding_means(layer.step_encoding).tolist()):
                    name = f"thinking/layer_{layer.layer_idx}/step_{step}/step_encoding_mean"
                    metrics[name] = mean
        return metrics
