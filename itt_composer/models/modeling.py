"""The Inner Thinking Transformer on transformers' LLaMA layers (arXiv 2502.13842).

Each piece of the paper stands here under its own name:

- Adaptive Token Routing: `Router`, `IttDecoderLayer._route` and `routing.py`
- Residual Thinking Connection and Thinking Step Encoding: `IttDecoderLayer._accumulate`
- elastic thinking: `IttForCausalLM.set_select_ratios`

A layer that does not think is transformers' own `LlamaDecoderLayer`, so a dense model is a
`LlamaForCausalLM` by another name. Parameter names are LLaMA's, plus `routers` and
`step_encoding` in the thinking layers.

Shapes: B batch, S sequence, K selected tokens, D hidden size, H head size, T thinking steps.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaModel,
    LlamaPreTrainedModel,
)

from itt_composer.models import routing
from itt_composer.models.configuration import IttConfig


class Router(nn.Module):
    """R_t: a linear score per token, computed in at least float32 so that ranks are not ties."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))

    def forward(self, hidden_states_BSD: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden_states_BSD.dtype, torch.float32)
        with torch.autocast(hidden_states_BSD.device.type, enabled=False):
            return F.linear(hidden_states_BSD.to(dtype), self.weight.to(dtype)).squeeze(-1)


