"""The paper's Table 1 from results of task suites: accuracies in percent, ours beside the paper's.

Runs of the same model (few-shot seeds, checkpoints, training seeds, several files) are one row:
their mean and the standard error over them. A run that stands in two files counts once.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval import paper
from eval.perplexity_report import RULES, percentages
from eval.rendering import Section, Table
from eval.task_report import SHARES

HEADERS = {
    "sciq": "SciQ",
    "piqa": "PIQA",
    "winogrande": "WG",
    "arc_easy": "ARC-E",
    "arc_challenge": "ARC-C",
    "hellaswag": "Hella",
    "logiqa": "LogiQA",
    "boolq": "BoolQ",
    "lambada_openai": "Lam",
    "mmlu": "MMLU",
    "nq_open": "NQ",
}
AVERAGE = "average"
GAP = "–"


@dataclass(frozen=True)
class Cell:
    """A task's accuracy: what the paper reports, and what each of our runs has come to."""

    paper: float | None
    runs: tuple[float, ...] = ()

    @property
    def ours(self) -> float | None:
        """Mean over the runs."""
        return statistics.fmean(self.runs) if self.runs else None

    @property
    def standard_error(self) -> float | None:
        """Over the runs; None for less than two."""
        if len(self.runs) < 2:
            return None
        return statistics.stdev(self.runs) / math.sqrt(len(self.runs))

    @property
    def difference(self) -> float | None:
        """Points above the paper."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


@dataclass
class Model:
    """Our runs of one model.

    Attributes:
        label: for the table.
        row: of the paper's Table 1 that it is compared with, or None.
        reproduces: whether it is that row's model.
        tflops: by the paper's count, of a forward pass over 4,096 tokens; None if not counted.
        runs: by task and run (weights and few-shot seed), in percent.
        limited: whether a suite took the first questions of a task only.
        ways: (shots, metric, questions) by task; more than one is no repetition.
    """

    label: str
    row: str | None
    reproduces: bool
    tflops: float | None
    runs: dict[str, dict[tuple, float]] = field(default_factory=dict)
    limited: bool = False
    ways: dict[str, set[tuple]] = field(default_factory=dict)

    def cell(self, task: str) -> Cell:
        """Of a task, or the average of the ten where all are there."""
        if task == AVERAGE:
            cells = [self.cell(name) for name in paper.tasks() if self.is_as_reported(name)]
            means = [cell.ours for cell in cells if cell.ours is not None]
            reported = paper.row(self.row).average if self.row else None
            is_whole = len(means) == len(paper.tasks())
            return Cell(reported, (statistics.fmean(means),) if is_whole else ())
        reported = None
        if self.row and self.is_as_reported(task):
            reported = paper.accuracy(self.row, task)
        return Cell(reported, tuple(self.runs.get(task, {}).values()))

    def is_as_reported(self, task: str) -> bool:
        """Whether no run of a task had other shots or another metric than the paper."""
        return all(
            paper.is_as_reported(task, shots, metric)
            for shots, metric, _ in self.ways.get(task, ())
        )


def section(results: Sequence[dict[str, Any]], compare_with: str | None) -> Section:
    """Table 1 of all results.

    Args:
        results: of task suites.
        compare_with: row for the models that are none; None leaves them without.

    Raises:
        UserError: there is no such row.
    """
    models = models_of(results, compare_with)
    own = {model.row for model in models if model.reproduces}
    extra = sorted({task for model in models for task in model.runs} - set(paper.tasks()))
    tasks = [*paper.tasks(), AVERAGE, *extra]
    table = Table(
        "Table 1: accuracy in %",
        ["model", "", "TFLOPs", *(HEADERS.get(task, task) for task in tasks[:10]), "avg"]
        + [HEADERS.get(task, task) for task in extra],
        text_columns=2,
    )
    for row in paper.rows().values():
        if row.name not in own:
            figures = [row.accuracies.get(task) for task in tasks]
            figures[tasks.index(AVERAGE)] = row.average
            table.rows.append(
                [row.name, "paper; no result", f"{row.tflops:.2f}", *map(_number, figures)]
            )
        for model in models:
            if model.reproduces and model.row == row.name:
                table.rows += _lines(model, tasks)
    for model in models:
        if not model.reproduces:
            table.rows += _lines(model, tasks)
    table.notes = _notes(models)
    return Section(
        "table_1", table, [record for model in models for record in _records(model, tasks)]
    )


def models_of(results: Sequence[dict[str, Any]], compare_with: str | None) -> list[Model]:
    """Our models, each with the runs of all files."""
    if compare_with is not None:
        compare_with = paper.row(compare_with).name
    models: dict[str, Model] = {}
    for result in results:
        limited = bool(result["suite"].get("limit")) or any(
            task and task.get("limit") for task in result["suite"]["tasks"].values()
        )
        by_path = {model["path"]: model for model in result["models"]}
        for task, figures in result["tasks"].items():
            scale = 100 if figures["metric"] in SHARES else 1
            for run in figures["runs"]:
                model = _model(models, by_path[run["model"]], result, compare_with)
                model.limited |= limited
                key = by_path[run["model"]]["sha256"], run["fewshot_seed"]
                model.runs.setdefault(task, {})[key] = scale * run["value"]
                way = figures["shots"], figures["metric"], figures["documents"]
                model.ways.setdefault(task, set()).add(way)
    return list(models.values())


def _model(
    models: dict[str, Model],
    description: dict[str, Any],
    result: dict[str, Any],
    compare_with: str | None,
) -> Model:
    """The model of that description among the models, put there if it is new."""
    row = paper.row_of(description)
    kind = {name: value for name, value in description.items() if name not in paper.OF_ONE_RUN}
    key = json.dumps(kind, sort_keys=True)
    if key not in models:
        label = row or label_of(description)
        if description.get("router_selection") in ("top_k", "top_p"):
            label += f", {RULES[description['router_selection']]}"
        compared = row or compare_with or result["suite"].get("compare_with")
        models[key] = Model(label, compared, row is not None, tflops(description))
    return models[key]


def label_of(description: Mapping[str, Any]) -> str:
    """`ITT×4 70/70/70 (run)`: how a model thinks, and its name."""
    kind = paper.kind_label(description)
    if paper.kind_of(description) == "itt":
        kind += f" {percentages(description['select_ratios'])}"
    return f"{kind} ({description['name']})"


def tflops(description: Mapping[str, Any]) -> float | None:
    """By the paper's count, of a forward pass over 4,096 tokens; None for other architectures."""
    if paper.kind_of(description) is None:
        return None
    # Here, because it imports torch.
    from itt_composer.flops import dense_parameters, paper_tflops, thinking_parameters
    from itt_composer.models.configuration import IttConfig

    fields = {"thinking": "dense"} | dict(description)
    for name in (*paper.OF_ONE_RUN, "parameters", "model_type"):
        fields.pop(name, None)
    for tied in (False, True):  # which the description does not say
        config = IttConfig(**fields, tie_word_embeddings=tied)
        if dense_parameters(config) + thinking_parameters(config) == description["parameters"]:
            return paper_tflops(config)
    return None


