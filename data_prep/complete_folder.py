"""Output folders that are either complete, with a manifest of what made them, or absent."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import DamageError, Fingerprint
from itt_composer.data.manifest import FORMAT_VERSION, MANIFEST


def fingerprints(folder: Path, files: list[Path]) -> dict[str, Fingerprint]:
    """Take the fingerprints of files, by path relative to `folder` with forward slashes."""
    return {path.relative_to(folder).as_posix(): Fingerprint.of(path) for path in files}


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path` is `folder` or lies somewhere below it, links resolved."""
    return path.resolve().is_relative_to(folder.resolve())


def already_complete(out: Path, recipe: dict[str, Any]) -> bool:
    """Return whether `out` already holds the intact output of `recipe`.

    Args:
        out: the output folder.
        recipe: command, options and input fingerprints, as `write_manifest` stores them.

    Returns:
        True when it does; False when `out` does not exist or is empty.

    Raises:
        UserError: `out` holds something else, the output of another recipe, or damaged files.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    stored = read_stored(out)
    check_same(stored, _as_stored(recipe), str(out))
    for name, file in stored["files"].items():
        try:
            Fingerprint.model_validate(file).check(out / name)
        except DamageError as damage:
            raise UserError(
                f"{out / name} {damage}: delete {out} and run the command again"
            ) from None
    return True


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` that becomes `out` when the block ends well.

    What a killed run left there is removed first; when the block raises, nothing is left.

    Raises:
        UserError: the disk is full.
    """
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        partial.replace(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full and {out} was not written: free space and run again"
            ) from error
        raise


def write_manifest(folder: Path, recipe: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Write `manifest.json`: recipe, report and a fingerprint of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {name: file.model_dump() for name, file in fingerprints(folder, files).items()}
    manifest = _as_stored(recipe) | report | {"files": listed}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _as_stored(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest that says what made the output."""
    return {"format_version": FORMAT_VERSION, **recipe}


def read_stored(out: Path) -> dict[str, Any]:
    """Read the manifest of a complete output, whichever command wrote it.

    Raises:
        UserError: the folder holds none, or something else.
    """
    try:
        stored = json.loads((out / MANIFEST).read_bytes())
        stored["format_version"]
        for file in stored["files"].values():
            Fingerprint.model_validate(file)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{out} exists and is not a complete output of this command: "
            "choose another --out or delete it"
        ) from error
    return stored


def check_same(stored: dict[str, Any], asked: dict[str, Any], out: str) -> None:
    """Refuse an output that was made by another command, of other inputs or with other options.

    Args:
        stored: its manifest.
        asked: what the manifest must say, as far as that is known before the work.
        out: where it lies, for the message.

    Raises:
        UserError: names what differs.
    """
    if differences := changes(stored, asked):
        raise UserError(
            f"{out} holds the output of another run ({differences}): "
            "choose another --out or delete what is there"
        )


def changes(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """Name what differs, in the words of the keys; empty when nothing does."""
    if stored.get("command") != asked["command"]:
        return f"of {stored.get('command')}"
    found = []
    for key, value in asked.items():
        if stored.get(key) == value:
            continue
        if isinstance(value, dict):
            found.append(f"other {key}")
        else:
            found.append(f"{key} {stored.get(key)}, asked for {value}")
    return "; ".join(found)
