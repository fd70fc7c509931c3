"""`verify`: re-read every file of a converted folder and name each one that is damaged.

A shard is read whole and once, and its bytes are looked at directly: the streaming library's
reader takes the header for granted, opens the file anew for every row and cannot read a
compressed shard in memory. An MDS shard of token rows is

    uint32 rows | uint32 offsets[rows + 1] | JSON configuration | rows × seq_len ids
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.convert_manifest import (
    ConvertManifest,
    FileFingerprint,
    StreamCounts,
    read_convert_manifest,
)
from data_prep.manifest import MANIFEST, fingerprint
from data_prep.rows import COLUMN
from itt_composer.errors import UserError

INDEX = "index.json"
SHARD_SUFFIX = ".mds"


class Problem(NamedTuple):
    """A file below the folder, with forward slashes, and one sentence on what is wrong with it."""

    file: str
    problem: str


@dataclass
class Report:
    """What `verify` found.

    `shards` counts the shards that should be there; `rows`, `tokens` and `bytes` are those of
    intact files.
    """

    seq_len: int
    shards: int = 0
    rows: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Ids in the rows of intact shards."""
        return self.rows * self.seq_len

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "ok": self.ok,
            "shards": self.shards,
            "rows": self.rows,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "problems": [problem._asdict() for problem in self.problems],
        }

    def as_line(self) -> str:
        """The report without its problems, as one line."""
        count = len(self.problems)
        outcome = "ok" if self.ok else f"{count} problem{'s' * (count > 1)}"
        return f"{self.shards:,} shards, {self.rows:,} rows, {self.tokens:,} tokens: {outcome}"


class _DamageError(Exception):
    """One sentence about one file."""


class _IndexPart(BaseModel):
    # The streaming library's reader refuses other keys too.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _FileInfo(_IndexPart):
    basename: str
    bytes: int
    hashes: dict[str, str]


class _IndexEntry(_IndexPart):
    """A shard as an index describes it; all but the first three stand in its own header too."""

    samples: PositiveInt
    raw_data: _FileInfo
    zip_data: _FileInfo | None
    version: int
    format: str
    compression: str | None
    hashes: list[str]
    size_limit: int | None
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]

    @property
    def stored(self) -> _FileInfo:
        """The file that was written."""
        return self.zip_data or self.raw_data

    @property
    def configuration(self) -> dict[str, Any]:
        return self.model_dump(exclude={"samples", "raw_data", "zip_data"})


class _Index(_IndexPart):
    version: Literal[2]
    shards: list[_IndexEntry]


Kind: TypeAlias = Literal["shard", "decompressed", "other", "stray"]
Entries: TypeAlias = dict[str, _IndexEntry]


@dataclass(frozen=True)
class _Task:
    """A file to check, with what the manifest and a trusted index say of it, if they do.

    "decompressed" is the raw copy of a compressed shard that the streaming library leaves beside
    it when it reads the folder; "stray" is what nothing accounts for.
    """

    file: str
    kind: Kind
    listed: FileFingerprint | None
    entry: _IndexEntry | None


class _Outcome(NamedTuple):
    rows: int
    bytes: int
    problem: str | None