class IttDecoderLayer(LlamaDecoderLayer):
    """A LLaMA decoder layer that is applied up to T times with the same weights.

    With `Y[0] = φ_0 ⊙ f(X)` and, for the tokens selected at step t (α = 1),
    `Y[t] = Y[t-1] + φ_t ⊙ w · f(Y[t-1])`, the output is `Y[T-1]`. f is the whole layer, its
    internal residuals included. The selected tokens attend causally among themselves, at their
    original rotary positions.

    Args:
        config: the model's configuration.
        llama_layer: the layer whose modules this one takes over. Built that way, one seed gives
            the same LLaMA weights to dense, loop and ITT models.

    Attributes:
        select_ratios: ρ_t in force, one per step after the first pass; 0 skips the step.
        router_temperature: divides the routers' scores; part of the state, so that a model
            computes after loading what it computed before saving.
    """

    router_temperature: Tensor

    def __init__(self, config: IttConfig, llama_layer: LlamaDecoderLayer):
        nn.Module.__init__(self)
        self.hidden_size = config.hidden_size
        for name, module in llama_layer.named_children():
            self.add_module(name, module)

        self.thinking_steps = config.thinking_steps
        self.residual_thinking = config.residual_thinking
        self.router_norm = config.router_norm
        self.router_selection = config.router_selection
        self.reweighting = config.reweighting
        self.select_ratios = list(config.select_ratios)
        self.routers: nn.ModuleList | None = None
        if config.adaptive_routing:
            self.routers = nn.ModuleList(
                Router(config.hidden_size) for _ in range(config.thinking_steps - 1)
            )
            self.register_buffer("router_temperature", torch.ones(()))
        self.step_encoding: nn.Parameter | None = None
        if config.step_encoding:
            self.step_encoding = nn.Parameter(torch.ones(config.thinking_steps, self.hidden_size))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Apply the layer to all tokens, then again to the tokens each step selects.

        Args:
            hidden_states: X, (B, S, D).
            attention_mask: what the attention implementation takes: None (causal), (B, S) or
                (B or 1, 1, S, S), boolean or additive.
            position_embeddings: cos and sin of the rotary positions, each (B or 1, S, H).

        Raises:
            ValueError: a key/value cache was passed.
        """
        if past_key_values is not None:
            raise ValueError("a thinking layer has no key/value cache: pass use_cache=False")

        def apply_layer(tokens_BKD: Tensor, indices_BK: Tensor | None = None) -> Tensor:
            mask, positions = attention_mask, position_embeddings
            if indices_BK is not None:
                mask = _mask_among(attention_mask, indices_BK)
                positions = _positions_of(position_embeddings, indices_BK)
            return LlamaDecoderLayer.forward(
                self, tokens_BKD, attention_mask=mask, position_embeddings=positions, **kwargs
            )

        # Attention reads rotary positions from `position_embeddings` alone; position ids with
        # gaps would look like packed sequences to flash attention.
        kwargs.pop("position_ids", None)
        is_padding_BS = _padding_in(attention_mask)
        states_BSD = self._encode_step(0, apply_layer(hidden_states))
        for step in range(1, self.thinking_steps):
            ratio = self.select_ratios[step - 1]
            if ratio == 0:
                continue
            if self.routers is None:
                update_BSD = apply_layer(states_BSD)
                states_BSD = self._accumulate(step, states_BSD, update_BSD)
                continue
            weights_BS1, selection = self._route(step, states_BSD, ratio, is_padding_BS)
            states_BSD = self._think(step, states_BSD, weights_BS1, selection, apply_layer)
        return states_BSD

    def _route(
        self, step: int, states_BSD: Tensor, ratio: float, is_padding_BS: Tensor | None
    ) -> tuple[Tensor, routing.Selection | None]:
        """Adaptive Token Routing: every token's weight, and which tokens take the step.

        A selection of None means all of them.
        """
        assert self.routers is not None
        scores_BS = self.routers[step - 1](states_BSD)
        weights_BS = routing.router_weights(scores_BS, self.router_norm, self.router_temperature)
        weights_BS1 = weights_BS.to(states_BSD.dtype).unsqueeze(-1)
        if ratio == 1:
            return weights_BS1, None
        if self.router_selection == "top_p":
            mass_BS = weights_BS.detach()
            if is_padding_BS is not None:
                mass_BS = mass_BS.masked_fill(is_padding_BS, 0.0)
            return weights_BS1, routing.select_top_p(mass_BS, ratio)
        # Weights rise with scores, and scores do not tie where the norm saturates.
        ranks_BS = scores_BS.detach()
        if is_padding_BS is not None:
            ranks_BS = ranks_BS.masked_fill(is_padding_BS, -torch.inf)
        k = routing.capacity(ratio, states_BSD.shape[1])
        return weights_BS1, routing.select_top_k(ranks_BS, k)

    def _think(
        self,
        step: int,
        states_BSD: Tensor,
        weights_BS1: Tensor,
        selection: routing.Selection | None,
        apply_layer: Callable[..., Tensor],
    ) -> Tensor:
        """One thinking step: only the selected tokens are computed, the others keep their state.

        With symmetric reweighting the others are reweighted with the identity in place of f.
        """
        if selection is None:
            update_BSD = weights_BS1 * apply_layer(states_BSD)
            return self._accumulate(step, states_BSD, update_BSD)
        indices_BK, is_selected_BK = selection
        old_BKD = routing.take_tokens(states_BSD, indices_BK)
        weights_BK1 = routing.take_tokens(weights_BS1, indices_BK)
        update_BKD = weights_BK1 * apply_layer(old_BKD, indices_BK)
        new_BKD = self._accumulate(step, old_BKD, update_BKD)
        if self.reweighting == "symmetric":
            states_BSD = self._accumulate(step, states_BSD, weights_BS1 * states_BSD)
            old_BKD = routing.take_tokens(states_BSD, indices_BK)
        if is_selected_BK is not None:
            new_BKD = torch.where(is_selected_BK.unsqueeze(-1), new_BKD, old_BKD)
        return routing.put_tokens(states_BSD, indices_BK, new_BKD)

    def _accumulate(self, step: int, states: Tensor, update: Tensor) -> Tensor:
        """Residual Thinking Connection: add the encoded update; without it, replace the state."""
        contribution = self._encode_step(step, update)
        return states + contribution if self.residual_thinking else contribution

    def _encode_step(self, step: int, update: Tensor) -> Tensor:
        """Thinking Step Encoding: scale a step's contribution elementwise by φ_t."""
        return update if self.step_encoding is None else self.step_encoding[step] * update


class IttPreTrainedModel(LlamaPreTrainedModel):
    """What both models share: the configuration class and the initial weights."""

    config_class = IttConfig
    config: IttConfig
    _no_split_modules = ["LlamaDecoderLayer", "IttDecoderLayer"]  # noqa: RUF012 (as in the base)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, IttDecoderLayer):
            if module.step_encoding is not None:
                module.step_encoding.data.fill_(1.0)
            if module.routers is not None:
                module.router_temperature.fill_(1.0)


