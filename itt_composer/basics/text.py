"""Texts of files and names of folders as UTF-8 can hold them."""

from typing import Any


def readable(content: Any) -> Any:
    """A text, or lists and mappings of texts, with a "?" for each lone surrogate.

    They stand for the bytes of a file's name that is not UTF-8, and come from JSON and YAML that
    has half of an escaped pair (`\\ud83d`).
    """
    if isinstance(content, str):
        return content.encode("utf-8", errors="replace").decode()
    if isinstance(content, dict):
        return {readable(key): readable(value) for key, value in content.items()}
    return [readable(value) for value in content] if isinstance(content, list) else content
