"""The Inner Thinking Transformer on transformers' LLaMA (arXiv 2502.13842).

Each piece of the paper stands under its own name:

- Adaptive Token Routing: `layer.Router`, `layer.IttDecoderLayer._route` and `routing.py`
- Residual Thinking Connection and Thinking Step Encoding: `layer.IttDecoderLayer._accumulate`
- elastic thinking: `IttForCausalLM.set_select_ratios`
- early exit: `layer.ThinkingPass`

A layer that does not think is LLaMA's (`llama.DenseLayer`), so a dense model computes what
transformers' `LlamaForCausalLM` computes. Parameter names are LLaMA's, plus `routers` and
`step_encoding` in the thinking layers. `versions.py` bridges the releases of transformers.

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
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from itt_composer.models.configuration import IttConfig
from itt_composer.models.layer import (
    NO_THRESHOLDS,
    IttDecoderLayer,
    OnStep,
    Router,
    ThinkingPass,
    ThinkingStep,
)
from itt_composer.models.llama import DenseLayer
from itt_composer.models.loss import ChunkLoss, OutputEmbedding, loss_and_gradient
from itt_composer.models.outputs import Recorder, as_wanted, one_cache
from itt_composer.models.step_cache import ThinkingStepCache, step_caches
from itt_composer.models.versions import CACHE_NAME, causal_mask, is_initialized
from itt_composer.recipe.thinking import RouterSelection, check_choice, check_early_exit


class IttPreTrainedModel(LlamaPreTrainedModel):
    """What both models share: the configuration class and the initial weights."""

    config_class = IttConfig
    config: IttConfig
    _no_split_modules = ["DenseLayer", "IttDecoderLayer"]  # noqa: RUF012 (as in the base)
    # Tokens in a step differ from row to row and from pass to pass: no fixed shapes.
    _can_compile_fullgraph = False
    # Weights may be saved before thresholds were estimated; then NaN stands for them.
    _keys_to_ignore_on_load_missing = [r"\.score_quantiles$"]  # type: ignore[assignment]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router):
            if not is_initialized(module.weight):
                nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, IttDecoderLayer):
            self._init_thinking(module)

    @torch.no_grad()
    def _init_thinking(self, layer: IttDecoderLayer) -> None:
        """Give a layer's encoding, temperature and thresholds initial values, if they have none."""
        encoding = layer.step_encoding
        if encoding is not None and not is_initialized(encoding):
            nn.init.constant_(encoding, self.config.step_encoding_init)
            nn.init.ones_(encoding[0])
        if layer.routers is not None:
            if not is_initialized(layer.router_temperature):
                nn.init.ones_(layer.router_temperature)
            if not is_initialized(layer.score_quantiles):
                nn.init.constant_(layer.score_quantiles, torch.nan)


