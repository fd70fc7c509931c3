"""Runs a suite of lm-eval's tasks; keeps what is finished and never runs it again.

Each task's result is a file of its own, named by the hash of everything that it depends on: the
model's weights, thinking and tokenizer, the task's prompts and data, shots, seed and limit. An
interrupted suite thus goes on with the next task, and measures again what has changed.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import operator
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api import task as harness_task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from tqdm import tqdm

from eval import ranks
from eval.fetch import reason_of
from eval.language_model import EvaluatedLM
from eval.measurement import TaskMeasurement, summary_of
from eval.suite import TaskSettings, TaskSuite
from eval.task_data import OpenTasks, open_tasks
from eval.task_figures import figure_of
from eval.task_notes import Asked, harness_warnings, questions_sha256
from eval.task_progress import TaskProgress
from eval.whole_shots import most_whole_shots
from itt_composer.basics.errors import UserError
from itt_composer.basics.files import numbers_only
from itt_composer.basics.processes import is_first_rank
from itt_composer.recipe.description import OF_ONE_RUN
from itt_composer.results.model import MeasuredModel
from itt_composer.results.tasks import SuiteOfTasks, TaskAnswers, TaskMeasured, TaskResults
from itt_composer.runs.loading import LoadedModel, load_named_model, think_causally

# Fields of a model that the user knows by another name.
NOT_SHARED = {"experiment_sha256": "recipe or shards", "trained_batches": "batches of training"}
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # of tasks, see `harness_warnings`


def run_task_suite(suite: TaskSuite, progress: TaskProgress) -> TaskResults:
    """Measure what has not been measured yet.

    Raises:
        UserError: a task does not exist, data is missing or malformed, a model cannot be loaded.
    """
    ranks.join()
    models: list[MeasuredModel] = []
    finished: list[tuple[TaskMeasurement, TaskMeasured]] = []
    with open_tasks(suite.selected_tasks(), suite.data_dir) as source:
        tasks = dict(_reported(suite, source))
        _check_settings(tasks, source)
        for path in suite.model.path:
            evaluated = load_named_model(path, ranks.device(), suite.model, "model")
            if suite.model.router_selection is None:
                think_causally(evaluated.model)
            sha256 = ranks.of_first(evaluated.sha256)
            weights = ranks.of_first(operator.attrgetter("weights_sha256"), evaluated)
            digests = {"sha256": sha256, "weights_sha256": weights}
            models.append(MeasuredModel(**evaluated.description(), **digests))
            _check_repeat(models[0], models[-1], models[:-1])
            finished += _measure_all(suite, tasks, source, evaluated, models[-1], progress)

    def runs_of(name: str) -> list[tuple[TaskMeasurement, TaskMeasured]]:
        return [one for one in finished if one[0].task == name]

    return TaskResults(
        suite=SuiteOfTasks(**suite.model_dump()),
        models=models,
        tasks={
            name: summary_of(name, settings.metric, runs_of(name))
            for name, settings in tasks.items()
        },
    )


def _check_repeat(
    first: MeasuredModel, model: MeasuredModel, before: Sequence[MeasuredModel]
) -> None:
    """Refuse a model that does not repeat the first one's experiment.

    Raises:
        UserError: it is the same again, or another model.
    """
    for other in before:
        if other.weights_sha256 == model.weights_sha256:
            raise UserError(
                f"model={model.path} has the same weights as {other.path}; measuring them again "
                "shows nothing"
            )
    one, another = first.given(), model.given()
    differing = [
        name
        for name in (one.keys() | another.keys()) - set(OF_ONE_RUN)
        if one.get(name) != another.get(name)
    ]
    if differing:
        names = ", ".join(NOT_SHARED.get(name, name) for name in sorted(differing))
        raise UserError(
            f"model={model.path} does not repeat {first.path}, as {names} differ; evaluate them "
            "one at a time"
        )
    if before and model.experiment_sha256 is None:
        raise UserError(
            f"nothing shows that model={model.path} repeats {first.path}: only run folders hold "
            "the recipe and shards of their models; evaluate others one at a time"
        )


def _measure_all(
    suite: TaskSuite,
    tasks: dict[str, TaskSettings],
    source: OpenTasks,
    evaluated: LoadedModel,
    model: MeasuredModel,
    progress: TaskProgress,
) -> list[tuple[TaskMeasurement, TaskMeasured]]:
    """Return every task on one model, with the result that was found or measured."""
    wanted = list(_measurements(suite, tasks, source, model))
    several = f" of {evaluated.name}" if len(suite.model.path) > 1 else ""
    lm: EvaluatedLM | None = None
    finished = []
    for number, measurement in enumerate(wanted, start=1):
        progress.start(measurement, number, len(wanted))
        measured = ranks.of_first(measurement.read, suite.log_samples)
        how = "found finished"
        if measured is None:
            lm = lm or EvaluatedLM(evaluated.model, evaluated.tokenizer(), progress.go_on)
            started = time.monotonic()
            answers = measure(
                suite, measurement.task, measurement.settings, source, lm, measurement.fewshot_seed
            )
            samples = answers.harness.pop("samples", {})
            seconds = time.monotonic() - started
            measured = TaskMeasured(**dict(answers), model=model, seconds=seconds)
            if is_first_rank():
                measurement.write(measured, samples)
            how = f"in {seconds:,.0f} s"
        _, value = figure_of(measured.harness, measurement.task, measurement.settings.metric)
        progress.end(measurement, several, f"{value:.4f} {how}", measured)
        finished.append((measurement, measured))
    return finished


def _measurements(
    suite: TaskSuite, tasks: dict[str, TaskSettings], source: OpenTasks, model: MeasuredModel
) -> Iterator[TaskMeasurement]:
    """Yield what is to be measured of one model."""
    for name, settings in tasks.items():
        seeds: Sequence[int | None] = suite.fewshot_seeds
        if not _draws_examples(source, name, settings):
            seeds = [None]
        for seed in seeds:
            depends_on = {
                "format": TaskResults.FORMAT,
                "model": model.sha256,
                "task": source.fingerprint(name),
                "shots": settings.shots,
                "fewshot_seed": seed,
                "shots_that_fit": suite.shots_that_fit and _has_shots(source, name, settings),
                "limit": settings.limit or suite.limit,
                "bootstrap_iters": suite.bootstrap_iters,
            }
            digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
            file = Path(suite.output or ".") / "tasks" / f"{name}-{digest[:16]}.json"
            yield TaskMeasurement(name, settings, model.path, seed, file)


def measure(
    suite: TaskSuite,
    task: str,
    settings: TaskSettings,
    source: OpenTasks,
    lm: EvaluatedLM,
    fewshot_seed: int | None = None,
) -> TaskAnswers:
    """Measure one task with lm-eval.

    Args:
        suite: limits, bootstraps, and whether prompts and answers are kept.
        task: its name.
        settings: of the task.
        source: of the task and its data.
        lm: the model.
        fewshot_seed: of the examples that are drawn; None is lm-eval's.

    Raises:
        UserError: data cannot be loaded, or the model computes NaN; names the task.
    """
    size = settings.batch_size or suite.batch_size
    lm.requests_per_batch = None if size == "auto" else size
    lm.task, lm.asked = task, Asked()
    seed = DEFAULT_OTHER_SEED if fewshot_seed is None else fewshot_seed
    limit = settings.limit or suite.limit
    with harness_warnings() as warnings, _as_lm_eval_runs():
        loaded = _load_task(source, task, settings.shots, seed)
        leaves = list(loaded["tasks"].values())
        shots = asked_for = max(leaf.get_config("num_fewshot") for leaf in leaves)
        if suite.shots_that_fit and asked_for:
            shots = most_whole_shots(leaves, asked_for, seed, limit, lm)
        results: Any = evaluate(
            lm,
            loaded,
            limit=limit,  # type: ignore[arg-type]  # a share is taken as well
            bootstrap_iters=suite.bootstrap_iters if is_first_rank() else 0,
            log_samples=suite.log_samples,
        )
    results["configs"] = {
        name: {key: value for key, value in config.items() if key != "dataset_kwargs"}
        for name, config in results["configs"].items()
    }
    metric, value = figure_of(results, task, settings.metric)
    if not math.isfinite(value):
        raise UserError(f"{task}: {metric} is {value}, which is not a score; see the model's loss")
    return TaskAnswers(
        format=TaskResults.FORMAT,
        harness=numbers_only(results),
        questions_sha256=questions_sha256(leaves),
        requests=lm.asked.requests,
        requests_cut=lm.asked.cut,
        notes=_notes(lm, shots, asked_for),
        warnings=warnings,
    )


def _notes(lm: EvaluatedLM, shots: int, asked_for: int) -> list[str]:
    """Return sentences on what a figure is of, with fewer shots than asked for in the first."""
    notes = lm.asked.notes(lm.max_length, shots)
    if shots == asked_for:
        return notes
    fewer = (
        f"{shots} of {asked_for} shots, the most that {lm.max_length:,} tokens hold whole before "
        "every question"
    )
    return [fewer, *notes]


@contextlib.contextmanager
def _as_lm_eval_runs() -> Iterator[None]:
    """Set the seeds of `lm_eval`, and keep it from printing and from starting processes."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    quiet = functools.partial(tqdm, disable=True)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(harness_task, "tqdm", quiet),
        # No pool for bootstraps. It is ended by SIGTERM, for which its processes have inherited
        # Composer's handler: one that has not begun yet loses the signal, and is waited for.
        mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}),
    ):
        yield


