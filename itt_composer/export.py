"""Checkpoints and LLaMAs → transformers folders.

    python -m itt_composer.export runs/itt_x4_162m OUT              a run's latest checkpoint
    python -m itt_composer.export runs/itt_x4_162m/checkpoints/latest-rank0.pt OUT
    python -m itt_composer.export from-llama MODEL OUT --thinking-steps 4

Nothing that lies in a checkpoint or a model is run. OUT appears when it is complete.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from itt_composer.default_command import DefaultCommand
from itt_composer.errors import Mistakes, UserError, errors_as_sentences
from itt_composer.files import check_new_folder, check_place
from itt_composer.llama_config import check_llama_folder
from itt_composer.run_folder import find_checkpoint
from itt_composer.settings import comma_separated
from itt_composer.thinking import ThinkingSettings
from itt_composer.tokenizer import check_tokenizer_folder


class CheckpointByDefault(DefaultCommand):
    """A checkpoint is exported where no command is named."""

    default = "checkpoint"


app = typer.Typer(
    cls=CheckpointByDefault,
    help="Write a checkpoint, or a LLaMA made to think, as a transformers folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
ModelType = Literal["llama", "itt"]
MANY_LAYERS = 1000  # where the model is on the hub, its layers are counted later
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; appears when complete.")]


@app.command()
def checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pt file, the folder of a sharded checkpoint, or a run folder: its latest.",
        ),
    ],
    out: Out,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tokenizer.", show_default="the one in the recipe's data.local"
        ),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Read a checkpoint of a trusted origin that holds more than data: it may run any "
            "code as you.",
        ),
    ] = False,
    model_type: Annotated[
        ModelType | None,
        typer.Option(
            help="llama is a plain LLaMA that every tool loads without itt_composer, for dense "
            "models.",
            show_default="llama for a dense model, itt for one that thinks",
        ),
    ] = None,
) -> None:
    """Export a training checkpoint; the word `checkpoint` may be left out."""
    with errors_as_sentences():
        mistakes = Mistakes()
        with mistakes:
            check_new_folder(out)
            check_place(out, "OUT")
        with mistakes:
            find_checkpoint(checkpoint)
        with mistakes:
            check_tokenizer_folder(tokenizer)
        mistakes.tell()
        from itt_composer.exporting import export_checkpoint

        export_checkpoint(checkpoint, out, tokenizer, allow_code_execution, model_type)
        typer.echo(f"model in {out}")


@app.command()
def from_llama(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A transformers folder or a hub name: a LLaMA.")
    ],
    out: Out,
    thinking_steps: Annotated[
        int, typer.Option(min=2, help="One full pass and the further steps.")
    ] = 4,
    select_ratios: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="Share of tokens in each further step, like 0.5,0.5,0.5.",
            show_default="0.5 each",
        ),
    ] = None,
    thinking_layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS", help="Layers that think, like 1,3,5.", show_default="every other"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the routers, all that is random.")
    ] = 17,
) -> None:
    """Make a LLaMA an ITT that computes the same until it is trained further."""
    with errors_as_sentences():
        mistakes = Mistakes()
        ratios = layers = llama = None
        with mistakes:
            check_new_folder(out)
            check_place(out, "OUT")
        with mistakes:
            llama = check_llama_folder(model)
        with mistakes:
            ratios = comma_separated(select_ratios, float, "--select-ratios")
        with mistakes:
            layers = comma_separated(thinking_layers, int, "--thinking-layers")
        with mistakes:
            check_thinking(thinking_steps, ratios, layers, (llama or {}).get("num_hidden_layers"))
        mistakes.tell()
        from itt_composer.upcycling import convert_llama

        convert_llama(model, out, thinking_steps, ratios, layers, seed)
        typer.echo(f"model in {out}")


def check_thinking(
    steps: int, ratios: list[float] | None, layers: list[int] | None, count: int | None
) -> None:
    """Refuse thinking settings that no ITT of `count` layers has.

    Raises:
        UserError: names the field.
    """
    settings = ThinkingSettings("itt", steps, layers, ratios)
    try:
        settings.resolve(MANY_LAYERS if count is None else count)
    except (ValueError, TypeError) as error:
        raise UserError(f"no such ITT: {error}") from None


if __name__ == "__main__":
    app(prog_name="python -m itt_composer.export")
