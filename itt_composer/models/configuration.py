"""IttConfig: a LLaMA configuration plus the thinking settings."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, LlamaConfig

from itt_composer.recipe.llama_config import rope_of_version_4
from itt_composer.recipe.thinking import (
    THINKING_FIELDS,
    ThinkingSettings,
    check_select_ratios,
)


def _signature() -> inspect.Signature:
    """Return the keywords that `IttConfig` takes, for `help` and editors."""
    own = inspect.signature(ThinkingSettings).parameters.values()
    llama = list(inspect.signature(LlamaConfig.__init__).parameters.values())[1:]
    named = [each for each in llama if each.kind is not inspect.Parameter.VAR_KEYWORD]
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *named)]
    return inspect.Signature(
        [*keywords, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
    )


class IttConfig(LlamaConfig):
    """Configuration of an `IttForCausalLM`.

    Args:
        **fields: those of `ThinkingSettings`, where None means the value the kind implies, and
            those of `transformers.LlamaConfig`. docs/recipe_keys.md says what they mean.

    Raises:
        ValueError: a thinking setting is impossible; the sentence names the field.

    Example:
        >>> IttConfig(num_hidden_layers=8, thinking_steps=3, select_ratios=[0.7, 0.7])
    """

    model_type = "itt"
    if TYPE_CHECKING:  # LLaMA's constructor fills them in
        head_dim: int
        num_key_value_heads: int
    __signature__ = _signature()

    def __init__(self, **fields: Any):
        given = {name: fields.pop(name) for name in THINKING_FIELDS if name in fields}
        super().__init__(**rope_of_version_4(fields))
        settings = ThinkingSettings(**given).resolve(self.num_hidden_layers)
        for name, value in vars(settings).items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they are written, under names that every release reads.

        `auto_map` names code beside a configuration. Where the class comes from such code,
        transformers writes it again; where it comes from the package, none is written.
        """
        config = rope_of_version_4(super().to_dict())
        if self._auto_class is None:
            config.pop("auto_map", None)
        return config

    def check_thinking(self) -> None:
        """Check the fields once more: attributes can be set after construction."""
        settings = ThinkingSettings(**{name: getattr(self, name) for name in THINKING_FIELDS})
        settings.resolve(self.num_hidden_layers)

    def checked_select_ratios(self, select_ratios: Sequence[float]) -> list[float]:
        """Return ρ_t of the steps after the first pass, if this model can use them.

        Raises:
            ValueError: wrong count, values outside 0..1, or parts of the tokens without a router.
        """
        check_select_ratios(select_ratios, self.thinking_steps, self.adaptive_routing)
        return [float(ratio) for ratio in select_ratios]

    def is_causal_at(self, select_ratios: Sequence[float]) -> bool:
        """Return whether no token's logits depend on later tokens, at the given ratios."""
        looks_ahead = self.adaptive_routing and self.router_selection != "threshold"
        return not (looks_ahead and any(0 < ratio < 1 for ratio in select_ratios))


AutoConfig.register(IttConfig.model_type, IttConfig)