def _load_task(source: OpenTasks, task: str, shots: int | None, seed: int) -> Any:
    """Load a task (or group) of lm-eval with its data, ready to be evaluated.

    Args:
        source: of it.
        task: its name.
        shots: None takes the task's own.
        seed: of the examples that are drawn.
    """
    try:
        loaded = source.manager.load(task)
    except Exception as error:  # whatever the hub's libraries raise
        raise UserError(
            f"the data of {task} cannot be loaded ({reason_of(error)}); without network, set "
            "data_dir to a folder that `itt eval fetch` filled where there is one"
        ) from None
    for leaf in loaded["tasks"].values():
        if shots is not None:
            leaf.set_config("num_fewshot", shots)
        elif leaf.get_config("num_fewshot") is None:
            leaf.set_config("num_fewshot", 0)
        leaf.set_fewshot_seed(seed)
    return loaded


def _reported(suite: TaskSuite, source: OpenTasks) -> Iterator[tuple[str, TaskSettings]]:
    """Yield the rows of the table: a group that lm-eval gives no figure for, by its tasks."""
    for name, settings in suite.selected_tasks().items():
        entry = source.manager.task_index[name]
        has_figure = name in source.leaves(name) or (entry.cfg or {}).get("aggregate_metric_list")
        for part in [name] if has_figure else source.leaves(name):
            yield part, settings


