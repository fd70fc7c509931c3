"""A LLaMA decoder layer that thinks: it is applied again to the tokens that each step selects.

Shapes: B batch, S sequence, K selected tokens, D hidden size, T thinking steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itt_composer.models import routing
from itt_composer.models.configuration import IttConfig
from itt_composer.models.llama import DenseLayer
from itt_composer.models.step_attention import keys_for, mask_among, positions_of
from itt_composer.models.step_cache import StepSlot, ThinkingStepCache
from itt_composer.models.thresholds import QUANTILES, anchor_settings, thresholds_at
from itt_composer.recipe.thinking import RouterSelection

NO_THRESHOLDS = (
    "router_selection='threshold' needs thresholds, and this model has none yet: "
    "run itt calibrate on it"
)


@dataclass(frozen=True)
class ThinkingStep:
    """One thinking step as an observer sees it.

    Attributes:
        layer_idx: of the thinking layer.
        step: t, from 1.
        scores_BS: the router's; None without one.
        weights_BS: w, every token's; None without a router.
        is_selected_BS: whether each token took the step. At ratio 1 padding counts as taken.
        old_BSD: Y[t-1].
        new_BSD: Y[t].
    """

    layer_idx: int
    step: int
    scores_BS: Tensor | None
    weights_BS: Tensor | None
    is_selected_BS: Tensor
    old_BSD: Tensor
    new_BSD: Tensor


# Called after each step, but not for one of ratio 0.
OnStep: TypeAlias = Callable[[ThinkingStep], None]


@dataclass(frozen=True)
class ThinkingPass:
    """What the thinking layers share in one forward pass.

    Attributes:
        select_ratios: ρ_t in force, one per step after the first pass; 0 skips the step.
        router_selection: the rule by which tokens are picked; None without a router.
        early_exit: ε; a token whose relative change in a step falls below it takes no further
            step in that layer. 0 is off. A step of ratio 0 changes nothing and decides nothing.
        first_column: column of the first token at hand: how many have gone by.
        is_padding_BS: where the tokens at hand are padding, or None if nowhere.
        on_step: called after every step.
    """

    select_ratios: Sequence[float]
    router_selection: RouterSelection | None
    early_exit: float = 0.0
    first_column: int = 0
    is_padding_BS: Tensor | None = None
    on_step: OnStep | None = None


class Router(nn.Module):
    """R_t: a linear score per token, computed in at least float32 so that ranks are not ties."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))

    def forward(self, hidden_states_BSD: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden_states_BSD.dtype, torch.float32)
        with torch.autocast(hidden_states_BSD.device.type, enabled=False):
            return F.linear(hidden_states_BSD.to(dtype), self.weight.to(dtype)).squeeze(-1)


