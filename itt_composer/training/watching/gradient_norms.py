"""Measures how large the gradients are, of everything and by kind of parameter."""

from collections import defaultdict

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from itt_composer.training.watching.intervals import BatchInterval

KINDS = ("routers", "step_encoding")
OTHERS = "rest"


def kind_of(parameter_name: str) -> str:
    """Return which of `KINDS` a parameter belongs to, else `OTHERS`."""
    return next((kind for kind in KINDS if kind in parameter_name.split(".")), OTHERS)


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients' L2 norms, scalars: `routers`, `step_encoding`, `rest` and `global`.

    Sharded gradients count as a whole; every rank must call this, and gets the same. A kind
    without gradients is left out; where gradients are only reduced after the last microbatch, there
    are none before it.
    """
    gradients = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[kind_of(name)].append(parameter.grad)
    norms = {}
    for kind in sorted(gradients):
        norm = get_total_norm(gradients[kind])
        norms[kind] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if norms:
        norms["global"] = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    return norms


class GradientNorms(Callback):
    """Logs `gradient_norm/<kind>` and `gradient_norm/global` every `interval` batches.

    The norms are of the whole batch, before gradient clipping changes them. (Composer's
    `OptimizerMonitor` sees clipped gradients, and logs three norms per parameter.)

    Args:
        interval: time between logs, in batches ("50ba"); the first batch is logged too.
    """

    def __init__(self, interval: str = "50ba"):
        self._interval = BatchInterval(interval)
        self._norms: dict[str, Tensor] = {}

    def after_backward(self, state: State, logger: Logger) -> None:
        # After each microbatch, the last one counts: at the end of the batch they are clipped.
        if self._interval.is_due(state):
            self._norms = gradient_norms(state.model)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        if self._norms:
            values = torch.stack(list(self._norms.values())).tolist()
            metrics = zip((f"gradient_norm/{kind}" for kind in self._norms), values, strict=True)
            logger.log_metrics(dict(metrics))
            self._norms = {}
