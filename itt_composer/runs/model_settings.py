"""How a command is to load a model and let it think, and what its files say of that; no torch."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from itt_composer.basics.errors import FieldError, UserError
from itt_composer.recipe.fields import StrictModel
from itt_composer.recipe.llama_config import LLAMA_TYPES, THINKING_KEYS, llama_config, read_config
from itt_composer.recipe.thinking import RouterSelection, ThinkingSettings, check_select_ratios
from itt_composer.runs.model_place import ModelPlace, find_model

Ratio = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def without_repeats(values: list[Any]) -> list[Any]:
    """Refuse a list that holds a value twice: the same run again does not repeat an experiment."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} stands there twice; a repeat of the same run shows nothing")
    return values


class ModelOptions(StrictModel):
    """How a model is loaded, and how it thinks.

    Attributes:
        tokenizer: folder of the tokenizer, or null for the model's own.
        revision: branch, tag or commit of a model on the hub, or null.
        dtype: of the weights; "auto" is as they were saved.
        select_ratios: ρ_t of an ITT's steps, or null for its own.
        router_selection: how an ITT picks tokens, or null for what the command takes by default.
        early_exit: ε of an ITT, or null for its own.
    """

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


def thinking_of(place: ModelPlace) -> ThinkingSettings | None:
    """Return how a model thinks by its files; one of another kind is dense, None is not known.

    Raises:
        UserError: its configuration or its run's recipe is broken.
    """
    if place.folder is None:
        if place.run is None or not place.run.is_run():
            return None
        recipe = place.run.recipe()
        file, config = place.run.recipe_file, {**recipe["model"], **recipe["thinking"]}
    else:
        file, config = place.folder / "config.json", read_config(place.folder, place.named)
        if config.get("model_type") in LLAMA_TYPES:
            config = llama_config(config, place.named)
        if config.get("model_type") != "itt":
            return ThinkingSettings("dense").resolve(1)
    try:
        settings = ThinkingSettings(**{key: config[key] for key in THINKING_KEYS & config.keys()})
        return settings.resolve(config["num_hidden_layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not the configuration of a model: {error}") from None


def check_ratios_of(settings: ThinkingSettings, ratios: list[float]) -> None:
    """Refuse ratios that a model cannot be set to.

    Args:
        settings: the model's own, as `thinking_of` returns them.
        ratios: ρ_t of its further steps.

    Raises:
        FieldError: why.
    """
    if ratios == settings.select_ratios:
        return
    if settings.thinking == "dense":
        raise FieldError("a model that takes no thinking steps has none", "select_ratios")
    assert settings.thinking_steps is not None
    check_select_ratios(ratios, settings.thinking_steps, bool(settings.adaptive_routing))
