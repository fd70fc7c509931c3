"""Makes the table of a task suite: for the terminal, and as Markdown, CSV and JSON."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from itt_composer.basics.files import write_json, write_whole
from itt_composer.basics.tables import Table, as_csv, shown
from itt_composer.paper import figures as paper
from itt_composer.recipe.description import kind_label
from itt_composer.results.perplexity_report import percentages
from itt_composer.results.tasks import SHARES, TaskFigures, TaskResults

AVERAGE = "average of ten"


@dataclass
class TaskLine:
    """A row of the table; figures of `SHARES` are in percent, others as they are.

    Attributes:
        task: its name in lm-eval.
        shots: None for the average.
        metric: as lm-eval names it.
        documents: questions asked; None for the average.
        value: mean over the runs.
        harness_error: lm-eval's standard error of one run, mean over the runs.
        runs: how many.
        requests: of all runs; None for the average.
        requests_cut: those whose first tokens the model had no room for.
        run_error: standard error over the runs; None for a single one.
        paper: the paper's figure in the row that the model is compared with, at these shots and
            by this metric.
    """

    task: str
    shots: int | None
    metric: str
    documents: int | None
    value: float
    harness_error: float | None
    runs: int
    requests: int | None
    requests_cut: int | None
    run_error: float | None
    paper: float | None

    @property
    def difference(self) -> float | None:
        """Points above the paper."""
        return None if self.paper is None else self.value - self.paper


def lines_of(results: TaskResults, row: str | None) -> list[TaskLine]:
    """Return the table's rows, with an average where all ten tasks of Table 1 are there.

    Args:
        results: of a suite.
        row: of the paper's Table 1, or None.
    """
    lines = [_task_line(name, figures, row) for name, figures in results.tasks.items()]
    by_task = {
        line.task: line
        for line in lines
        if paper.is_as_reported(line.task, line.shots, line.metric)
    }
    if by_task.keys() >= set(paper.tasks()):
        mean = sum(by_task[task].value for task in paper.tasks()) / len(paper.tasks())
        reported = paper.row(row).average if row else None
        lines.append(TaskLine(AVERAGE, None, "", None, mean, None, 1, None, None, None, reported))
    return lines


def _task_line(name: str, figures: TaskFigures, row: str | None) -> TaskLine:
    scale = 100 if figures.metric in SHARES else 1
    is_as_reported = paper.is_as_reported(name, figures.shots, figures.metric)
    error, run_error = figures.stderr, figures.standard_error
    return TaskLine(
        task=name,
        shots=figures.shots,
        metric=figures.metric,
        documents=figures.documents,
        value=scale * figures.value,
        harness_error=None if error is None else scale * error,
        runs=len(figures.runs),
        requests=sum(run.requests for run in figures.runs),
        requests_cut=sum(run.requests_cut for run in figures.runs),
        run_error=None if run_error is None else scale * run_error,
        paper=paper.accuracy(row, name) if row and is_as_reported else None,
    )


def compared_row(results: TaskResults) -> str | None:
    """Return the row of Table 1 that the results are compared with.

    Raises:
        UserError: the suite names a row that does not exist.
    """
    named = results.suite.compare_with
    if named is not None:
        return paper.row(named).name
    rows = {paper.row_of(model.given()) for model in results.models}
    return rows.pop() if len(rows) == 1 else None


def table_of(results: TaskResults, lines: list[TaskLine], row: str | None) -> Table:
    """Make the table; leave out columns that would be empty."""
    several = any(line.run_error is not None for line in lines)
    are_cut = any(line.requests_cut for line in lines)
    columns = ["\ntask", "\nmetric", "\nshots", "\nasked", "\nvalue", "±\n(lm-eval)"]
    columns += ["±\n(runs)", "\nruns"] if several else []
    columns += ["requests\ncut"] if are_cut else []
    columns += [f"paper,\n{row}", "\ndiff."] if row else []
    table = Table(title_of(results), columns, text_columns=2)
    for line in lines:
        cells = [line.task, line.metric, _or_blank(line.shots, 0), _or_blank(line.documents, 0)]
        cells += [_or_blank(line.value, 1), _or_blank(line.harness_error, 1)]
        cells += [_or_blank(line.run_error, 1), str(line.runs)] if several else []
        cells += [_of_all(line.requests_cut, line.requests)] if are_cut else []
        cells += [_or_blank(line.paper, 1), _or_blank(line.difference, 1, "+")] if row else []
        table.rows.append(cells)
    table.notes = [
        f"{name}: {note}" for name, figures in results.tasks.items() for note in figures.notes
    ]
    return table


def print_results(results: TaskResults, console: Console) -> None:
    """Print the table."""
    row = compared_row(results)
    table_of(results, lines_of(results, row), row).print(console)


def write_results(results: TaskResults, folder: Path) -> None:
    """Write `results.json`, `results.md` and `results.csv`."""
    row = compared_row(results)
    lines = lines_of(results, row)
    write_whole(folder / "results.md", table_of(results, lines, row).markdown())
    fields = [*TaskLine.__dataclass_fields__, "difference"]
    records = [[getattr(line, name) for name in fields] for line in lines]
    write_whole(folder / "results.csv", as_csv(fields, records))
    write_json(folder / "results.json", results.content())


def title_of(results: TaskResults) -> str:
    """Return the models' names and, in brackets, their kind, size and rule."""
    names = ", ".join(model.name for model in results.models)
    model = results.models[0]
    kind = f"{kind_label(model.given())}, {model.parameters / 1e6:,.1f} M parameters"
    if model.router_selection:
        kind += f", {percentages(model.select_ratios or [])} by {model.router_selection}"
    return f"{names} ({kind})"


def _of_all(part: int | None, whole: int | None) -> str:
    return "" if part is None else f"{part:,} of {whole:,}" if part else "0"


def _or_blank(value: float | None, digits: int, sign: str = "") -> str:
    return shown(value, digits, sign, missing="")
