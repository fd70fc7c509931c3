"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from itt_composer.basics.errors import UserError

# A MODEL of any kind, see `runs.model_place`.
ANY_MODEL = typer.Argument(
    metavar="MODEL",
    help="A run folder, a checkpoint, a transformers folder or a model on the hub.",
)
NewFolder = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder to make; appears when complete.")
]
SelectRatios = Annotated[
    str | None, typer.Option(help="Share of the tokens in each step, such as 0.7,0.5,0.")
]
Number = TypeVar("Number", int, float)


def comma_separated(text: str | None, kind: type[Number], option: str) -> list[Number] | None:
    """Read an option's numbers, `0.7,0.5,0`; None stays None.

    Raises:
        UserError: a part is not a number; the sentence names the option.
    """
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers with commas between them, not {text!r}") from None
