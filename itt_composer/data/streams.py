"""MDS shards → batches of token rows, one `Stream` per domain.

Shapes: B batch, S sequence.
"""

import getpass
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.utils import dist
from filelock import FileLock
from streaming import Stream, StreamingDataLoader, StreamingDataset

from itt_composer.config import DataRecipe
from itt_composer.data.shards import domains_with_rows, read_manifest


def collate_rows(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows of token ids → `input_ids`, `labels` and `attention_mask`, each (B, S), int64.

    Labels are the ids themselves: the model shifts them. The mask is all ones; given one,
    transformers lets attention use its causal kernels instead of building a mask.
    """
    input_ids_BS = torch.from_numpy(np.stack([row["input_ids"] for row in rows]).astype(np.int64))
    return {
        "input_ids": input_ids_BS,
        "labels": input_ids_BS.clone(),
        "attention_mask": torch.ones_like(input_ids_BS),
    }


def build_dataset(data: DataRecipe, split: str, batch_size: int) -> StreamingDataset:
    """Stream a split: training rows shuffled by `shuffle_seed`, others in their stored order.

    Training draws domains by `data.domains`, if given; other splits take every row once.

    Args:
        data: the recipe's data section.
        split: "train" or "validation".
        batch_size: rows per batch of one rank.
    """
    is_train = split == "train"
    local = Path(data.local)
    if data.remote is not None:
        _fetch_manifest(data.remote, local)
    shares = data.domains if is_train else None
    streams = [
        Stream(
            local=str(local / split / domain),
            remote=f"{data.remote}/{split}/{domain}" if data.remote else None,
            proportion=shares[domain] if shares else None,
        )
        for domain in shares or domains_with_rows(read_manifest(local), split)
    ]
    return open_dataset(
        streams=streams,
        batch_size=batch_size,
        shuffle=is_train,
        shuffle_seed=data.shuffle_seed,
        cache_limit=data.cache_limit,
        validate_hash="sha256",
    )


def open_dataset(**settings: Any) -> StreamingDataset:
    """A `StreamingDataset`, opened by one run of this user at a time.

    It looks for a free name for its shared memory and then takes it; two runs that start at the
    same moment would take the same one. Only a node's first rank takes it, so only it waits.
    """
    if dist.get_local_rank() != 0:
        return StreamingDataset(**settings)
    with FileLock(Path(tempfile.gettempdir()) / f"itt_composer_{getpass.getuser()}.lock"):
        return StreamingDataset(**settings)


def build_dataloader(data: DataRecipe, split: str, global_batch_size: int) -> DataSpec:
    """A resumable loader of `global_batch_size` rows per step over all ranks."""
    batch_size = global_batch_size // dist.get_world_size()
    loader = StreamingDataLoader(
        build_dataset(data, split, batch_size),
        batch_size=batch_size,
        collate_fn=collate_rows,
        num_workers=data.num_workers,
        drop_last=split == "train",
        persistent_workers=data.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel())


def _fetch_manifest(remote: str, local: Path) -> None:
    """Download the manifest beside the cache, once per node."""
    from streaming.base.storage import CloudDownloader

    if dist.get_local_rank() == 0:
        local.mkdir(parents=True, exist_ok=True)
        downloader = CloudDownloader.get(remote)
        downloader.download(f"{remote}/manifest.json", str(local / "manifest.json"), timeout=60)
    dist.barrier()
