"""Finds which runs repeat one experiment, and names it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from itt_composer.recipe.changes import UNSET, changes
from itt_composer.recipe.thinking import Thinking
from itt_composer.report.runs import Run
from itt_composer.runs.repeats import common_name, first_of, important_settings

# Perplexities of runs that differ in these do not compare: other text, or other tokens.
MEASURED_ON = (
    *("model.vocab_size", "data.local", "data.remote", "data.seq_len", "data.domains*"),
    *("train.eval_batches", "train.eval_batch_size"),
)
# Settings that have columns of their own in the summary.
IN_OTHER_COLUMNS = ("thinking.thinking", "thinking.thinking_steps", "thinking.select_ratios")
SHORT = {"model.num_hidden_layers": "layers", "train.max_duration": "length"}
_OF_ROUTERS = ("select_ratios", "router_norm", "router_selection", "reweighting")


@dataclass
class Experiment:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: the names of its runs, with their common parts once.
        runs: at least one.
        differences: flat recipe keys whose values are not those of most runs of its size and kind.
    """

    label: str
    runs: list[Run]
    differences: dict[str, Any]

    @property
    def counted(self) -> list[Run]:
        """The runs that figures are of: the finished ones, if there are any."""
        return [run for run in self.runs if run.is_finished] or self.runs


def group(runs: Sequence[Run]) -> list[Experiment]:
    """Group runs into experiments, the usual one of each size and kind first."""
    groups: list[list[Run]] = []
    for run in runs:
        for others in groups:
            if _are_repeats(others[0], run):
                others.append(run)
                break
        else:
            groups.append([run])
    experiments = []
    for others in groups:
        alike = [run for run in runs if _hidden_size(run) == _hidden_size(others[0])]
        found = _differences(important_settings(others[0].recipe), _usual(alike, others[0].kind))
        experiments.append(Experiment("", others, found))
    experiments.sort(key=_sort_key)
    _name_all(experiments)
    return experiments


def _are_repeats(run: Run, other: Run) -> bool:
    same_rows = not (run.rows and other.rows) or run.rows == other.rows
    return same_rows and important_settings(run.recipe) == important_settings(other.recipe)


def _usual(runs: Sequence[Run], kind: str) -> dict[str, Any]:
    """Return the most frequent value of each key, the first one among equals.

    Thinking settings are compared with runs of the same kind, all others with every run.
    """
    everyone = [important_settings(run.recipe) for run in runs]
    own = [recipe for run, recipe in zip(runs, everyone, strict=True) if run.kind == kind]
    found = {}
    for key in dict.fromkeys(key for recipe in everyone for key in recipe):
        compared = own if key.startswith(("thinking.", "algorithms.")) else everyone
        values = [recipe.get(key, UNSET) for recipe in compared]
        found[key] = max(values, key=values.count)
    return found


def _differences(recipe: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    keys = dict.fromkeys([*recipe, *usual])
    pairs = {key: (recipe.get(key, UNSET), usual.get(key, UNSET)) for key in keys}
    return {key: own for key, (own, others) in pairs.items() if own != others}


def _hidden_size(run: Run) -> int:
    return run.recipe["model"].get("hidden_size", 0)


def _sort_key(experiment: Experiment) -> tuple:
    run = experiment.runs[0]
    thinking, count = run.recipe["thinking"], len(experiment.differences)
    kinds = Thinking.__args__  # type: ignore[attr-defined]
    kind = kinds.index(thinking["thinking"]) if thinking["thinking"] in kinds else len(kinds)
    return _hidden_size(run), count > 0, kind, thinking.get("thinking_steps") or 1, count


def _name_all(experiments: Sequence[Experiment]) -> None:
    for experiment in experiments:
        experiment.label = common_name([run.name for run in experiment.runs])
    counts = Counter(experiment.label for experiment in experiments)
    for experiment in experiments:
        if counts[experiment.label] > 1:
            experiment.label = first_of([run.name for run in experiment.runs])


def differing_settings(experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """Find the settings in which experiments of one kind and width differ.

    Returns:
        By column heading, the setting's value in every experiment; "–" where it has no meaning.
    """
    keys = dict.fromkeys(
        key
        for experiment in experiments
        for key, value in experiment.differences.items()
        if key not in IN_OTHER_COLUMNS
        and not _is_implied(key, value, experiment.differences, experiment.runs[0].description)
    )
    recipes = [_with_meaning(experiment.runs[0]) for experiment in experiments]
    columns = {key: [_in_words(key, recipe.get(key, UNSET)) for recipe in recipes] for key in keys}
    if len({_hidden_size(experiment.runs[0]) for experiment in experiments}) > 1:
        columns["model.hidden_size"] = [str(_hidden_size(one.runs[0])) for one in experiments]
    counts = Counter(map(_heading, columns))
    return {
        _heading(key) if counts[_heading(key)] == 1 else key: cells
        for key, cells in columns.items()
    }


def _with_meaning(run: Run) -> dict[str, Any]:
    """Return flat settings; a dense model's without those of thinking."""
    return {
        key: value
        for key, value in important_settings(run.recipe).items()
        if not (run.is_dense and key.startswith("thinking."))
    }


def _heading(key: str) -> str:
    return SHORT.get(key, key.rpartition(".")[2])


def _is_implied(
    key: str, value: Any, differences: dict[str, Any], description: dict[str, Any]
) -> bool:
    """Say whether a difference follows from another setting."""
    section, _, name = key.partition(".")
    without_router = description.get("adaptive_routing") is False
    if without_router and ("capacity_annealing" in key or name in _OF_ROUTERS):
        return True
    if name == "thinking_layers" and "model.num_hidden_layers" in differences:
        return value == list(range(1, description["num_hidden_layers"], 2))
    return section == "thinking" and value == UNSET


def _in_words(key: str, value: Any) -> str:
    if value == UNSET:
        return "–"
    if key == "train.max_duration":
        return _length(str(value))
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return number.lower() if isinstance(value, bool) else number


def _length(duration: str) -> str:
    """Return `1,600 batches` for 1600ba."""
    match = re.fullmatch(r"(\d+)ba", duration)
    return f"{int(match[1]):,} batches" if match else duration


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Write a sentence on what makes validation losses of the runs not comparable."""
    sentences = []
    reference = runs[0]
    seen: set[str] = set()
    for run in runs[1:]:
        for key, (first, other) in changes(reference.recipe, run.recipe).items():
            if key not in seen and any(fnmatchcase(key, pattern) for pattern in MEASURED_ON):
                seen.add(key)
                sentences.append(f"{key} is {first} in {reference.name} and {other} in {run.name}")
    if not sentences:
        return []
    return [
        f"{'; '.join(sentences)}: their perplexities are of other text or other tokens, and do not "
        "compare"
    ]
