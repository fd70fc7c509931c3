"""Puts activation checkpointing and compilation around a model's layers from outside.

Both leave the names of parameters as they are. Apply checkpointing first, then compilation, then
sharding, which stays outermost.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from itt_composer.models.layer import IttDecoderLayer
from itt_composer.models.llama import DenseLayer
from itt_composer.models.loss import loss_and_gradient
from itt_composer.models.modeling import IttForCausalLM

# The compiled variants of one layer that are kept: one for each level of annealing and each size of
# microbatch.
MOST_VARIANTS = 64


class RecomputedLayer(DenseLayer):
    """A layer that keeps only its input for the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _recomputed(super().forward, *args, **kwargs)


class RecomputedThinkingLayer(IttDecoderLayer):
    """The same for a layer that thinks."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _recomputed(super().forward, *args, **kwargs)


class RecomputedSteps(IttDecoderLayer):
    """A layer that thinks and keeps only the inputs of its steps for the backward pass."""

    def think(self, *args: Any, **kwargs: Any) -> Any:
        return _recomputed(super().think, *args, **kwargs)


def _recomputed(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return method(*args, **kwargs)
    # A layer has no dropout, so nothing in it is random.
    return checkpoint(method, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


# The class that replaces a layer's, for each `train.activation_checkpointing`.
REPLACED: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "none": {},
    "thinking_steps": {IttDecoderLayer: RecomputedSteps},
    "all": {DenseLayer: RecomputedLayer, IttDecoderLayer: RecomputedThinkingLayer},
}


def checkpoint_activations(model: IttForCausalLM, which: str) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    Args:
        model: changed in place.
        which: "none", "thinking_steps" (each step keeps only its input) or "all" (each layer
            keeps only its input).
    """
    for layer in model.model.layers:
        # Another class instead of a wrapper: names stay, and layers go on sharing compiled code.
        layer.__class__ = REPLACED[which].get(type(layer), type(layer))


def compile_layers(model: IttForCausalLM, backend: str = "inductor") -> None:
    """Compile each layer as one graph, and the loss of a chunk, for training alone.

    Layers of one kind share their code. The ratios in force are part of it: each level of
    capacity annealing is compiled once. What has shapes that follow from the data runs as it is:
    evaluation, and thinking layers under top-p or early exit. So do batches that are watched.

    Args:
        model: changed in place.
        backend: of `torch.compile`.
    """
    settings = torch._dynamo.config
    settings.specialize_float = True  # ratios are constants: shapes follow from them
    settings.optimize_ddp = False  # layers are small enough; it cannot split recomputed parts
    settings.recompile_limit = MOST_VARIANTS
    settings.accumulated_recompile_limit = MOST_VARIANTS * len(model.model.layers)
    config = model.config
    has_fixed_shapes = config.router_selection != "top_p" and not config.early_exit
    for layer in model.model.layers:
        if has_fixed_shapes or not isinstance(layer, IttDecoderLayer):
            layer.forward = _compiled(model, layer, backend)
    model.chunk_loss = torch.compile(loss_and_gradient, backend=backend, dynamic=False)


def _compiled(model: IttForCausalLM, layer: nn.Module, backend: str) -> Callable[..., Any]:
    plain = layer.forward
    compiled = torch.compile(plain, backend=backend, fullgraph=True, dynamic=False)

    @wraps(plain)
    def run(*args: Any, **kwargs: Any) -> Any:
        is_plain = not layer.training or model.model.observers
        return (plain if is_plain else compiled)(*args, **kwargs)

    return run
