"""How fast `itt convert` is: CPU seconds per MB of text, all in one run.

    python -m benchmarks.convert                        # 600 MB of the RedPajama sample, repeated
    python -m benchmarks.convert ROOT --tokenizer TOK   # all of ROOT/<domain>/**/*.jsonl

Compares with a plain loop of json, SentencePiece and MDSWriter, which is what the preparation of
Sheared-LLaMA does, and with the bare encoder, on text in memory, which nothing can be faster than.
The sample and the LLaMA-2 model are looked for in ITT_SHARED_DATA, `../shared/data` by default.
Run it on a machine that does nothing else.
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import REPOSITORY, command_line, machine

SHARED = Path(os.environ.get("ITT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
LIBRARIES = ("gigatoken", "sentencepiece", "mosaicml-streaming", "numpy")
PR_SET_CHILD_SUBREAPER = 36
BATCH_BYTES = 2_000_000
SHARD_BYTES = 1 << 26


class Measured(NamedTuple):
    """What a command used, all of its processes together.

    Attributes:
        wall: seconds.
        cpu: seconds, user and system.
        peak: bytes of memory of its largest process.
        output: what it printed.
    """

    wall: float
    cpu: float
    peak: int
    output: str


class Row(NamedTuple):
    """A row of the table: what a way to convert took for some text, and to start with none."""

    name: str
    megabytes: float
    used: Measured
    start: Measured

    def cpu_per_megabyte(self, has_start: bool) -> float:
        """Return CPU seconds per MB, with or without those of the start."""
        return (self.used.cpu - (0 if has_start else self.start.cpu)) / self.megabytes

    def wall(self, has_start: bool) -> float:
        """Return wall seconds, with or without those of the start."""
        return self.used.wall - (0 if has_start else self.start.wall)


def measure(*command: object) -> Measured:
    """Run a command and wait for every process that comes of it."""
    started = time.monotonic()
    # Its server of workers outlives it by a moment and is not its own to wait for, but ours.
    process = subprocess.Popen(
        [str(part) for part in command], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    cpu, peak, wall = 0.0, 0, 0.0
    while True:
        try:
            pid, status, used = os.wait4(-1, 0)
        except ChildProcessError:
            return Measured(wall, cpu, peak, output)
        cpu += used.ru_utime + used.ru_stime
        peak = max(peak, used.ru_maxrss * 1024)
        if pid == process.pid:
            wall = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}")


def repeat_sample(sample: Path, root: Path, text_bytes: int) -> None:
    """Write the sample again and again, one file per domain, until it has this much text."""
    once = 0
    lines = {}
    for folder in sorted(path for path in sample.iterdir() if path.is_dir()):
        lines[folder.name] = b"".join(file.read_bytes() for file in sorted(folder.glob("*.jsonl")))
        once += sum(
            len(json.loads(line)["text"].encode()) for line in lines[folder.name].splitlines()
        )
    for domain, data in lines.items():
        (root / domain).mkdir(parents=True)
        with (root / domain / "all.jsonl").open("wb") as file:
            for _ in range(max(1, round(text_bytes / once))):
                file.write(data)


def texts_of(root: Path, limit: float) -> list[bytes]:
    """Read texts of a corpus in UTF-8, evenly from all its files, up to a number of bytes."""
    files = sorted(root.rglob("*.jsonl"))
    total = sum(file.stat().st_size for file in files)
    texts = []
    for file in files:
        remaining = min(1.0, limit / total) * file.stat().st_size
        with file.open("rb") as lines:
            for line in lines:
                if remaining <= 0:
                    break
                texts.append(json.loads(line)["text"].encode())
                remaining -= len(line)
    return texts


def reference(root: str, tokenizer: str, out: str, seq_len: str, limit: str) -> None:
    """Run the plain loop and print the bytes of text that it converted."""
    import numpy as np
    import sentencepiece
    from streaming import MDSWriter

    processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
    files = sorted(Path(root).rglob("*.jsonl"))
    share = min(1.0, float(limit) / sum(file.stat().st_size for file in files))
    size = int(seq_len)
    text_bytes = 0
    for file in files:
        remaining = share * file.stat().st_size
        place = str(Path(out) / file.parent.name)
        columns = {"tokens": f"ndarray:uint16:{size}"}
        with MDSWriter(out=place, columns=columns, size_limit=SHARD_BYTES) as writer:
            ids: list[int] = []
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    if remaining <= 0:
                        break
                    remaining -= len(line)
                    text = json.loads(line)["text"]
                    text_bytes += len(text.encode())
                    ids += [processor.bos_id(), *processor.encode(text), processor.eos_id()]
                    while len(ids) >= size:
                        writer.write({"tokens": np.array(ids[:size], np.uint16)})
                        ids = ids[size:]
    print(text_bytes)


def bare(root: str, tokenizer: str, limit: str) -> None:
    """Run the encoder alone; print the bytes of text, and CPU and wall seconds of encoding."""
    from data_prep.tokenizer import load_tokenizer

    encoder = load_tokenizer(tokenizer).fast
    texts = texts_of(Path(root), float(limit))
    batches: list[list[bytes]] = [[]]
    size = 0
    for text in texts:
        batches[-1].append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            batches.append([])
            size = 0
    cpu, wall = time.process_time(), time.monotonic()
    for batch in batches:
        if batch:
            encoder.encode_batch(batch, parallel=False)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    print(json.dumps([sum(map(len, texts)), cpu, wall]))


def convert(root: Path, out: Path, options: argparse.Namespace, workers: int) -> Measured:
    """Measure our conversion."""
    arguments = ("--tokenizer", options.tokenizer, "--seq-len", options.seq_len)
    shutil.rmtree(out, ignore_errors=True)
    command = (sys.executable, "-m", "data_prep", "convert", root, "--out", out, *arguments)
    return measure(*command, "--workers", workers)


def text_megabytes(out: Path) -> float:
    """Return the MB of text in an output of ours."""
    totals = json.loads((out / "manifest.json").read_text())["totals"]
    return sum(counts["utf8_bytes"] for counts in totals.values()) / 1e6


def profile(root: Path, out: Path, options: argparse.Namespace) -> None:
    """Print where one process of ours spends its time."""
    import cProfile
    import pstats

    from data_prep.convert import convert
    from data_prep.options import Options

    profiler = cProfile.Profile()
    chosen = Options(root, str(out), options.tokenizer, options.seq_len, workers=1)
    import streaming  # noqa: F401 – not a part of what is looked for

    profiler.runcall(convert, chosen)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def corpus_of(options: argparse.Namespace, work: Path) -> tuple[Path, str]:
    """Find the corpus that was asked for, or make one of the sample, and say what it is."""
    if options.corpus is not None:
        return options.corpus.resolve(), f"{options.corpus}"
    sample = SHARED / "redpajama_sample"
    if not sample.is_dir():
        sys.exit(f"no {sample}: give ROOT and --tokenizer, or set ITT_SHARED_DATA")
    repeat_sample(sample, work / "corpus", options.megabytes * 1_000_000)
    return work / "corpus", "the RedPajama sample, repeated"


def benchmark(options: argparse.Namespace, work: Path) -> None:
    """Measure everything and print the tables."""
    root, of = corpus_of(options, work)
    if options.profile:
        profile(root, work / "profiled", options)
        return
    tiny = work / "tiny" / "d" / "a.jsonl"
    tiny.parent.mkdir(parents=True)
    tiny.write_text((json.dumps({"text": "some words " * 50}) + "\n") * options.seq_len)

    counts = range(1, options.workers + 1)
    start = {n: convert(tiny.parents[1], work / "started", options, n) for n in counts}
    ours = {n: convert(root, work / "ours", options, n) for n in counts}
    size = text_megabytes(work / "ours")
    this = (sys.executable, "-m", "benchmarks.convert")
    common = (root, options.tokenizer)
    limit = options.reference_megabytes * 1_000_000
    plain = measure(*this, "reference", *common, work / "plain", options.seq_len, limit)
    plain_start = measure(*this, "reference", *common, work / "plain0", options.seq_len, 1)
    bare = json.loads(measure(*this, "bare", *common, float("inf")).output)

    rows = [Row(f"ours, {n} worker{'s' * (n > 1)}", size, ours[n], start[n]) for n in counts]
    rows.append(Row("plain loop", int(plain.output) / 1e6, plain, plain_start))
    print(f"{size:,.0f} MB of text: {of}; rows of {options.seq_len} ids; {machine()};")
    print(f"Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in LIBRARIES))
    print(f"\n    {command_line()}\n")
    print_rows(rows, bare)
    print_ratios(rows, bare, options.workers)
    if options.corpus is None:
        print("\nRepeated text flatters the encoder's cache of words, ours and the bare one alike.")


def print_rows(rows: list[Row], bare: tuple[int, float, float]) -> None:
    """Print what everything took; `bare` is bytes of text, CPU and wall seconds of the encoder."""
    print("| | MB of text | wall s | CPU s | of it start | CPU s per MB | MB/s | peak memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, megabytes, used, at_start in rows:
        print(
            f"| {name} | {megabytes:,.1f} | {used.wall:.1f} | {used.cpu:.1f} | {at_start.cpu:.1f} "
            f"| {used.cpu / megabytes:.4f} | {megabytes / used.wall:.1f} "
            f"| {used.peak / 1e6:,.0f} MB |"
        )
    size, cpu, wall = bare[0] / 1e6, bare[1], bare[2]
    print(
        f"| bare encoder | {size:,.1f} | {wall:.1f} | {cpu:.1f} | – "
        f"| {cpu / size:.4f} | {size / wall:.1f} | – |"
    )


def print_ratios(rows: list[Row], bare: tuple[int, float, float], workers: int) -> None:
    """Print the ratios that matter and what they should reach, with and without the start."""
    one, most, plain = rows[0], rows[-2], rows[-1]
    bare_cpu = bare[1] / (bare[0] / 1e6)

    def ratios(has_start: bool) -> tuple[float, float, float]:
        cpu = one.cpu_per_megabyte(has_start)
        of_workers = one.wall(has_start) / most.wall(has_start)
        return plain.cpu_per_megabyte(has_start) / cpu, bare_cpu / cpu, of_workers

    names = (
        *("plain loop / ours, CPU per MB", "bare encoder / ours"),
        f"1 worker / {workers} workers, wall",
    )
    print("\n| | to reach | all in all | without start |")
    print("| --- | --- | --- | --- |")
    for name, goal, whole, steady in zip(
        names, (8, 0.5, 1.8), ratios(True), ratios(False), strict=True
    ):
        print(f"| {name} | {goal} | {whole:.2f} | {steady:.2f} |")


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["reference"]:
        return reference(*sys.argv[2:])
    if sys.argv[1:2] == ["bare"]:
        return bare(*sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", nargs="?", type=Path, help="folder with <domain>/**/*.jsonl")
    parser.add_argument("--megabytes", type=int, default=600, help="of the sample, repeated")
    parser.add_argument("--reference-megabytes", type=int, default=24, help="for the plain loop")
    parser.add_argument("--tokenizer", default=str(SHARED / "llama2_tokenizer" / "tokenizer.model"))
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="at most")
    parser.add_argument("--work", type=Path, help="folder for the files; a temporary one if absent")
    parser.add_argument("--profile", action="store_true", help="where the time goes, no table")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        benchmark(options, Path(work))


if __name__ == "__main__":
    main()
