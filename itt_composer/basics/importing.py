"""Imports by a string: what takes long to load, or lies in a room above."""

import importlib
from typing import Any


def imported(target: str) -> Any:
    """Import what a string ("module:attribute") names."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
