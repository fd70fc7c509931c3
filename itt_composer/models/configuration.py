"""IttConfig: a LLaMA configuration plus the thinking settings."""

from collections.abc import Sequence
from dataclasses import fields

from transformers import AutoConfig, LlamaConfig

from itt_composer.recipe.thinking import ThinkingSettings, check_select_ratios

THINKING_FIELDS = tuple(field.name for field in fields(ThinkingSettings))


class IttConfig(LlamaConfig):
    """Configuration of an `IttForCausalLM`.

    Args:
        thinking, thinking_steps, thinking_layers, select_ratios, router_norm, router_selection,
            reweighting, residual_thinking, thinking_update, adaptive_routing, step_encoding,
            step_encoding_init, early_exit: see `ThinkingSettings`. None means the value the kind
            implies.
        **kwargs: the fields of `transformers.LlamaConfig`.

    Raises:
        ValueError: a thinking setting is impossible; the sentence names the field.

    Example:
        >>> IttConfig(num_hidden_layers=8, thinking_steps=3, select_ratios=[0.7, 0.7])
    """

    model_type = "itt"

    def __init__(
        self,
        thinking="itt",
        thinking_steps=None,
        thinking_layers=None,
        select_ratios=None,
        router_norm=None,
        router_selection=None,
        reweighting=None,
        residual_thinking=None,
        thinking_update=None,
        adaptive_routing=None,
        step_encoding=None,
        step_encoding_init=None,
        early_exit=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        settings = ThinkingSettings(
            thinking=thinking,
            thinking_steps=thinking_steps,
            thinking_layers=thinking_layers,
            select_ratios=select_ratios,
            router_norm=router_norm,
            router_selection=router_selection,
            reweighting=reweighting,
            residual_thinking=residual_thinking,
            thinking_update=thinking_update,
            adaptive_routing=adaptive_routing,
            step_encoding=step_encoding,
            step_encoding_init=step_encoding_init,
            early_exit=early_exit,
        ).resolve(self.num_hidden_layers)
        for name in THINKING_FIELDS:
            setattr(self, name, getattr(settings, name))

    def check_thinking(self) -> None:
        """Check the fields once more: attributes can be set after construction."""
        settings = ThinkingSettings(**{name: getattr(self, name) for name in THINKING_FIELDS})
        settings.resolve(self.num_hidden_layers)

    def checked_select_ratios(self, select_ratios: Sequence[float]) -> list[float]:
        """ρ_t of the steps after the first pass, if this model can use them.

        Raises:
            ValueError: wrong count, values outside 0..1, or parts of the tokens without a router.
        """
        check_select_ratios(select_ratios, self.thinking_steps, self.adaptive_routing)
        return [float(ratio) for ratio in select_ratios]

    def is_causal(self, select_ratios: Sequence[float]) -> bool:
        """Whether no token's logits depend on later tokens, at the given ratios."""
        looks_ahead = self.adaptive_routing and self.router_selection != "threshold"
        return not (looks_ahead and any(0 < ratio < 1 for ratio in select_ratios))


AutoConfig.register(IttConfig.model_type, IttConfig)
