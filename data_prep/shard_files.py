"""One file of a converted folder: is it what the manifest and its index say?

A shard is read whole and once, and its bytes are looked at directly: the streaming library's
reader takes the header for granted, opens the file anew for every row and cannot read a
compressed shard in memory. An MDS shard of token rows is

    uint32 rows | uint32 offsets[rows + 1] | JSON configuration | rows × seq_len ids
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from data_prep.convert_manifest import ConvertManifest, FileFingerprint
from data_prep.manifest import fingerprint
from data_prep.rows import COLUMN


class DamageError(Exception):
    """One sentence about one file."""


class _IndexPart(BaseModel):
    # The streaming library's reader refuses other keys too.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _FileInfo(_IndexPart):
    basename: str
    bytes: int
    hashes: dict[str, str]


class IndexEntry(_IndexPart):
    """A shard as an index describes it; all but the first three stand in its own header too."""

    samples: PositiveInt
    raw_data: _FileInfo
    zip_data: _FileInfo | None
    version: int
    format: str
    compression: str | None
    hashes: list[str]
    size_limit: int | None
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]

    @property
    def stored(self) -> _FileInfo:
        """The file that was written."""
        return self.zip_data or self.raw_data

    @property
    def configuration(self) -> dict[str, Any]:
        return self.model_dump(exclude={"samples", "raw_data", "zip_data"})


class _Index(_IndexPart):
    version: Literal[2]
    shards: list[IndexEntry]


Entries: TypeAlias = dict[str, IndexEntry]


def is_below(name: str) -> bool:
    """Whether a relative path stays below its folder and is written in its only normal form."""
    path = PurePosixPath(name)
    return path.as_posix() == name and not path.is_absolute() and ".." not in path.parts


def read_index(out: Path, manifest: ConvertManifest, name: str) -> Entries:
    """Read an index file into its entries by path below `out`.

    Raises:
        DamageError: it is not the file that the manifest lists, or does not fit the manifest.
    """
    listed = manifest.files.get(name)
    if listed is None:
        raise DamageError("is not in the manifest's files")
    data = read_whole(out / name, listed)
    try:
        index = _Index.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its beginning"
        raise DamageError(f"is no index of shards: {first['msg']} at {where}") from None
    folder = PurePosixPath(name).parent
    entries: Entries = {}
    for entry in index.shards:
        shard = entry.stored.basename
        if not is_below(shard):
            raise DamageError(f"names {shard!r}, which lies outside its folder")
        if f"{folder}/{shard}" in entries:
            raise DamageError(f"names {shard} more than once")
        _check_configuration(entry.configuration, manifest, f"describes {shard} with")
        _check_file_infos(entry, manifest)
        entries[f"{folder}/{shard}"] = _relative_to_out(entry, folder)
    return entries


def _relative_to_out(entry: IndexEntry, folder: PurePosixPath) -> IndexEntry:
    """Name an entry's files from `out` on, so that entries of different indexes compare."""
    infos = {
        key: info and info.model_copy(update={"basename": f"{folder}/{info.basename}"})
        for key, info in (("raw_data", entry.raw_data), ("zip_data", entry.zip_data))
    }
    return entry.model_copy(update=infos)


def _check_file_infos(entry: IndexEntry, manifest: ConvertManifest) -> None:
    if (entry.zip_data is not None) != (manifest.compression is not None):
        state = "uncompressed" if entry.zip_data is None else "compressed"
        raise DamageError(f"calls {entry.stored.basename} {state}, unlike the manifest")
    if entry.stored.basename != entry.raw_data.basename + compression_suffix(manifest):
        raise DamageError(
            f"pairs {entry.raw_data.basename} with {entry.stored.basename}, another shard's file"
        )
    for info in filter(None, (entry.raw_data, entry.zip_data)):
        if sorted(info.hashes) != sorted(manifest.hashes):
            raise DamageError(
                f"gives {info.basename} the hashes {_list(info.hashes)}, "
                f"the manifest {_list(manifest.hashes)}"
            )


def compression_suffix(manifest: ConvertManifest) -> str:
    """What compression appends to the name of a shard."""
    return f".{manifest.compression.partition(':')[0]}" if manifest.compression else ""


def _check_configuration(stated: Any, manifest: ConvertManifest, subject: str) -> None:
    """Compare the configuration of a shard, from its index or header, with the manifest's."""
    if not isinstance(stated, dict):
        raise DamageError(f"{subject} a configuration that is no JSON object")
    expected = {
        "version": 2,
        "format": "mds",
        "compression": manifest.compression,
        "hashes": manifest.hashes,
        "column_names": [COLUMN],
        "column_encodings": [f"ndarray:{manifest.dtype}:{manifest.seq_len}"],
        "column_sizes": [_row_bytes(manifest)],
    }
    for key, value in expected.items():
        if key not in stated or stated[key] != value:
            raise DamageError(f"{subject} {key} {stated.get(key)}, the manifest means {value}")