class IttDecoderLayer(DenseLayer):
    """A LLaMA decoder layer that is applied up to T times with the same weights.

    With `Y[0] = φ_0 ⊙ f(X)` and, for the tokens selected at step t (α = 1),
    `Y[t] = Y[t-1] + φ_t ⊙ w · f(Y[t-1])`, the output is `Y[T-1]`. f is the whole layer, its
    internal residuals included. The selected tokens attend causally among themselves, at their
    original rotary positions.

    Args:
        config: the model's configuration.
        dense_layer: the layer whose modules this one takes over. Built that way, one seed gives
            the same LLaMA weights to dense, loop and ITT models.

    Attributes:
        router_temperature: divides the routers' scores; part of the state, so that a model
            computes after loading what it computed before saving.
        score_quantiles: the distribution of each router's scores at each anchor setting
            (`thresholds.py`), (anchors, T-1, quantiles); NaN until it has been estimated.
    """

    router_temperature: Tensor
    score_quantiles: Tensor

    def __init__(self, config: IttConfig, dense_layer: DenseLayer):
        nn.Module.__init__(self)
        self.config = config
        self.hidden_size = config.hidden_size
        for name, module in dense_layer.named_children():
            self.add_module(name, module)
        self.layer_idx = dense_layer.self_attn.layer_idx

        self.routers: nn.ModuleList | None = None
        if config.adaptive_routing:
            steps = config.thinking_steps - 1
            self.routers = nn.ModuleList(Router(config.hidden_size) for _ in range(steps))
            self.register_buffer("router_temperature", torch.ones(()))
            shape = (len(anchor_settings(steps)), steps, QUANTILES)
            tables = torch.full(shape, torch.nan, dtype=torch.float32)
            self.register_buffer("score_quantiles", tables)
            self._thresholds: dict[tuple, Tensor] = {}
        self.step_encoding: nn.Parameter | None = None
        if config.step_encoding:
            encoding = torch.ones(config.thinking_steps, self.hidden_size)
            self.step_encoding = nn.Parameter(encoding)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IttDecoderLayer":
        """Move or cast the layer; thresholds stay float32, as the scores they are held against."""
        tables = self._buffers.get("score_quantiles")
        super()._apply(fn, recurse)
        if tables is not None and not self.score_quantiles.is_meta and not tables.is_meta:
            self.score_quantiles = tables.to(self.score_quantiles.device)
        return self

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        thinking: ThinkingPass | None = None,
        step_caches: Sequence[ThinkingStepCache] | None = None,
    ) -> Tensor:
        """Apply the layer to all tokens, then again to the tokens each step selects.

        Args:
            hidden_states: X, (B, S, D).
            attention_mask: in the form that the attention implementation takes: None (causal),
                (B, C + S) or (B or 1, 1, S, C + S), boolean or additive.
            position_embeddings: cos and sin of the rotary positions, each (B or 1, S, H).
            cache: of the first pass.
            position_ids: not read: positions with gaps would look like packed documents to flash
                attention, and rotary positions come as `position_embeddings`.
            cache_position: not read: there are no static caches of thinking steps.
            thinking: how to think; None means by the configuration.
            step_caches: the T-1 caches of this layer's steps, if there is a cache.

        Returns:
            Y[T-1], (B, S, D).
        """
        if thinking is None:
            thinking = ThinkingPass(self.config.select_ratios, self.config.router_selection)
        apply_layer: Callable[..., Tensor] = partial(
            self._apply_layer,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            cache=cache,
            step_caches=step_caches,
            first_column=thinking.first_column,
        )
        old_BSD, states_BSD = hidden_states, self._encode_step(0, apply_layer(hidden_states))
        is_out_BS = thinking.is_padding_BS
        if is_out_BS is not None:
            # On several devices each layer is sent its tensors, but not an object that holds one.
            is_out_BS = is_out_BS.to(hidden_states.device)
        for step, ratio in enumerate(thinking.select_ratios, start=1):
            if thinking.early_exit:
                is_out_BS = _with_converged(is_out_BS, old_BSD, states_BSD, thinking.early_exit)
            if ratio == 0:
                continue
            scores_BS, weights_BS, selection = self._route(step, states_BSD, thinking, is_out_BS)
            old_BSD = states_BSD
            states_BSD = self.think(step, old_BSD, weights_BS, selection, apply_layer)
            if thinking.on_step is not None:
                mask_BS = routing.mask_of(selection, old_BSD)
                thinking.on_step(
                    ThinkingStep(
                        self.layer_idx, step, scores_BS, weights_BS, mask_BS, old_BSD, states_BSD
                    )
                )
        return states_BSD

    def _apply_layer(
        self,
        tokens_BKD: Tensor,
        selection: routing.Selection | None = None,
        step: int = 0,
        *,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
        cache: Any,
        step_caches: Sequence[ThinkingStepCache] | None,
        first_column: int,
    ) -> Tensor:
        """Apply f, the whole LLaMA layer, to all tokens or to selected ones."""
        if selection is not None:
            position_embeddings = positions_of(position_embeddings, selection.indices_BK)
        if step and step_caches is not None:
            cache = StepSlot(step_caches[step - 1])
            selection = selection or routing.select_all(tokens_BKD)
        if selection is not None:
            keys = keys_for(selection, first_column, cache)
            is_flash = "flash" in (self.config._attn_implementation or "")
            attention_mask = mask_among(selection, attention_mask, first_column, keys, is_flash)
        return super().forward(tokens_BKD, attention_mask, position_embeddings, cache)

    def _route(
        self, step: int, states_BSD: Tensor, thinking: ThinkingPass, is_out_BS: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, routing.Selection | None]:
        """Route the tokens (Adaptive Token Routing): weigh each, and select those for the step.

        Args:
            step: t, from 1.
            states_BSD: Y[t-1].
            thinking: the settings in force.
            is_out_BS: tokens that may not take the step: padding, and those that have converged.

        Returns:
            The scores and the weights (None: all 1), and a selection (None: all tokens).
        """
        if self.routers is None:
            return None, None, _everyone_left(thinking, is_out_BS)
        ratio = thinking.select_ratios[step - 1]
        scores_BS = self.routers[step - 1](states_BSD)
        weights_BS = routing.router_weights(
            scores_BS, self.config.router_norm, self.router_temperature
        )
        # Weights rise with scores, and scores do not tie where the norm saturates.
        ranks_BS = scores_BS.detach()
        selection: routing.Selection | None
        if ratio == 1:
            selection = _everyone_left(thinking, is_out_BS)
        elif thinking.router_selection == "threshold":
            is_above_BS = ranks_BS > self.thresholds(thinking.select_ratios)[step - 1]
            if is_out_BS is not None:
                is_above_BS &= ~is_out_BS
            selection = routing.select_where(is_above_BS)
        elif thinking.router_selection == "top_p":
            selection = routing.select_top_p(weights_BS.detach(), ratio, is_out_BS)
        else:
            if is_out_BS is not None:
                ranks_BS = ranks_BS.masked_fill(is_out_BS, -torch.inf)
            k = routing.capacity(ratio, states_BSD.shape[1])
            selection = routing.select_top_k(ranks_BS, k)
            if thinking.early_exit:
                is_in_BK = ranks_BS.gather(1, selection.indices_BK) > -torch.inf
                selection = selection._replace(is_selected_BK=is_in_BK)
        return scores_BS, weights_BS, selection

    @torch.compiler.disable
    def thresholds(self, select_ratios: Sequence[float]) -> Tensor:
        """Return the score a token must exceed to take each step, (T-1,), at the given ratios.

        Raises:
            ValueError: the distribution of the scores has not been estimated.
        """
        tables = self.score_quantiles
        key = None
        if not tables.is_inference():  # such tensors have no version that shows a change
            key = (tuple(select_ratios), tables._version, tables.data_ptr())
            if key in self._thresholds:
                return self._thresholds[key]
        thresholds = thresholds_at(tables, select_ratios)
        if thresholds.isnan().any():
            raise ValueError(NO_THRESHOLDS)
        self._thresholds = {} if key is None else {key: thresholds}
        return thresholds

    def think(
        self,
        step: int,
        states_BSD: Tensor,
        weights_BS: Tensor | None,
        selection: routing.Selection | None,
        apply_layer: Callable[..., Tensor],
    ) -> Tensor:
        """Take one thinking step: compute the selected tokens; the others keep their state.

        With symmetric reweighting the others are reweighted with the identity in place of f.
        """
        weights_BS1 = states_BSD.new_ones(())
        if weights_BS is not None:
            weights_BS1 = weights_BS.to(states_BSD.dtype).unsqueeze(-1)
        if selection is None:
            update_BSD = weights_BS1 * self._contribution(step, states_BSD, None, apply_layer)
            return self._accumulate(step, states_BSD, update_BSD)
        indices_BK, is_selected_BK = selection
        skipped_BSD = states_BSD
        if self.config.reweighting == "symmetric":
            skipped_BSD = self._accumulate(step, states_BSD, weights_BS1 * states_BSD)
        if indices_BK.shape[1] == 0:
            return skipped_BSD
        old_BKD = routing.take_tokens(states_BSD, indices_BK)
        if weights_BS is not None:
            weights_BS1 = routing.take_tokens(weights_BS1, indices_BK)
        update_BKD = weights_BS1 * self._contribution(step, old_BKD, selection, apply_layer)
        new_BKD = self._accumulate(step, old_BKD, update_BKD)
        if is_selected_BK is not None:
            kept_BKD = routing.take_tokens(skipped_BSD, indices_BK)
            new_BKD = torch.where(is_selected_BK.unsqueeze(-1), new_BKD, kept_BKD)
        return routing.put_tokens(skipped_BSD, indices_BK, new_BKD)

    def _contribution(
        self,
        step: int,
        tokens_BKD: Tensor,
        selection: routing.Selection | None,
        apply_layer: Callable[..., Tensor],
    ) -> Tensor:
        """Return what a step adds, before weight and encoding: f(Y), or f(Y) − Y."""
        output_BKD = apply_layer(tokens_BKD, selection, step)
        if self.config.thinking_update == "increment":
            return output_BKD - tokens_BKD
        return output_BKD

    def _accumulate(self, step: int, states: Tensor, update: Tensor) -> Tensor:
        """Add the encoded update (Residual Thinking Connection), or replace the state by it."""
        contribution = self._encode_step(step, update)
        return states + contribution if self.config.residual_thinking else contribution

    def _encode_step(self, step: int, update: Tensor) -> Tensor:
        """Scale a step's contribution elementwise by φ_t (Thinking Step Encoding)."""
        return update if self.step_encoding is None else self.step_encoding[step] * update


def _everyone_left(thinking: ThinkingPass, is_out_BS: Tensor | None) -> routing.Selection | None:
    """Select all tokens but those that early exit has taken out; padding may stay in."""
    if not thinking.early_exit or is_out_BS is None:
        return None
    return routing.select_where(~is_out_BS)


def _with_converged(
    is_out_BS: Tensor | None, old_BSD: Tensor, new_BSD: Tensor, epsilon: float
) -> Tensor:
    """Mark the tokens that were out and, for early exit, those that changed by less than ε.

    A token that took no step has not changed at all; it stays in, since that shows nothing.
    """
    change_BS = (new_BSD - old_BSD).float().norm(dim=-1)
    has_converged_BS = (change_BS > 0) & (change_BS < epsilon * old_BSD.float().norm(dim=-1))
    return has_converged_BS if is_out_BS is None else is_out_BS | has_converged_BS
