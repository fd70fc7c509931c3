"""Token ids → rows of fixed length → MDS shards."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from data_prep.durable_files import sync
from itt_composer.basics.errors import UserError
from itt_composer.data.index import COLUMN

if TYPE_CHECKING:
    from streaming import MDSWriter

# Not the streaming library's own reading of sizes: its import takes seconds.
BYTES = re.compile(r"(\d+(?:\.\d+)?)(b|kb|mb|gb)?", re.IGNORECASE)
BYTE_UNITS = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
LARGEST_SHARD = (1 << 32) - 1  # its offsets are uint32
SHARD_HEADER = 1000  # bytes, at most


def parse_bytes(text: str) -> int:
    """Read a size: "64mb" (of 1,048,576 bytes, as the streaming library counts), "100kb", "1gb".

    Raises:
        ValueError: the text is not a size, or not one from 1 byte to 4 GB.
    """
    match = BYTES.fullmatch(text)
    size = int(float(match[1]) * BYTE_UNITS[(match[2] or "b").lower()]) if match else 0
    if not 1 <= size <= LARGEST_SHARD:
        raise ValueError(f"{text!r} is not a size from 1b to 4gb; give one like 64mb")
    return size


def row_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Choose the smaller of the two types that holds every id."""
    return "uint16" if vocab_size < 1 << 16 else "uint32"


class ShardOptions(NamedTuple):
    """How rows are stored.

    Attributes:
        seq_len: ids per row.
        dtype: "uint16" or "uint32".
        size_limit: most bytes of a shard before compression.
        compression: of the streaming library ("zstd:3"), or None.
        hashes: algorithms whose hashes the index holds.
    """

    seq_len: int
    dtype: str
    size_limit: int
    compression: str | None
    hashes: tuple[str, ...]


def check_storage(options: ShardOptions) -> None:
    """Refuse shards too small for a row, and what the streaming library does not have.

    Raises:
        UserError: names the option.
    """
    compression, hashes = options.compression, options.hashes
    smallest = options.seq_len * np.dtype(options.dtype).itemsize + SHARD_HEADER
    if options.size_limit < smallest:
        raise UserError(
            f"--shard-size {options.size_limit} is too small for a row of {options.seq_len} "
            f"tokens: give at least {smallest}"
        )
    if compression is None and hashes == ("sha256",):
        return  # spares the import below, which takes seconds
    from streaming.base.compression import get_compressions, is_compression
    from streaming.base.hashing import get_hashes, is_hash

    if compression is not None and not is_compression(compression):
        families = ", ".join(sorted(name for name in get_compressions() if ":" not in name))
        raise UserError(
            f"--compression {compression} is not known or has no such level: give one of "
            f"{families}, with a level as in zstd:9"
        )
    if unknown := [name for name in hashes if not is_hash(name)]:
        raise UserError(
            f"--hashes: {unknown[0]!r} is not known: give some of {', '.join(sorted(get_hashes()))}"
        )


class RowPacker:
    """Cuts a stream of ids into rows; a rest too short for a row waits for the next ids."""

    def __init__(self, seq_len: int, dtype: str) -> None:
        self.seq_len = seq_len
        self.tail = np.empty(0, dtype)  # (fewer than seq_len,)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add ids and return the rows that are full: (rows, seq_len)."""
        stream = np.concatenate([self.tail, ids.astype(self.tail.dtype)])
        filled = len(stream) // self.seq_len * self.seq_len
        self.tail = stream[filled:]
        return stream[:filled].reshape(-1, self.seq_len)


class ShardWriter:
    """Writes rows to the MDS shards of one folder, which appears with the first row."""

    def __init__(self, folder: Path, options: ShardOptions) -> None:
        self.folder = folder
        self.options = options
        self.writer: MDSWriter | None = None

    def write(self, rows: np.ndarray) -> None:
        """Append rows, (rows, seq_len)."""
        if len(rows) and self.writer is None:
            self.writer = self._open()
        for row in rows:
            self.writer.write({COLUMN: row})  # type: ignore[union-attr]

    def finish(self) -> list[Path]:
        """Write the last shard and the index, down to the disk; return the files."""
        if self.writer is None:
            return []
        self.writer.finish()
        files = sorted(self.folder.iterdir())
        for path in files:
            sync(path)
        sync(self.folder)
        return files

    def _open(self) -> "MDSWriter":
        # Imported here because it imports torch.
        from streaming import MDSWriter

        options = self.options
        return MDSWriter(
            out=str(self.folder),
            columns={COLUMN: f"ndarray:{options.dtype}:{options.seq_len}"},
            compression=options.compression,
            hashes=list(options.hashes),
            size_limit=options.size_limit,
        )
