"""Rows in Spark → the shards of one stream, through the streaming library's own converter."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession

from data_prep.finished_streams import Stream, rows_of_tails, stream_counts
from data_prep.part_record import DonePart
from data_prep.part_rows import RowBlock
from data_prep.shard_writing import ShardOptions
from data_prep.spark_session import failures_as_sentences
from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.index import COLUMN, INDEX, ShardIndex

# A row of ids, little-endian; or, in `done`, the JSON of what was in a part, without ids.
SCHEMA = "domain string, split string, part int, row int, ids binary, done string"
TAILS_PART = -1  # the part of rows that are made of tails


def frame_of_rows(block: RowBlock, part: int, first: int) -> pd.DataFrame:
    """Put rows of a part, numbered from `first`, into a frame of `SCHEMA`."""
    rows = block.rows
    ids = [row.tobytes() for row in rows.astype(rows.dtype.newbyteorder("<"))]
    numbers = range(first, first + len(rows))
    stream = {"domain": block.domain, "split": block.split}
    return pd.DataFrame(stream | {"part": part, "row": numbers, "ids": ids, "done": None})


def frame_of_record(part: int, done: str) -> pd.DataFrame:
    """Put what was in a part, as JSON, into a frame of `SCHEMA`."""
    stream = {"domain": "", "split": ""}
    return pd.DataFrame(stream | {"part": part, "row": 0, "ids": None, "done": [done]})


class SparkStream:
    """Writes one stream.

    Args:
        spark: the session.
        options: how rows are stored.
        out: folder or URL.
        place: of the stream below `out`, split/domain.
    """

    def __init__(
        self, spark: SparkSession, options: ShardOptions, out: Path | str, place: Path
    ) -> None:
        self.spark = spark
        # The manifest needs every file's SHA-256; from an index it costs no reading.
        hashes = tuple(dict.fromkeys((*options.hashes, "sha256")))
        self.options = options._replace(hashes=hashes)
        self.is_remote = "://" in str(out)
        self.place = place
        self.target = f"{out}/{place.as_posix()}"

    def write(self, converted: DataFrame, parts: list[DonePart], limit: int | None) -> Stream:
        """Write the kept rows of parts, then those that are made of their tails."""
        split, domain = self.place.parts
        kept = {part.record.index: part.kept[domain][split] for part in parts}
        tails = rows_of_tails(parts, split, domain, self.options)
        if limit is not None:
            tails = tails[: max(0, limit - sum(kept.values()))]
        kept[TAILS_PART] = len(tails)
        rows = sum(kept.values())
        stream = Stream(stream_counts(parts, split, domain, rows, self.options.seq_len), {})
        if not self.is_remote:
            shutil.rmtree(self.target, ignore_errors=True)
        if rows:
            frame = converted.filter(
                (converted["domain"] == domain) & (converted["split"] == split)
            )
            if len(tails):
                block = RowBlock(domain, split, tails)
                frame = frame.union(self._frame_of(frame_of_rows(block, TAILS_PART, 0)))
            stream.files = self._convert(frame, kept)
        return stream

    @property
    def _advice(self) -> str:
        if self.is_remote:
            return "check the name, the credentials and the network, here and on the executors"
        return (
            "give an --out that Spark's executors share with this machine, or the URL of an object "
            "store"
        )

    def _frame_of(self, frame: pd.DataFrame) -> DataFrame:
        """Move a frame to Spark, into one partition."""
        rows = list(frame.itertuples(index=False, name=None))
        return self.spark.createDataFrame(rows, SCHEMA).coalesce(1)

    def _convert(self, frame: DataFrame, kept: dict[int, int]) -> dict[str, Fingerprint]:
        # Imports torch, which executors that convert parts do without.
        from streaming.base.converters import dataframe_to_mds

        options = self.options
        copies = Path(mkdtemp(prefix="data_prep_spark_"))
        mds = {
            "out": (str(copies / "mds"), self.target) if self.is_remote else self.target,
            "columns": {COLUMN: f"ndarray:{options.dtype}:{options.seq_len}"},
            "compression": options.compression,  # left out, it would be zstd
            "hashes": list(options.hashes),
            "size_limit": options.size_limit,
            "keep_local": not self.is_remote,
        }
        # Every store raises its own kinds; in a folder, merging fails when it finds no index.
        store_errors: type[Exception] = Exception if self.is_remote else RuntimeError
        rows = partial(_samples, dtype=options.dtype, kept=kept)
        try:
            with failures_as_sentences():
                dataframe_to_mds(frame, merge_index=True, mds_kwargs=mds, udf_iterable=rows)
            files = self._files(copies)
        except UserError:
            raise
        except store_errors as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot write {self.target} ({reason}): {self._advice}") from error
        finally:
            shutil.rmtree(copies, ignore_errors=True)
            self._remove_from_executors(copies)
        return files

    def _files(self, work: Path) -> dict[str, Fingerprint]:
        """List the files of the written stream by path below `out`; remove others from a folder."""
        from streaming.base.storage.download import CloudDownloader

        index = work / INDEX if self.is_remote else Path(self.target, INDEX)
        if self.is_remote:
            CloudDownloader.direct_download(f"{self.target}/{INDEX}", str(index))
        files = {INDEX: Fingerprint.of(index)}
        for shard in ShardIndex.read(index).shards:
            stored = shard.stored
            files[stored.basename] = Fingerprint(bytes=stored.bytes, sha256=stored.hashes["sha256"])
        if not self.is_remote:
            # Indexes of single folders, and folders of tasks without rows or that Spark repeated.
            for path in (path for path in Path(self.target).rglob("*") if path.is_file()):
                if path.relative_to(self.target).as_posix() not in files:
                    path.unlink()
            for folder in (path for path in Path(self.target).iterdir() if path.is_dir()):
                if not any(folder.iterdir()):
                    folder.rmdir()
        return {(self.place / name).as_posix(): entry for name, entry in files.items()}

    def _remove_from_executors(self, folder: Path) -> None:
        """Have executors remove what they have uploaded, except those that get no task."""
        context = self.spark.sparkContext
        if self.is_remote and not str(context.master).startswith("local["):
            name = str(folder)
            tasks = context.parallelize(range(context.defaultParallelism))
            with suppress(Exception):  # this only frees space, and Spark may be gone
                tasks.foreach(lambda _: shutil.rmtree(name, ignore_errors=True))


def _samples(
    rows: pd.DataFrame, dtype: str, kept: dict[int, int]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the kept rows as samples of a shard."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    for part, row, ids in zip(rows["part"], rows["row"], rows["ids"], strict=True):
        if row < kept.get(part, 0):
            yield {COLUMN: np.frombuffer(ids, little_endian).astype(dtype)}
