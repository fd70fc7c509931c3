"""What it costs to watch a training: batches that are watched beside batches that are not.

    python -m benchmarks.watching                              # about 15 minutes on a CPU
    python -m benchmarks.watching --sizes tiny --cycles 40

Trains on random rows. In every six batches of one training two are not watched, two log what
thinking steps do, one the gradients' norms, one both; each is compared with the unwatched ones of
its six. On a CPU float32 on one thread, and its time is that of the process, so that others on the
machine count little; on a GPU bfloat16 and the clock.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from benchmarks.loader import make_shards
from benchmarks.machine import REPOSITORY, command_line, machine
from itt_composer.basics.files import write_json
from itt_composer.data.streams import build_dataloader
from itt_composer.models.building import build_model
from itt_composer.models.composer_model import ComposerItt
from itt_composer.models.wrapping import compile_layers
from itt_composer.recipe.components import CALLBACKS
from itt_composer.recipe.schema import Recipe, load_recipe

CYCLE = 6
# Thinking every second batch, gradients every third: their places in the cycle.
WATCHED = {"thinking_stats": (2, 4), "gradient_norms": (3,), "both": (0,)}
UNWATCHED = (1, 5)
# Rows and tokens of a batch.
WORK = {"cpu": {"tiny": (16, 128), "llama_162m": (1, 256)}, "gpu": {"llama_162m": (8, 4096)}}


class Stopwatch(Callback):
    """Seconds from the start of each batch to its end, the device's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def batch_start(self, state: State, logger: Logger) -> None:
        self._started = now()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seconds.append(now() - self._started)


def now() -> float:
    """Return seconds: of this process on a CPU; on a GPU once it has done what it was given."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def load(size: str, device: str, rows: int, seq_len: int, folder: Path) -> Recipe:
    """Load an ITT×4 recipe whose batch is a single microbatch."""
    recipe = {"tiny": "quickstart", "llama_162m": "itt_x4_162m"}[size]
    overrides = [
        f"data.local={folder / 'shards'}",
        f"data.seq_len={seq_len}",
        "data.num_workers=0",
        f"train.global_batch_size={rows}",
        f"train.microbatch_size={rows}",
        f"train.device={device}",
        f"train.precision={'fp32' if device == 'cpu' else 'amp_bf16'}",
        f"loggers={{tensorboard: null, json_lines: {{path: {folder / 'metrics.jsonl'}}}}}",
    ]
    return load_recipe(REPOSITORY / f"yamls/pretrain/{recipe}.yaml", overrides)


def train(recipe: Recipe, batches: int, compile_layer: bool) -> list[float]:
    """Train, and return the seconds of each batch."""
    model = build_model(recipe)
    if compile_layer:
        compile_layers(model)
    composer_model = ComposerItt(model)
    watching = {"thinking_stats": {"interval": "2ba"}, "gradient_norms": {"interval": "3ba"}}
    stopwatch = Stopwatch()
    trainer = Trainer(
        model=composer_model,
        train_dataloader=build_dataloader(recipe.data, "train", recipe.train.global_batch_size),
        optimizers=recipe.optimizer.build(composer_model.parameters())[0],
        algorithms=[],
        callbacks=[*CALLBACKS.section().model_validate(watching).build(), stopwatch],
        loggers=recipe.loggers.build(),
        device=recipe.train.device,
        precision=recipe.train.precision,
        max_duration=f"{batches}ba",
        device_train_microbatch_size=recipe.train.microbatch_size,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    return stopwatch.seconds


def overheads(seconds: list[float], places: tuple[int, ...]) -> list[float]:
    """Return the time of batches at these places of a cycle over the unwatched ones', minus 1."""
    return [
        seconds[start + place] / statistics.mean(seconds[start + at] for at in UNWATCHED) - 1
        for start in range(0, len(seconds), CYCLE)
        for place in places
    ]


def measure(
    size: str, device: str, rows: int, seq_len: int, cycles: int, compile_layer: bool
) -> list[dict[str, Any]]:
    """Measure a row of results for each thing that is watched; the first cycle warms up."""
    with tempfile.TemporaryDirectory() as temporary:
        recipe = load(size, device, rows, seq_len, Path(temporary))
        megabytes = 1 + 2 * rows * seq_len * CYCLE * (cycles + 1) // 1_000_000
        make_shards(Path(temporary) / "shards", megabytes, seq_len, recipe.model.vocab_size)
        seconds = train(recipe, CYCLE * (cycles + 1), compile_layer)[CYCLE:]
    interval = 50
    results = []
    for what, places in WATCHED.items():
        values = overheads(seconds, places)
        low, middle, high = statistics.quantiles(values, n=4)
        unwatched = [seconds[i] for i in range(len(seconds)) if i % CYCLE in UNWATCHED]
        results.append(
            {
                "size": size,
                "rows": rows,
                "seq_len": seq_len,
                "watched": what,
                "seconds_per_batch": statistics.median(unwatched),
                "overhead": middle,
                "overhead_quartiles": [low, high],
                "overhead_at_interval": middle / interval,
                "interval": interval,
            }
        )
    return results


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Write the results as a Markdown table."""
    headers = (
        "size",
        "batch",
        "watched",
        "ms per unwatched batch",
        "added to a watched batch, % (quartiles)",
        "at the default interval (50), % of step time",
    )
    lines = [f"| {' | '.join(headers)} |", f"|{' --- |' * len(headers)}"]
    for row in rows:
        low, high = row["overhead_quartiles"]
        cells = (
            row["size"],
            f"{row['rows']} × {row['seq_len']}",
            row["watched"].replace("_", " "),
            f"{1e3 * row['seconds_per_batch']:,.0f}",
            f"{100 * row['overhead']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{100 * row['overhead_at_interval']:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    sizes: Annotated[str, typer.Option(help="Files of yamls/models.")] = "",
    cycles: Annotated[int, typer.Option(min=2, help="Six batches each.")] = 10,
    batch_rows: Annotated[int | None, typer.Option("--rows", help="Of a batch.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens of a row.")] = None,
    compile_layer: Annotated[
        bool, typer.Option("--compile", help="Compile each layer; watched batches are not.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Measure what watching adds to a batch."""
    torch.set_num_threads(1)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    dist.initialize_dist(device)
    name = torch.cuda.get_device_name() if device == "gpu" else machine()
    rows = []
    for size in sizes.split(",") if sizes else WORK[device]:
        of_batch, tokens = WORK[device][size]
        shape = (batch_rows or of_batch, seq_len or tokens)
        rows += measure(size, device, *shape, cycles, compile_layer)
    print(f"Device: {name}; torch {torch.__version__}. Command: {command_line()}\n")
    print(as_markdown(rows))
    if output is not None:
        results = {"device": name, "command": command_line(), "rows": rows}
        write_json(output, results)


if __name__ == "__main__":
    typer.run(main)
