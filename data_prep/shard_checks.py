"""One file of a converted folder: is it what the manifest and its index say?

A shard is read whole and once, and its bytes are looked at directly: the streaming library's
reader takes the header for granted, opens the file again for every row and cannot read a
compressed shard in memory. An MDS shard of token rows is

    uint32 rows | uint32 offsets[rows + 1] | JSON configuration | rows × seq_len ids
"""

import json
from hashlib import sha256
from typing import Any

import numpy as np

from itt_composer.data.fingerprints import DamageError
from itt_composer.data.index import Shard, ShardFile, check_configuration, row_bytes
from itt_composer.data.manifest import Manifest


def check_info(data: bytes, info: ShardFile, known: dict[str, str]) -> None:
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
    # Each algorithm raises its own kind of exception.
    except Exception as error:
        raise DamageError(f"cannot be decompressed ({error})") from None


def check_rows(data: bytes, manifest: Manifest, entry: Shard | None) -> int:
    """Check a shard's header and ids, and return its rows."""
    rows, begin, configuration = _read_header(data, row_bytes(manifest))
    check_configuration(configuration, manifest, "its header has")
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


def _read_header(data: bytes, length: int) -> tuple[int, int, Any]:
    """Read a shard's header: rows, where the first one begins, and the configuration.

    Raises:
        DamageError: it is cut short, or its rows do not fill the rest with `length` bytes each.
    """
    rows = int(np.frombuffer(data[:4], "uint32")[0]) if len(data) >= 4 else 0
    table_end = 4 * (rows + 2)
    if rows == 0 or table_end > len(data):
        raise DamageError(f"its header promises {rows:,} rows in {len(data):,} bytes")
    offsets = np.frombuffer(data, "uint32", rows + 1, offset=4).astype("int64")
    begin = int(offsets[0])
    wrong = np.flatnonzero(np.diff(offsets) != length)
    if wrong.size:
        found = int(offsets[wrong[0] + 1] - offsets[wrong[0]])
        raise DamageError(f"row {wrong[0]:,} has {found:,} bytes instead of {length:,}")
    if offsets[-1] != len(data):
        raise DamageError(
            f"its rows lie at bytes {begin:,} to {offsets[-1]:,}, not at the end of its "
            f"{len(data):,} bytes"
        )
    try:
        return rows, begin, json.loads(data[table_end:begin])
    except ValueError as error:
        raise DamageError(f"its header's configuration is broken ({error})") from None
