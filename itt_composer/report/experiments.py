"""Which runs are repeats of one experiment, and what it is called."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from eval import paper
from eval.perplexity_report import percentages
from itt_composer.recipe_changes import UNSET, changes, is_free
from itt_composer.report.runs import Run
from itt_composer.thinking import Thinking

# Runs that differ in nothing else are repeats of one experiment.
SEEDS = ("seed", "data.shuffle_seed")
# What neither the model nor its training hangs on, and what follows from other keys.
UNIMPORTANT = ("run_name", "train.eval_*", "train.calibration_rows", "model.attn_implementation")
# Perplexities of runs that differ in these are of other text or other tokens.
MEASURED_ON = (
    *("model.vocab_size", "data.local", "data.remote", "data.seq_len", "data.domains*"),
    *("train.eval_batches", "train.eval_batch_size"),
)
_OF_ROUTERS = ("select_ratios", "router_norm", "router_selection", "reweighting")
MOST_WORDS = 4


@dataclass
class Experiment:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: unlike that of any other experiment of the report.
        runs: at least one.
        differences: flat recipe keys that are not as in most runs of its size and kind.
    """

    label: str
    runs: list[Run]
    differences: dict[str, Any]

    @property
    def counted(self) -> list[Run]:
        """The runs that figures are taken from: the finished ones, if there are any."""
        return [run for run in self.runs if run.is_finished] or self.runs


def group(runs: Sequence[Run]) -> list[Experiment]:
    """The experiments: the usual one of each size and kind first, then what differs from it."""
    groups: list[list[Run]] = []
    for run in runs:
        for others in groups:
            if not _important_changes(others[0], run):
                others.append(run)
                break
        else:
            groups.append([run])
    experiments = []
    for others in groups:
        alike = [run for run in runs if _width(run) == _width(others[0])]
        found = _differences(_flat(others[0]), _usual(alike, others[0].kind))
        experiments.append(Experiment("", others, found))
    experiments.sort(key=_place)
    _name(experiments)
    return experiments


def _flat(run: Run) -> dict[str, Any]:
    values = {key: new for key, (_, new) in changes({}, run.recipe).items()}
    return {key: value for key, value in values.items() if not _is_unimportant(key)}


def _is_unimportant(key: str) -> bool:
    return is_free(key) or key in SEEDS or any(fnmatchcase(key, one) for one in UNIMPORTANT)


def _important_changes(run: Run, other: Run) -> bool:
    return any(not _is_unimportant(key) for key in changes(run.recipe, other.recipe))


def _usual(runs: Sequence[Run], kind: str) -> dict[str, Any]:
    """The most frequent value of each key, of those the first.

    How a model thinks is compared with others of its kind, all else with every run.
    """
    everyone = [_flat(run) for run in runs]
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


def _width(run: Run) -> int:
    return run.recipe["model"].get("hidden_size", 0)


def _place(experiment: Experiment) -> tuple:
    run = experiment.runs[0]
    thinking, count = run.recipe["thinking"], len(experiment.differences)
    kinds = Thinking.__args__  # type: ignore[attr-defined]
    kind = kinds.index(thinking["thinking"]) if thinking["thinking"] in kinds else len(kinds)
    return _width(run), count > 0, kind, thinking.get("thinking_steps") or 1, count


def _name(experiments: Sequence[Experiment]) -> None:
    """Labels: the kind, the width if there are several, and what is not as usual."""
    widths = {_width(experiment.runs[0]) for experiment in experiments}
    for experiment in experiments:
        run = experiment.runs[0]
        parts = [run.kind]
        if len(widths) > 1:
            parts.append(f"d {_width(run)}")
        parts += describe(experiment.differences, run.description)
        experiment.label = ", ".join(parts)
    counts = Counter(experiment.label for experiment in experiments)
    for experiment in experiments:
        if counts[experiment.label] > 1:
            experiment.label += f" ({experiment.runs[0].name})"


def describe(differences: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """Differences as a label tells them: `without RTC`, `70/70/70`, `4 layers`, `lr 0.001`."""
    words = [
        _in_words(key, value)
        for key, value in differences.items()
        if not _is_implied(key, value, differences, description)
    ]
    return words[:MOST_WORDS] + ["…"] * (len(words) > MOST_WORDS)


def _is_implied(
    key: str, value: Any, differences: dict[str, Any], description: dict[str, Any]
) -> bool:
    """Whether a difference follows from another setting."""
    section, _, name = key.partition(".")
    without_router = description.get("adaptive_routing") is False
    if without_router and ("capacity_annealing" in key or name in _OF_ROUTERS):
        return True
    if name == "thinking_layers" and "model.num_hidden_layers" in differences:
        return value == list(range(1, description["num_hidden_layers"], 2))
    return section == "thinking" and value == UNSET


def _in_words(key: str, value: Any) -> str:
    section, _, name = key.partition(".")
    ablation = paper.ABLATIONS.get((name, value)) if isinstance(value, (bool, str)) else None
    number = f"{value:g}" if isinstance(value, float) else str(value)
    if ablation and section == "thinking":
        return ablation
    if name == "select_ratios" and value != UNSET:
        return percentages(value)
    if key == "model.num_hidden_layers":
        return f"{value} layers"
    if key.startswith("optimizer.") and key.endswith(".lr"):
        return f"lr {number}"
    if key == "train.max_duration":
        return _length(str(value))
    return f"{key.rpartition('.')[2]} {number}"[:40]


def _length(duration: str) -> str:
    """`1,600 batches` for 1600ba."""
    match = re.fullmatch(r"(\d+)ba", duration)
    return f"{int(match[1]):,} batches" if match else duration


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Sentences on what makes validation losses of the runs not comparable."""
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
