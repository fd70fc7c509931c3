"""From finished parts to finished streams: what the parts left over, indexes, counts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.budgets import Budgets
from data_prep.document_split import SPLITS
from data_prep.domains import MIXED
from data_prep.part_record import DonePart
from data_prep.part_shards import TAILS, merge_indexes, store_tails
from data_prep.shard_writing import ShardOptions
from data_prep.unfinished_conversion import UnfinishedConversion
from data_prep.workers import Workers
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.index import INDEX
from itt_composer.data.manifest import StreamCounts


@dataclass
class Stream:
    """A finished stream: its counts, and the files that were made besides those of the parts."""

    counts: StreamCounts
    files: dict[str, Fingerprint]


def finish_streams(
    parts: dict[str, list[DonePart]],
    options: ShardOptions,
    budgets: Budgets,
    state: UnfinishedConversion,
    workers: Workers,
) -> dict[str, dict[str, Stream]]:
    """Turn what the parts left over into rows, and write an index for every stream with rows.

    Args:
        parts: the parts that are used, in order, by source.
        options: how rows are stored.
        budgets: rows wanted.
        state: of the unfinished output.
        workers: who writes.

    Returns:
        Streams by split and domain; those without rows have no files.
    """
    streams: dict[str, dict[str, Stream]] = {split: {} for split in SPLITS}
    futures = {}
    by_domain = parts_by_domain(parts)
    for split in SPLITS:
        for domain, done in by_domain.items():
            kept = sum(part.kept[domain][split] for part in done)
            tails = rows_of_tails(done, split, domain, options)
            limit = budgets.limit(split, domain)
            rows = tails if limit is None else tails[: max(0, limit - kept)]
            counts = stream_counts(done, split, domain, kept + len(rows), options.seq_len)
            streams[split][domain] = Stream(counts, {})
            arguments = (rows, options, state.folder, Path(split, domain), state.work / "tails")
            future = workers.submit(_store_tails, *arguments)
            futures[future] = split, domain
    waiting = set(futures)
    while waiting:
        for future in workers.wait(waiting):
            waiting.remove(future)
            split, domain = futures[future]
            stream = streams[split][domain]
            stream.files = future.result()
            if stream.counts.rows:
                folders = [_part_folder(p) for p in by_domain[domain] if p.kept[domain][split]]
                folders += [TAILS] if stream.files else []
                place = Path(split, domain)
                merge_indexes(state.folder / place, folders)
                stream.files[(place / INDEX).as_posix()] = Fingerprint.of(
                    state.folder / place / INDEX
                )
    return streams


def parts_by_domain(parts: dict[str, list[DonePart]]) -> dict[str, list[DonePart]]:
    """Sort the parts of each source by the domains that they have rows of, in order."""
    found: dict[str, list[DonePart]] = {source: [] for source in parts if source != MIXED}
    for part in (part for done in parts.values() for part in done):
        for domain in part.kept:
            found.setdefault(domain, []).append(part)
    return dict(sorted(found.items()))


def rows_of_tails(
    parts: list[DonePart], split: str, domain: str, options: ShardOptions
) -> np.ndarray:
    """Cut what the parts of a domain left over, in their order, into rows: (rows, seq_len)."""
    tails = [part.record.tails[domain][split] for part in parts]
    ids = np.concatenate([np.empty(0, options.dtype), *tails])
    filled = len(ids) // options.seq_len * options.seq_len
    return ids[:filled].reshape(-1, options.seq_len)


def stream_counts(
    parts: list[DonePart], split: str, domain: str, rows: int, seq_len: int
) -> StreamCounts:
    """Add up the counts of a stream with this many rows, made of these parts."""
    tokens = rows * seq_len
    splits = [part.record.domains[domain][split] for part in parts]
    read = sum(counts.tokens for counts in splits)
    dropped = sum(len(part.record.tails[domain][split]) for part in parts) % seq_len
    return StreamCounts(
        documents=sum(counts.documents for counts in splits),
        characters=sum(counts.characters for counts in splits),
        utf8_bytes=sum(counts.utf8_bytes for counts in splits),
        tokens=tokens,
        dropped_tokens=dropped,
        unused_tokens=read - tokens - dropped,
        rows=rows,
    )


def _store_tails(
    rows: np.ndarray, options: ShardOptions, folder: Path, stream: Path, work: Path, _: object
) -> dict[str, Fingerprint]:
    return store_tails(rows, options, folder, stream, work / stream)


def _part_folder(part: DonePart) -> str:
    return f"{part.record.index:05}"
