"""Checks the settings that lie with a model, before transformers follows them."""

import json
from collections.abc import Mapping
from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.recipe.model_is_data import (
    REFUSED_FILES,
    SETTING_FILES,
    check_model_file,
    check_model_folder,
)

ADAPTER = "adapter_config.json"


def check_source(source: str | Path, revision: str | None = None) -> None:
    """Refuse a folder, or a model on the hub, whose files ask for anything unknown.

    Args:
        source: folder or hub name; one that is not there is left to its loader.
        revision: of a model on the hub; None is its main branch.

    Raises:
        UserError: names the file, the key and its value.
    """
    if Path(source).is_dir():
        check_model_folder(Path(source))
        return
    for name in (*SETTING_FILES, ADAPTER):
        file = _fetched(str(source), name, revision)
        if file is None:
            continue
        if name == ADAPTER:
            raise UserError(f"{source} holds {name}: {REFUSED_FILES[name]}")
        try:
            content = json.loads(Path(file).read_bytes())
        except ValueError:  # its loader says so
            continue
        if isinstance(content, Mapping):
            check_model_file(content, f"{source}/{name}")


def _fetched(source: str, name: str, revision: str | None) -> str | None:
    """Return a file of a model on the hub as transformers would read it, if it has one."""
    from transformers.utils import cached_file  # takes seconds

    try:
        return cached_file(
            source,
            name,
            revision=revision or "main",
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such model
        return None
