"""Measure a model's thresholds: `itt calibrate MODEL --data SHARDS`, or `--text FILE`.

Training ends with the same measurement. Run this command on an exported checkpoint, for other
text, or after a model's weights have changed. A text needs no shards, nor the packages for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.basics.tables import Table
from itt_composer.data.manifest import Manifest
from itt_composer.data.shards import check_vocabulary
from itt_composer.data.text_rows import read_texts, rows_of_tokens
from itt_composer.runs.model_place import find_model

if TYPE_CHECKING:
    import torch

    from itt_composer.models import IttForCausalLM

LONGEST_ROW = 1024  # tokens of a row of text

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model_named: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run folder, whose model/ is updated, or a transformers folder.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Shards of text to measure on, in the model's tokens.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text file to measure on instead, or .jsonl with a `text` per line."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the shards: validation or train.", show_default="validation"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to measure on.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 16,
) -> None:
    """Measure the thresholds by which a model's routers pick tokens, and save them with it."""
    with errors_as_sentences():
        model_folder = find_model(model_named).writable_folder("calibrate")
        if (data is None) == (text is None):
            raise UserError("give the text to measure on: --data SHARDS or --text FILE")
        if text is not None and split is not None:
            raise UserError("--split is of shards, and a --text has none: leave it out")
        split = split or "validation"
        manifest = None if data is None else Manifest.read(data)
        if manifest is not None and not manifest.rows(split):
            raise UserError(f"--data {data} has no rows in its split {split!r}")
        texts = None if text is None else read_texts(text)
        from itt_composer.models.calibration import calibrate
        from itt_composer.models.folder import replace_model

        model = _load_itt(model_folder)
        if texts is not None:
            measure, check = _batches_of_texts(model, model_folder, texts, rows, batch_size)
        else:
            assert data is not None
            assert manifest is not None
            vocabulary = model.config.vocab_size
            check_vocabulary(data, manifest, str(model_folder), vocabulary, str(model_folder))
            measure, check = _batches(data / split, rows, batch_size, model.device)
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("calibrating")
            try:
                calibrate(
                    model,
                    measure,
                    on_progress=lambda done, total: bar.update(task, completed=done, total=total),
                )
            except ValueError as error:
                raise UserError(f"{model_folder} gives scores that are NaN: {error}") from None
        if model.config.router_selection == "top_p":
            print(
                "note: under top-p ratios were shares of the weight; from now on they are shares "
                "of the tokens: choose them anew with set_select_ratios"
            )
        model.set_router_selection("threshold")
        _print_shares(model, check)
        replace_model(model_folder, model)
        print(f"saved the thresholds in {model_folder}, which now routes by them")


def _load_itt(folder: Path) -> "IttForCausalLM":
    import torch

    from itt_composer.models import IttForCausalLM
    from itt_composer.models.loading import load_model

    model = load_model(folder)
    if not isinstance(model, IttForCausalLM) or not model.config.adaptive_routing:
        raise UserError(f"{folder} holds a model without routers: there is nothing to calibrate")
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return model


def _batches(
    folder: Path, count: int, batch_size: int, device: "torch.device"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return batches to measure on, and batches of other rows to check the result on."""
    from itt_composer.data.stored_rows import batches_of, sample_of_split

    rows, sample = sample_of_split(folder, 2 * count)
    middle = (len(sample) + 1) // 2
    measure, check = (
        [
            {name: tensor.to(device) for name, tensor in batch.items()}
            for batch in batches_of(rows, half, batch_size)
        ]
        for half in (sample[:middle], sample[middle:])
    )
    return measure, check


def _batches_of_texts(
    model: "IttForCausalLM", folder: Path, texts: list[str], count: int, batch_size: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the same of texts; documents begin and end as in training rows.

    Raises:
        UserError: fewer than two rows, or the tokenizer of another model.
    """
    import torch

    from itt_composer.models.tokenizer import documents_ids, load_tokenizer

    seq_len = min(model.config.max_position_embeddings, LONGEST_ROW)
    ends = model.config.eos_token_id  # a list where a LLaMA has several; the first ends a document
    end = ends[:1] if isinstance(ends, list) else [] if ends is None else [ends]
    documents = [[*ids, *end] for ids in documents_ids(load_tokenizer(folder), texts)]
    most = max(map(max, documents))
    if most >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} gives id {most}, but the model has "
            f"{model.config.vocab_size} ids: it is another model's tokenizer"
        )
    found = torch.tensor(rows_of_tokens(documents, seq_len))
    if len(found) < 2:
        raise UserError(f"--text gives {len(found)} rows of {seq_len} tokens; give more text")
    # A fixed sample of the whole text, as of shards.
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    used = found[order[: 2 * count]].to(model.device)
    print(f"{len(used)} rows of {seq_len} tokens, of {len(found)} in the text")
    measure, check = (
        [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for ids in half.split(batch_size)
        ]
        for half in (used[::2], used[1::2])
    )
    return measure, check


def _print_shares(model: "IttForCausalLM", batches: list[dict[str, Any]]) -> None:
    """Print which share of the tokens of other rows takes each step, beside what is asked for."""
    import torch

    from itt_composer.models.calibration import RealisedShares

    table = Table(
        "Share of the tokens that take a step, %, on other rows of the split",
        ["step", "asked for", "realised", "least layer", "most layer"],
    )
    shares = RealisedShares()
    with torch.inference_mode():
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            model.model(**inputs, use_cache=False, on_step=shares.count)
    by_step = shares.by_step(model.config.thinking_steps)
    for step, (asked, layers) in enumerate(
        zip(model.config.select_ratios, by_step, strict=True), start=1
    ):
        layers = layers or [0.0]
        figures = [asked, sum(layers) / len(layers), min(layers), max(layers)]
        table.rows.append([str(step), *(f"{100 * figure:.1f}" for figure in figures)])
    table.print(Console())