def _lines(model: Model, tasks: Sequence[str]) -> list[list[str]]:
    """The paper's figures, ours, and the differences; of other models ours alone."""
    cells = [model.cell(task) for task in tasks]
    ours = [_number(cell.ours) for cell in cells]
    errors = [cell.standard_error for cell in cells]
    with_errors = [
        text if error is None else f"{text}±{error:.1f}"
        for text, error in zip(ours, errors, strict=True)
    ]
    own = ["ours", flops_text(model.tflops), *with_errors]
    if model.row is None:
        return [[model.label, *own]]
    row = paper.row(model.row)
    name = "paper" if model.reproduces else model.row
    return [
        [model.label, name, f"{row.tflops:.2f}", *(_number(cell.paper) for cell in cells)],
        ["", *own],
        ["", "difference", "", *(_number(cell.difference, "+") for cell in cells)],
    ]


def _notes(models: Sequence[Model]) -> list[str]:
    notes = []
    for model in models:
        missing = [HEADERS[task] for task in paper.tasks() if task not in model.runs]
        if missing:
            notes.append(f"{model.label}: no result for {', '.join(missing)}")
        for task, ways in model.ways.items():
            if len(ways) > 1:
                told = " and ".join(
                    f"{shots} shots by {metric} on {documents} questions"
                    for shots, metric, documents in sorted(ways, key=str)
                )
                notes.append(f"warning: {model.label}: {task} is the mean of runs at {told}")
        others = [task for task in paper.tasks() if not model.is_as_reported(task)]
        if others:
            notes.append(
                f"{model.label}: {', '.join(HEADERS[task] for task in others)} by other shots or "
                "another metric than the paper's, so not beside its figure"
            )
        if model.limited:
            notes.append(f"{model.label}: first questions of a task only, by the suite's limit")
    own = {model.row for model in models if model.reproduces}
    missing_rows = [name for name in paper.rows() if name not in own]
    if missing_rows:
        notes.append(f"{len(missing_rows)} of {len(paper.rows())} rows have no result")
    return notes


def _records(model: Model, tasks: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "model": model.label,
            "row": model.row,
            "tflops": model.tflops,
            "tflops_in_paper": paper.row(model.row).tflops if model.row else None,
            "task": task,
            "ours": cell.ours,
            "standard_error": cell.standard_error,
            "runs": len(cell.runs),
            "paper": cell.paper,
            "difference": cell.difference,
        }
        for task in tasks
        for cell in [model.cell(task)]
    ]


def flops_text(value: float | None) -> str:
    """Two decimals as in the paper; three digits for small models."""
    if value is None:
        return GAP
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _number(value: float | None, sign: str = "") -> str:
    return GAP if value is None else f"{value:{sign}.1f}"
