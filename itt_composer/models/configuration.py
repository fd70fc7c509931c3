"""IttConfig: a LLaMA configuration plus the thinking settings."""

from dataclasses import fields

from transformers import AutoConfig, LlamaConfig

from itt_composer.thinking import ThinkingSettings, check_select_ratios

THINKING_FIELDS = tuple(field.name for field in fields(ThinkingSettings))


class IttConfig(LlamaConfig):
    """Configuration of an `IttForCausalLM`.

    Args:
        thinking, thinking_steps, thinking_layers, select_ratios, router_norm, router_selection,
            reweighting, residual_thinking, adaptive_routing, step_encoding: see
            `itt_composer.thinking.ThinkingSettings`. None means the value the kind implies.
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
        adaptive_routing=None,
        step_encoding=None,
        **kwargs,
    ):
        # A thinking layer has no key/value cache, so generate() must not ask for one, even where
        # the fields come from a LLaMA's config.json.
        kwargs["use_cache"] = thinking == "dense" and kwargs.get("use_cache", True)
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
            adaptive_routing=adaptive_routing,
            step_encoding=step_encoding,
        ).resolve(self.num_hidden_layers)
        for name in THINKING_FIELDS:
            setattr(self, name, getattr(settings, name))

    def check_thinking(self) -> None:
        """Check the fields once more: attributes can be set after construction."""
        settings = ThinkingSettings(**{name: getattr(self, name) for name in THINKING_FIELDS})
        settings.resolve(self.num_hidden_layers)

    def set_select_ratios(self, select_ratios: list[float]) -> None:
        """Set ρ_t of the steps after the first pass (elastic thinking).

        Raises:
            ValueError: wrong count, values outside 0..1, or parts of the tokens without a router.
        """
        check_select_ratios(select_ratios, self.thinking_steps, self.adaptive_routing)
        self.select_ratios = [float(ratio) for ratio in select_ratios]


AutoConfig.register(IttConfig.model_type, IttConfig)
