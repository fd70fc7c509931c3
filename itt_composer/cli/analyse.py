"""Look into trained models.

    itt analyse gradients runs/itt_x4_162m --problems aqua/dev.jsonl
    itt analyse tokens runs/itt_x4_162m --text story.txt

`gradients` measures the nuclear norms of the gradients of easy and hard problems, `tokens` finds
out which tokens think. Both print a table and write JSON into the run's folder.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from itt_composer.analysis.places import result_file, shards_of
from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.basics.files import check_place, write_whole
from itt_composer.basics.text import readable
from itt_composer.cli.options import ANY_MODEL, SelectRatios, comma_separated

if TYPE_CHECKING:
    from itt_composer.basics.tables import Table
    from itt_composer.results.base import AnalysisFile
    from itt_composer.runs.loading import LoadedModel

app = typer.Typer(
    help="Look into trained models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
Models = Annotated[list[str], ANY_MODEL]
OutputOption = Annotated[
    Path | None, typer.Option(help="JSON file; by default in the run folder's analysis/.")
]


@app.command()
def gradients(
    models: Models,
    problems: Annotated[Path, typer.Option(help="AQuA's problems, as JSON lines.")],
    fine_tune: Annotated[
        int, typer.Option(min=0, help="Problems to fine-tune on, the first of the file.")
    ] = 100,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of fine-tuning.")] = 5e-5,
    measure: Annotated[
        int | None, typer.Option(min=1, help="Problems to measure; by default all that are left.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Measure the gradients' nuclear norms of easy and hard problems, by layer and projection."""
    with errors_as_sentences():
        if not 0 < learning_rate < float("inf"):
            raise UserError(f"--learning-rate must be a positive number, not {learning_rate}")
        files = _result_files(models, "gradients.json", output)
        from itt_composer.analysis.gradients import FineTuning, analyse_gradients
        from itt_composer.analysis.problems import read_problems
        from itt_composer.analysis.tables import gradient_tables
        from itt_composer.results.gradients import GradientResults

        read, source = read_problems(problems), readable(str(problems))
        fine_tuning = FineTuning(fine_tune, epochs, learning_rate)
        for name, file in files.items():
            evaluated = _load(name)
            identity = evaluated.identity()
            model, tokenizer = evaluated.model.float(), evaluated.tokenizer()
            with _progress() as show:
                norms = analyse_gradients(
                    model, tokenizer, read, fine_tuning, measure, show, source
                )
            result = GradientResults(**identity, **dict(norms))
            _finish(result, name, file, partial(gradient_tables, result))


@app.command()
def tokens(
    models: Models,
    rows: Annotated[int, typer.Option(min=1, help="Validation rows to look at.")] = 128,
    data: Annotated[
        Path | None, typer.Option(help="Shards; by default those that the run's recipe names.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A text file to show token by token; may be repeated."),
    ] = None,
    select_ratios: SelectRatios = None,
    router_selection: Annotated[
        str | None, typer.Option(help="top_k, top_p or threshold; by default as in training.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """See which tokens think: shares, router weights, overlap of steps, kinds of tokens, texts."""
    with errors_as_sentences():
        files = _result_files(models, "thinking.json", output)
        shards = {name: shards_of(name, data) for name in files}
        texts = {str(file): _read(file) for file in text or []}
        asked = {
            "select_ratios": comma_separated(select_ratios, float, "--select-ratios"),
            "router_selection": router_selection,
        }
        from itt_composer.analysis.tables import thinking_tables
        from itt_composer.analysis.thinking import analyse_thinking

        for name, file in files.items():
            evaluated = _load(name)
            with _progress() as show:
                result = analyse_thinking(evaluated, shards[name], rows, texts, asked, show)
            _finish(result, name, file, partial(thinking_tables, result))


def _result_files(models: list[str], name: str, output: Path | None) -> dict[str, Path]:
    """Return the file of each model's result."""
    if output is not None and len(models) > 1:
        raise UserError(f"--output is for one model, and there are {len(models)}; leave it out")
    if output is not None:
        check_place(output, "--output")
    return {model: result_file(model, name, output) for model in models}


def _load(name: str) -> "LoadedModel":
    from transformers import logging

    from itt_composer.runs.loading import load_named_model

    logging.set_verbosity_error()
    return load_named_model(name)


def _read(file: Path) -> str:
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None
    if not text.strip():
        raise UserError(f"--text {file} holds no text")
    return text


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows what is done, how much, and of how much, as a bar on stderr."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )


def _finish(
    result: "AnalysisFile", name: str, file: Path, tables: Callable[[str], "list[Table]"]
) -> None:
    """Write a result, and print its tables, which are given the model's name."""
    from itt_composer.basics.tables import wide_console

    name = readable(name)
    try:
        text = json.dumps(result.content(), allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise UserError(
            f"the results of {name} are not finite (NaN or infinite), as those of a model that "
            "diverged; nothing was written"
        ) from None
    write_whole(file, text + "\n")
    console = wide_console()
    after = result.trained_batches
    for table in tables(name if after is None else f"{name}, after {after:,} batches"):
        table.print(console)
    print(readable(f"written to {file}"))
