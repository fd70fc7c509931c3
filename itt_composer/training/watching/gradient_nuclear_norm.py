"""Nuclear norms of the gradients of every layer's attention projections, during training."""

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from itt_composer.models.composer_model import unwrap
from itt_composer.models.projections import attention_projections, nuclear_norm
from itt_composer.training.watching.intervals import BatchInterval


@torch.no_grad()
def gradient_nuclear_norms(model: nn.Module) -> dict[str, Tensor]:
    """Return the sum of singular values by `layer_<i>/<q|k|v|o>`, scalars in float64.

    Every rank must call this, and gets the same: each computes a share of the matrices. Sharded
    gradients are gathered one matrix at a time. Projections without a gradient are left out.

    Args:
        model: on every rank the same gradients, or shards of them.
    """
    projections = [
        projection
        for projection in attention_projections(model)
        if projection.weight.grad is not None
    ]
    if not projections:
        return {}
    norms = torch.zeros(len(projections), dtype=torch.float64, device=projections[0].weight.device)
    for number, projection in enumerate(projections):
        gradient = projection.weight.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        assert gradient is not None
        if number % dist.get_world_size() == dist.get_global_rank():
            norms[number] = nuclear_norm(projection.of(gradient))
    dist.all_reduce(norms)
    names = (f"layer_{projection.layer}/{projection.name}" for projection in projections)
    return dict(zip(names, norms.unbind(), strict=True))


class GradientNuclearNorm(Callback):
    """Logs `gradient_nuclear_norm/layer_<i>/<q|k|v|o>` every `interval` batches.

    The norms are of the whole batch, before gradient clipping changes them.

    Args:
        interval: time between logs, in batches ("100ba"); the first batch is logged too.
    """

    def __init__(self, interval: str = "100ba"):
        self._interval = BatchInterval(interval)
        self._rows_left = 0
        self._norms: dict[str, Tensor] = {}

    def before_train_batch(self, state: State, logger: Logger) -> None:
        # Here the whole batch; in `after_backward` its microbatches, one after the other.
        self._rows_left = len(state.batch["input_ids"])

    def after_backward(self, state: State, logger: Logger) -> None:
        self._rows_left -= len(state.batch["input_ids"])
        # They take too long for every microbatch; at the end of the batch they are clipped.
        if self._interval.is_due(state) and self._rows_left == 0:
            self._norms = gradient_nuclear_norms(unwrap(state.model))

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if self._norms:
            values = torch.stack(list(self._norms.values())).tolist()
            names = (f"gradient_nuclear_norm/{name}" for name in self._norms)
            logger.log_metrics(dict(zip(names, values, strict=True)))
            self._norms = {}
