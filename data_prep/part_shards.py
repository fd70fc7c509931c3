"""Writes a part's shards so that they are whole or absent.

Done by workers. Everything is forced down to the disk before the part's record appears, and only
with its record does a part count as done.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.document_split import SPLITS
from data_prep.durable_files import sync, write_synced
from data_prep.part_plan import Part
from data_prep.part_record import BAD, DonePart, Kept, stat_of
from data_prep.part_rows import Progress, RowBlock, Settings, convert_part
from data_prep.shard_writing import ShardOptions, ShardWriter
from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.index import INDEX, ShardIndex

TAILS = "tails"  # folder of the rows that are made of what the parts left over


def store_part(
    part: Part,
    settings: Settings,
    folder: Path,
    record_file: Path,
    work: Path,
    limits: Kept | None,
    on_progress: Callable[[Progress], None],
) -> DonePart:
    """Convert a part into `folder/<split>/<domain>/<part>` and write its record.

    Args:
        part: the part.
        settings: the conversion's.
        folder: the unfinished output.
        record_file: where the record goes.
        work: folder for files that are not yet whole.
        limits: most rows to write by domain and split, or None for all.
        on_progress: called with what was done.

    Raises:
        UserError: bad input.
        OSError: the disk is full, or a file cannot be read.
    """
    stats = [stat_of(settings.root / piece.file) for piece in part.pieces]
    kept: Kept = {}
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    writers: dict[tuple[str, str], ShardWriter] = {}
    report = (
        on_progress if limits is None else _unreported
    )  # done a second time, up to a budget's end
    try:
        for block in convert_part(part, settings, report):
            if isinstance(block, RowBlock):
                stream = block.domain, block.split
                if stream not in writers:
                    writers[stream] = ShardWriter(work.joinpath(*stream), settings.shards)
                rows, written = block.rows, kept.setdefault(block.domain, dict.fromkeys(SPLITS, 0))
                if limits is not None:
                    most = limits.get(block.domain, {}).get(block.split, 0)
                    rows = rows[: most - written[block.split]]
                writers[stream].write(rows)
                written[block.split] += len(rows)
            else:
                empty: Kept = {domain: dict.fromkeys(SPLITS, 0) for domain in block.domains}
                done = DonePart(block, empty | kept if limits is None else limits, stats=stats)
    except UserError:
        files = [piece.file for piece in part.pieces]
        write_synced(record_file.with_suffix(BAD), json.dumps(files))
        raise
    for (domain, split), writer in writers.items():
        done.files |= _move(writer, folder, Path(split, domain, part.name))
    done.save(record_file)
    return done


def _unreported(_: Progress) -> None:
    pass


def store_tails(
    ids: np.ndarray, options: ShardOptions, folder: Path, stream: Path, work: Path
) -> dict[str, Fingerprint]:
    """Write rows, (rows, seq_len), to `folder/<stream>/tails`; return their fingerprints."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    writer = ShardWriter(work / TAILS, options)
    writer.write(ids)
    return _move(writer, folder, stream / TAILS)


def merge_indexes(folder: Path, parts: list[str]) -> None:
    """Write the index of a stream: the shards of its part folders, in that order."""
    indexes = [(part, ShardIndex.read(folder / part / INDEX)) for part in parts]
    write_synced(folder / INDEX, ShardIndex.merge(indexes).to_json())


def _move(writer: ShardWriter, folder: Path, place: Path) -> dict[str, Fingerprint]:
    """Finish a writer's folder and move it to its place in the output."""
    files = writer.finish()
    target = folder / place
    shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before its record
    if not files:
        return {}
    prints = {(place / path.name).as_posix(): Fingerprint.of(path) for path in files}
    target.parent.mkdir(parents=True, exist_ok=True)
    writer.folder.replace(target)
    sync(target.parent)
    return prints
