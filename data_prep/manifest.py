"""An output folder is either complete, with a manifest of what made it, or not there at all."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.data.shards import FORMAT_VERSION

MANIFEST = "manifest.json"


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file's content."""
    digest = sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def fingerprint_files(folder: Path, files: list[Path]) -> dict[str, Any]:
    """Fingerprints by path relative to `folder`, written with forward slashes."""
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies somewhere below it, links resolved."""
    return path.resolve().is_relative_to(folder.resolve())


def already_complete(out: Path, recipe: dict[str, Any]) -> bool:
    """Tell whether `out` already holds the intact output of `recipe`.

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
    manifest = read_manifest(out)
    check_same(manifest, recipe, str(out))
    for name, stored in manifest["files"].items():
        path = out / name
        if not path.is_file() or fingerprint(path) != stored:
            raise UserError(
                f"{path} is missing or has changed since it was written: "
                f"delete {out} and run the command again"
            )
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
    manifest = as_stored(recipe) | report | {"files": fingerprint_files(folder, files)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def as_stored(recipe: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that says what made the output."""
    return {"format_version": FORMAT_VERSION, **recipe}


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a complete output.

    Raises:
        UserError: the folder holds none, or something else.
    """
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        # Both are looked up below and in changes, so anything without them is not ours.
        manifest["format_version"], manifest["files"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{out} exists and is not a complete output of this command: "
            "choose another --out or delete it"
        ) from error
    return manifest


def check_same(manifest: dict[str, Any], recipe: dict[str, Any], out: str) -> None:
    """Refuse an output that was made by another command, of other inputs or with other options.

    Raises:
        UserError: names what differs.
    """
    if differences := changes(manifest, as_stored(recipe)):
        raise UserError(
            f"{out} holds the output of another run ({differences}): "
            "choose another --out or delete what is there"
        )


def changes(manifest: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Name what differs, in the words of the recipe's keys; empty when nothing does."""
    if manifest.get("command") != recipe["command"]:
        return f"of {manifest.get('command')}"
    found = []
    for key, asked in recipe.items():
        stored = manifest.get(key)
        if stored == asked:
            continue
        if isinstance(asked, dict):
            found.append(f"other {key}")
        else:
            found.append(f"{key} {stored}, asked for {asked}")
    return "; ".join(found)
