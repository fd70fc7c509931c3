"""Holds the model: `IttConfig` and `IttForCausalLM`.

The modeling file loads on first use: transformers may import the configuration while its own
modeling files are still loading.
"""

from typing import TYPE_CHECKING

from itt_composer.models.configuration import IttConfig

if TYPE_CHECKING:
    from itt_composer.models.modeling import IttForCausalLM

__all__ = ["IttConfig", "IttForCausalLM"]


def __getattr__(name: str):
    if name == "IttForCausalLM":
        from itt_composer.models.modeling import IttForCausalLM

        return IttForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
