"""Import strings, by which a room names what is above it or takes long to load."""

import importlib
from typing import Any


def imported(target: str) -> Any:
    """What an import string ("module:attribute") names."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