def _row_bytes(manifest: ConvertManifest) -> int:
    return manifest.seq_len * np.dtype(manifest.dtype).itemsize


def check_other(path: Path, listed: FileFingerprint) -> None:
    """Compare a file of any size with what the manifest lists."""
    with _reading():
        _check_size(path, listed)
        _check_sha256(fingerprint(path)["sha256"], listed)


def read_whole(path: Path, listed: FileFingerprint | None) -> bytes:
    """Read a file whole, and compare it with what the manifest lists, if it does."""
    with _reading():
        if listed:
            _check_size(path, listed)
        data = path.read_bytes()
    if listed:
        _check_sha256(sha256(data).hexdigest(), listed)
    return data


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DamageError("is missing") from None
    except OSError as error:
        raise DamageError(f"cannot be read ({error.strerror})") from None


def _check_size(path: Path, listed: FileFingerprint) -> None:
    size = path.stat().st_size
    if size != listed.bytes:
        raise DamageError(f"has {size:,} bytes, the manifest lists {listed.bytes:,}")


def _check_sha256(digest: str, listed: FileFingerprint) -> None:
    if digest != listed.sha256:
        raise DamageError("SHA-256 differs from the manifest's")


def check_info(data: bytes, info: _FileInfo, known: dict[str, str]) -> None:
    """Compare size and every hash with the index; `known` are hashes computed before."""
    if len(data) != info.bytes:
        raise DamageError(f"holds {len(data):,} bytes, its index gives {info.bytes:,}")
    for algorithm, expected in info.hashes.items():
        if (known.get(algorithm) or _hash(algorithm, data)) != expected:
            raise DamageError(f"{algorithm} differs from its index's")


def _hash(algorithm: str, data: bytes) -> str:
    if algorithm == "sha256":
        return sha256(data).hexdigest()
    # Imported here because it imports torch.
    from streaming.base.hashing import get_hash

    try:
        return get_hash(algorithm, data)
    except ValueError as error:
        raise DamageError(f"cannot be checked: {error}") from None


def decompress_shard(compression: str, data: bytes) -> bytes:
    # Imported here because it imports torch.
    from streaming.base.compression import decompress

    try:
        return decompress(compression, data)
    # Every algorithm raises its own.
    except Exception as error:
        raise DamageError(f"cannot be decompressed ({error})") from None


def check_rows(data: bytes, manifest: ConvertManifest, entry: IndexEntry | None) -> int:
    """Check a shard's header and ids, and return its rows."""
    rows, begin, configuration = _read_header(data, _row_bytes(manifest))
    _check_configuration(configuration, manifest, "its header has")
    if entry and rows != entry.samples:
        raise DamageError(f"holds {rows:,} rows, its index gives {entry.samples:,}")
    if entry and configuration != entry.configuration:
        raise DamageError("its header has another configuration than its index")
    ids = np.frombuffer(data, manifest.dtype, offset=begin)
    if ids.max() >= manifest.vocab_size:
        first = int(np.argmax(ids >= manifest.vocab_size))
        raise DamageError(
            f"row {first // manifest.seq_len:,} holds id {ids[first]:,}, but the vocabulary has "
            f"{manifest.vocab_size:,} ids"
        )
    return rows


def _read_header(data: bytes, row_bytes: int) -> tuple[int, int, Any]:
    """Read a shard's header: rows, where the first one begins, and the configuration.

    Raises:
        DamageError: it is cut short, or its rows do not fill the rest with `row_bytes` each.
    """
    rows = int(np.frombuffer(data[:4], "uint32")[0]) if len(data) >= 4 else 0
    table_end = 4 * (rows + 2)
    if rows == 0 or table_end > len(data):
        raise DamageError(f"its header promises {rows:,} rows in {len(data):,} bytes")
    offsets = np.frombuffer(data, "uint32", rows + 1, offset=4).astype("int64")
    begin = int(offsets[0])
    wrong = np.flatnonzero(np.diff(offsets) != row_bytes)
    if wrong.size:
        length = int(offsets[wrong[0] + 1] - offsets[wrong[0]])
        raise DamageError(f"row {wrong[0]:,} has {length:,} bytes instead of {row_bytes:,}")
    if offsets[-1] != len(data):
        raise DamageError(
            f"its rows lie at bytes {begin:,} to {offsets[-1]:,}, not at the end of its "
            f"{len(data):,} bytes"
        )
    try:
        return rows, begin, json.loads(data[table_end:begin])
    except ValueError as error:
        raise DamageError(f"its header's configuration is broken ({error})") from None


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
