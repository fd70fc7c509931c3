"""Writing a part's shards so that they are there as a whole or not at all.

Done by workers. Everything is forced down to the disk before the part's record appears, and only
with its record does a part count as done.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.budgets import Kept
from data_prep.conversion import PartRecord, Progress, RowBlock, Settings, convert_part
from data_prep.parts import Part
from data_prep.rows import ShardOptions, ShardWriter, sync
from data_prep.split import SPLITS
from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.index import INDEX, ShardIndex

TAILS = "tails"  # folder of the rows that are made of what the parts left over
BAD = ".bad"  # instead of .json: the files of a part that a bad line stopped


@dataclass
class DonePart:
    """A part that is done.

    Attributes:
        record: what was in it.
        kept: rows by domain and split that were written; fewer than the record's where a budget
            ends, and no entry of a domain that takes nothing of this part.
        files: fingerprints of the files written, by path below the output.
        stats: size and modification time of the input files, in the order of the pieces.
        uploaded: the shards lie in the object store and no longer here.
    """

    record: PartRecord
    kept: Kept
    files: dict[str, Fingerprint] = field(default_factory=dict)
    stats: list[dict[str, int]] = field(default_factory=list)
    uploaded: bool = False

    def save(self, path: Path) -> None:
        """Write it to a file, which is whole or not there."""
        files = {name: file.model_dump() for name, file in self.files.items()}
        values = vars(self) | {"record": self.record.to_json(), "files": files}
        write_synced(path, json.dumps(values))

    @classmethod
    def load(cls, path: Path) -> "DonePart":
        """Read it from its file."""
        return cls.from_json(json.loads(path.read_bytes()))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DonePart":
        """The same of JSON values."""
        files = {name: Fingerprint(**file) for name, file in values.get("files", {}).items()}
        record = PartRecord.from_json(values["record"])
        return cls(**values | {"record": record, "files": files})


def stat_of(path: Path) -> dict[str, int]:
    """What tells cheaply that a file may have changed."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


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
        on_progress: told what was done.

    Raises:
        UserError: bad input.
        OSError: the disk is full, or a file cannot be read.
    """
    stats = [stat_of(settings.root / piece.file) for piece in part.pieces]
    kept: Kept = {}
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    writers: dict[tuple[str, str], ShardWriter] = {}
    tell = on_progress if limits is None else _untold  # done a second time, up to a budget's end
    try:
        for block in convert_part(part, settings, tell):
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


def _untold(_: Progress) -> None:
    pass


def store_tails(
    ids: np.ndarray, options: ShardOptions, folder: Path, stream: Path, work: Path
) -> dict[str, Fingerprint]:
    """Write rows, (rows, seq_len), to `folder/<stream>/tails`; give the files' fingerprints."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    writer = ShardWriter(work / TAILS, options)
    writer.write(ids)
    return _move(writer, folder, stream / TAILS)


def merge_indexes(folder: Path, parts: list[str]) -> None:
    """Write the index of a stream: the shards of its part folders, in that order."""
    indexes = [(part, ShardIndex.read(folder / part / INDEX)) for part in parts]
    write_synced(folder / INDEX, ShardIndex.merge(indexes).to_json())


def write_synced(path: Path, text: str) -> None:
    """Write a file that is whole or not there, after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


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
