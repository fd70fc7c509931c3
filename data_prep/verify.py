"""`verify`: re-read every file of a converted folder and name each one that is damaged."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.shard_checks import check_info, check_rows, decompress_shard
from itt_composer.data.fingerprints import DamageError, Fingerprint, reading
from itt_composer.data.index import INDEX, Shard, ShardIndex
from itt_composer.data.manifest import MANIFEST, Manifest, StreamCounts

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
        """Return the report as one JSON object."""
        return {
            "ok": self.ok,
            "shards": self.shards,
            "rows": self.rows,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "problems": [problem._asdict() for problem in self.problems],
        }

    def as_line(self) -> str:
        """Sum the report up in one line, without its problems."""
        count = len(self.problems)
        outcome = "ok" if self.ok else f"{count} problem{'s' * (count > 1)}"
        return f"{self.shards:,} shards, {self.rows:,} rows, {self.tokens:,} tokens: {outcome}"


FileKind: TypeAlias = Literal["shard", "decompressed", "other", "stray"]


@dataclass(frozen=True)
class _Task:
    """A file to check, with what the manifest and a trusted index say of it, if anything.

    "decompressed" is the raw copy of a compressed shard that the streaming library leaves beside
    it when it reads the folder; "stray" is what nothing accounts for.
    """

    file: str
    kind: FileKind
    listed: Fingerprint | None
    entry: Shard | None


Entries: TypeAlias = dict[str, Shard]


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
        UserError: as `Manifest.read`.
    """
    manifest = Manifest.read(out)
    out = Path(out)
    indexes, problems = read_indexes(out, manifest)
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
    """Yield an `on_progress` that draws a bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _problems_of_counts(manifest: Manifest, indexes: dict[str, Entries]) -> Iterator[Problem]:
    """Find counts of the manifest that contradict one another or the indexes."""
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


def read_indexes(out: Path, manifest: Manifest) -> tuple[dict[str, Entries], list[Problem]]:
    """Read the index of every stream that has rows; those of its parts must agree with it.

    Returns:
        The entries by file and stream, without the streams whose index cannot be trusted, and
        what is wrong with indexes.
    """
    indexes: dict[str, Entries] = {}
    problems = []
    for stream in _streams(manifest):
        try:
            indexes[stream] = read_entries(out, manifest, f"{stream}/{INDEX}")
        except DamageError as damage:
            problems.append(Problem(f"{stream}/{INDEX}", str(damage)))
    for name in manifest.files:
        path = PurePosixPath(name)
        stream = "/".join(path.parts[:2])
        if path.name != INDEX or name == f"{stream}/{INDEX}" or stream not in indexes:
            continue
        folder = f"{path.parent}/"
        try:
            part = read_entries(out, manifest, name)
            whole = {f: e for f, e in indexes[stream].items() if f.startswith(folder)}
            if part != whole:
                raise DamageError(f"describes other shards than {stream}/{INDEX} does")
        except DamageError as damage:
            problems.append(Problem(name, str(damage)))
    return indexes, problems


def read_entries(out: Path, manifest: Manifest, name: str) -> Entries:
    """Read an index file into its shards by path below `out`.

    Raises:
        DamageError: it is not the file that the manifest lists, or does not fit the manifest.
    """
    listed = manifest.files.get(name)
    if listed is None:
        raise DamageError("is not in the manifest's files")
    index = ShardIndex.parse(listed.content(out / name))
    index.check(manifest)
    folder = PurePosixPath(name).parent.as_posix()
    return {f"{folder}/{shard.stored.basename}": shard.below(folder) for shard in index.shards}


def _streams(manifest: Manifest) -> dict[str, int]:
    """Count rows by stream, without those that have none and so no folder."""
    return {
        f"{split}/{domain}": counts.rows
        for split, domains in manifest.splits.items()
        for domain, counts in domains.items()
        if counts.rows
    }


def _tasks(out: Path, manifest: Manifest, entries: Entries) -> Iterator[_Task]:
    """Yield every file that the manifest or an index names, or that lies there as if it were."""
    for file in sorted(manifest.files.keys() | entries.keys()):
        kind: FileKind = "shard" if _is_shard(file) else "other"
        yield _Task(file, kind, manifest.files.get(file), entries.get(file))
    for path in out.rglob("*"):
        file = path.relative_to(out).as_posix()
        named = file in manifest.files or file in entries
        if named or not (_is_shard(file) or path.name == INDEX) or not path.is_file():
            continue
        compressed = file + manifest.compression_suffix
        if compressed in manifest.files:
            yield _Task(file, "decompressed", None, entries.get(compressed))
        elif not (manifest.engine == "spark" and path.parent.name.isdigit()):
            # A store keeps the index of each of Spark's tasks, and all that a repeated one wrote.
            yield _Task(file, "stray", None, None)


def _is_shard(file: str) -> bool:
    return SHARD_SUFFIX in PurePosixPath(file).name


def _problems_of_listing(
    manifest: Manifest, indexes: dict[str, Entries], tasks: list[_Task]
) -> Iterator[Problem]:
    """Find files that one of the manifest and the indexes names and another lacks."""
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
    manifest: Manifest,
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


def _check(out: Path, manifest: Manifest, task: _Task) -> _Outcome:
    path = out / task.file
    try:
        if task.kind == "other" and task.listed:
            task.listed.check(path)
            return _Outcome(0, task.listed.bytes, None)
        data = _content(path, task.listed)
        size = len(data)
        known = {"sha256": task.listed.sha256} if task.listed else {}
        if task.kind == "shard":
            if task.entry:
                check_info(data, task.entry.stored, known)
            if manifest.compression:
                data, known = decompress_shard(manifest.compression, data), {}
        if task.entry:
            check_info(data, task.entry.raw_data, known)
        return _Outcome(check_rows(data, manifest, task.entry), size, None)
    except DamageError as damage:
        return _Outcome(0, 0, str(damage))


def _content(path: Path, listed: Fingerprint | None) -> bytes:
    """Read a shard, and check it against the manifest if that lists it."""
    if listed:
        return listed.content(path)
    with reading():
        return path.read_bytes()
