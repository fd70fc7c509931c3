"""Reads what suites and runs have left behind: results of tasks, of perplexity, and loss logs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.recipe.description import kind_label
from itt_composer.runs.folder import LOSSES, RunFolder

FORMATS = {"tasks": 2, "perplexity": 2}
NEEDED = {
    "tasks": ("suite", "models", "tasks"),
    "perplexity": ("suite", "text_sha256", "model", "settings"),
}
TASKS_FILE, METRICS_FILE = "results.json", "metrics.jsonl"
VALIDATION_LOSS = LOSSES[0]
KINDS = (
    "give results of a task suite (its folder or results.json), of a perplexity suite (a JSON "
    "file), or the folder of a run"
)


@dataclass
class LossLog:
    """The validation loss of a run.

    Attributes:
        path: of the run folder.
        recipe: as resolved.
        losses: (tokens gone through, nats per token), ascending.
        text: SHA-256 of each stream that was validated on, and of the tokenizer; empty if unknown.
    """

    path: Path
    recipe: dict[str, Any]
    losses: list[tuple[int, float]]
    text: dict[str, str] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """Geometry and thinking, in the form of `LoadedModel.description`."""
        return {"model_type": "itt", **self.recipe["model"], **self.recipe["thinking"]}

    @property
    def label(self) -> str:
        """For tables."""
        return f"{kind_label(self.description)} ({self.recipe['run_name']})"


@dataclass
class Results:
    """All that was given."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    perplexities: list[dict[str, Any]] = field(default_factory=list)
    runs: list[LossLog] = field(default_factory=list)


def read_results(paths: Sequence[Path]) -> Results:
    """Read everything; what is named twice counts once.

    Raises:
        UserError: a path that is not there, or is none of the kinds.
    """
    results = Results()
    for file in dict.fromkeys(file for path in paths for file in _files_of(path)):
        if file.name == METRICS_FILE:
            results.runs.append(read_loss_log(file.parent))
        else:
            content = _read_json(file)
            {"tasks": results.tasks, "perplexity": results.perplexities}[content["kind"]].append(
                content
            )
    return results


def _files_of(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path.resolve()]
    if not path.is_dir():
        raise UserError(f"{path} is not there; {KINDS}")
    found = [path / name for name in (TASKS_FILE, METRICS_FILE) if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds neither {TASKS_FILE} nor {METRICS_FILE}; {KINDS}")
    return [file.resolve() for file in found]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        raise UserError(f"{file} is no JSON; {KINDS}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no result of an evaluation; {KINDS}")
    kind = content.get("kind")
    if kind is None and {"suite", "settings"} <= content.keys():
        raise UserError(f"{file} is of another version of this program; measure it again")
    if kind not in FORMATS:
        raise UserError(f"{file} is no result of an evaluation; {KINDS}")
    if content.get("format") != FORMATS[kind] or not content.keys() >= set(NEEDED[kind]):
        raise UserError(f"{file} is of another version of this program; measure it again")
    return content


def read_loss_log(folder: Path) -> LossLog:
    """The validation losses of a run, from its `metrics.jsonl` and `recipe.yaml`.

    Raises:
        UserError: no recipe, or no validation loss.
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
