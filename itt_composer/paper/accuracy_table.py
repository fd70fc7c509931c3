"""Makes the paper's Table 1 from results of task suites: accuracies in percent, ours beside its.

Repeats (few-shot seeds of the same weights, training seeds of one recipe) are one row: their mean
and the standard error over them. A run is identified by its weights and its few-shot seed, and
counts once, in however many files it stands. All figures of a column are of the same questions,
with the same shots and metric.
"""

import functools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from itt_composer.basics.tables import GAP, Section, Table, shown
from itt_composer.paper import figures as paper
from itt_composer.paper.measurements import (
    experiments_of,
    own_names,
    precision_label,
    standard_error,
)
from itt_composer.recipe.description import GEOMETRY_FIELDS, kind_label, kind_of
from itt_composer.results.model import MeasuredModel
from itt_composer.results.perplexity_report import RULES, percentages
from itt_composer.results.tasks import SHARES, TaskResults

TASK_HEADERS = {
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


@dataclass(frozen=True)
class AccuracyCell:
    """A task's accuracy: what the paper reports, and the figure of each of our runs."""

    paper: float | None
    runs: tuple[float, ...] = ()

    @property
    def ours(self) -> float | None:
        """Mean over the runs."""
        return statistics.fmean(self.runs) if self.runs else None

    @property
    def standard_error(self) -> float | None:
        """Standard error over the runs; None for less than two."""
        return standard_error(self.runs)

    @property
    def difference(self) -> float | None:
        """Points above the paper."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


class Way(NamedTuple):
    """How a task was asked; no column mixes figures of different ways."""

    shots: int | None
    metric: str
    documents: int
    questions_sha256: str

    def __str__(self) -> str:
        return f"{self.shots} shots by {self.metric} on {self.documents:,} questions"


@dataclass
class Model:
    """Our runs of one experiment.

    Attributes:
        label: for the table, unlike that of any other.
        row: of the paper's Table 1 that it is compared with, or None.
        reproduces: whether it is that row's model.
        tflops: by the paper's count, of a forward pass over 4,096 tokens; None if not counted.
        described: as in the results, each at least once.
        asked: in percent, by task, way and run (weights and few-shot seed).
        ways: by task, the way that the table shows.
        limited: (task, way) where a suite took the first questions only.
        caveats: (task, way, sentence) on what a figure is of.
        others: sentences on figures of a run that differ from those counted.
    """

    label: str
    row: str | None
    reproduces: bool
    tflops: float | None
    described: list[MeasuredModel] = field(default_factory=list)
    asked: dict[str, dict[Way, dict[tuple, float]]] = field(default_factory=dict)
    ways: Mapping[str, Way] = field(default_factory=dict)
    limited: set[tuple[str, Way]] = field(default_factory=set)
    caveats: dict[tuple[str, Way, str], None] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def runs(self, task: str) -> tuple[float, ...]:
        """Return the figures of a task in percent, asked in the way that the table shows."""
        return tuple(self.asked.get(task, {}).get(self.ways[task], {}).values())

    def cell(self, task: str) -> AccuracyCell:
        """Return the figures of a task; of `AVERAGE`, where all ten tasks are there."""
        if task == AVERAGE:
            cells = [self.cell(name) for name in paper.tasks() if self.is_as_reported(name)]
            means = [cell.ours for cell in cells if cell.ours is not None]
            reported = paper.row(self.row).average if self.row else None
            is_whole = len(means) == len(paper.tasks())
            return AccuracyCell(reported, (statistics.fmean(means),) if is_whole else ())
        reported = None
        if self.row and self.is_as_reported(task):
            reported = paper.accuracy(self.row, task)
        return AccuracyCell(reported, self.runs(task) if task in self.ways else ())

    def is_as_reported(self, task: str) -> bool:
        """Say whether the table shows a task with the paper's shots and by its metric."""
        way = self.ways.get(task)
        return way is None or paper.is_as_reported(task, way.shots, way.metric)


def section(results: Sequence[TaskResults], compare_with: str | None) -> Section:
    """Make Table 1 of all results.

    Args:
        results: of task suites.
        compare_with: row to compare models with that are none of the paper's; None leaves them
            without.

    Raises:
        UserError: there is no such row.
    """
    models = models_of(results, compare_with)
    own = {model.row for model in models if model.reproduces}
    extra = sorted({task for model in models for task in model.asked} - set(paper.tasks()))
    tasks = [*paper.tasks(), AVERAGE, *extra]
    table = Table(
        "Table 1: accuracy in %",
        ["model", "", "TFLOPs", *(TASK_HEADERS.get(task, task) for task in tasks[:10]), "avg"]
        + [TASK_HEADERS.get(task, task) for task in extra],
        text_columns=2,
    )
    for row in paper.rows().values():
        if row.name not in own:
            figures = [row.accuracies.get(task) for task in tasks]
            figures[tasks.index(AVERAGE)] = row.average
            table.rows.append(
                [
                    row.name,
                    "paper; no result",
                    f"{row.tflops:.2f}",
                    *(shown(figure, 1) for figure in figures),
                ]
            )
        for model in models:
            if model.reproduces and model.row == row.name:
                table.rows += _model_rows(model, tasks)
    for model in models:
        if not model.reproduces:
            table.rows += _model_rows(model, tasks)
    table.notes = _notes_on(models)
    return Section(
        "table_1", table, [record for model in models for record in _model_records(model, tasks)]
    )


def models_of(results: Sequence[TaskResults], compare_with: str | None) -> list[Model]:
    """Return our models, each with the runs of all files."""
    if compare_with is not None:
        compare_with = paper.row(compare_with).name
    every = [described for result in results for described in result.models]
    keys = iter(experiments_of(every))
    models: dict[str, Model] = {}
    for result in results:
        by_path: dict[str, tuple[Model, str | None]] = {}
        for described in result.models:
            key, row = next(keys), paper.row_of(described.given())
            if key not in models:
                compared = row or compare_with or result.suite.compare_with
                models[key] = Model("", compared, row is not None, tflops(described))
            model = models[key]
            model.described.append(described)
            by_path[described.path] = model, described.weights_sha256
        _add(result, by_path)
    found = [model for model in models.values() if model.asked]
    ways = ways_shown(found)
    for model in found:
        model.ways = ways
    _label_models(found)
    return found


def _add(result: TaskResults, by_path: Mapping[str, tuple[Model, str | None]]) -> None:
    """Add the figures of a result to its models, which are given with their weights."""
    for task, figures in result.tasks.items():
        scale = 100 if figures.metric in SHARES else 1
        way = Way(*(getattr(figures, name) for name in Way._fields))
        settings = result.suite.tasks.get(task)
        is_limited = result.suite.limit or (settings and settings.limit)
        for run in figures.runs:
            model, weights = by_path[run.model]
            runs = model.asked.setdefault(task, {}).setdefault(way, {})
            value = scale * run.value
            counted = runs.setdefault((weights, run.fewshot_seed), value)
            if counted != value:
                model.others.append(
                    f"{TASK_HEADERS.get(task, task)} came to {counted:.6g} and {value:.6g} with "
                    f"the same weights, asked in the same way; the first counts, not that of "
                    f"{run.model}"
                )
            model.limited |= {(task, way)} if is_limited else set()
            model.caveats |= {(task, way, note): None for note in figures.notes}


def _label_models(models: Sequence[Model]) -> None:
    """Label each model by its row, or by how it thinks and its name; add names until all differ."""
    for by in (None, "name", "path"):
        counts = Counter(model.label for model in models)
        for model in models:
            if not model.label or counts[model.label] > 1:
                model.label = _label_of(model, by)


def _label_of(model: Model, by: str | None) -> str:
    """Make a label with the models' names or paths; `by` None names only those without a row."""
    first = model.described[0]
    label = model.row if model.reproduces and model.row else thinking_label(first)
    if by is not None or not model.reproduces:
        label += f" ({own_names(model.described, by or 'name')})"
    label += precision_label(first)
    if first.router_selection in ("top_k", "top_p"):
        label += f", {RULES[first.router_selection]}"
    return label


def ways_shown(models: Sequence[Model]) -> dict[str, Way]:
    """Choose one way for each task: the paper's, on the most questions, that most models have."""
    counts: dict[str, Counter[Way]] = {}
    for model in models:
        for task, ways in model.asked.items():
            counts.setdefault(task, Counter()).update(ways.keys())

    def preference(task: str, way: Way) -> tuple:
        return (
            paper.is_as_reported(task, way.shots, way.metric),
            way.documents,
            counts[task][way],
        )

    return {
        task: max(ways, key=functools.partial(preference, task)) for task, ways in counts.items()
    }


def label_of(model: MeasuredModel) -> str:
    """Return `ITT×4 70/70/70 (run)`: how a model thinks, and its name."""
    return f"{thinking_label(model)} ({model.name})"


def thinking_label(model: MeasuredModel) -> str:
    """Return `ITT×4 70/70/70`."""
    kind = kind_label(model.given())
    if kind_of(model.given()) == "itt":
        kind += f" {percentages(model.select_ratios or [])}"
    return kind


def tflops(model: MeasuredModel) -> float | None:
    """Return TFLOPs of a forward pass over 4,096 tokens by the paper's count.

    Returns:
        None for another architecture, and where the number of parameters does not fit.
    """
    description = model.given()
    if kind_of(description) is None:
        return None
    # Here, because it imports torch.
    from itt_composer.models.configuration import THINKING_FIELDS, IttConfig
    from itt_composer.models.flops import dense_parameters, paper_tflops, thinking_parameters

    names = (*GEOMETRY_FIELDS, *THINKING_FIELDS)
    fields = {"thinking": "dense"}
    fields |= {name: description[name] for name in names if name in description}
    for tied in (False, True):  # which the description does not say
        config = IttConfig(**fields, tie_word_embeddings=tied)
        if dense_parameters(config) + thinking_parameters(config) == model.parameters:
            return paper_tflops(config)
    return None


def _model_rows(model: Model, tasks: Sequence[str]) -> list[list[str]]:
    """Return rows of the paper's figures, ours and the differences; ours alone without a row."""
    cells = [model.cell(task) for task in tasks]
    ours = [shown(cell.ours, 1) for cell in cells]
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
        [model.label, name, f"{row.tflops:.2f}", *(shown(cell.paper, 1) for cell in cells)],
        ["", *own],
        ["", "difference", "", *(shown(cell.difference, 1, "+") for cell in cells)],
    ]


