"""Reads what was given to the tables: results of tasks and of perplexity, and loss logs of runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.recipe.description import description_of, kind_label
from itt_composer.results.base import ResultFile, read_result
from itt_composer.results.perplexity import PerplexityResults
from itt_composer.results.tasks import TaskResults
from itt_composer.runs.folder import LOSSES, RunFolder

TASKS_FILE, METRICS_FILE = "results.json", "metrics.jsonl"
VALIDATION_LOSS = LOSSES[0]
WHAT_TO_GIVE = (
    "give results of a task suite (its folder or results.json), of a perplexity suite (a JSON "
    "file), or the folder of a run"
)


@dataclass
class LossLog:
    """The validation loss of a run.

    Attributes:
        path: of the run folder.
        recipe: as resolved.
        losses: (tokens trained on so far, nats per token), ascending.
        text: SHA-256 of each validation stream and of the tokenizer; empty if unknown.
    """

    path: Path
    recipe: dict[str, Any]
    losses: list[tuple[int, float]]
    text: dict[str, str] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """Geometry and thinking, as `recipe.description` takes them."""
        return description_of(self.recipe)

    @property
    def label(self) -> str:
        """The kind of model and the run's name, for tables."""
        return f"{kind_label(self.description)} ({self.recipe['run_name']})"


@dataclass
class Results:
    """All that was given to the tables."""

    tasks: list[TaskResults] = field(default_factory=list)
    perplexities: list[PerplexityResults] = field(default_factory=list)
    runs: list[LossLog] = field(default_factory=list)


def read_results(paths: Sequence[Path]) -> Results:
    """Read everything; what is named twice counts once.

    Raises:
        UserError: a path that does not exist, or a file of none of the kinds.
    """
    results = Results()
    for file in dict.fromkeys(file for path in paths for file in _files_of(path)):
        if file.name == METRICS_FILE:
            results.runs.append(read_loss_log(file.parent))
            continue
        content: ResultFile = read_result(file, TaskResults, PerplexityResults, advice=WHAT_TO_GIVE)
        if isinstance(content, TaskResults):
            results.tasks.append(content)
        elif isinstance(content, PerplexityResults):
            results.perplexities.append(content)
    return results


def _files_of(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path.resolve()]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; {WHAT_TO_GIVE}")
    found = [path / name for name in (TASKS_FILE, METRICS_FILE) if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds neither {TASKS_FILE} nor {METRICS_FILE}; {WHAT_TO_GIVE}")
    return [file.resolve() for file in found]


def read_loss_log(folder: Path) -> LossLog:
    """Read the validation losses of a run from its `metrics.jsonl` and `recipe.yaml`.

    Raises:
        UserError: there is no recipe, or no validation loss.
    """
    run = RunFolder(folder)
    recipe = run.recipe()
    losses = [
        (line["tokens"], line[VALIDATION_LOSS]) for line in run.metrics() if VALIDATION_LOSS in line
    ]
    if not losses:
        raise UserError(
            f"{folder / METRICS_FILE} has no {VALIDATION_LOSS}: the run has not come to its first "
            "validation (train.eval_interval)"
        )
    return LossLog(folder, recipe, losses, run.row_digests("validation"))
