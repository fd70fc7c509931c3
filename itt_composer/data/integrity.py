"""Are the shards still the bytes that were written? Sizes and SHA-256 against the manifest.

The library itself looks at hashes only when it downloads or decompresses, never at a shard that
already lies there.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from itt_composer.basics.errors import UserError
from itt_composer.data.shards import HOW_TO_MAKE, read_index

RECORD_FILE = ".verified.json"
CHUNK = 1 << 20

# By path below the folder: [bytes, mtime in ns, SHA-256] of a file that was read and found whole.
Record: TypeAlias = dict[str, list[Any]]


class Expected(NamedTuple):
    """What a file must be; `sha256` is None where none was stored."""

    bytes: int
    sha256: str | None
    required: bool = True


def expected_files(
    folder: Path, manifest: Mapping[str, Any], streams: Iterable[tuple[str, str]]
) -> dict[str, Expected]:
    """Every file that the streams and the tokenizer are made of, by path below `folder`.

    A compressed shard that has been decompressed beside its origin is no file of the manifest;
    its index tells what it must be.

    Raises:
        UserError: an index names a shard that the manifest does not know.
    """
    stored = {
        name: Expected(entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
    }
    expected = {name: file for name, file in stored.items() if name.startswith("tokenizer/")}
    for split, domain in streams:
        stream = f"{split}/{domain}"
        index = f"{stream}/index.json"
        names = [index]
        for shard in read_index(folder / index):
            raw, compressed = shard["raw_data"], shard.get("zip_data")
            names.append(f"{stream}/{(compressed or raw)['basename']}")
            if compressed:
                sha256 = raw.get("hashes", {}).get("sha256")
                expected[f"{stream}/{raw['basename']}"] = Expected(raw["bytes"], sha256, False)
        for name in names:
            if name not in stored:
                raise UserError(
                    f"{folder / 'manifest.json'} does not know {name}, which {folder / index} "
                    f"names; {HOW_TO_MAKE} again"
                )
            expected[name] = stored[name]
    return expected


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
        expected: what each file must be; one that is not required may be missing.
        hashes: whether to read the files.
        record: files found whole earlier; not read again while size and time are the same.
        threads: files read at once (hashing leaves the interpreter's lock).

    Returns:
        What is wrong, by path ("is missing", …), and the record of the files found whole.
    """
    damage: dict[str, str] = {}
    whole: Record = {}

    def look(item: tuple[str, Expected]) -> None:
        name, file = item
        try:
            stat = (folder / name).stat()
            if stat.st_size != file.bytes:
                damage[name] = f"has {stat.st_size} bytes instead of {file.bytes}"
                return
            if not hashes or file.sha256 is None:
                return
            entry = [stat.st_size, stat.st_mtime_ns, file.sha256]
            if record.get(name) != entry and sha256_of(folder / name) != file.sha256:
                damage[name] = "does not match its SHA-256"
            else:
                whole[name] = entry
        except FileNotFoundError:
            if file.required:
                damage[name] = "is missing"
        except OSError as error:
            damage[name] = f"cannot be read ({error.strerror})"

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(look, expected.items()))
    return damage, whole


def unread_bytes(folder: Path, expected: Mapping[str, Expected], record: Record) -> int:
    """Bytes that `find_damage` is going to read."""
    total = 0
    for name, file in expected.items():
        with contextlib.suppress(OSError):
            stat = (folder / name).stat()
            if record.get(name) != [stat.st_size, stat.st_mtime_ns, file.sha256]:
                total += stat.st_size
    return total


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_record(folder: Path) -> Record:
    """The files found whole by an earlier run; none where there is no readable record."""
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, record: Record) -> None:
    """Save the record; silently not, where the folder cannot be written to."""
    partial = folder / f"{RECORD_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(folder / RECORD_FILE)