class IttModel(IttPreTrainedModel, LlamaModel):
    """transformers' `LlamaModel` in which some layers think."""

    def __init__(self, config: IttConfig):
        config.check_thinking()
        super().__init__(config)
        # Routers draw from a fork of the random stream: what is initialised after them then
        # equals the dense model's of the same seed.
        with torch.random.fork_rng(devices=[]):
            for index in config.thinking_layers:
                self.layers[index] = IttDecoderLayer(config, self.layers[index])
            self.post_init()


class IttForCausalLM(IttPreTrainedModel, LlamaForCausalLM):  # type: ignore[misc]
    """A LLaMA language model whose thinking layers may be applied several times.

    `config.thinking` makes it a dense LLaMA, a Loop model or an ITT.

    Example:
        >>> model = IttForCausalLM(IttConfig(num_hidden_layers=8, thinking_steps=4))
        >>> model.set_select_ratios([0.9, 0.7, 0.0])
    """

    def __init__(self, config: IttConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = IttModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def thinking_layers(self) -> list[IttDecoderLayer]:
        """The layers that think, first to last."""
        return [layer for layer in self.model.layers if isinstance(layer, IttDecoderLayer)]

    def set_select_ratios(self, select_ratios: list[float]) -> None:
        """Elastic thinking: change ρ_t of the steps after the first pass, here and when saved.

        Args:
            select_ratios: T-1 shares in 0..1; 0 removes a step.

        Raises:
            ValueError: wrong count, values outside 0..1, or parts of the tokens without a router.
        """
        self.config.set_select_ratios(select_ratios)
        for layer in self.thinking_layers:
            layer.select_ratios = list(self.config.select_ratios)

    def set_router_temperature(self, temperature: float) -> None:
        """Divide every router's score by this positive number from now on.

        Raises:
            ValueError: the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"the router's temperature must be positive, not {temperature!r}")
        for layer in self.thinking_layers:
            if layer.routers is not None:
                layer.router_temperature.fill_(temperature)


def _positions_of(position_embeddings, indices_BK: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the selected tokens' original positions, each (B, K, H)."""
    batch = indices_BK.shape[0]
    cos, sin = (part.expand(batch, -1, -1) for part in position_embeddings)
    return routing.take_tokens(cos, indices_BK), routing.take_tokens(sin, indices_BK)


def _mask_among(attention_mask: Tensor | None, indices_BK: Tensor) -> Tensor | None:
    """The attention mask of the selected tokens among themselves."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise TypeError(
            f"thinking layers take no {type(attention_mask).__name__} as attention mask: choose "
            "attn_implementation 'sdpa', 'eager' or 'flash_attention_2'"
        )
    if attention_mask.dim() == 2:
        return attention_mask.gather(1, indices_BK)
    batch, k = indices_BK.shape
    mask_BSS = attention_mask[:, 0].expand(batch, -1, -1)
    rows_BKS = mask_BSS.gather(1, indices_BK[:, :, None].expand(-1, -1, mask_BSS.shape[-1]))
    mask_BKK = rows_BKS.gather(2, indices_BK[:, None, :].expand(-1, k, -1))
    # Slots are in causal order too, and fillers (top-p) come last whatever their position.
    is_later_KK = torch.ones(k, k, dtype=torch.bool, device=indices_BK.device).triu(1)
    blocked = False if mask_BKK.dtype == torch.bool else torch.finfo(mask_BKK.dtype).min
    return mask_BKK.masked_fill(is_later_KK, blocked)[:, None]


def _padding_in(attention_mask: Tensor | None) -> Tensor | None:
    """Where the sequence holds padding, (B or 1, S): tokens that may not attend to themselves."""
    if not isinstance(attention_mask, Tensor):
        return None
    if attention_mask.dim() == 2:
        return attention_mask == 0
    allowed = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
    return ~allowed if allowed.dtype == torch.bool else allowed < 0


AutoModelForCausalLM.register(IttConfig, IttForCausalLM)