def _check_settings(tasks: dict[str, TaskSettings], source: OpenTasks) -> None:
    """Refuse settings that a task cannot follow, before a model is loaded.

    Raises:
        UserError: names the key.
    """
    for name, settings in tasks.items():
        configs = [leaf.config for leaf in source.leaf_tasks(name)]
        metrics = {
            str(entry["metric"]) for config in configs for entry in config.get("metric_list") or []
        }
        if settings.metric is not None and metrics and settings.metric not in metrics:
            raise UserError(
                f"tasks.{name}.metric={settings.metric} is not one of the task's metrics: "
                f"{', '.join(sorted(metrics))}"
            )
        if any(config.get("unsafe_code") for config in configs):
            raise UserError(
                f"{name} runs code that the model writes, which this program does not do; leave "
                "it out"
            )
        if settings.shots and any(config.get("num_fewshot") == 0 for config in configs):
            raise UserError(
                f"tasks.{name}.shots={settings.shots}: lm-eval asks this task without examples; "
                "set it to 0 or null"
            )


def _has_shots(source: OpenTasks, name: str, settings: TaskSettings) -> bool:
    return any(leaf.shots(settings) for leaf in source.leaf_tasks(name))


def _draws_examples(source: OpenTasks, name: str, settings: TaskSettings) -> bool:
    """Say whether the seed decides which examples stand before the questions."""
    return any(
        leaf.shots(settings)
        and (leaf.config.get("fewshot_config") or {}).get("sampler", "default") == "default"
        for leaf in source.leaf_tasks(name)
    )