def _notes_on(models: Sequence[Model]) -> list[str]:
    notes = []
    for model in models:
        missing = [TASK_HEADERS[task] for task in paper.tasks() if not model.cell(task).runs]
        if missing:
            notes.append(f"{model.label}: no result for {', '.join(missing)}")
        notes += _left_out(model)
        others = [
            TASK_HEADERS[task]
            for task in paper.tasks()
            if model.cell(task).runs and not model.is_as_reported(task)
        ]
        if others:
            notes.append(
                f"{model.label}: {', '.join(others)} by other shots or another metric than the "
                "paper's, so not beside its figure"
            )
        if any((task, way) in model.limited for task, way in model.ways.items()):
            notes.append(f"{model.label}: first questions of a task only, by the suite's limit")
        notes += [
            f"{model.label}: {TASK_HEADERS.get(task, task)}: {note}"
            for task, way, note in model.caveats
            if way == model.ways[task]
        ]
        notes += [f"{model.label}: {other}" for other in model.others]
    own = {model.row for model in models if model.reproduces}
    missing_rows = [name for name in paper.rows() if name not in own]
    if missing_rows:
        notes.append(f"{len(missing_rows)} of {len(paper.rows())} rows have no result")
    return notes


def _left_out(model: Model) -> list[str]:
    """Name what was asked in another way than the table shows, with its figures."""
    return [
        f"{model.label}: {TASK_HEADERS.get(task, task)} is left out at {way}, where it is "
        f"{statistics.fmean(runs.values()):.1f}: the column is of {model.ways[task]}"
        + ("" if way[:3] != model.ways[task][:3] else ", which are others")
        for task, ways in model.asked.items()
        for way, runs in ways.items()
        if way != model.ways[task]
    ]


def _model_records(model: Model, tasks: Sequence[str]) -> list[dict[str, Any]]:
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
    """Show FLOPs with two decimals as in the paper, those of small models with three digits."""
    if value is None:
        return GAP
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"