class IttModel(IttPreTrainedModel, LlamaModel):
    """A LLaMA without its output embedding, in which some layers think."""

    def __init__(self, config: IttConfig):
        config.check_thinking()
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers = [DenseLayer(config, index) for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()
        self.observers: list[OnStep] = []  # see `IttForCausalLM.watching`
        # Routers draw from a fork of the random stream: what is initialised after them then
        # equals the dense model's of the same seed.
        with torch.random.fork_rng(devices=[]):
            for index in config.thinking_layers:
                self.layers[index] = IttDecoderLayer(config, layers[index])
            self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        select_ratios: Sequence[float] | None = None,
        early_exit: float | None = None,
        on_step: OnStep | None = None,
        cache: DynamicCache | None = None,
    ) -> BaseModelOutputWithPast | tuple:
        """Return the hidden states of the last layer, (B, S, D); see `IttForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        thinking, is_causal = self._thinking(select_ratios, early_exit)
        cache = self._cache(one_cache(past_key_values, cache), use_cache, is_causal)
        past, seq_len = 0 if cache is None else cache.get_seq_length(), inputs_embeds.shape[1]
        if cache_position is None:
            cache_position = torch.arange(past, past + seq_len, device=inputs_embeds.device)
        # Positions matter to the mask for packed documents alone: without any, it can be left to
        # the kernel.
        mask = causal_mask(
            self.config, inputs_embeds, attention_mask, cache, position_ids, cache_position
        )
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        thinking = replace(
            thinking,
            first_column=past,
            is_padding_BS=None if mask is None else _padding_in(attention_mask, seq_len),
            on_step=self._report_step if on_step is None and self.observers else on_step,
        )
        recorder = Recorder(self.config, output_hidden_states, output_attentions)
        with recorder.recording(self.layers):
            states = self._apply_layers(
                inputs_embeds,
                thinking,
                attention_mask=mask,
                position_embeddings=self.rotary_emb(inputs_embeds, position_ids),
                cache=cache,
                position_ids=position_ids,
                cache_position=cache_position,
            )
        states = self.norm(states)
        output = BaseModelOutputWithPast(
            last_hidden_state=states,
            hidden_states=recorder.hidden_states(states),
            attentions=recorder.attentions,
            **{CACHE_NAME: cache},
        )
        return as_wanted(output, self.config, return_dict)

    def _apply_layers(
        self, states: Tensor, thinking: ThinkingPass, cache: DynamicCache | None, **every_layer: Any
    ) -> Tensor:
        """Return the states after the last layer, (B, S, D); those that go in are of that shape."""
        num_steps = len(thinking.select_ratios)
        caches: list[ThinkingStepCache] = []
        if cache is not None and self.config.thinking_layers and num_steps:
            total = len(self.config.thinking_layers) * num_steps
            caches = step_caches(cache, self.config.num_hidden_layers, total)
        remaining, seen = iter(caches), thinking.first_column + states.shape[1]
        for layer in self.layers:
            if isinstance(layer, IttDecoderLayer):
                own = [next(remaining) for _ in range(num_steps)] if caches else None
                states = layer(
                    states, thinking=thinking, step_caches=own, cache=cache, **every_layer
                )
            else:
                states = layer(states, cache=cache, **every_layer)
        for step_cache in caches:
            step_cache.tokens_seen = seen
        return states

    def _cache(
        self, cache: DynamicCache | None, use_cache: bool | None, is_causal: bool
    ) -> DynamicCache | None:
        """Return the key/value cache of a call, a new one where one is wanted.

        Raises:
            ValueError: a cache under a rule that looks at later tokens.
        """
        if cache is not None and not is_causal:
            raise ValueError(
                f"router_selection='{self.config.router_selection}' picks tokens by looking at "
                "later ones, so there can be no key/value cache: call "
                "set_router_selection('threshold'), or pass use_cache=False"
            )
        if use_cache is None:
            use_cache = self.config.use_cache
        is_recomputed = self.training and any(
            getattr(layer, "gradient_checkpointing", False) for layer in self.layers
        )
        if cache is None and use_cache and is_causal and not is_recomputed:
            return DynamicCache(config=self.config)
        return cache

    def _report_step(self, done: ThinkingStep) -> None:
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
        return ThinkingPass(ratios, config.router_selection, epsilon), config.is_causal_at(ratios)


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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        select_ratios: Sequence[float] | None = None,
        early_exit: float | None = None,
        on_step: OnStep | None = None,
        loss_chunk_tokens: int | None = None,
        cache: DynamicCache | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits (B, S, V), as transformers' LLaMA does; `generate()` takes the same.

        Args:
            input_ids, …, return_dict: see `transformers.LlamaForCausalLM.forward`.
            select_ratios: ρ_t of this call; None takes the configuration's.
            early_exit: ε of this call; None takes the configuration's.
            on_step: called after each step of each thinking layer, unless its ratio is 0, with a
                `ThinkingStep`.
            loss_chunk_tokens: compute the loss of `labels` alone, the logits of so many tokens at
                a time, and return no logits.
            cache: another name of `past_key_values`, which transformers uses from 5.24 on.

        Raises:
            ValueError: impossible ratios, a cache under a rule that looks ahead, thresholds that
                have not been estimated, or outputs that a model that thinks cannot give.
            TypeError: an argument that is not in this list.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        self._refuse(position_ids, output_attentions)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache_position=cache_position,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            select_ratios=select_ratios,
            early_exit=early_exit,
            on_step=on_step,
            cache=one_cache(past_key_values, cache),
        )
        states, logits, loss = outputs.last_hidden_state, None, None
        if labels is not None and loss_chunk_tokens is not None:
            loss = self.lm_head.next_token_loss(states, labels, loss_chunk_tokens, self.chunk_loss)
        else:
            kept: slice | Tensor = slice(None)
            if not isinstance(logits_to_keep, int):
                kept = logits_to_keep
            elif logits_to_keep:
                kept = slice(-logits_to_keep, None)
            logits = self.lm_head(states[:, kept])
            if labels is not None:
                loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )
        return as_wanted(output, self.config, return_dict)

    def _refuse(self, position_ids: Tensor | None, output_attentions: bool) -> None:
        if output_attentions and self.thinking_layers:
            raise ValueError(
                "output_attentions: a thinking layer attends once in each step, so a layer has no "
                "one matrix; leave it off, and watch the steps with on_step"
            )
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                "output_attentions needs attn_implementation 'eager', not "
                f"'{self.config._attn_implementation}', whose kernel does not give them"
            )
        if not self.thinking_layers:
            return
        is_flash = "flash" in (self.config._attn_implementation or "")
        if is_flash and position_ids is not None and bool((position_ids.diff() < 0).any()):
            raise ValueError(
                "packed documents (position_ids that start again) would see each other in thinking "
                "layers under flash attention; choose attn_implementation 'sdpa' or 'eager'"
            )

    def tie_weights(self, *args: Any, **options: Any) -> None:
        """Tie the output embedding to the input's where the configuration says so.

        5.3 takes it for loaded if this class comes from a folder, and leaves it without values.
        """
        missing, output = options.get("missing_keys"), self.lm_head
        if missing is not None and self.config.tie_word_embeddings:
            is_left = output.weight.is_meta and not self.model.embed_tokens.weight.is_meta
            missing |= {"lm_head.weight"} if is_left else set()
        super().tie_weights(*args, **options)

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


AutoModel.register(IttConfig, IttModel, exist_ok=True)
AutoModelForCausalLM.register(IttConfig, IttForCausalLM, exist_ok=True)
