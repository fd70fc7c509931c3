"""The runs of a report: their recipes, ends and curves, and which of them are one experiment."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eval import paper
from eval.perplexity_report import percentages
from eval.result_files import LossLog
from itt_composer.errors import UserError
from itt_composer.metrics import read_metrics
from itt_composer.recipe_changes import UNSET, changes, is_free
from itt_composer.thinking import Thinking, ThinkingSettings

if TYPE_CHECKING:
    from itt_composer.models.configuration import IttConfig

TRAINING_LOSS = "loss/train/total"
VALIDATION = {
    "loss": "metrics/eval/LanguageCrossEntropy",
    "by_threshold": "metrics/eval_threshold/LanguageCrossEntropy",
}
HOURS, SPEED = "time/train", "throughput/tokens_per_sec"
RATIO = re.compile(r"capacity_annealing/select_ratio/step_(\d+)")
THINKING = re.compile(r"thinking/layer_(\d+)/step_(\d+)/(\w+)")
NAMES = {"batch", "tokens", TRAINING_LOSS, HOURS, SPEED, *VALIDATION.values()}
# Runs that differ in nothing else are repeats of one experiment.
SEEDS = ("seed", "data.shuffle_seed")
# What neither the model nor its training hangs on, and what follows from other keys.
UNIMPORTANT = ("run_name", "train.eval_*", "train.calibration_rows", "model.attn_implementation")
# Perplexities of runs that differ in these are of other text or other tokens.
MEASURED_ON = (
    *("model.vocab_size", "data.local", "data.remote", "data.seq_len", "data.domains*"),
    *("train.eval_batches", "train.eval_batch_size"),
)


@dataclass
class Validation:
    """What a run's evaluation measured, in nats per token, and what had gone into the run."""

    batch: int
    tokens: int
    flops: float
    hours: float
    loss: float
    by_threshold: float | None


