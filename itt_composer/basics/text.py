"""Makes texts of files and names of folders fit for UTF-8."""

from typing import Any


def readable(content: Any) -> Any:
    """Replace each lone surrogate by "?" in a text, or in lists and mappings of texts.

    Lone surrogates stand for bytes of a file name that are not UTF-8, and come from JSON and YAML
    with half of an escaped pair (`\\ud83d`).
    """
    if isinstance(content, str):
        return content.encode("utf-8", errors="replace").decode()
    if isinstance(content, dict):
        return {readable(key): readable(value) for key, value in content.items()}
    return [readable(value) for value in content] if isinstance(content, list) else content