def verify(out: str | Path, workers: int, on_progress: Callable[[int, int], None]) -> Report:
    """Re-read a folder that `convert` wrote and compare all of it with its manifest and indexes.

    Every file must have the bytes and SHA-256 that the manifest lists, and every shard the size,
    hashes and configuration that its index gives; its rows must be `seq_len` ids below
    `vocab_size`; and rows and tokens must add up to the manifest's counts. A shard or index that
    nothing lists is damage too.

    Args:
        out: the folder.
        workers: threads; each holds one shard in memory, twice if shards are compressed. Of
            zstd shards one at a time is decompressed, as its library keeps the interpreter.
        on_progress: called after each file with the bytes done and in all.

    Returns:
        The report, its problems in the order of their files, at most one of each file but the
        manifest.

    Raises:
        UserError: as `read_convert_manifest`, or the manifest names a path outside `out`.
    """
    manifest = read_convert_manifest(out)
    out = Path(out)
    _check_names(out, manifest)
    indexes, problems = _read_indexes(out, manifest)
    entries = {file: entry for index in indexes.values() for file, entry in index.items()}
    tasks = list(_tasks(out, manifest, entries))
    problems += _problems_of_listing(manifest, indexes, tasks)
    problem_of = {problem.file: problem for problem in problems}
    report = Report(manifest.seq_len)
    for task, outcome in _run(out, manifest, tasks, workers, on_progress):
        report.shards += task.kind == "shard"
        if outcome.problem:
            problem_of.setdefault(task.file, Problem(task.file, outcome.problem))
        elif task.file not in problem_of:
            report.bytes += outcome.bytes
            report.rows += outcome.rows if task.kind == "shard" else 0
    report.problems = sorted([*problem_of.values(), *_problems_of_counts(manifest, indexes)])
    return report


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Give an `on_progress` that draws a bar on stderr, or nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _check_names(out: Path, manifest: ConvertManifest) -> None:
    streams = [f"{split}/{name}" for split, names in manifest.splits.items() for name in names]
    for name in (*manifest.files, *streams):
        if not _is_below(name):
            raise UserError(f"{out / MANIFEST} names {name!r}, which lies outside {out}")


def _is_below(name: str) -> bool:
    """Whether a relative path stays below its folder and is written in its only normal form."""
    path = PurePosixPath(name)
    return path.as_posix() == name and not path.is_absolute() and ".." not in path.parts


def _problems_of_counts(
    manifest: ConvertManifest, indexes: dict[str, Entries]
) -> Iterator[Problem]:
    """Counts of the manifest that contradict one another or the indexes."""
    for stream, rows in _streams(manifest).items():
        if stream in indexes:
            indexed = sum(entry.samples for entry in indexes[stream].values())
            if indexed != rows:
                yield Problem(MANIFEST, f"gives {stream} {rows:,} rows, its index {indexed:,}")
    for split, domains in manifest.splits.items():
        for domain, counts in domains.items():
            if counts.tokens != counts.rows * manifest.seq_len:
                yield Problem(
                    MANIFEST,
                    f"gives {split}/{domain} {counts.tokens:,} tokens, but {counts.rows:,} rows "
                    f"of {manifest.seq_len:,} are {counts.rows * manifest.seq_len:,}",
                )
    for split in sorted(manifest.splits.keys() | manifest.totals.keys()):
        total = manifest.totals.get(split)
        for key in StreamCounts.model_fields:
            added = sum(getattr(counts, key) for counts in manifest.splits.get(split, {}).values())
            if total is None or getattr(total, key) != added:
                stated = "none" if total is None else f"{getattr(total, key):,}"
                yield Problem(
                    MANIFEST, f"gives {split} {stated} {key}, but its domains add up to {added:,}"
                )


def _read_indexes(out: Path, manifest: ConvertManifest) -> tuple[dict[str, Entries], list[Problem]]:
    """Read the index of every stream that has rows; those of its parts must agree with it.

    Returns:
        The entries by file and stream, without the streams whose index cannot be trusted, and
        what is wrong with indexes.
    """
    indexes: dict[str, Entries] = {}
    problems = []
    for stream in _streams(manifest):
        try:
            indexes[stream] = _read_index(out, manifest, f"{stream}/{INDEX}")
        except _DamageError as damage:
            problems.append(Problem(f"{stream}/{INDEX}", str(damage)))
    for name in manifest.files:
        path = PurePosixPath(name)
        stream = "/".join(path.parts[:2])
        if path.name != INDEX or name == f"{stream}/{INDEX}" or stream not in indexes:
            continue
        folder = f"{path.parent}/"
        try:
            part = _read_index(out, manifest, name)
            whole = {f: e for f, e in indexes[stream].items() if f.startswith(folder)}
            if part != whole:
                raise _DamageError(f"describes other shards than {stream}/{INDEX} does")
        except _DamageError as damage:
            problems.append(Problem(name, str(damage)))
    return indexes, problems


