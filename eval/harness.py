"""Runs a suite of lm-eval's tasks; what is finished is kept and never run again.

Each task's result is a file of its own, named by the hash of everything that it depends on: the
model's weights, thinking and tokenizer, the task's prompts and data, shots, seed and limit. An
interrupted suite thus goes on with the next task, and what has changed is measured anew.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api import task as harness_task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.utils import handle_non_serializable, sanitize_list
from tqdm import tqdm

from eval import ranks
from eval.fetch import reason
from eval.language_model import EvaluatedLM
from eval.suite import TaskSettings, TaskSuite
from eval.task_data import OpenTasks, open_tasks
from eval.task_figures import figure_of, summary_of
from eval.task_notes import Asked, harness_warnings, questions_sha256
from eval.task_progress import TaskProgress
from eval.whole_shots import most_whole_shots
from itt_composer.basics.errors import UserError
from itt_composer.basics.files import json_text, numbers_only, write_json, write_whole
from itt_composer.basics.processes import is_first_rank
from itt_composer.recipe.description import OF_ONE_RUN
from itt_composer.runs.loading import LoadedModel, load_named_model, think_causally

FORMAT = 2
# Of a description: what the user knows by another name.
NOT_SHARED = {"experiment_sha256": "recipe or shards", "trained_batches": "batches of training"}
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # of tasks, see `harness_warnings`


@dataclass(frozen=True)
class Measurement:
    """One task on one model with one seed.

    Attributes:
        task: its name in lm-eval.
        settings: of the suite.
        model: path as the user named it.
        fewshot_seed: None where the task draws no examples.
        file: where its result is, or will be.
    """

    task: str
    settings: TaskSettings
    model: str
    fewshot_seed: int | None
    file: Path

    @property
    def samples(self) -> Path:
        """Where its prompts and answers are, or would be."""
        return self.file.with_suffix(".samples.jsonl")


def run(suite: TaskSuite, progress: TaskProgress) -> dict[str, Any]:
    """Measure what is not measured yet.

    Returns:
        `{"kind": "tasks", "suite", "models", "tasks"}`. Each model is described as by
        `LoadedModel.description`, with its `sha256` and `weights_sha256`. Each task has
        `shots`, `metric`, `documents`, `questions_sha256`, `value` (mean over the runs), `stderr`
        (the harness's, mean over the runs), `standard_error` (over the runs, None for one), `runs`,
        `notes` (sentences on what the figure is of) and `warnings` (the harness's); all fractions
        of 1 where the metric is.

    Raises:
        UserError: no such task, data that is missing or malformed, a model that cannot be loaded.
    """
    ranks.join()
    models, finished = [], []
    with open_tasks(suite.selected_tasks(), suite.data_dir) as source:
        tasks = dict(_reported(suite, source))
        _check(tasks, source)
        for path in suite.model.path:
            evaluated = load_named_model(path, ranks.device(), suite.model, "model")
            if suite.model.router_selection is None:
                think_causally(evaluated.model)
            sha256 = ranks.of_first(evaluated.sha256)
            weights = ranks.of_first(operator.attrgetter("weights_sha256"), evaluated)
            digests = {"sha256": sha256, "weights_sha256": weights}
            models.append({**evaluated.description(), **digests})
            _check_repeat(models[0], models[-1], models[:-1])
            finished += _measure_all(suite, tasks, source, evaluated, models[-1], progress)
    return {
        "kind": "tasks",
        "format": FORMAT,
        "suite": suite.model_dump(),
        "models": models,
        "tasks": {name: summary_of(name, tasks[name], finished) for name in tasks},
    }


def _check_repeat(
    first: dict[str, Any], model: dict[str, Any], before: list[dict[str, Any]]
) -> None:
    """Refuse a model that is no repeat of the first one's experiment.

    Raises:
        UserError: it is the same again, or another model.
    """
    for other in before:
        if other["weights_sha256"] == model["weights_sha256"]:
            raise UserError(
                f"model={model['path']} has the same weights as {other['path']}; a repeat of a run "
                "tells nothing"
            )
    differing = [
        name
        for name in (first.keys() | model.keys()) - set(OF_ONE_RUN)
        if first.get(name) != model.get(name)
    ]
    if differing:
        told = ", ".join(NOT_SHARED.get(name, name) for name in sorted(differing))
        raise UserError(
            f"model={model['path']} is no repeat of {first['path']}, as {told} differ; evaluate "
            "them one at a time"
        )
    if before and model["experiment_sha256"] is None:
        raise UserError(
            f"nothing tells that model={model['path']} is a repeat of {first['path']}: only run "
            "folders hold the recipe and shards of their models; evaluate others one at a time"
        )


def _measure_all(
    suite: TaskSuite,
    tasks: dict[str, TaskSettings],
    source: OpenTasks,
    evaluated: LoadedModel,
    described: dict[str, Any],
    progress: TaskProgress,
) -> list[tuple[Measurement, dict[str, Any]]]:
    """Every task on one model, with what was found or measured."""
    wanted = list(_measurements(suite, tasks, source, evaluated.path, described["sha256"]))
    several = f" of {evaluated.name}" if len(suite.model.path) > 1 else ""
    lm: EvaluatedLM | None = None
    finished = []
    for number, measurement in enumerate(wanted, start=1):
        progress.start(measurement, number, len(wanted))
        result = ranks.of_first(_read, measurement, suite.log_samples)
        how = "found finished"
        if result is None:
            lm = lm or EvaluatedLM(evaluated.model, evaluated.tokenizer(), progress.go_on)
            started = time.monotonic()
            result = measure(
                suite, measurement.task, measurement.settings, source, lm, measurement.fewshot_seed
            )
            samples = result["harness"].pop("samples", {})
            result |= {"model": described, "seconds": time.monotonic() - started}
            if is_first_rank():
                _write(measurement, result, samples)
            how = f"in {result['seconds']:,.0f} s"
        _, value = figure_of(result["harness"], measurement.task, measurement.settings.metric)
        progress.end(measurement, several, f"{value:.4f} {how}", result)
        finished.append((measurement, result))
    return finished


def _measurements(
    suite: TaskSuite, tasks: dict[str, TaskSettings], source: OpenTasks, model: str, sha256: str
) -> Iterator[Measurement]:
    """What is to be measured of one model."""
    for name, settings in tasks.items():
        seeds: Sequence[int | None] = suite.fewshot_seeds
        if not _draws_examples(source, name, settings):
            seeds = [None]
        for seed in seeds:
            depends_on = {
                "format": FORMAT,
                "model": sha256,
                "task": source.fingerprint(name),
                "shots": settings.shots,
                "fewshot_seed": seed,
                "shots_that_fit": suite.shots_that_fit and _has_shots(source, name, settings),
                "limit": settings.limit or suite.limit,
                "bootstrap_iters": suite.bootstrap_iters,
            }
            digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
            file = Path(suite.output or ".") / "tasks" / f"{name}-{digest[:16]}.json"
            yield Measurement(name, settings, model, seed, file)


def measure(
    suite: TaskSuite,
    task: str,
    settings: TaskSettings,
    source: OpenTasks,
    lm: EvaluatedLM,
    fewshot_seed: int | None = None,
) -> dict[str, Any]:
    """One task through lm-eval.

    Returns:
        `{"format", "harness", "questions_sha256", "requests", "requests_cut", "notes",
        "warnings"}`: `harness` is what lm-eval returns, the rest as in `run`.

    Raises:
        UserError: data that cannot be loaded; a model that computes NaN. Names the task.
    """
    size = settings.batch_size or suite.batch_size
    lm.requests_per_batch = None if size == "auto" else size
    lm.task, lm.asked = task, Asked()
    # As `lm_eval` does by default.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    seed = DEFAULT_OTHER_SEED if fewshot_seed is None else fewshot_seed
    quiet = functools.partial(tqdm, disable=True)
    with (
        harness_warnings() as warnings,
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(harness_task, "tqdm", quiet),
        # No pool for bootstraps. It is ended by SIGTERM, for which its processes have inherited
        # Composer's handler: one that has not begun yet loses the signal, and is waited for.
        mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}),
    ):
        loaded = _load(source, task, settings.shots, seed)
        leaves = list(loaded["tasks"].values())
        asked_for = max(leaf.get_config("num_fewshot") for leaf in leaves)
        limit = settings.limit or suite.limit
        shots = asked_for
        if suite.shots_that_fit and shots:
            shots = most_whole_shots(leaves, shots, seed, limit, lm)
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
        raise UserError(f"{task}: {metric} is {value}, which is no score; see the model's loss")
    notes = lm.asked.notes(lm.max_length, shots)
    if shots < asked_for:
        notes.insert(
            0,
            f"{shots} of {asked_for} shots, the most that {lm.max_length:,} tokens hold whole "
            "before every question",
        )
    return {
        "format": FORMAT,
        "harness": numbers_only(results),
        "questions_sha256": questions_sha256(leaves),
        "requests": lm.asked.requests,
        "requests_cut": lm.asked.cut,
        "notes": notes,
        "warnings": warnings,
    }


def _load(source: OpenTasks, task: str, shots: int | None, seed: int) -> Any:
    """A task (or group) of lm-eval with its data, ready to be evaluated.

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
            f"the data of {task} cannot be loaded ({reason(error)}); without network, set data_dir "
            "to a folder that `itt eval fetch` filled where there is one"
        ) from None
    for leaf in loaded["tasks"].values():
        if shots is not None:
            leaf.set_config("num_fewshot", shots)
        elif leaf.get_config("num_fewshot") is None:
            leaf.set_config("num_fewshot", 0)
        leaf.set_fewshot_seed(seed)
    return loaded


def _read(measurement: Measurement, with_samples: bool) -> dict[str, Any] | None:
    """The result of an earlier run, None where there is none."""
    if with_samples and not measurement.samples.is_file():
        return None
    try:
        result = json.loads(measurement.file.read_bytes())
        figure_of(result["harness"], measurement.task, measurement.settings.metric)
        return result
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(
            f"{measurement.file} is damaged ({type(error).__name__}: {error}); delete it and the "
            "task is measured again"
        ) from None


def _write(
    measurement: Measurement, result: dict[str, Any], samples: dict[str, list[dict[str, Any]]]
) -> None:
    if samples:
        lines = [
            json_text(
                numbers_only({"task": task, **_as_logged(sample)}),
                str(measurement.samples),
                default=handle_non_serializable,
            )
            for task, logged in samples.items()
            for sample in logged
        ]
        write_whole(measurement.samples, "\n".join(lines) + "\n")
    write_json(measurement.file, result, default=handle_non_serializable)


def _as_logged(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as `lm_eval --log_samples` writes it."""
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": {
            f"gen_args_{number}": {f"arg_{place}": part for place, part in enumerate(arguments)}
            for number, arguments in enumerate(sample["arguments"])
        },
        "target": str(sample["target"]),
    }


def _reported(suite: TaskSuite, source: OpenTasks) -> Iterator[tuple[str, TaskSettings]]:
    """The rows of the table: groups that lm-eval gives no figure for by their tasks."""
    for name, settings in suite.selected_tasks().items():
        entry = source.manager.task_index[name]
        has_figure = name in source.leaves(name) or (entry.cfg or {}).get("aggregate_metric_list")
        for part in [name] if has_figure else source.leaves(name):
            yield part, settings


def _check(tasks: dict[str, TaskSettings], source: OpenTasks) -> None:
    """What can be told before a model is loaded.

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
                f"tasks.{name}.metric={settings.metric} is none of the task's: "
                f"{', '.join(sorted(metrics))}"
            )
        if any(config.get("unsafe_code") for config in configs):
            raise UserError(f"{name} runs code that the model writes, which is not done here")
        if settings.shots and any(config.get("num_fewshot") == 0 for config in configs):
            raise UserError(
                f"tasks.{name}.shots={settings.shots}: lm-eval asks this task without examples; "
                "set it to 0 or null"
            )


def _has_shots(source: OpenTasks, name: str, settings: TaskSettings) -> bool:
    return any(leaf.shots(settings) for leaf in source.leaf_tasks(name))


def _draws_examples(source: OpenTasks, name: str, settings: TaskSettings) -> bool:
    """Whether the seed decides which examples stand before the questions."""
    return any(
        leaf.shots(settings)
        and (leaf.config.get("fewshot_config") or {}).get("sampler", "default") == "default"
        for leaf in source.leaf_tasks(name)
    )
