"""Reads an evaluation suite: YAML and `key=value` overrides, checked before torch is loaded.

A suite with `tasks` runs them through lm-eval; one without measures perplexity on shards.
`model=PATH` is short for `model.path=PATH`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, Field, model_validator

from itt_composer.basics.errors import FieldError, UserError
from itt_composer.data.manifest import Manifest
from itt_composer.recipe.fields import Positive, StrictModel
from itt_composer.recipe.layers import COMMAND_LINE, Limit, parse_overrides, read_yaml, validate
from itt_composer.recipe.thinking import RouterSelection
from itt_composer.runs.model_place import find_model, model_name
from itt_composer.runs.model_settings import (
    Epsilon,
    ModelSettings,
    Ratio,
    check_model,
    check_ratios_of,
    thinking_of,
    without_repeats,
)

ELEVEN_TASKS = Path(__file__).parent / "suites/eleven_tasks.yaml"
BatchSize = Positive | Literal["auto"]
LONGEST_FOLDER_NAME = 200  # of a folder, in characters
SUITE_FORMS = {"batch_size": 'should be a positive integer or "auto"'}


class PerplexitySuite(StrictModel):
    """Perplexity of one model on the rows of a split.

    Attributes:
        model: what is measured; its `router_selection` and so on stand for null below.
        data: a folder of shards with its manifest.
        split: "validation", or "train".
        batch_size: rows that go through the model at once.
        select_ratios: elastic settings to measure, each a list of ρ_t, or null for the model's
            own.
        router_selection: rules to measure each of them by: "threshold" (causal), "top_k" (as in
            training), "top_p", or null for the model's own.
        early_exit: ε to measure each of them at, or null for the model's own.
        validate_hash: read the split's shards before measuring and compare their SHA-256; without
            it only their sizes.
        output: JSON file for the results; tables as Markdown and CSV go beside it. null is
            `results/<suite>/<model>.json`.
        plot: draw perplexity over executed FLOPs, a PNG beside `output`.
    """

    model: ModelSettings
    data: str
    split: str = "validation"
    batch_size: Positive = 16
    validate_hash: bool = True
    select_ratios: list[list[Ratio] | None] = Field([None], min_length=1)
    router_selection: list[RouterSelection | None] = Field([None], min_length=1)
    early_exit: list[Epsilon | None] = Field([None], min_length=1)
    output: str | None = None
    plot: bool = False


class TaskSettings(StrictModel):
    """One task (or group of tasks) of lm-eval.

    Attributes:
        shots: examples before each question; null is the harness's default for the task.
        metric: the one that is reported, or null for the task's first.
        batch_size: requests that go through the model at once; "auto" fits it to their length and
            the memory; null takes the suite's.
        limit: documents of the task, its first ones, or their share (0.1); null takes the suite's.
    """

    shots: Annotated[int, Field(ge=0)] | None = None
    metric: str | None = None
    batch_size: BatchSize | None = None
    limit: Limit | None = None


class TaskSuite(StrictModel):
    """Tasks of lm-eval on one model, or on several that repeat one experiment.

    Attributes:
        model: what is evaluated. An ITT picks tokens by thresholds unless another rule is asked
            for: a likelihood must not depend on what comes later.
        tasks: by their names in lm-eval, groups included; one set to null is left out.
        only: names of those that are run, or null for all of them.
        data_dir: folder that `itt eval fetch` filled; null loads from the hub.
        fewshot_seeds: each draws other examples; tasks that draw none run once.
        limit: documents of each task, or the share of them (0.1); null for all.
        shots_that_fit: ask with fewer shots where the model has no room for all: as many whole
            ones as fit before every question. Without it the harness cuts what does not fit.
        batch_size: see `TaskSettings`.
        bootstrap_iters: resamples for the error of metrics that are not means.
        log_samples: keep every prompt and answer, in lm-eval's format.
        compare_with: row of the paper's Table 1, like "ITT×4-162M"; null takes the one whose
            geometry and thinking the model has.
        output: folder for the results; tasks found finished there are not run again. null is
            `results/<suite>/<model>`.
    """

    model: ModelSettings
    tasks: Annotated[dict[str, TaskSettings | None], Field(min_length=1)]
    only: list[str] | None = None
    data_dir: str | None = None
    fewshot_seeds: Annotated[list[int], AfterValidator(without_repeats)] = Field(
        default=[1234], min_length=1
    )
    limit: Limit | None = None
    shots_that_fit: bool = False
    batch_size: BatchSize = "auto"
    bootstrap_iters: Annotated[int, Field(ge=0)] = 1000
    log_samples: bool = False
    compare_with: str | None = None
    output: str | None = None

    @model_validator(mode="after")
    def _has_what_it_names(self) -> "TaskSuite":
        for name in self.only or []:
            if self.tasks.get(name) is None:
                raise FieldError(
                    f"only names {name!r}, which is not one of the tasks; add tasks.{name}={{}}",
                    *("only", "tasks"),
                )
        if not self.selected_tasks():
            raise FieldError("tasks: none is left; give some, or names in only", *("tasks", "only"))
        return self

    def selected_tasks(self) -> dict[str, TaskSettings]:
        """Return the tasks to run, in the suite's order."""
        return {
            name: settings
            for name, settings in self.tasks.items()
            if settings is not None and (self.only is None or name in self.only)
        }


