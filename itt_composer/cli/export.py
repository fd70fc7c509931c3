"""Write a checkpoint as a transformers folder.

    itt export runs/itt_x4_162m OUT              a run's latest checkpoint
    itt export runs/itt_x4_162m/checkpoints/latest-rank0.pt OUT

Nothing that lies in a checkpoint is run. OUT appears when it is complete.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from itt_composer.basics.errors import Mistakes, UserError, errors_as_sentences
from itt_composer.basics.files import check_new_folder, check_place
from itt_composer.cli.options import NewFolder
from itt_composer.models.tokenizer import check_tokenizer_folder
from itt_composer.runs.checkpoints.places import find_checkpoint

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
ModelType = Literal["llama", "itt"]


@app.command()
def main(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pt file, the folder of a sharded checkpoint, or a run folder.",
        ),
    ],
    out: NewFolder,
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
    no_code: Annotated[
        bool,
        typer.Option(
            "--no-code",
            help="Leave out the model's code, with which transformers loads it alone.",
        ),
    ] = False,
) -> None:
    """Write a training checkpoint as a transformers folder."""
    with errors_as_sentences():
        mistakes = Mistakes()
        with mistakes:
            check_new_folder(out)
            check_place(out, "OUT")
        with mistakes:
            find_checkpoint(checkpoint)
        with mistakes:
            check_tokenizer_folder(tokenizer)
        mistakes.report()
        from itt_composer.runs.checkpoints.reading import CodeInCheckpointError
        from itt_composer.runs.export import export_checkpoint

        try:
            export_checkpoint(
                checkpoint, out, tokenizer, allow_code_execution, model_type, with_code=not no_code
            )
        except CodeInCheckpointError as error:
            raise UserError(
                f"{error}; if you trust whoever wrote it, add --allow-code-execution"
            ) from None
        typer.echo(f"model in {out}")
