"""How many tokens the loader gives per second, against what an A100 takes.

    python -m benchmarks.loader                  # makes 1 GB of shards in a temporary folder
    python -m benchmarks.loader data/redpajama   # or reads the output of `convert`

Prints a Markdown table. One rank; a node's ranks share its cores and its disk.
"""

import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from streaming import MDSWriter

from benchmarks.machine import command_line, machine
from data_prep.complete_folder import fingerprints
from data_prep.domains import PAPER_SHARES
from itt_composer.data.manifest import (
    MANIFEST,
    Manifest,
    StreamCounts,
    TokenizerOrigin,
)
from itt_composer.data.prepare import prepare_shards
from itt_composer.data.streams import build_dataloader
from itt_composer.recipe.schema import DataRecipe

# Tokens/s that one A100-80GB takes in training the 162M models, about.
A100_TOKENS_PER_SECOND = 120_000
VOCAB_SIZE = 32_000


def make_shards(out: Path, megabytes: int, seq_len: int, vocab_size: int = VOCAB_SIZE) -> None:
    """Write random rows in the layout of `convert`, every domain in its share."""
    rng = np.random.default_rng(0)
    splits: dict[str, dict[str, StreamCounts]] = {"train": {}, "validation": {}}
    for domain, share in PAPER_SHARES.items():
        rows = max(16, int(megabytes * 1e6 * share / (2 * seq_len)))
        splits["train"][domain] = counts_of(rows, seq_len)
        write_rows(out / "train" / domain, rows, seq_len, rng, vocab_size)
    splits["validation"]["cc"] = counts_of(16, seq_len)
    write_rows(out / "validation/cc", 16, seq_len, rng, vocab_size)
    manifest = Manifest(
        seq_len=seq_len,
        dtype="uint16",
        vocab_size=vocab_size,
        bos_id=1,
        eos_id=2,
        tokenizer=TokenizerOrigin(file="", sha256=""),
        splits=splits,
        totals={split: StreamCounts.sum(domains.values()) for split, domains in splits.items()},
        files=fingerprints(out, [path for path in out.rglob("*") if path.is_file()]),
    )
    (out / MANIFEST).write_text(manifest.to_json())


def counts_of(rows: int, seq_len: int) -> StreamCounts:
    """Make the counts of a stream of random rows, which come from no documents."""
    nothing = dict.fromkeys(StreamCounts.model_fields, 0)
    return StreamCounts(**nothing | {"rows": rows, "tokens": rows * seq_len})


def write_rows(
    folder: Path, rows: int, seq_len: int, rng: np.random.Generator, vocab_size: int
) -> None:
    """Write one stream of random rows."""
    columns = {"input_ids": f"ndarray:uint16:{seq_len}"}
    with MDSWriter(out=str(folder), columns=columns, hashes=["sha256"]) as writer:
        for _ in range(rows):
            writer.write({"input_ids": rng.integers(vocab_size, size=seq_len, dtype=np.uint16)})


def measure(data: DataRecipe, batch_size: int, seconds: float) -> float:
    """Measure tokens/s over some time, without the first ten batches."""
    batches = iter_forever(build_dataloader(data, "train", batch_size).dataloader)
    for _ in islice(batches, 10):
        pass
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        tokens += next(batches)["input_ids"].numel()
    return tokens / (time.perf_counter() - started)


def iter_forever(loader: Any) -> Any:
    """Yield batches of epoch after epoch."""
    while True:
        yield from loader


def main(
    shards: Annotated[Path | None, typer.Argument(help="Output of `convert`.")] = None,
    megabytes: Annotated[int, typer.Option(help="Size of the shards to make.")] = 1000,
    seq_len: Annotated[int, typer.Option(help="Tokens per row of the shards to make.")] = 4096,
    batch_size: Annotated[int, typer.Option(help="Rows per batch.")] = 32,
    seconds: Annotated[float, typer.Option(help="Time per measurement.")] = 15.0,
) -> None:
    """Measure the loader with 0, 1 and 2 workers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if shards is None:
            shards = Path(temporary)
            make_shards(shards, megabytes, seq_len)
        manifest = Manifest.read(shards)
        has_all = PAPER_SHARES.keys() <= manifest.splits["train"].keys()
        settings = {
            "local": str(shards),
            "seq_len": manifest.seq_len,
            "domains": PAPER_SHARES if has_all else None,
        }
        started = time.perf_counter()
        prepare_shards(DataRecipe.model_validate(settings), manifest.vocab_size, batch_size)
        checking = time.perf_counter() - started
        print(f"Machine: {machine()}. Command: {command_line()}\n")
        print("| num_workers | tokens/s | of what an A100 takes at 162M |")
        print("| --- | --- | --- |")
        for workers in (0, 1, 2):
            data = DataRecipe.model_validate({**settings, "num_workers": workers})
            speed = measure(data, batch_size, seconds)
            print(f"| {workers} | {speed:,.0f} | {speed / A100_TOKENS_PER_SECOND:.1f} × |")
        size = sum(file.bytes for file in manifest.files.values())
        print(f"\nHashing before the start: {size / 1e6 / checking:,.0f} MB/s")


if __name__ == "__main__":
    typer.run(main)