def _streams(manifest: ConvertManifest) -> dict[str, int]:
    """Rows by stream; a stream without rows has no folder."""
    return {
        f"{split}/{domain}": counts.rows
        for split, domains in manifest.splits.items()
        for domain, counts in domains.items()
        if counts.rows
    }


def _read_index(out: Path, manifest: ConvertManifest, name: str) -> Entries:
    """Read an index file into its entries by path below `out`.

    Raises:
        _DamageError: it is not the file that the manifest lists, or does not fit the manifest.
    """
    listed = manifest.files.get(name)
    if listed is None:
        raise _DamageError("is not in the manifest's files")
    data = _read(out / name, listed)
    try:
        index = _Index.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its beginning"
        raise _DamageError(f"is no index of shards: {first['msg']} at {where}") from None
    folder = PurePosixPath(name).parent
    entries: Entries = {}
    for entry in index.shards:
        shard = entry.stored.basename
        if not _is_below(shard):
            raise _DamageError(f"names {shard!r}, which lies outside its folder")
        if f"{folder}/{shard}" in entries:
            raise _DamageError(f"names {shard} more than once")
        _check_configuration(entry.configuration, manifest, f"describes {shard} with")
        _check_file_infos(entry, manifest)
        entries[f"{folder}/{shard}"] = _relative_to_out(entry, folder)
    return entries


def _relative_to_out(entry: _IndexEntry, folder: PurePosixPath) -> _IndexEntry:
    """Name an entry's files from `out` on, so that entries of different indexes compare."""
    infos = {
        key: info and info.model_copy(update={"basename": f"{folder}/{info.basename}"})
        for key, info in (("raw_data", entry.raw_data), ("zip_data", entry.zip_data))
    }
    return entry.model_copy(update=infos)


def _check_file_infos(entry: _IndexEntry, manifest: ConvertManifest) -> None:
    if (entry.zip_data is not None) != (manifest.compression is not None):
        state = "uncompressed" if entry.zip_data is None else "compressed"
        raise _DamageError(f"calls {entry.stored.basename} {state}, unlike the manifest")
    if entry.stored.basename != entry.raw_data.basename + _suffix(manifest):
        raise _DamageError(
            f"pairs {entry.raw_data.basename} with {entry.stored.basename}, another shard's file"
        )
    for info in filter(None, (entry.raw_data, entry.zip_data)):
        if sorted(info.hashes) != sorted(manifest.hashes):
            raise _DamageError(
                f"gives {info.basename} the hashes {_list(info.hashes)}, "
                f"the manifest {_list(manifest.hashes)}"
            )


def _suffix(manifest: ConvertManifest) -> str:
    """What compression appends to the name of a shard."""
    return f".{manifest.compression.partition(':')[0]}" if manifest.compression else ""


def _check_configuration(stated: Any, manifest: ConvertManifest, subject: str) -> None:
    """Compare the configuration of a shard, from its index or header, with the manifest's."""
    if not isinstance(stated, dict):
        raise _DamageError(f"{subject} a configuration that is no JSON object")
    expected = {
        "version": 2,
        "format": "mds",
        "compression": manifest.compression,
        "hashes": manifest.hashes,
        "column_names": [COLUMN],
        "column_encodings": [f"ndarray:{manifest.dtype}:{manifest.seq_len}"],
        "column_sizes": [_row_bytes(manifest)],
    }
    for key, value in expected.items():
        if key not in stated or stated[key] != value:
            raise _DamageError(f"{subject} {key} {stated.get(key)}, the manifest means {value}")


