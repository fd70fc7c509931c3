"""The Inner Thinking Transformer on transformers' LLaMA (arXiv 2502.13842).

Each piece of the paper stands under its own name:

- Adaptive Token Routing: `layer.Router`, `layer.IttDecoderLayer._route` and `routing.py`
- Residual Thinking Connection and Thinking Step Encoding: `layer.IttDecoderLayer._accumulate`
- elastic thinking: `IttForCausalLM.set_select_ratios`
- early exit: `layer.ThinkingPass`

A layer that does not think is transformers' own `LlamaDecoderLayer`, so a dense model is a
`LlamaForCausalLM` by another name. Parameter names are LLaMA's, plus `routers` and
`step_encoding` in the thinking layers.

Shapes: B batch, S sequence, C cached tokens, D hidden size, V vocabulary, T thinking steps.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaModel,
    LlamaPreTrainedModel,
)
from transformers.utils.generic import check_model_inputs

from itt_composer.models.configuration import IttConfig
from itt_composer.models.layer import (
    NO_THRESHOLDS,
    IttDecoderLayer,
    OnStep,
    Router,
    ThinkingPass,
    ThinkingStep,
)
from itt_composer.models.loss import ChunkLoss, OutputEmbedding, loss_and_gradient
from itt_composer.models.step_cache import step_caches
from itt_composer.recipe.thinking import RouterSelection, check_choice, check_early_exit


class IttPreTrainedModel(LlamaPreTrainedModel):
    """What both models share: the configuration class and the initial weights."""

    config_class = IttConfig
    config: IttConfig
    _no_split_modules = ["LlamaDecoderLayer", "IttDecoderLayer"]  # noqa: RUF012 (as in the base)
    # Tokens in a step differ from row to row and from pass to pass: no fixed shapes.
    _can_compile_fullgraph = False
    # Weights may be saved before thresholds were estimated; then NaN stands for them.
    _keys_to_ignore_on_load_missing = [r"\.score_quantiles$"]  # type: ignore[assignment]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, IttDecoderLayer):
            if module.step_encoding is not None:
                module.step_encoding.data[0] = 1.0
                module.step_encoding.data[1:] = self.config.step_encoding_init
            if module.routers is not None:
                module.router_temperature.fill_(1.0)
                module.score_quantiles.fill_(torch.nan)


class IttModel(IttPreTrainedModel, LlamaModel):
    """transformers' `LlamaModel` in which some layers think."""

    def __init__(self, config: IttConfig):
        config.check_thinking()
        super().__init__(config)
        self.observers: list[OnStep] = []  # see `IttForCausalLM.watching`
        # Routers draw from a fork of the random stream: what is initialised after them then
        # equals the dense model's of the same seed.
        with torch.random.fork_rng(devices=[]):
            for index in config.thinking_layers:
                self.layers[index] = IttDecoderLayer(config, self.layers[index])
            self.post_init()

    @check_model_inputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = None,
        select_ratios: Sequence[float] | None = None,
        early_exit: float | None = None,
        on_step: OnStep | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states of the last layer, (B, S, D); see `IttForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        config = self.config
        thinking, is_causal = self._thinking(select_ratios, early_exit)
        if past_key_values is not None and not is_causal:
            raise ValueError(
                f"router_selection='{thinking.router_selection}' picks tokens by looking at later "
                "ones, so there can be no key/value cache: call set_router_selection('threshold'), "
                "or pass use_cache=False"
            )
        if use_cache and past_key_values is None and is_causal:
            past_key_values = DynamicCache(config=config)
        caches, past = None, 0
        if past_key_values is not None:
            past = past_key_values.get_seq_length()
            if num_steps := len(config.thinking_layers) * (config.thinking_steps - 1):
                caches = step_caches(past_key_values, config.num_hidden_layers, num_steps)
        seq_len = inputs_embeds.shape[1]
        if cache_position is None:
            cache_position = torch.arange(past, past + seq_len, device=inputs_embeds.device)
        mask = create_causal_mask(
            config=config,
            input_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache_position=cache_position,
            past_key_values=past_key_values,
            # Looked at for packed sequences alone: without any, the mask can be left to the kernel.
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        thinking = replace(
            thinking,
            first_column=past,
            is_padding_BS=None if mask is None else _padding_in(attention_mask, seq_len),
            on_step=self._tell_observers if on_step is None and self.observers else on_step,
        )
        hidden_states = inputs_embeds
        every_layer = {
            "attention_mask": mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "cache_position": cache_position,
            "position_embeddings": self.rotary_emb(hidden_states, position_ids),
            **kwargs,
        }
        remaining = iter(caches or ())
        for layer in self.layers:
            if isinstance(layer, IttDecoderLayer):
                own = None
                if caches is not None:
                    own = [next(remaining) for _ in thinking.select_ratios]
                hidden_states = layer(
                    hidden_states, thinking=thinking, step_caches=own, **every_layer
                )
            else:
                hidden_states = layer(hidden_states, **every_layer)
        for cache in caches or ():
            cache.tokens_seen = past + seq_len
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )

    def _tell_observers(self, done: ThinkingStep) -> None:
        for observer in self.observers:
            observer(done)

    @torch.compiler.disable  # a compiled model would not see the configuration change
    def _thinking(
        self, select_ratios: Sequence[float] | None, early_exit: float | None
    ) -> tuple[ThinkingPass, bool]:
        """Return the settings of a call, and whether no token then depends on later ones.

        Raises:
            ValueError: impossible ratios or ε.
        """
        config = self.config
        ratios = config.select_ratios
        if select_ratios is not None:
            ratios = config.checked_select_ratios(select_ratios)
        epsilon = config.early_exit if early_exit is None else check_early_exit(early_exit)
        return ThinkingPass(ratios, config.router_selection, epsilon), config.is_causal(ratios)


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
        self.chunk_loss: ChunkLoss = loss_and_gradient
        self.lm_head = OutputEmbedding(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def thinking_layers(self) -> list[IttDecoderLayer]:
        """The layers that think, first to last."""
        return [layer for layer in self.model.layers if isinstance(layer, IttDecoderLayer)]

    @property
    def has_thresholds(self) -> bool:
        """True if the distribution of every router's scores has been estimated."""
        tables = [layer.score_quantiles for layer in self.thinking_layers if layer.routers]
        return bool(tables) and not any(table_AXQ.isnan().any() for table_AXQ in tables)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        select_ratios: Sequence[float] | None = None,
        early_exit: float | None = None,
        on_step: OnStep | None = None,
        loss_chunk_tokens: int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, S, V), as transformers' LLaMA does; `generate()` takes the same.

        Args:
            input_ids, …, logits_to_keep: see `transformers.LlamaForCausalLM.forward`.
            select_ratios: ρ_t of this call; None takes the configuration's.
            early_exit: ε of this call; None takes the configuration's.
            on_step: called after each step of each thinking layer, unless its ratio is 0, with a
                `ThinkingStep`.
            loss_chunk_tokens: compute the loss of `labels` alone, the logits of so many tokens at
                a time, and return no logits.

        Raises:
            ValueError: impossible ratios, a cache under a rule that looks ahead, thresholds that
                have not been estimated, or outputs that a model that thinks cannot give.
        """
        if self.thinking_layers:
            self._refuse(position_ids, kwargs.get("output_attentions"))
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "cache_position": cache_position,
            "select_ratios": select_ratios,
            "early_exit": early_exit,
            "on_step": on_step,
            **kwargs,
        }
        if labels is None or loss_chunk_tokens is None:
            return super().forward(labels=labels, logits_to_keep=logits_to_keep, **inputs)
        outputs = self.model(**inputs)
        loss = self.lm_head.next_token_loss(
            outputs.last_hidden_state, labels, loss_chunk_tokens, self.chunk_loss
        )
        return CausalLMOutputWithPast(
            loss=loss,  # type: ignore[arg-type]
            past_key_values=outputs.past_key_values,
        )

    def _refuse(self, position_ids: Tensor | None, output_attentions: bool | None) -> None:
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError(
                "output_attentions: a thinking layer attends once in each step, so a layer has no "
                "one matrix; leave it off, and watch the steps with on_step"
            )
        is_flash = "flash" in (self.config._attn_implementation or "")
        if is_flash and position_ids is not None and bool((position_ids.diff() < 0).any()):
            raise ValueError(
                "packed documents (position_ids that start again) would see each other in thinking "
                "layers under flash attention; choose attn_implementation 'sdpa' or 'eager'"
            )

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Take the linear layer that resizing the vocabulary puts here, as one of our class."""
        if type(new_embeddings) is nn.Linear:
            new_embeddings.__class__ = OutputEmbedding
        super().set_output_embeddings(new_embeddings)

    @contextlib.contextmanager
    def watching(self, on_step: OnStep) -> Iterator[None]:
        """Call `on_step` after every thinking step of the calls in between.

        End it before a backward pass: with activation checkpointing that computes steps again.
        """
        self.model.observers.append(on_step)
        try:
            yield
        finally:
            self.model.observers.remove(on_step)

    def set_select_ratios(self, select_ratios: Sequence[float]) -> None:
        """Change ρ_t of the steps after the first pass (elastic thinking), here and when saved.

        Args:
            select_ratios: T-1 shares in 0..1; 0 removes a step.

        Raises:
            ValueError: wrong count, values outside 0..1, or parts of the tokens without a router.
        """
        self.config.select_ratios = self.config.checked_select_ratios(select_ratios)

    def set_router_selection(self, router_selection: RouterSelection) -> None:
        """Choose how tokens are picked, here and when saved.

        Args:
            router_selection: "top_k" and "top_p" look at the whole sequence, as in training;
                "threshold" at each token alone, so that generation can use it.

        Raises:
            ValueError: no such rule, a model without routers, or thresholds that have not been
                estimated.
        """
        if not self.config.adaptive_routing:
            raise ValueError(f"router_selection={router_selection!r} needs a router")
        check_choice("router_selection", router_selection, RouterSelection)
        before = self.config.router_selection
        self.config.router_selection = router_selection
        try:
            self.config.check_thinking()
            if router_selection == "threshold" and not self.has_thresholds:
                raise ValueError(NO_THRESHOLDS)
        except ValueError:
            self.config.router_selection = before
            raise

    def set_early_exit(self, epsilon: float) -> None:
        """Let tokens skip further steps of a layer once a step changes them by less than ε.

        Args:
            epsilon: relative change of a token's state, ‖Y[t] − Y[t-1]‖ / ‖Y[t-1]‖; 0 is off.

        Raises:
            ValueError: a negative number.
        """
        self.config.early_exit = check_early_exit(epsilon)

    def set_router_temperature(self, temperature: float) -> None:
        """Divide every router's score by this positive number from now on.

        Raises:
            ValueError: the temperature is not positive.
        """
        if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
            raise ValueError(
                f"the router's temperature must be a positive number, not {temperature!r}"
            )
        for layer in self.thinking_layers:
            if layer.routers is not None:
                layer.router_temperature.fill_(temperature)


def _padding_in(attention_mask: Tensor | None, seq_len: int) -> Tensor | None:
    """Return where the tokens at hand are padding, (B or 1, S): they may not attend to themselves.

    Args:
        attention_mask: (B, C + S), or (B or 1, 1, S, C + S), boolean or additive.
        seq_len: S.
    """
    if not isinstance(attention_mask, Tensor):
        return None
    if attention_mask.dim() == 2:
        return attention_mask[:, -seq_len:] == 0
    own = attention_mask[:, 0].diagonal(attention_mask.shape[-1] - seq_len, dim1=-2, dim2=-1)
    return ~own if own.dtype == torch.bool else own < 0


AutoModel.register(IttConfig, IttModel)
AutoModelForCausalLM.register(IttConfig, IttForCausalLM)
