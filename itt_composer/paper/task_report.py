"""The table of a task suite: for the terminal, and as markdown, CSV, JSON and lm-eval's JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from itt_composer.basics.files import whole_folder, write_json, write_whole
from itt_composer.basics.tables import Table, as_csv
from itt_composer.paper import figures as paper
from itt_composer.recipe.description import kind_label

AVERAGE = "average of ten"
# Metrics that are shares of 1, and shown in percent.
SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1")


@dataclass
class Line:
    """A task's row; figures of `SHARES` in percent, others as they are.

    Attributes:
        task: its name in lm-eval.
        shots: None for the average.
        metric: as lm-eval names it.
        documents: questions asked; None for the average.
        value: mean over the runs.
        harness_error: lm-eval's standard error of one run, mean over the runs.
        runs: how many.
        requests: of all runs; None for the average.
        requests_cut: of these, whose first tokens the model had no room for.
        run_error: standard error over the runs; None for a single one.
        paper: what the paper reports for the row it is compared with, at these shots and by this
            metric.
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


def lines_of(results: dict[str, Any], row: str | None) -> list[Line]:
    """The table's rows, with an average where all ten tasks of Table 1 are there.

    Args:
        results: of `harness.run`.
        row: of the paper's Table 1, or None.
    """
    lines = []
    for name, figures in results["tasks"].items():
        scale = 100 if figures["metric"] in SHARES else 1
        is_as_reported = paper.is_as_reported(name, figures["shots"], figures["metric"])
        error, run_error = figures["stderr"], figures["standard_error"]
        lines.append(
            Line(
                task=name,
                shots=figures["shots"],
                metric=figures["metric"],
                documents=figures["documents"],
                value=scale * figures["value"],
                harness_error=None if error is None else scale * error,
                runs=len(figures["runs"]),
                requests=sum(run["requests"] for run in figures["runs"]),
                requests_cut=sum(run["requests_cut"] for run in figures["runs"]),
                run_error=None if run_error is None else scale * run_error,
                paper=paper.accuracy(row, name) if row and is_as_reported else None,
            )
        )
    by_task = {
        line.task: line
        for line in lines
        if paper.is_as_reported(line.task, line.shots, line.metric)
    }
    if by_task.keys() >= set(paper.tasks()):
        mean = sum(by_task[task].value for task in paper.tasks()) / len(paper.tasks())
        reported = paper.row(row).average if row else None
        lines.append(Line(AVERAGE, None, "", None, mean, None, 1, None, None, None, reported))
    return lines


def compared_row(results: dict[str, Any]) -> str | None:
    """The row of Table 1 that the results are compared with.

    Raises:
        UserError: the suite names a row that there is not.
    """
    named = results["suite"]["compare_with"]
    if named is not None:
        return paper.row(named).name
    rows = {paper.row_of(model) for model in results["models"]}
    return rows.pop() if len(rows) == 1 else None


def table_of(results: dict[str, Any], lines: list[Line], row: str | None) -> Table:
    """For people; columns that would be empty are left out."""
    several = any(line.run_error is not None for line in lines)
    are_cut = any(line.requests_cut for line in lines)
    columns = ["\ntask", "\nmetric", "\nshots", "\nasked", "\nvalue", "±\n(lm-eval)"]
    columns += ["±\n(runs)", "\nruns"] if several else []
    columns += ["requests\ncut"] if are_cut else []
    columns += [f"paper,\n{row}", "\ndiff."] if row else []
    table = Table(title_of(results), columns, text_columns=2)
    for line in lines:
        cells = [line.task, line.metric, _number(line.shots, 0), _number(line.documents, 0)]
        cells += [_number(line.value, 1), _number(line.harness_error, 1)]
        cells += [_number(line.run_error, 1), str(line.runs)] if several else []
        cells += [_of_all(line.requests_cut, line.requests)] if are_cut else []
        cells += [_number(line.paper, 1), _number(line.difference, 1, "+")] if row else []
        table.rows.append(cells)
    table.notes = [
        f"{name}: {note}" for name, figures in results["tasks"].items() for note in figures["notes"]
    ]
    return table


def print_results(results: dict[str, Any], console: Console) -> None:
    """For a terminal."""
    row = compared_row(results)
    table_of(results, lines_of(results, row), row).print(console)


def write_results(results: dict[str, Any], folder: Path) -> None:
    """`results.json`, `results.md`, `results.csv`."""
    row = compared_row(results)
    lines = lines_of(results, row)
    write_whole(folder / "results.md", table_of(results, lines, row).markdown())
    fields = [*Line.__dataclass_fields__, "difference"]
    records = [[getattr(line, name) for name in fields] for line in lines]
    write_whole(folder / "results.csv", as_csv(fields, records))
    write_json(folder / "results.json", results)


def write_harness_results(results: dict[str, Any], folder: Path) -> None:
    """`lm_eval/<model>/results.json` as `lm_eval --output_path` writes it, and its samples.

    Runs with other few-shot seeds get folders of their own.
    """
    for name, parts in _by_run(results, folder).items():
        merged: dict[str, Any] = {}
        samples: dict[str, list[str]] = {}
        for file in parts:
            part = json.loads(file.read_bytes())
            for key, value in part["harness"].items():
                merged.setdefault(key, {}).update(value)
            merged["config"] = {
                "model": "itt_composer",
                "model_args": {"pretrained": part["model"]["path"]},
                "model_num_parameters": part["model"]["parameters"],
                "model_sha": part["model"]["sha256"],
            }
            logged = file.with_suffix(".samples.jsonl")
            if results["suite"]["log_samples"]:
                for line in logged.read_text(encoding="utf-8").splitlines():
                    samples.setdefault(json.loads(line)["task"], []).append(line)
        with whole_folder(folder / "lm_eval" / name) as place:
            write_json(place / "results.json", merged)
            for task, lines in samples.items():
                file = place / f"samples_{task}.jsonl"
                file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _by_run(results: dict[str, Any], folder: Path) -> dict[str, list[Path]]:
    """The files of each model and seed; a task without drawn examples belongs to every seed."""
    seeds = results["suite"]["fewshot_seeds"]
    runs: dict[str, list[Path]] = {}
    for model in results["models"]:
        for seed in seeds:
            name = _folder_name(model["path"])
            files = runs.setdefault(f"{name}_seed{seed}" if len(seeds) > 1 else name, [])
            files += [
                folder / "tasks" / run["file"]
                for figures in results["tasks"].values()
                for run in figures["runs"]
                if run["model"] == model["path"] and run["fewshot_seed"] in (None, seed)
            ]
    return runs


def _folder_name(path: str) -> str:
    if Path(path).name in ("", ".."):  # `.` and `..` would name a folder that is there
        path = str(Path(path).resolve())
    return path.strip("/").replace("/", "__") or "model"


def title_of(results: dict[str, Any]) -> str:
    names = ", ".join(model["name"] for model in results["models"])
    model = results["models"][0]
    kind = f"{kind_label(model)}, {model['parameters'] / 1e6:,.1f} M parameters"
    if model.get("router_selection"):
        ratios = "/".join(f"{100 * ratio:.0f}" for ratio in model["select_ratios"])
        kind += f", {ratios} by {model['router_selection']}"
    return f"{names} ({kind})"


def _of_all(part: int | None, whole: int | None) -> str:
    return "" if part is None else f"{part:,} of {whole:,}" if part else "0"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign},.{digits}f}"