def _row_bytes(manifest: ConvertManifest) -> int:
    return manifest.seq_len * np.dtype(manifest.dtype).itemsize


def _tasks(out: Path, manifest: ConvertManifest, entries: Entries) -> Iterator[_Task]:
    """Yield every file that the manifest or an index names, or that lies there as if it were."""
    for file in sorted(manifest.files.keys() | entries.keys()):
        kind: Kind = "shard" if _is_shard(file) else "other"
        yield _Task(file, kind, manifest.files.get(file), entries.get(file))
    for path in out.rglob("*"):
        file = path.relative_to(out).as_posix()
        named = file in manifest.files or file in entries
        if named or not (_is_shard(file) or path.name == INDEX) or not path.is_file():
            continue
        compressed = file + _suffix(manifest)
        if compressed in manifest.files:
            yield _Task(file, "decompressed", None, entries.get(compressed))
        else:
            yield _Task(file, "stray", None, None)


def _is_shard(file: str) -> bool:
    return SHARD_SUFFIX in PurePosixPath(file).name


def _problems_of_listing(
    manifest: ConvertManifest, indexes: dict[str, Entries], tasks: list[_Task]
) -> Iterator[Problem]:
    """Files that one of the manifest and the indexes names and another one lacks."""
    streams = _streams(manifest)
    for task in tasks:
        stream = "/".join(task.file.split("/")[:2])
        if task.kind == "stray":
            yield Problem(task.file, "is there, but the manifest does not list it")
        elif task.listed is None and task.kind == "shard":
            yield Problem(task.file, f"{stream}/{INDEX} names it, but the manifest does not")
        elif task.kind == "shard" or PurePosixPath(task.file).name == INDEX:
            if stream not in streams:
                yield Problem(task.file, "belongs to no domain for which the manifest counts rows")
            elif task.kind == "shard" and stream in indexes and task.entry is None:
                yield Problem(task.file, f"{stream}/{INDEX} does not name it")


def _run(
    out: Path,
    manifest: ConvertManifest,
    tasks: list[_Task],
    workers: int,
    on_progress: Callable[[int, int], None],
) -> Iterator[tuple[_Task, _Outcome]]:
    """Check files in threads: hashing, decompressing and NumPy let one another run."""
    total = sum(listed.bytes for listed in manifest.files.values())
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        tasks_of = {
            pool.submit(_check, out, manifest, task): task for task in tasks if task.kind != "stray"
        }
        try:
            for future in as_completed(tasks_of):
                task = tasks_of[future]
                yield task, future.result()
                if task.listed:
                    done += task.listed.bytes
                    on_progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)


def _check(out: Path, manifest: ConvertManifest, task: _Task) -> _Outcome:
    path = out / task.file
    try:
        if task.kind == "other" and task.listed:
            _check_other(path, task.listed)
            return _Outcome(0, task.listed.bytes, None)
        data = _read(path, task.listed)
        size = len(data)
        known = {"sha256": task.listed.sha256} if task.listed else {}
        if task.kind == "shard":
            if task.entry:
                _check_info(data, task.entry.stored, known)
            if manifest.compression:
                data, known = _decompress(manifest.compression, data), {}
        if task.entry:
            _check_info(data, task.entry.raw_data, known)
        return _Outcome(_check_rows(data, manifest, task.entry), size, None)
    except _DamageError as damage:
        return _Outcome(0, 0, str(damage))


def _check_other(path: Path, listed: FileFingerprint) -> None:
    """Compare a file of any size with what the manifest lists."""
    with _reading():
        _check_size(path, listed)
        _check_sha256(fingerprint(path)["sha256"], listed)


def _read(path: Path, listed: FileFingerprint | None) -> bytes:
    """Read a file whole, and compare it with what the manifest lists, if it does."""
    with _reading():
        if listed:
            _check_size(path, listed)
        data = path.read_bytes()
    if listed:
        _check_sha256(sha256(data).hexdigest(), listed)
    return data


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _DamageError("is missing") from None
    except OSError as error:
        raise _DamageError(f"cannot be read ({error.strerror})") from None


