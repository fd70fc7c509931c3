"""The rows of one stream in their stored order, for evaluation: no shuffling, no shared memory.

A `StreamingDataset` holds shared memory until its process ends, and looks into that of every
other one: with a dataset per domain and setting, an evaluation runs out of open files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming.base.world import World

from itt_composer.data.token_rows import ShardStream


def stored_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every row of a stream once, as `{"input_ids": (S,)}`, decompressed where it must be.

    Args:
        folder: of one split and domain, with its `index.json`.

    Raises:
        LoaderError: a shard is missing or damaged.
    """
    stream = ShardStream(local=str(folder))
    defaults = {"split": None, "download_retry": 1, "download_timeout": 60, "keep_zip": True}
    stream.apply_default({**defaults, "validate_hash": None})
    for shard in stream.get_shards(World.detect(), allow_unsafe_types=False):
        stream.prepare_shard(shard)
        yield from (shard[index] for index in range(shard.samples))
