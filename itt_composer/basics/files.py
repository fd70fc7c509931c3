"""Writes files and folders that are either whole or not there."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from itt_composer.basics.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Write a text file by way of a partial one beside it; makes missing folders."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Write a JSON file by way of a partial one beside it, indented, as `json_text` has it."""
    write_whole(path, json_text(content, str(path), indent=1, **options) + "\n")


def json_text(content: Any, place: str, **options: Any) -> str:
    """Write JSON without bare NaN or Infinity, for which other programs refuse a file.

    Args:
        content: plain types.
        place: the file that the text is for, for the message.
        options: those of `json.dumps`.

    Raises:
        UserError: a number is NaN or infinite; the sentence names the key.
    """
    try:
        return json.dumps(content, allow_nan=False, ensure_ascii=False, **options)
    except ValueError:
        key = _not_a_number(content)
        if key is None:
            raise
        raise UserError(
            f"{place} was not written: {key} is NaN or infinite, which JSON cannot hold"
        ) from None


def numbers_only(value: Any) -> Any:
    """Replace NaN and infinities, for which JSON has no number, by None."""
    if isinstance(value, dict):
        return {key: numbers_only(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [numbers_only(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_a_number(content: Any, key: str = "") -> str | None:
    """Return where the first NaN or infinity stands, keys joined by dots."""
    if isinstance(content, float):
        return None if math.isfinite(content) else key
    if isinstance(content, dict):
        parts: Iterable[tuple[Any, Any]] = content.items()
    else:
        parts = enumerate(content) if isinstance(content, list | tuple) else ()
    found = (_not_a_number(part, f"{key}.{name}".lstrip(".")) for name, part in parts)
    return next((place for place in found if place is not None), None)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a partial file beside `path`, which becomes it at the end and is removed on an error.

    Makes missing folders.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a partial folder, which becomes `folder` at the end and is removed on an error.

    The old content of `folder` is removed once the new one is complete; call `check_new_folder`
    first where it must stay.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = f".{folder.name}.{uuid4().hex[:8]}"
    partial, old = folder.with_name(f"{name}.partial"), folder.with_name(f"{name}.old")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_place(path: Path, option: str) -> None:
    """Refuse, before any work, to write below something that is a file.

    Args:
        path: the file or folder to make.
        option: the option that names it.

    Raises:
        UserError: one of its parents is not a folder.
    """
    for parent in path.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{option} {path}: {parent} is not a folder; name another place")


def check_new_folder(folder: Path) -> None:
    """Refuse to write where something exists already.

    Raises:
        UserError: the path is a file, or a folder that is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is there and not empty; name a new folder, or empty it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new folder")