def _check_size(path: Path, listed: FileFingerprint) -> None:
    size = path.stat().st_size
    if size != listed.bytes:
        raise _DamageError(f"has {size:,} bytes, the manifest lists {listed.bytes:,}")


def _check_sha256(digest: str, listed: FileFingerprint) -> None:
    if digest != listed.sha256:
        raise _DamageError("SHA-256 differs from the manifest's")


def _check_info(data: bytes, info: _FileInfo, known: dict[str, str]) -> None:
    """Compare size and every hash with the index; `known` are hashes computed before."""
    if len(data) != info.bytes:
        raise _DamageError(f"holds {len(data):,} bytes, its index gives {info.bytes:,}")
    for algorithm, expected in info.hashes.items():
        if (known.get(algorithm) or _hash(algorithm, data)) != expected:
            raise _DamageError(f"{algorithm} differs from its index's")


def _hash(algorithm: str, data: bytes) -> str:
    if algorithm == "sha256":
        return sha256(data).hexdigest()
    # Imported here because it imports torch.
    from streaming.base.hashing import get_hash

    try:
        return get_hash(algorithm, data)
    except ValueError as error:
        raise _DamageError(f"cannot be checked: {error}") from None


def _decompress(compression: str, data: bytes) -> bytes:
    # Imported here because it imports torch.
    from streaming.base.compression import decompress

    try:
        return decompress(compression, data)
    # Every algorithm raises its own.
    except Exception as error:
        raise _DamageError(f"cannot be decompressed ({error})") from None


def _check_rows(data: bytes, manifest: ConvertManifest, entry: _IndexEntry | None) -> int:
    """Check a shard's header and ids, and return its rows."""
    rows, begin, configuration = _read_header(data, _row_bytes(manifest))
    _check_configuration(configuration, manifest, "its header has")
    if entry and rows != entry.samples:
        raise _DamageError(f"holds {rows:,} rows, its index gives {entry.samples:,}")
    if entry and configuration != entry.configuration:
        raise _DamageError("its header has another configuration than its index")
    ids = np.frombuffer(data, manifest.dtype, offset=begin)
    if ids.max() >= manifest.vocab_size:
        first = int(np.argmax(ids >= manifest.vocab_size))
        raise _DamageError(
            f"row {first // manifest.seq_len:,} holds id {ids[first]:,}, but the vocabulary has "
            f"{manifest.vocab_size:,} ids"
        )
    return rows


def _read_header(data: bytes, row_bytes: int) -> tuple[int, int, Any]:
    """Read a shard's header: rows, where the first one begins, and the configuration.

    Raises:
        _DamageError: it is cut short, or its rows do not fill the rest with `row_bytes` each.
    """
    rows = int(np.frombuffer(data[:4], "uint32")[0]) if len(data) >= 4 else 0
    table_end = 4 * (rows + 2)
    if rows == 0 or table_end > len(data):
        raise _DamageError(f"its header promises {rows:,} rows in {len(data):,} bytes")
    offsets = np.frombuffer(data, "uint32", rows + 1, offset=4).astype("int64")
    begin = int(offsets[0])
    wrong = np.flatnonzero(np.diff(offsets) != row_bytes)
    if wrong.size:
        length = int(offsets[wrong[0] + 1] - offsets[wrong[0]])
        raise _DamageError(f"row {wrong[0]:,} has {length:,} bytes instead of {row_bytes:,}")
    if offsets[-1] != len(data):
        raise _DamageError(
            f"its rows lie at bytes {begin:,} to {offsets[-1]:,}, not at the end of its "
            f"{len(data):,} bytes"
        )
    try:
        return rows, begin, json.loads(data[table_end:begin])
    except ValueError as error:
        raise _DamageError(f"its header's configuration is broken ({error})") from None


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
