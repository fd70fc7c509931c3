"""List the recipes and what each will take: `itt recipes [PATTERN]`.

Parameters, FLOPs in both accountings beside the paper's own figure, tokens, GPU-hours and memory,
all of them computed from the recipe files; nothing is measured.
"""

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.basics.files import json_text
from itt_composer.basics.tables import Table, wide_console
from itt_composer.models.building import model_config
from itt_composer.paper.figures import recipe_tflops
from itt_composer.recipe.checks import tokens_in
from itt_composer.recipe.reference import page_of_keys
from itt_composer.recipe.schema import Recipe, load_recipe
from itt_composer.recipe.thinking import Thinking

if TYPE_CHECKING:
    from itt_composer.models import IttConfig

RECIPE_FOLDER = Path("yamls/pretrain")
PAPER_TFLOPS = recipe_tflops()
PAPER_TOKENS = 4096  # of the forward pass that the TFLOPs columns count

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Assumptions:
    """What is assumed, as the recipes do not say it.

    Attributes:
        mfu_a100, mfu_h100: share of the GPU's dense bf16 peak that training reaches.
        gpus_per_node: over which "fsdp" (on one node) and "hybrid" shard.
    """

    mfu_a100: float
    mfu_h100: float
    gpus_per_node: int


@dataclass(frozen=True)
class RecipeRow:
    """The figures of a recipe; one that does not apply is None.

    Attributes:
        recipe: name of its file.
        parameters: trainable ones, those of thinking included.
        tflops_in_paper: as printed there.
        paper_tflops: by the paper's count, of a forward pass over 4,096 tokens.
        executed_tflops: what the code does in the same pass.
        tokens: of the whole training.
        a100_hours, h100_hours: of one GPU.
        sharding, microbatch_size: of the recipe.
        memory_bytes: on each GPU, at the peak of a training step.
    """

    recipe: str
    parameters: int
    tflops_in_paper: float | None
    paper_tflops: float
    executed_tflops: float
    tokens: int | None
    a100_hours: float | None
    h100_hours: float | None
    sharding: str
    microbatch_size: int | str
    memory_bytes: int | None


@app.command()
def main(
    pattern: Annotated[
        str, typer.Argument(help="Part of a recipe's name; may hold * and ?.")
    ] = "*",
    folder: Annotated[Path, typer.Option(help="The folder of the recipes.")] = RECIPE_FOLDER,
    mfu_a100: Annotated[
        float, typer.Option(min=0.01, max=1, help="Assumed share of an A100's peak.")
    ] = 0.4,
    mfu_h100: Annotated[
        float, typer.Option(min=0.01, max=1, help="Assumed share of an H100's peak.")
    ] = 0.3,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs to shard over.")] = 8,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    keys: Annotated[
        bool, typer.Option("--keys", help="Print every key of a recipe, as Markdown.")
    ] = False,
) -> None:
    """List the recipes: parameters, FLOPs, tokens, GPU-hours and memory."""
    if keys:
        print(page_of_keys(), end="")
        return
    with errors_as_sentences():
        recipes = dict(find_recipes(folder, pattern))
        assumptions = Assumptions(mfu_a100, mfu_h100, gpus_per_node)
        rows = [recipe_row(name, recipe, assumptions) for name, recipe in recipes.items()]
    if as_json:
        document = {"assumptions": asdict(assumptions), "recipes": [asdict(row) for row in rows]}
        print(json_text(document, "the list", indent=1))
    elif markdown:
        print(f"{markdown_table(rows)}\n\n{caption(assumptions)}")
    else:
        recipe_table(rows).print(wide_console())
        print(textwrap.fill(caption(assumptions), shutil.get_terminal_size((120, 0)).columns))


