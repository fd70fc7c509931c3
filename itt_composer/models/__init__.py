"""Holds the model: `IttConfig` and `IttForCausalLM`.

Both load on first use: their files take seconds to import, which a command that only checks its
input does not need, and transformers may import the configuration while its own modeling files
are still loading.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itt_composer.models.configuration import IttConfig
    from itt_composer.models.modeling import IttForCausalLM

__all__ = ["IttConfig", "IttForCausalLM"]
_FILES = {"IttConfig": "configuration", "IttForCausalLM": "modeling"}


def __getattr__(name: str):
    if name in _FILES:
        return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
