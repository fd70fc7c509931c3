"""MDS shards → batches of token rows, one `Stream` per domain.

Shapes: B batch, S sequence.
"""

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.utils import dist
from filelock import FileLock, Timeout
from streaming import StreamingDataLoader

from itt_composer.basics.errors import LoaderError, UserError
from itt_composer.basics.processes import heed_parent_only, is_loss_of_a_worker
from itt_composer.data.manifest import Manifest
from itt_composer.data.shared_memory import (
    SHARED_MEMORY,
    free_number,
    hold_segments,
    nodes_with_segments,
    number_taken,
    remove_stale_segments,
)
from itt_composer.data.token_rows import ShardStream, TokenRows
from itt_composer.recipe.schema import DataRecipe

NUMBERS = ("domain", "row")
IGNORED = -100  # a label that torch's cross entropy and Composer's metrics ignore


def collate_rows(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collate rows of token ids into `input_ids`, `labels`, `attention_mask`: (B, S) each, int64.

    Labels are the ids themselves: the model shifts them. Those of a row that repeats another are
    -100, which metrics ignore. The mask is all ones; given one, transformers lets attention use its
    causal kernels instead of building a mask. Rows that carry their numbers add `domain` and `row`,
    (B,) each; the model is not given them.
    """
    input_ids_BS = torch.from_numpy(np.stack([row["input_ids"] for row in rows]).astype(np.int64))
    batch = {
        "input_ids": input_ids_BS,
        "labels": input_ids_BS.clone(),
        "attention_mask": torch.ones_like(input_ids_BS),
    }
    if "is_repeat" in rows[0]:
        is_repeat_B = torch.tensor([bool(row["is_repeat"]) for row in rows])
        batch["labels"][is_repeat_B] = IGNORED
    for name in NUMBERS:
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] for row in rows])
    return batch


def build_dataset(data: DataRecipe, split: str, batch_size: int) -> TokenRows:
    """Stream a split: training rows shuffled by `shuffle_seed`, others in a fixed random order.

    Training draws domains by `data.domains`, if given; other splits take every row once, domains
    mixed in proportion to their rows. An epoch
    of training is as many whole batches as there are rows for, over all ranks: so it ends at the
    same batch on any number of them.

    Args:
        data: the recipe's data section.
        split: "train" or "validation".
        batch_size: rows per batch of one rank.

    Raises:
        UserError: no manifest, a cache limit that is too low, a cache that another run uses.
    """
    is_train = split == "train"
    local = Path(data.local)
    shares = data.domains if is_train else None
    rows = Manifest.read(local).rows(split)
    domains = list(shares or rows)
    streams = [
        ShardStream(
            local=str(local / split / domain),
            remote=f"{data.remote}/{split}/{domain}" if data.remote else None,
            proportion=shares[domain] if shares else None,
        )
        for domain in domains
    ]
    epoch_size = None
    if is_train:
        total, step = sum(rows[domain] for domain in domains), batch_size * dist.get_world_size()
        epoch_size = total // step * step
        if epoch_size == total and not shares:
            epoch_size = None  # every row once, without rounding
    try:
        dataset = open_dataset(
            streams=streams,
            batch_size=batch_size,
            epoch_size=epoch_size,
            shuffle=is_train,
            shuffle_algo=data.shuffle_algo,
            shuffle_seed=data.shuffle_seed,
            shuffle_block_size=data.shuffle_block_size,
            # Fixed, or a resumed run would see another order on another number of nodes.
            num_canonical_nodes=data.num_canonical_nodes if is_train else 1,
            predownload=data.predownload,
            cache_limit=data.cache_limit,
            download_retry=data.download_retry,
            download_timeout=data.download_timeout,
            validate_hash="sha256" if data.validate_hash else None,
        )
    except ValueError as error:
        raise UserError(f"data.local={local}: {' '.join(str(error).split())}") from None
    dataset.domains = domains
    return dataset


def open_dataset(**settings: Any) -> TokenRows:
    """Remove stale memory and open `TokenRows`, one run of this user at a time.

    It looks for a free name for its shared memory and then takes it; two runs that start at the
    same moment would take the same one. A node's first rank holds the lock for the others, which
    look only when it has it. Nodes on one machine have a lock each: they wait for one another.
    Locks are taken in the order of the nodes: of two runs on the same nodes one then has them all.
    """
    is_first, node_rank = dist.get_local_rank() == 0, dist.get_node_rank()
    with contextlib.ExitStack() as locks:
        for node in range(dist.get_world_size() // dist.get_local_world_size()):
            if is_first and node == node_rank:
                locks.enter_context(_lock(node_rank))
            dist.barrier()
        if is_first:
            _remove_what_runs_left(node_rank)
        dist.barrier()
        free = dist.all_gather_object(free_number(node_rank))
        with number_taken(free[dist.get_global_rank() - dist.get_local_rank()]):
            dataset = TokenRows(**settings)
        hold_segments(dataset._shm_prefix_int, is_first)
        return dataset


def _lock(node_rank: int, timeout: float = -1) -> FileLock:
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    suffix = f"_{node_rank}" if node_rank else ""
    return FileLock(folder / f"itt_composer_{os.getuid()}{suffix}.lock", timeout=timeout)


def _remove_what_runs_left(node_rank: int) -> None:
    """Remove stale memory of this node, whose lock is held, and of others with no run opening."""
    remove_stale_segments(node_rank=node_rank)
    for other in nodes_with_segments() - {node_rank}:
        with contextlib.suppress(Timeout), _lock(other, timeout=0):
            remove_stale_segments(node_rank=other)


class TokenLoader(StreamingDataLoader):
    """A resumable loader that reports a mistake of a worker process as one sentence, too.

    Args:
        settings: those of a `DataLoader`.
        patience: seconds for a batch, after which the workers are taken to hang. The library's own
            `timeout` does not see one that is frozen after it has announced a batch.
    """

    def __init__(self, *settings: Any, patience: float, **named: Any):
        super().__init__(*settings, **named)
        self._patience = patience
        self._is_late = False

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]
        batches = super().__iter__()
        try:
            while True:
                with self._kept_waiting():
                    batch = next(batches)
                yield batch
        except StopIteration:
            return
        except LoaderError as error:
            # A worker sends its traceback, with the sentence at its end.
            sentence = str(error).rstrip().rpartition(f"{LoaderError.__name__}: ")[2]
            raise LoaderError(sentence) from None
        except (RuntimeError, OSError, EOFError) as error:
            if self._is_late:
                raise LoaderError(
                    self._sentence("gave no batch for", "look at its storage")
                ) from None
            # Killed while it handed over a batch, it leaves a closed connection.
            is_cut_off = self.num_workers and isinstance(error, (ConnectionError, EOFError))
            if not is_cut_off and not is_loss_of_a_worker(error):
                raise
            reason = f"lost a process ({str(error).strip()})"
            raise LoaderError(self._sentence(reason, "its memory may have run out")) from None

    @contextlib.contextmanager
    def _kept_waiting(self) -> Iterator[None]:
        """End the workers when a batch takes too long, which ends the wait for them."""
        if not self.num_workers:
            yield  # the rank itself loads, and `train.rank_timeout` covers that
            return
        timer = threading.Timer(self._patience, self._end_workers)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_workers(self) -> None:
        self._is_late = True
        for worker in getattr(self._iterator, "_workers", []):
            worker.kill()

    def _sentence(self, what: str, hint: str) -> str:
        span = f" {self._patience:g} s (data.worker_timeout)" if self._is_late else ""
        return (
            f"the loader of rank {dist.get_global_rank()} on {socket.gethostname()} {what}{span}; "
            f"{hint}, then start the same command again"
        )


def build_dataloader(data: DataRecipe, split: str, global_batch_size: int) -> DataSpec:
    """Build a resumable loader of `global_batch_size` rows per step over all ranks."""
    batch_size = global_batch_size // dist.get_world_size()
    loader = TokenLoader(
        build_dataset(data, split, batch_size),
        batch_size=batch_size,
        collate_fn=collate_rows,
        num_workers=data.num_workers,
        drop_last=split == "train",
        persistent_workers=data.num_workers > 0,
        worker_init_fn=heed_parent_only,
        patience=data.worker_timeout,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(loader, get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel())
