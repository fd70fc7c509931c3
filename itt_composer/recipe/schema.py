"""Recipes: YAML files and `key=value` overrides → one validated `Recipe`.

A recipe file names the parts it is made of and overrides what differs:

    parts:
      model: ../models/llama_162m.yaml
      thinking: ../thinking/itt_x4.yaml
      data: ../data/redpajama.yaml
      train: ../train/paper.yaml
    run_name: itt_x4_162m

Parts are merged in that order, then the recipe's own keys, then the command line's. Paths of
parts are relative to the file that names them (on the command line: to the current folder).
Every key is checked against the classes below and in `sections.py`; nothing here imports torch.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, model_validator

from itt_composer.basics.errors import Mistakes, UserError
from itt_composer.recipe.checks import check_together
from itt_composer.recipe.components import (
    ALGORITHMS,
    CALLBACKS,
    LOGGERS,
    OPTIMIZERS,
    SCHEDULERS,
    ComponentSection,
    LmEvalSettings,
)
from itt_composer.recipe.fields import (
    FREE,
    ON_REQUEST,
    SHAPE,
    START,
    StrictModel,
    setting,
)
from itt_composer.recipe.layers import (
    COMMAND_LINE,
    Layer,
    Sources,
    as_yaml,
    parse_overrides,
    read_yaml,
    validate,
)
from itt_composer.recipe.sections import TRAINER, DataRecipe, ModelRecipe, Parts, TrainRecipe
from itt_composer.recipe.thinking import ThinkingSettings

PART_NAMES = ("model", "thinking", "data", "train")
DEFAULT_RUN_FOLDER = "runs/${run_name}"
RECIPE_FORMS = {
    "run_name": "may hold letters, digits, '.', '_' and '-' only",
    "microbatch_size": 'should be a positive integer or "auto"',
    "cache_limit": 'should be a size such as "200gb"',
    "levels": 'should be an integer of at least 2 or "continuous"',
}


def _is_local(folder: str) -> str:
    if "://" in folder:
        raise ValueError(
            f"{folder} is an address, and checkpoints are kept in a folder; name one, and copy it "
            "to the store from there"
        )
    return folder


if TYPE_CHECKING:
    OptimizerSection: TypeAlias = ComponentSection
    SchedulerSection: TypeAlias = ComponentSection
    AlgorithmsSection: TypeAlias = ComponentSection
    CallbacksSection: TypeAlias = ComponentSection
    LoggersSection: TypeAlias = ComponentSection
else:
    OptimizerSection, SchedulerSection = OPTIMIZERS.section(), SCHEDULERS.section()
    AlgorithmsSection, CallbacksSection = ALGORITHMS.section(), CALLBACKS.section()
    LoggersSection = LOGGERS.section()


class Recipe(StrictModel):
    """A whole training run. Keys are declared here and in the classes of the sections.

    A section's `resume` holds for every key in it that has none of its own.
    """

    parts: Parts = setting(Parts(), resume=FREE)
    run_name: str = setting(
        ...,
        "names the run's folder, its logs and its checkpoints",
        TRAINER,
        ON_REQUEST,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    run_folder: Annotated[str, AfterValidator(_is_local)] = setting(
        ...,
        "where checkpoints, the resolved recipe, logs and the final model go",
        resume=FREE,
        implied=f"`{DEFAULT_RUN_FOLDER}`",
    )
    seed: int = setting(
        17, "decides the weights and everything else that is random", TRAINER, START, ge=0, lt=2**31
    )
    init_from: str | None = setting(
        None,
        "transformers folder of an ITT, Loop or dense model whose weights training starts with; a "
        "run that goes on from its own checkpoint does without it",
        resume=START,
        implied="random weights",
    )
    model: ModelRecipe = setting(..., resume=SHAPE)
    thinking: ThinkingSettings = setting(ThinkingSettings(), resume=SHAPE)
    data: DataRecipe = setting(..., resume=ON_REQUEST)
    train: TrainRecipe = setting(..., resume=ON_REQUEST)
    optimizer: OptimizerSection = setting(..., "Names exactly one of these.", resume=ON_REQUEST)
    scheduler: SchedulerSection = setting(..., "Names exactly one of these.", resume=ON_REQUEST)
    algorithms: AlgorithmsSection = setting(
        AlgorithmsSection(),
        "Names any number of these; one set to null is left out.",
        resume=ON_REQUEST,
    )
    callbacks: CallbacksSection = setting(
        CallbacksSection(), "Names any number of these; one set to null is left out.", resume=FREE
    )
    loggers: LoggersSection = setting(
        LoggersSection(), "Names any number of these; one set to null is left out.", resume=FREE
    )

    @model_validator(mode="after")
    def _tasks_know_the_tokenizer(self) -> "Recipe":
        tasks = self.callbacks.named().get("lm_eval")
        if isinstance(tasks, LmEvalSettings) and not tasks.tokenizer:
            tasks.tokenizer = f"{self.data.local}/tokenizer"
        return self

    def resolved_thinking(self) -> ThinkingSettings:
        """Return the thinking settings with every implied value filled in."""
        return self.thinking.resolve(self.model.num_hidden_layers)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and its parts, merge the overrides, check everything.

    Args:
        path: the recipe file.
        overrides: `key=value` texts of the command line; values are YAML.

    Raises:
        UserError: one sentence per mistake, each with the file (or "command line"), the key and
            what to do.
    """
    layers = list(_layers(Path(path), overrides))
    recipe = validate(Recipe, layers, RECIPE_FORMS)
    check_together(recipe, Sources(layers))
    return recipe


