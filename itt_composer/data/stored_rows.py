"""The rows of one stream in their stored order, for evaluation: without shuffling or shared memory.

A `StreamingDataset` holds shared memory until its process ends, and looks into that of every
other one: with a dataset per domain and setting, an evaluation runs out of open files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.world import World
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from itt_composer.data.index import INDEX, ShardIndex
from itt_composer.data.manifest import Manifest
from itt_composer.data.streams import collate_rows
from itt_composer.data.token_rows import ShardStream, sample_order


class StoredRows(Dataset):
    """The rows of a stream, each `{"input_ids": (S,)}`; shards are decompressed when first read.

    Args:
        folder: of one split and domain, with its `index.json`.

    Raises:
        UserError: its index is missing or damaged.
        LoaderError: on reading, if a shard is missing or damaged.
    """

    def __init__(self, folder: Path):
        ShardIndex.read(folder / INDEX)
        self._stream = ShardStream(local=str(folder))
        defaults = {"split": None, "download_retry": 1, "download_timeout": 60, "keep_zip": True}
        self._stream.apply_default({**defaults, "validate_hash": None})
        self._shards = self._stream.get_shards(World.detect(), allow_unsafe_types=False)
        self._ends = np.cumsum([shard.samples for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def prepare(self) -> None:
        """Decompress every shard: processes that share a folder must not do so at once."""
        for shard in self._shards:
            self._stream.prepare_shard(shard)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[place]
        self._stream.prepare_shard(shard)
        return shard[index - int(self._ends[place]) + shard.samples]


def sample_of_split(folder: Path, count: int) -> tuple[ConcatDataset, list[int]]:
    """Open the rows of all domains of a split, and choose a fixed random sample of them.

    Args:
        folder: of the split, a stream per domain.
        count: rows of the sample, of each domain in proportion; all, if there are fewer.
    """
    domains = Manifest.read(folder.parent).rows(folder.name)
    streams = [StoredRows(folder / domain) for domain in domains]
    order = sample_order([len(stream) for stream in streams])
    return ConcatDataset(streams), order[:count].tolist()


def batches_of(rows: Any, indices: Sequence[int], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Yield the rows with the given numbers in batches; the last one may be smaller.

    Args:
        rows: what gives a row by its number.
        indices: numbers of the rows.
        batch_size: rows per batch.
    """
    for start in range(0, len(indices), batch_size):
        yield collate_rows([rows[index] for index in indices[start : start + batch_size]])
