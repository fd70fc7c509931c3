"""Files that are either whole or not there."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file by way of a partial one beside it; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