def recipe_as_yaml(recipe: Recipe) -> str:
    """Write the resolved recipe as one YAML document."""
    return as_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe: everything that was asked for or implied, by key."""
    values = recipe.model_dump(exclude_none=True)
    values["thinking"] = {
        name: value for name, value in vars(recipe.resolved_thinking()).items() if value is not None
    }
    values.pop("parts")
    return values


def _layers(path: Path, overrides: Sequence[str]) -> Iterator[Layer]:
    """Yield (source, content) of every part, the recipe and the command line, in merging order."""
    own = read_yaml(path)
    from_command_line = parse_overrides(overrides)
    yield "default", OmegaConf.create({"run_name": "???", "run_folder": DEFAULT_RUN_FOLDER})
    for source, content in ((str(path), own), (COMMAND_LINE, from_command_line)):
        if not isinstance(content.get("parts", OmegaConf.create()), DictConfig):
            raise UserError(
                f"{source}: parts must be a mapping of {', '.join(PART_NAMES)} to files"
            )
    mistakes = Mistakes()
    for name in PART_NAMES:
        with mistakes:
            yield from _part(
                name, (COMMAND_LINE, Path(), from_command_line), (str(path), path.parent, own)
            )
    mistakes.report()
    yield str(path), own
    yield COMMAND_LINE, from_command_line


def _part(name: str, *named_in: tuple[str, Path, DictConfig]) -> Iterator[Layer]:
    """Yield the part that the first of some sources names; none if it is null there.

    Args:
        name: of the part.
        named_in: (source, folder that paths are relative to, content).

    Raises:
        UserError: the part is not there, or cannot be read.
    """
    for source, folder, content in named_in:
        try:
            part = OmegaConf.select(content, f"parts.{name}")
        except OmegaConfBaseException as error:
            reason = str(error.msg or error).splitlines()[0]
            raise UserError(f"{source}: parts.{name}: {reason}") from None
        if isinstance(part, str):
            file = Path(os.path.normpath(folder / part))
            if not file.is_file():
                raise UserError(f"{source}: parts.{name} names {file}, which is not there")
            yield str(file), read_yaml(file)
            return
        if part is None and "parts" in content and name in content.parts:
            return