@dataclass
class Run:
    """A run folder.

    Attributes:
        path: as it was given.
        name: unlike that of any other run of the report.
        recipe: as resolved when it was started.
        summary: of its end; None while it is not finished.
        batches, tokens, hours, flops: what lay behind it at each batch that was logged; executed
            FLOPs of forward and backward, hours of training without evaluations.
        losses: training loss of the batch that follows, nats per token; None where not logged.
        validations: in order.
        thinking: (batch index in the lists above, value) by layer, step and figure.
        tokens_per_second: as last logged.
    """

    path: Path
    name: str
    recipe: dict[str, Any]
    summary: dict[str, Any] | None
    batches: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    hours: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    thinking: dict[tuple[int, int, str], list[tuple[int, float]]] = field(default_factory=dict)
    tokens_per_second: float | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Geometry and thinking, as `eval.paper` takes them."""
        return {"model_type": "itt", **self.recipe["model"], **self.recipe["thinking"]}

    @property
    def kind(self) -> str:
        """ "LLaMA", "Loop×3", "ITT×4"."""
        return paper.kind_label(self.description)

    @property
    def seeds(self) -> tuple[Any, Any]:
        """Of weights and of the order of the data."""
        return self.recipe.get("seed"), self.recipe["data"].get("shuffle_seed")

    @property
    def is_finished(self) -> bool:
        """Whether it has come to its end."""
        return self.summary is not None

    @property
    def progress(self) -> float | None:
        """Share of its training that is done, 0..1; None where its length is not known."""
        match = re.fullmatch(r"([\d.]+)(ba|tok|sp)", str(self.recipe["train"]["max_duration"]))
        if self.is_finished or not self.batches or match is None:
            return 1.0 if self.is_finished else None
        done = {
            "ba": self.batches[-1],
            "tok": self.tokens[-1],
            "sp": self.tokens[-1] / self.recipe["data"]["seq_len"],
        }
        return min(1.0, done[match[2]] / float(match[1]))

    @property
    def geometry(self) -> tuple:
        """What makes two models the same size."""
        return tuple(self.recipe["model"].get(name) for name in paper.GEOMETRY_FIELDS)

    def loss_log(self) -> LossLog:
        """As `eval.data_efficiency` takes it."""
        losses = [(validation.tokens, validation.loss) for validation in self.validations]
        return LossLog(self.path, self.recipe, losses)


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


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every run; one that is named twice counts once.

    Raises:
        UserError: a folder that is no run, or whose recipe or summary cannot be read.
    """
    by_place: dict[Path, Path] = {}
    for folder in folders:
        by_place.setdefault(folder.resolve(), folder)
    runs = [read_run(folder) for folder in by_place.values()]
    counts = Counter(run.name for run in runs)
    for run in runs:
        if counts[run.name] > 1:
            run.name = f"{run.name} ({run.path})"
    return runs


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        UserError: as `read_runs`.
    """
    recipe = _read_recipe(folder)
    run = Run(folder, str(recipe["run_name"]), recipe, _read_summary(folder / "summary.json"))
    if (folder / "metrics.jsonl").is_file():
        _read_curves(run)
    return run


def config_of(run: Run) -> "IttConfig":
    """The configuration of its model.

    Raises:
        UserError: its recipe describes none.
    """
    from itt_composer.models.configuration import IttConfig

    try:
        return IttConfig(**run.recipe["model"], **run.recipe["thinking"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path / 'recipe.yaml'} describes no model: {error}") from None


def flops_after(
    config: "IttConfig",
    batch_size: int,
    seq_len: int,
    batches: Sequence[int],
    ratios: Sequence[tuple[float, ...]],
) -> list[float]:
    """Executed FLOPs of forward and backward that lie behind each of the batches.

    A batch that was not logged counts like the last one before it that was.

    Args:
        config: of the model.
        batch_size: sequences of a batch, over all ranks.
        seq_len: tokens of each.
        batches: numbers of batches, ascending.
        ratios: ρ_t in force in each of them; under top-p they stand for the shares of the tokens.
    """
    from itt_composer.flops import executed_flops

    @cache
    def cost(ratios: tuple[float, ...]) -> int:
        return 3 * executed_flops(config, batch_size, seq_len, ratios)

    total, before, found = 0.0, 0, []
    in_force = ratios[0] if ratios else ()
    for batch, own in zip(batches, ratios, strict=True):
        total += (batch - before) * cost(in_force)
        found.append(total)
        before, in_force = batch, own
    return found


def _read_recipe(folder: Path) -> dict[str, Any]:
    file = folder / "recipe.yaml"
    try:
        recipe = yaml.safe_load(file.read_bytes())
        needed = (recipe["run_name"], recipe["model"]["vocab_size"], recipe["thinking"]["thinking"])
        _ = (*needed, recipe["data"]["seq_len"], recipe["train"]["global_batch_size"])
    except OSError:
        raise UserError(
            f"{folder} is no folder of a run: there is no {file.name} in it; name what a recipe "
            "has as run_folder, such as runs/quickstart/itt_x4"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"{file} is no recipe of a run; name another folder") from None
    return {**recipe, "thinking": _resolved(recipe)}


def _resolved(recipe: dict[str, Any]) -> dict[str, Any]:
    """With the settings that came after the recipe was written, as a recipe of today has them."""
    try:
        settings = ThinkingSettings(**recipe["thinking"])
        resolved = settings.resolve(recipe["model"]["num_hidden_layers"])
    except (KeyError, TypeError, ValueError):
        return recipe["thinking"]  # `config_of` tells what is wrong
    return {name: value for name, value in vars(resolved).items() if value is not None}


def _read_summary(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_bytes())
        _ = (summary["tokens"], summary["train_seconds"], summary["validation_loss"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{file} cannot be read; delete it and start the run again, which then writes it anew"
        ) from None
    return summary


def _wanted(name: str) -> bool:
    return name in NAMES or bool(RATIO.fullmatch(name) or THINKING.fullmatch(name))


def _read_curves(run: Run) -> None:
    lines = read_metrics(run.path, _wanted)
    run.batches = [line["batch"] for line in lines]
    run.tokens = [line["tokens"] for line in lines]
    run.losses = [line.get(TRAINING_LOSS) for line in lines]
    run.hours = _carried_on(line.get(HOURS) for line in lines)
    data, train = run.recipe["data"], run.recipe["train"]
    run.flops = flops_after(
        config_of(run),
        train["global_batch_size"],
        data["seq_len"],
        run.batches,
        _ratios_in_force(lines, run.recipe["thinking"].get("select_ratios", ())),
    )
    for place, line in enumerate(lines):
        run.tokens_per_second = line.get(SPEED, run.tokens_per_second)
        if VALIDATION["loss"] in line:
            so_far = (run.batches[place], run.tokens[place], run.flops[place], run.hours[place])
            measured = (line[VALIDATION["loss"]], line.get(VALIDATION["by_threshold"]))
            run.validations.append(Validation(*so_far, *measured))
        for name, value in line.items():
            match = THINKING.fullmatch(name)
            if match:
                key = (int(match[1]), int(match[2]), match[3])
                run.thinking.setdefault(key, []).append((place, value))


def _carried_on(values: Iterable[float | None]) -> list[float]:
    """Each gap filled with the value before it."""
    last, found = 0.0, []
    for value in values:
        last = last if value is None else value
        found.append(last)
    return found


def _ratios_in_force(lines: list[dict], trained: Sequence[float]) -> list[tuple[float, ...]]:
    """ρ_t of each batch: as logged by capacity annealing, else the recipe's."""
    in_force, found = tuple(trained), []
    for line in lines:
        names = [f"capacity_annealing/select_ratio/step_{t + 1}" for t in range(len(trained))]
        if all(name in line for name in names):
            in_force = tuple(line[name] for name in names)
        found.append(in_force)
    return found


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


_OF_ROUTERS = ("select_ratios", "router_norm", "router_selection", "reweighting")
MOST_WORDS = 4


def incomparable(runs: Sequence[Run]) -> list[str]:
    """Sentences on what makes validation losses of the runs not comparable."""
    sentences = []
    reference = runs[0]
    seen: set[str] = set()
    for run in runs[1:]:
        for key, (first, other) in changes(reference.recipe, run.recipe).items():
            if key not in seen and any(fnmatchcase(key, pattern) for pattern in MEASURED_ON):
                seen.add(key)
                sentences.append(
                    f"{key} is {first} in {reference.name} and {other} in {run.name}: their "
                    "perplexities are of other text or other tokens, and do not compare"
                )
    return sentences