Suite = PerplexitySuite | TaskSuite


def load_suite(path: Path, overrides: Sequence[str]) -> Suite:
    """Read a suite and check that the files it names exist.

    Raises:
        UserError: one sentence per mistake.
    """
    layers = [
        (str(path), read_yaml(path)),
        (COMMAND_LINE, parse_overrides(_spelled_out(overrides))),
    ]
    for _, content in layers:
        _name_model_path(content)
    suite: Suite
    if "tasks" in layers[0][1]:
        suite = validate(TaskSuite, layers, SUITE_FORMS)
    else:
        suite = validate(PerplexitySuite, layers)
    check_model(suite.model)
    _check_ratios(suite)
    if suite.output is None:
        names = "+".join(model_name(place, suite.model.revision) for place in suite.model.path)
        names = names[:LONGEST_FOLDER_NAME]
        ending = "" if isinstance(suite, TaskSuite) else ".json"
        suite.output = f"results/{path.stem}/{names}{ending}"
    if isinstance(suite, PerplexitySuite):
        _check_perplexity(suite, suite.output)
    elif Path(suite.output).is_file():
        raise UserError(f"output={suite.output} is a file; name a folder for the results")
    return suite


def _check_ratios(suite: Suite) -> None:
    """Refuse ratios that a model cannot be set to, where its files show it.

    Raises:
        UserError: names the key.
    """
    asked = [("model.select_ratios", "null", suite.model.select_ratios)]
    if isinstance(suite, PerplexitySuite):
        asked += [("select_ratios", "[null]", ratios) for ratios in suite.select_ratios]
    for path in suite.model.path:
        settings = thinking_of(find_model(path, "model"))
        for key, own, ratios in asked:
            if settings is None or ratios is None:
                continue
            try:
                check_ratios_of(settings, ratios)
            except FieldError as error:
                raise UserError(
                    f"model={path} cannot think as the suite asks: {key}={ratios}: {error}; give "
                    f"{key} another value on the command line, where {own} is the model's own"
                ) from None


def _check_perplexity(suite: PerplexitySuite, output: str) -> None:
    if len(suite.model.path) > 1:
        raise UserError("model.path: perplexity is measured of one model at a time; name one")
    if Path(output).suffix != ".json":
        raise UserError(f"output={output} is not a JSON file; name one, like elastic.json")
    if Path(output).is_dir():
        raise UserError(f"output={output} is a folder; name a file for the results")
    if not Manifest.read(suite.data).rows(suite.split):
        raise UserError(f"data={suite.data} has no rows in its split {suite.split!r}")


def read_task_suite(path: Path, given: dict[str, Any]) -> TaskSuite:
    """Read a suite of tasks for a model that is loaded already.

    Args:
        path: its YAML.
        given: keys to set; None leaves a key as it is.

    Raises:
        UserError: one sentence per mistake, or a suite of another kind.
    """
    own = {name: value for name, value in given.items() if value is not None}
    at_hand = OmegaConf.create({"model": {"path": "at hand"}, **own})
    content = read_yaml(path)
    if "tasks" not in content:
        raise UserError(f"{path} is not a suite of tasks; name one with `tasks`")
    return validate(TaskSuite, [(str(path), content), ("callbacks.lm_eval", at_hand)], SUITE_FORMS)


def training_suite(
    suite: str | None, only: list[str] | None, limit: float | None, data_dir: str | None
) -> TaskSuite:
    """Read the suite of the callback `lm_eval`, whose settings these are.

    A `suite` of None stands for the eleven tasks.

    Raises:
        UserError: as `read_task_suite`.
    """
    given = {"only": only, "limit": limit, "data_dir": data_dir, "bootstrap_iters": 0}
    return read_task_suite(Path(suite) if suite else ELEVEN_TASKS, given)


def _spelled_out(overrides: Sequence[str]) -> list[str]:
    """Write `model=PATH` as `model.path=PATH`, so that it can stand beside `model.dtype=…`."""
    return [
        f"model.path={override.partition('=')[2]}" if override.startswith("model=") else override
        for override in overrides
    ]


def _name_model_path(content: DictConfig) -> None:
    """Do the same in the content of a file."""
    model = content.get("model")
    if model is not None and not isinstance(model, DictConfig):
        content["model"] = {"path": model}
