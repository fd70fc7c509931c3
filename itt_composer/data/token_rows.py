"""Streaming's dataset and stream, with what training needs on top.

- Every stretch of an epoch holds the domains in their shares; the library mixes whole shards, so
  that shares hold over an epoch only.
- An evaluation reads each domain in a fixed random order, so that its first batches are a sample of
  all, and counts each row once where the library repeats some to give all ranks as many.
- A row carries the number of its domain, and its own number in there.
- A shard that cannot be had ends training with one sentence. The library logs a traceback from a
  thread and ends the epoch early.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.shuffle import get_shuffle
from streaming.base.world import World

from itt_composer.basics.errors import LoaderError, UserError
from itt_composer.data.remote import reason

SHARDS_MIXED = 4
NO_ROW = -1  # fills the empty places of the library's tables of work


def interleave(counts: list[int], seed: int) -> list[NDArray[np.int64]]:
    """Place each domain's rows in one order that keeps the shares throughout.

    Row j of the n of a domain stands at (j + u) / n of the way, u uniform in 0..1. So any stretch
    holds its share of each domain to within two rows.

    Args:
        counts: rows of each domain.
        seed: of the random part.

    Returns:
        Per domain, ascending positions in `0 .. sum(counts) - 1`.
    """
    rng = np.random.default_rng(seed)
    places = [(np.arange(count) + rng.random(count)) / count for count in counts]
    order = np.argsort(np.concatenate(places), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return np.split(ranks, np.cumsum(counts)[:-1])


def sample_order(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Put all rows of a split into a fixed random order: any beginning of it is a sample.

    Rows are stored in the order of their documents, so the first ones of a domain are not like the
    others. Here each domain is permuted, then all are interleaved in proportion to their rows.

    Args:
        counts: rows of each domain.

    Returns:
        `(sum(counts),)` row numbers, counted on from one domain to the next.
    """
    order = np.empty(sum(counts), np.int64)
    start = 0
    for domain, places in enumerate(interleave(list(counts), seed=0)):
        order[places] = start + np.random.default_rng((0, domain)).permutation(len(places))
        start += len(places)
    return order


class ShardStream(Stream):
    """A stream whose damaged downloads are tried once more, then reported by the shard's name."""

    def prepare_shard(self, shard: Any) -> int:
        """Make sure that a shard is there, downloaded, validated and decompressed.

        Raises:
            LoaderError: it cannot be had.
        """
        try:
            return self._prepare(shard)
        except Exception as error:  # every store and compression raises its own kinds
            raw, compressed = shard.file_pairs[0]
            place = f"{self.remote or self.local}/{(compressed or raw).basename}"
            if _is_damage(error):
                problem = "is damaged: its SHA-256 is not the one in index.json; upload it again"
                if self.remote is None:
                    problem = "does not match its SHA-256; convert again, or copy it again"
            else:
                problem = (
                    f"cannot be read or downloaded ({reason(error)}); put it there and start again"
                )
            raise LoaderError(f"shard {place} {problem}") from None

    def _prepare(self, shard: Any) -> int:
        try:
            return super().prepare_shard(shard)
        except ValueError as error:
            if self.remote is None or not _is_damage(error):
                raise
            shard.evict()  # or the next run would think it whole
        try:
            return super().prepare_shard(shard)
        except ValueError:
            shard.evict()
            raise


def _is_damage(error: Exception) -> bool:
    return isinstance(error, ValueError) and str(error).startswith("Checksum failure")


class TokenRows(StreamingDataset):
    """Rows of token ids, each with the number of its domain and its own number in that domain.

    Attributes:
        domains: names, in the order of the streams.
    """

    domains: list[str]

    def __init__(self, *, shuffle: bool, **settings: Any):
        super().__init__(shuffle=shuffle, **settings)
        self._failure: BaseException | None = None
        self._is_shuffled = shuffle
        self._is_repeat = np.empty(0, bool)
        self.shuffle = False  # the library would shuffle, but `resample_streams` has done it

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Continue after some rows of an epoch, in the order that this dataset's settings give.

        Raises:
            UserError: an epoch of it has fewer rows.
        """
        rows_done = obj["sample_in_epoch"]
        if rows_done > self.epoch_size:
            raise UserError(
                f"the run has gone through {rows_done:,} rows of an epoch, which now has only "
                f"{self.epoch_size:,}; go on with the shards and data.domains of before"
            )
        own = {name: getattr(self, name) for name in ("shuffle_seed", "num_canonical_nodes")}
        super().load_state_dict({**obj, **own})

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Read a row as `{"input_ids": (S,), "domain": int, "row": its number in the stream}`."""
        row = super().get_item(sample_id, retry)
        shard, _ = self.spanner[sample_id]
        domain = int(self.stream_per_shard[shard])
        number = sample_id - int(self.sample_offset_per_stream[domain])
        return {**row, "domain": domain, "row": number}

    def resample_streams(
        self, epoch: int, stream_id: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order the rows of an epoch, independently of ranks and workers.

        Without shuffling it is `sample_order`, the same in every epoch.

        Returns:
            Rows per shuffled unit, which nothing reads here, and the rows' numbers.
        """
        if not self._is_shuffled:
            ordered = sample_order(self.samples_per_stream)
            return np.array([len(ordered)], np.int64), ordered
        ordered_rows = []
        for number, stream in enumerate(self.streams):
            if not stream.choose:
                continue  # its share is too small for a row
            units, rows = super().resample_streams(epoch, number)
            assert isinstance(self.shuffle_block_size, int)
            # A domain gets its part of the block, which so limits the shards in use at once.
            block_size = int(self.shuffle_block_size * stream.proportion)
            order = get_shuffle(
                self.shuffle_algo,
                units,
                self.num_canonical_nodes or 1,
                self.shuffle_seed,
                epoch,
                max(block_size, SHARDS_MIXED * int(units.max())),
            )
            ordered_rows.append(rows[order])
        ordered = np.empty(sum(map(len, ordered_rows)), np.int64)
        places = interleave([len(rows) for rows in ordered_rows], self.shuffle_seed + epoch)
        for rows, positions in zip(ordered_rows, places, strict=True):
            ordered[positions] = rows
        return np.array([len(ordered)], np.int64), ordered

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        """Return this worker's rows, and note which rows of an evaluation repeat another's."""
        own = super()._get_work(epoch, sample_in_epoch)
        if not self._is_shuffled:
            repeats = self._repeats_of(self._parallel_worker_world, epoch, sample_in_epoch)
            self._is_repeat = repeats[own != NO_ROW]
        return own

    def _repeats_of(self, world: World, epoch: int, sample_in_epoch: int) -> NDArray[np.bool_]:
        """Find the rows of a worker that the library gives out twice, to fill up the ranks."""
        work = generate_work(self.batching_method, self, world, epoch, sample_in_epoch)
        is_first = np.zeros(work.size, bool)
        is_first[np.unique(work, return_index=True)[1]] = True
        own = (world.node, world.rank_of_node, world.worker_of_rank)
        return ~is_first.reshape(work.shape)[own].flatten()

    def on_exception(self, future: Future) -> None:
        """Keep what went wrong in a thread, for the one that iterates."""
        failure = future.exception()
        if failure is not None:
            self._failure = failure
            self._event.set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every row of this worker's part of the epoch.

        Raises:
            LoaderError: a shard cannot be had.
        """
        try:
            for place, row in enumerate(super().__iter__()):
                yield row if self._is_shuffled else {**row, "is_repeat": self._is_repeat[place]}
        except RuntimeError:
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure
