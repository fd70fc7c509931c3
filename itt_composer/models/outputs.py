"""What a forward pass returns beside the states: those of each layer, and attention weights.

Shapes: B batch, S sequence, D hidden size, N heads.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from transformers.cache_utils import DynamicCache


class Recorder:
    """Keeps what goes into each layer, and its attention weights, while a model runs.

    Args:
        config: says what to keep where a call does not.
        states: keep the inputs, (B, S, D) each.
        attentions: keep the weights, (B, N, S, S) each.
    """

    def __init__(self, config: Any, states: bool | None, attentions: bool | None):
        states = config.output_hidden_states if states is None else states
        attentions = config.output_attentions if attentions is None else attentions
        self._states: list[Tensor] | None = [] if states else None
        self._attentions: list[Tensor] | None = [] if attentions else None

    @contextmanager
    def recording(self, layers: Iterable[nn.Module]) -> Iterator[None]:
        """Record the layers' calls in between."""
        hooks = []
        for layer in layers:
            if self._states is not None:
                hooks.append(layer.register_forward_pre_hook(self._keep_states))
            if self._attentions is not None:
                attention = cast(nn.Module, layer.self_attn)
                hooks.append(attention.register_forward_hook(self._keep_attentions))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep_states(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert self._states is not None
        self._states.append(inputs[0])

    def _keep_attentions(self, attention: nn.Module, inputs: Any, output: tuple) -> None:
        assert self._attentions is not None
        self._attentions.append(output[1])

    def hidden_states(self, last: Tensor) -> Any:
        """Return what went into each layer, and what came out of the model."""
        return None if self._states is None else (*self._states, last)

    @property
    def attentions(self) -> Any:
        """Each layer's attention weights."""
        return None if self._attentions is None else tuple(self._attentions)


def as_wanted(output: Any, config: Any, return_dict: bool | None) -> Any:
    """Return an output as it is, or as a tuple where the call or the configuration says so."""
    as_it_is = config.return_dict if return_dict is None else return_dict
    return output if as_it_is else output.to_tuple()


def one_cache(past_key_values: DynamicCache | None, cache: DynamicCache | None) -> Any:
    """Return the cache, which transformers renamed, under whichever name it was given.

    Raises:
        ValueError: both are given.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of the same: give one of them")
    return cache if past_key_values is None else past_key_values
