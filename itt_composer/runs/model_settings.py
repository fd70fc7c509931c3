"""Which model a command is asked for, and what it is called; no torch."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from itt_composer.basics.errors import UserError
from itt_composer.recipe.thinking import RouterSelection

Ratio = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0)]
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
NO_MODEL = "name a run folder, a checkpoint, a transformers folder or a model on the hub"
GENERIC_NAMES = ("/", "model", "checkpoints", "latest")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def without_repeats(values: list[Any]) -> list[Any]:
    """Refuse a list in which a value stands twice, which would be no repeat of an experiment."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} stands there twice; a repeat of the same run tells nothing")
    return values


class ModelSettings(BaseModel):
    """Which model, and how it thinks.

    Attributes:
        path: a run folder, a checkpoint of training, a transformers folder, or a name on the hub;
            or a list of them, the repeats of one experiment (seeds, checkpoints).
        tokenizer: folder of the tokenizer, or null for the model's own.
        revision: branch, tag or commit of a model on the hub, or null.
        dtype: of the weights; "auto" is as they were saved.
        select_ratios: ρ_t of an ITT's steps, or null for its own.
        router_selection: how an ITT picks tokens, or null for what the suite takes by default.
        early_exit: ε of an ITT, or null for its own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    path: Annotated[
        list[str],
        BeforeValidator(_as_list),
        Field(min_length=1),
        AfterValidator(without_repeats),
    ]
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    select_ratios: list[Ratio] | None = None
    router_selection: RouterSelection | None = None
    early_exit: Epsilon | None = None


def model_name(path: str, revision: str | None = None) -> str:
    """Short, for tables and folders: the run's, where a folder is only called `model`.

    A checkpoint's has the run's before it, a revision stands behind the name on the hub.
    """
    place = Path(path)
    if place.exists():  # `..` has a name, too; not resolved, as a link's own name is the user's
        place = Path(os.path.normpath(place.absolute()))
    own = [part for part in place.parts if part not in GENERIC_NAMES] or ["model"]
    is_checkpoint = place.parent.name == "checkpoints" and place.name == own[-1]
    name = "-".join(own[-2:] if is_checkpoint else own[-1:]).removesuffix(".pt")
    return f"{name}@{revision.replace('/', '_')}" if revision else name


def check_model(model: ModelSettings) -> None:
    """Refuse a path that is neither here nor a name on the hub.

    Raises:
        UserError: names it.
    """
    for path in model.path:
        if not Path(path).exists() and not HUB_NAME.fullmatch(path):
            raise UserError(f"model={path} is not there; {NO_MODEL}")
