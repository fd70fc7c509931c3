"""`summary.json`: what a run had come to at its end."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import numbers_only, write_json


class RunSummary(BaseModel):
    """What a finished run had come to.

    Files written by version 0.1.0 have no `format`, and are read as format 1.

    Attributes:
        format: of the file.
        run_name: of the recipe.
        thinking: "itt", "loop" or "dense".
        thinking_steps: T; 1 for a dense model.
        parameters: of the model, those for thinking included.
        thinking_parameters: of routers and step encodings.
        batches: trained on.
        tokens: trained on.
        train_seconds: without evaluations.
        validation_loss: nats per token by the rule of training; NaN (null in the file) if the
            model diverged.
        validation_loss_by_threshold: the same by thresholds; None for a model without routers.
    """

    model_config = ConfigDict(strict=True)

    format: Literal[1] = 1
    run_name: str
    thinking: str
    thinking_steps: int | None
    parameters: int
    thinking_parameters: int = 0
    batches: int
    tokens: int
    train_seconds: float
    validation_loss: Annotated[
        float, BeforeValidator(lambda loss: math.nan if loss is None else loss)
    ]
    validation_loss_by_threshold: float | None = None

    def write(self, file: Path) -> None:
        """Write the file; a loss that is NaN or infinite becomes null."""
        write_json(file, numbers_only(self.model_dump()))


def read_summary(file: Path) -> RunSummary | None:
    """Read the file; None where there is none.

    Raises:
        UserError: it is damaged, or was changed.
    """
    try:
        return RunSummary.model_validate(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError):
        raise UserError(
            f"{file} cannot be read; delete it and start the run again, which then writes it anew"
        ) from None
