"""Activation checkpointing and compilation, put around a model's layers from outside.

Both leave the names of parameters as they are, and what sharding does around a layer outside.
First checkpointing, then compilation, then sharding.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from itt_composer.models.layer import IttDecoderLayer
from itt_composer.models.loss import loss_and_gradient
from itt_composer.models.modeling import IttForCausalLM

# Compiled variants of one layer that are kept: annealing has its levels, and microbatches sizes.
MOST_VARIANTS = 64


class RecomputedLayer(LlamaDecoderLayer):
    """A layer of which only the input is kept for the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _recomputed(super().forward, *args, **kwargs)


class RecomputedThinkingLayer(IttDecoderLayer):
    """The same for a layer that thinks."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _recomputed(super().forward, *args, **kwargs)


class RecomputedSteps(IttDecoderLayer):
    """A layer that thinks, of whose steps only the inputs are kept for the backward pass."""

    def think(self, *args: Any, **kwargs: Any) -> Any:
        return _recomputed(super().think, *args, **kwargs)


def _recomputed(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return method(*args, **kwargs)
    # Nothing random in a layer: there is no dropout.
    return checkpoint(method, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


# By layer, for each choice of the recipe's `train.activation_checkpointing`.
REPLACED: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "none": {},
    "thinking_steps": {IttDecoderLayer: RecomputedSteps},
    "all": {LlamaDecoderLayer: RecomputedLayer, IttDecoderLayer: RecomputedThinkingLayer},
}


def checkpoint_activations(model: IttForCausalLM, which: str) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    Args:
        model: changed in place.
        which: "none", "thinking_steps" (of each step only its input is kept) or "all" (of each
            layer only its input).
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
