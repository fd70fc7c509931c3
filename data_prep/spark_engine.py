"""Converts the parts of a corpus on a Spark cluster, for more text than one machine manages.

For each domain, or once if lines name their domain:

Stage 1   one task per part runs `convert_part`; rows and records stay on the executors' disks
Stage 2   for each domain and split the streaming library's `dataframe_to_mds` writes a folder of
          shards per part and one more of the rows that are made of tails, and merges their indexes

Rows, their order and the counts are the local engine's; only the folders have other names.
Executors need this package installed, the corpus under the same path as here, and either an
output folder that all of them share or their own access to the object store.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from data_prep.budgets import Budgets
from data_prep.document_split import SPLITS
from data_prep.finished_streams import Stream, parts_by_domain
from data_prep.part_plan import Part
from data_prep.part_record import DonePart, PartRecord, stat_of
from data_prep.part_rows import Progress, RowBlock, Settings, convert_part
from data_prep.rejects import RejectLimit
from data_prep.spark_session import (
    failures_as_sentences,
    progress_counter,
    spark_session,
    unlogged_warnings,
)
from data_prep.spark_shards import SCHEMA, SparkStream, frame_of_record, frame_of_rows
from itt_composer.basics.errors import UserError

ARROW_BYTES = 1 << 24  # of ids that Spark hands to Python at a time


def run_spark(
    plan: dict[str, list[Part]],
    settings: Settings,
    budgets: Budgets,
    reject_limit: RejectLimit,
    out: Path | str,
    master: str | None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[dict[str, list[DonePart]], dict[str, dict[str, Stream]]]:
    """Convert parts into the streams `out/<split>/<domain>`; what lies there is replaced.

    All parts are converted; with a train budget those after the one that fills it go unused.

    Args:
        plan: parts by source, in order.
        settings: the conversion's.
        budgets: rows wanted.
        reject_limit: stops the run when it is passed, looked at after each source.
        out: a folder, or the URL of an object store.
        master: see `spark_session`.
        on_progress: called when a task ends, with the sums so far; from another thread.

    Returns:
        The parts that are used, in order, by source, and the streams by split and domain, which
        list all files.

    Raises:
        UserError: bad input, too many bad lines, Spark is missing, or anything fails in it.
    """
    # Executors have another working directory than this process.
    settings = replace(settings, root=settings.root.absolute())
    out = out if "://" in str(out) else Path(out).absolute()
    parts: dict[str, list[DonePart]] = {}
    streams: dict[str, dict[str, Stream]] = {split: {} for split in SPLITS}
    total = sum(part.input_bytes for planned in plan.values() for part in planned)
    finished = 0
    records: list[PartRecord] = []
    with spark_session(master) as spark, failures_as_sentences(), unlogged_warnings():
        row_bytes = settings.shards.seq_len * np.dtype(settings.shards.dtype).itemsize
        batch = str(max(1, ARROW_BYTES // row_bytes))
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", batch)
        count = progress_counter(spark, on_progress)
        for source, planned in plan.items():
            converted = _converted(spark, planned, settings, count)
            done = _done_parts(converted)
            finished += sum(part.input_bytes for part in planned)
            records += [part.record for part in done]
            reject_limit.check(records, finished / max(1, total))
            parts[source] = _used(done, source, budgets)
            for domain, own in parts_by_domain({source: parts[source]}).items():
                for split in SPLITS:
                    limit = budgets.limit(split, domain)
                    stream = SparkStream(spark, settings.shards, out, Path(split, domain))
                    streams[split][domain] = stream.write(converted, own, limit)
            converted.unpersist()
    return parts, streams


def _converted(
    spark: SparkSession, parts: list[Part], settings: Settings, count: Callable[[Progress], None]
) -> DataFrame:
    """Convert parts, a partition each, into rows and records that stay on disk once computed."""

    def convert(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for place in batch["id"]:
                yield from _frames(parts[place], settings, count)

    places = spark.range(0, len(parts), 1, len(parts))
    return places.mapInPandas(convert, SCHEMA).persist(StorageLevel.DISK_ONLY)


def _frames(
    part: Part, settings: Settings, count: Callable[[Progress], None]
) -> Iterator[pd.DataFrame]:
    """Convert one part on an executor."""
    rows: Counter[tuple[str, str]] = Counter()
    try:
        stats = [stat_of(settings.root / piece.file) for piece in part.pieces]
        for item in convert_part(part, settings, count):
            if isinstance(item, RowBlock):
                stream = item.domain, item.split
                if len(item.rows):
                    yield frame_of_rows(item, part.index, rows[stream])
                rows[stream] += len(item.rows)
            else:
                done = json.dumps({"record": item.to_json(), "kept": {}, "stats": stats})
                yield frame_of_record(part.index, done)
    except OSError as error:
        raise UserError(
            f"a Spark executor cannot read {error.filename or settings.root} "
            f"({error.strerror or error}): the corpus must have the same path on all of them"
        ) from error


def _done_parts(converted: DataFrame) -> list[DonePart]:
    """Have the parts converted, and return what was in each, in order."""
    done = [json.loads(row.done) for row in converted.filter("done is not null").collect()]
    return [DonePart.from_json(values) for values in done]


def _used(done: list[DonePart], source: str, budgets: Budgets) -> list[DonePart]:
    """List the parts up to the one that fills the train budgets, each with the rows to keep."""
    used = done[: budgets.parts_needed(source, (part.record for part in done))]
    for part, kept in zip(used, budgets.shared_out([p.record for p in used]), strict=True):
        part.kept = kept
    return used
