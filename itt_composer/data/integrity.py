"""Are the shards of a run still the bytes that were written? Looked at before training starts.

What was read and found whole is recorded, and is not read again while size and time are the same.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import DamageError, Fingerprint, reading
from itt_composer.data.index import INDEX, ShardIndex
from itt_composer.data.manifest import HOW_TO_MAKE, MANIFEST, Manifest

RECORD_FILE = ".verified.json"

# By path below the folder: [bytes, mtime in ns, SHA-256] of a file that was read and found whole.
Record: TypeAlias = dict[str, list[Any]]


class Expected(NamedTuple):
    """What a file must be, and whether it must be there."""

    fingerprint: Fingerprint
    required: bool = True


def expected_files(
    folder: Path, manifest: Manifest, streams: Iterable[tuple[str, str]]
) -> dict[str, Expected]:
    """List every file that the streams and the tokenizer are made of, by path below `folder`.

    The manifest does not list a compressed shard that has been decompressed beside its origin: its
    index says what it must be.

    Raises:
        UserError: an index is damaged, or names a shard that the manifest does not list.
    """
    names = [name for name in manifest.files if name.startswith("tokenizer/")]
    decompressed = {}
    for split, domain in streams:
        stream = f"{split}/{domain}"
        index = f"{stream}/{INDEX}"
        own = [index]
        for shard in ShardIndex.read(folder / index).shards:
            own.append(f"{stream}/{shard.stored.basename}")
            raw = shard.raw_data
            if shard.zip_data and "sha256" in raw.hashes:
                whole = Fingerprint(bytes=raw.bytes, sha256=raw.hashes["sha256"])
                decompressed[f"{stream}/{raw.basename}"] = Expected(whole, required=False)
        if unlisted := [name for name in own if name not in manifest.files]:
            raise UserError(
                f"{folder / MANIFEST} does not list {unlisted[0]}, which {folder / index} "
                f"names; {HOW_TO_MAKE} again"
            )
        names += own
    return decompressed | {name: Expected(manifest.files[name]) for name in names}


def find_damage(
    folder: Path,
    expected: Mapping[str, Expected],
    hashes: bool,
    record: Record,
    threads: int = 1,
) -> tuple[dict[str, str], Record]:
    """Look at every file: existence, size and, unless the record knows it, its SHA-256.

    Args:
        folder: what the paths are relative to.
        expected: what each file must be.
        hashes: whether to read the files.
        record: files found whole earlier; not read again while size and time are the same.
        threads: files read at once (hashing leaves the interpreter's lock).

    Returns:
        What is wrong, by path ("is missing", …), and the record of the files found whole.
    """
    damage: dict[str, str] = {}
    whole: Record = {}

    def look(item: tuple[str, Expected]) -> None:
        name, (fingerprint, required) = item
        path = folder / name
        if not required and not path.exists():
            return
        try:
            fingerprint.check_size(path)
            if hashes:
                entry = _entry(path, fingerprint)
                if record.get(name) != entry:
                    fingerprint.check(path)
                whole[name] = entry
        except DamageError as error:
            damage[name] = str(error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(look, expected.items()))
    return damage, whole


def _entry(path: Path, fingerprint: Fingerprint) -> list[Any]:
    """Return what the record says of a file that is whole."""
    with reading():
        stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, fingerprint.sha256]


def unread_bytes(folder: Path, expected: Mapping[str, Expected], record: Record) -> int:
    """Count the bytes that `find_damage` is going to read."""
    total = 0
    for name, file in expected.items():
        with contextlib.suppress(OSError, DamageError):
            if record.get(name) != _entry(folder / name, file.fingerprint):
                total += (folder / name).stat().st_size
    return total


def read_record(folder: Path) -> Record:
    """Read which files an earlier run found whole: none where there is no readable record."""
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, record: Record) -> None:
    """Save the record, unless the folder cannot be written to."""
    partial = folder / f"{RECORD_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(folder / RECORD_FILE)
