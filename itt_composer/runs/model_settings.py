"""How a command is to load a model and let it think; no torch."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from itt_composer.recipe.thinking import RouterSelection
from itt_composer.runs.model_place import find_model

Ratio = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def without_repeats(values: list[Any]) -> list[Any]:
    """Refuse a list that holds a value twice: the same run again does not repeat an experiment."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} stands there twice; a repeat of the same run tells nothing")
    return values


class ModelOptions(BaseModel):
    """How a model is loaded, and how it thinks.

    Attributes:
        tokenizer: folder of the tokenizer, or null for the model's own.
        revision: branch, tag or commit of a model on the hub, or null.
        dtype: of the weights; "auto" is as they were saved.
        select_ratios: ρ_t of an ITT's steps, or null for its own.
        router_selection: how an ITT picks tokens, or null for what the command takes by default.
        early_exit: ε of an ITT, or null for its own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    tokenizer: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    select_ratios: list[Ratio] | None = None
    router_selection: RouterSelection | None = None
    early_exit: Epsilon | None = None


class ModelSettings(ModelOptions):
    """Which model a suite is about, and its options.

    Attributes:
        path: a run folder, a checkpoint of training, a transformers folder, or a name on the hub;
            or a list of them, the repeats of one experiment (seeds, checkpoints).
    """

    path: Annotated[
        list[str],
        BeforeValidator(_as_list),
        Field(min_length=1),
        AfterValidator(without_repeats),
    ]


def check_model(model: ModelSettings) -> None:
    """Refuse what is not a model, as far as that can be seen without torch.

    Raises:
        UserError: names it.
    """
    for path in model.path:
        find_model(path, "model")