def find_recipes(folder: Path, pattern: str = "*") -> Iterator[tuple[str, Recipe]]:
    """Yield the recipes of a folder whose names match: by size, then as in Table 1.

    Raises:
        UserError: there is none, or one is broken.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; start in the project's folder, or name one with --folder"
        )
    files = sorted(file for file in folder.glob("*.yaml") if fnmatch(file.stem, f"*{pattern}*"))
    if not files:
        raise UserError(
            f"{folder} has no recipe whose name contains {pattern!r}; `itt recipes`, "
            "in the project's folder, lists them all"
        )
    loaded = [(file.stem, load_recipe(file)) for file in files]
    yield from sorted(loaded, key=lambda named: _place_in_list(named[1]))


def _place_in_list(recipe: Recipe) -> tuple:
    """Return a key that sorts by size, and models of a size as LLaMA, Loop, ITT by their steps."""
    thinking = recipe.resolved_thinking()
    size = recipe.model.num_hidden_layers * recipe.model.hidden_size
    return (size, get_args(Thinking).index(thinking.thinking), thinking.thinking_steps)


def recipe_row(name: str, recipe: Recipe, assumptions: Assumptions) -> RecipeRow:
    """Compute a recipe's figures."""
    from itt_composer.models.estimates import PEAK_FLOPS, gpu_hours
    from itt_composer.models.flops import (
        dense_parameters,
        executed_flops,
        paper_tflops,
        thinking_parameters,
    )

    config, tokens = model_config(recipe), tokens_in(recipe.train.max_duration, recipe)
    seq_len, on_gpu = recipe.data.seq_len, recipe.train.device != "cpu"
    sequences = PAPER_TOKENS / seq_len
    hours: dict[str, float | None] = dict.fromkeys(PEAK_FLOPS)
    if on_gpu and tokens is not None:
        shares = {"A100": assumptions.mfu_a100, "H100": assumptions.mfu_h100}
        hours |= {
            gpu: gpu_hours(config, tokens, seq_len, peak, shares[gpu])
            for gpu, peak in PEAK_FLOPS.items()
        }
    return RecipeRow(
        recipe=name,
        parameters=dense_parameters(config) + thinking_parameters(config),
        tflops_in_paper=PAPER_TFLOPS.get(name),
        paper_tflops=paper_tflops(config, seq_len) * sequences,
        executed_tflops=executed_flops(config, 1, seq_len) * sequences / 1e12,
        tokens=tokens,
        a100_hours=hours["A100"],
        h100_hours=hours["H100"],
        sharding=recipe.train.sharding,
        microbatch_size=recipe.train.microbatch_size,
        memory_bytes=memory_bytes(config, recipe, assumptions.gpus_per_node) if on_gpu else None,
    )


def memory_bytes(config: "IttConfig", recipe: Recipe, gpus_per_node: int) -> int | None:
    """Return the bytes on each GPU at the peak of a step; None if the microbatch is left open."""
    from itt_composer.models.estimates import TrainingStep, training_memory

    train = recipe.train
    if train.microbatch_size == "auto":
        return None
    step = TrainingStep(
        microbatch_size=train.microbatch_size,
        seq_len=recipe.data.seq_len,
        precision=train.precision,
        sharding=train.sharding,
        activation_checkpointing=train.activation_checkpointing,
        loss_chunk_tokens=train.loss_chunk_tokens,
        shards=gpus_per_node,
    )
    return training_memory(config, step).total


HEADERS = (
    "recipe",
    "parameters",
    "TFLOPs printed",
    "TFLOPs counted",
    "TFLOPs executed",
    "tokens",
    "A100 hours",
    "H100 hours",
    "sharding",
    "micro batch",
    "GB per GPU",
)
LEFT = ("recipe", "sharding")  # columns of text


def cells(row: RecipeRow) -> list[str]:
    """Return a row's cells, in the order of `HEADERS`."""

    def number(value: float | None, digits: int = 2) -> str:
        return "–" if value is None else f"{value:,.{digits}f}"

    def count(value: int | None) -> str:
        if value is None:
            return "–"
        return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.2f} M"

    def hours(value: float | None) -> str:
        return number(value, 0 if value is not None and value >= 10 else 2)

    return [
        row.recipe,
        count(row.parameters),
        number(row.tflops_in_paper),
        number(row.paper_tflops),
        number(row.executed_tflops),
        count(row.tokens),
        hours(row.a100_hours),
        hours(row.h100_hours),
        row.sharding,
        str(row.microbatch_size),
        "–" if row.memory_bytes is None else number(row.memory_bytes / 1e9, 0),
    ]


def recipe_table(rows: list[RecipeRow]) -> Table:
    """Return the table for a terminal."""
    headers = [header.replace(" ", "\n") for header in HEADERS]
    return Table("", headers, [cells(row) for row in rows])


def markdown_table(rows: list[RecipeRow]) -> str:
    """Return the table for a page."""
    rules = [":---" if header in LEFT else "---:" for header in HEADERS]
    lines = [list(HEADERS), rules]
    lines += [[f"`{name}`", *others] for name, *others in map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(assumptions: Assumptions) -> str:
    """Return what the figures of a table mean."""
    return (
        "TFLOPs of a forward pass over 4,096 tokens: as the paper prints them, as its formula "
        "counts them, as the code executes them. Hours of one GPU, for the executed FLOPs of "
        f"forward and backward, at an assumed MFU of {assumptions.mfu_a100:.0%} on an A100 (of 312 "
        f"TFLOP/s) and {assumptions.mfu_h100:.0%} on an H100 (of 989). GB: tensors of a training "
        "step at its peak, without compilation, which needs less; fsdp and hybrid share the "
        f"weights among {assumptions.gpus_per_node} GPUs. All of it is computed, not measured."
    )
