"""Reads the runs of a report: their recipes, ends and curves."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itt_composer.basics.errors import UserError
from itt_composer.basics.text import readable
from itt_composer.recipe.description import GEOMETRY_FIELDS, description_of, kind_label
from itt_composer.results.files import LossLog
from itt_composer.runs.folder import LOSSES, RunFolder
from itt_composer.runs.repeats import with_thinking_of_today
from itt_composer.runs.summary import RunSummary

if TYPE_CHECKING:
    from itt_composer.models.configuration import IttConfig

TRAINING_LOSS = "loss/train/total"
VALIDATION = dict(zip(("loss", "by_threshold"), LOSSES, strict=True))
HOURS = "time/train"
RATIO = re.compile(r"capacity_annealing/select_ratio/step_(\d+)")
STATISTIC = re.compile(r"thinking/layer_(\d+)/step_(\d+)/(\w+)")
LENGTH = re.compile(r"([\d.]+(?:e\d+)?)(ba|tok|sp)")
OLD_RECIPE = re.compile(r"recipe_until_batch_(\d+)\.yaml")
WHOLE_NUMBERS = (  # whole numbers of a recipe
    *(("model", name) for name in GEOMETRY_FIELDS),
    ("data", "seq_len"),
)
NAMES = {"batch", "tokens", TRAINING_LOSS, HOURS, *VALIDATION.values()}


@dataclass
class Validation:
    """The loss of an evaluation, nats per token, and what the run had taken until then."""

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
        rows: digests of what it trains on, see `RunFolder.row_digests`.
        batches, tokens, hours, flops: what it had taken at each batch that was logged; executed
            FLOPs of forward and backward, hours of training without evaluations (NaN in a run
            that did not log them).
        losses: training loss of the next batch, nats per token; None where not logged.
        validations: in order.
        thinking: (batch index in the lists above, value) by layer, step and figure.
    """

    path: Path
    name: str
    recipe: dict[str, Any]
    summary: RunSummary | None
    rows: dict[str, str] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    hours: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    thinking: dict[tuple[int, int, str], list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """Geometry and thinking, as `recipe.description` takes them."""
        return description_of(self.recipe)

    @property
    def kind(self) -> str:
        """ "LLaMA", "Loop×3", "ITT×4"."""
        return kind_label(self.description)

    @property
    def is_dense(self) -> bool:
        """Whether no layer of it is applied twice."""
        return self.recipe["thinking"]["thinking"] == "dense"

    @property
    def seeds(self) -> tuple[Any, Any]:
        """The seeds of the weights and of the order of the data."""
        return self.recipe.get("seed"), self.recipe["data"].get("shuffle_seed")

    @property
    def is_finished(self) -> bool:
        """Whether it has come to its end."""
        return self.summary is not None

    @property
    def progress(self) -> float | None:
        """Share of its training that is done, 0..1; None where its length is not known."""
        match = LENGTH.fullmatch(str(self.recipe["train"]["max_duration"]))
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
        """The sizes that make two models equally large."""
        return tuple(self.recipe["model"].get(name) for name in GEOMETRY_FIELDS)

    @property
    def end(self) -> Validation | None:
        """The validation of a finished run's last batch; None if its log has none, or NaN."""
        if self.summary is None or not self.validations:
            return None
        last = self.validations[-1]
        return last if last.batch == self.summary.batches else None

    def loss_log(self) -> LossLog:
        """Return what the table of data efficiency takes, with a label that no other run has."""
        losses = [(validation.tokens, validation.loss) for validation in self.validations]
        return LossLog(self.path, {**self.recipe, "run_name": self.name}, losses)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every run; one that is named twice counts once.

    Raises:
        UserError: a folder is not a run, or its recipe or summary cannot be read.
    """
    by_place: dict[Path, Path] = {}
    for folder in folders:
        by_place.setdefault(folder.resolve(), folder)
    runs = [read_run(folder) for folder in by_place.values()]
    counts = Counter(run.name for run in runs)
    for run in runs:
        if counts[run.name] > 1:
            run.name = readable(f"{run.name} ({run.path})")
    return runs


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        UserError: as `read_runs`.
    """
    place = RunFolder(folder)
    recipe = readable(_read_recipe(place))
    rows = place.row_digests("train")
    run = Run(folder, str(recipe["run_name"]), recipe, place.summary(), rows)
    if place.metrics_file.is_file():
        _read_curves(run, place.metrics(_wanted))
    return run


def config_of(run: Run) -> "IttConfig":
    """Return the configuration of a run's model.

    Raises:
        UserError: the recipe does not describe a model.
    """
    from itt_composer.models.configuration import IttConfig

    try:
        return IttConfig(**run.recipe["model"], **run.recipe["thinking"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{run.path / 'recipe.yaml'} does not describe a model: {error}") from None


def flops_after(
    config: "IttConfig",
    seq_len: int,
    tokens: Sequence[int],
    ratios: Sequence[tuple[float, ...]],
) -> list[float]:
    """Add up the executed FLOPs of forward and backward until each batch that was logged.

    A batch that was not logged counts like the last one before it that was.

    Args:
        config: of the model.
        seq_len: tokens of a sequence.
        tokens: trained on until each batch, ascending.
        ratios: ρ_t in force in each of them; under top-p they stand for the shares of the tokens.
    """
    from itt_composer.models.flops import executed_flops

    @cache
    def cost(ratios: tuple[float, ...]) -> int:
        return 3 * executed_flops(config, 1, seq_len, ratios)

    total, before, found = 0.0, 0, []
    in_force = ratios[0] if ratios else ()
    for until, own in zip(tokens, ratios, strict=True):
        total += (until - before) / seq_len * cost(in_force)
        found.append(total)
        before, in_force = until, own
    return found


def continuations(runs: Sequence[Run]) -> list[str]:
    """Write a sentence for each run that went on with another recipe than at its beginning."""
    sentences = []
    for run in runs:
        found = [OLD_RECIPE.fullmatch(file.name) for file in run.path.glob("recipe_until_*.yaml")]
        batches = sorted(int(match[1]) for match in found if match)
        if batches:
            until = " and ".join(f"{batch:,}" for batch in batches)
            sentences.append(
                f"{run.name} had another recipe until batch {until}; it is named, and its FLOPs "
                "are counted, by that of its end"
            )
    return sentences


def without_end(runs: Sequence[Run]) -> list[str]:
    """Write a sentence for each finished run whose final validation loss is unknown."""
    sentences = []
    for run in runs:
        if run.summary is None or run.end is not None:
            continue
        loss = run.summary.validation_loss
        if math.isfinite(loss):
            why = f"has no validation of its last batch, {run.summary.batches:,}, in its log"
        else:
            why = f"has diverged: its validation loss at the end is {loss}"
        sentences.append(f"{run.name} {why}; it is left out of what the runs reached at their end")
    return sentences


def _read_recipe(run: RunFolder) -> dict[str, Any]:
    recipe, file = run.recipe(), run.recipe_file
    try:
        _ = (recipe["thinking"]["thinking"], recipe["data"]["local"])
        _ = recipe["train"]["max_duration"]
        sizes = {f"{section}.{key}": recipe[section][key] for section, key in WHOLE_NUMBERS}
    except KeyError:
        raise UserError(f"{file} does not hold the recipe of a run; name another folder") from None
    for key, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(
                f"{file}: {key}={size} is not a positive whole number, so the file was changed "
                "after the run; put it right or leave the run out"
            )
    return with_thinking_of_today(recipe)


def _wanted(name: str) -> bool:
    return name in NAMES or bool(RATIO.fullmatch(name) or STATISTIC.fullmatch(name))


def _read_curves(run: Run, logged: list[dict[str, Any]]) -> None:
    lines = [_finite(line) for line in logged]
    lines = [line for line in lines if isinstance(line.get("tokens"), int)]
    run.batches = [line["batch"] for line in lines]
    run.tokens = [line["tokens"] for line in lines]
    run.losses = [line.get(TRAINING_LOSS) for line in lines]
    run.hours = _carried_on([line.get(HOURS) for line in lines])
    ratios = _ratios_in_force(lines, run.recipe["thinking"].get("select_ratios", ()))
    run.flops = flops_after(config_of(run), run.recipe["data"]["seq_len"], run.tokens, ratios)
    for place, line in enumerate(lines):
        if VALIDATION["loss"] in line:
            so_far = (run.batches[place], run.tokens[place], run.flops[place], run.hours[place])
            measured = (line[VALIDATION["loss"]], line.get(VALIDATION["by_threshold"]))
            run.validations.append(Validation(*so_far, *measured))
        for name, value in line.items():
            match = STATISTIC.fullmatch(name)
            if match:
                key = (int(match[1]), int(match[2]), match[3])
                run.thinking.setdefault(key, []).append((place, value))


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not a finite number: a run that diverged logs NaN."""
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _carried_on(values: Sequence[float | None]) -> list[float]:
    """Fill each gap with the value before it, at the beginning with 0; NaN if all are gaps."""
    last, found = 0.0 if any(value is not None for value in values) else math.nan, []
    for value in values:
        last = last if value is None else value
        found.append(last)
    return found


def _ratios_in_force(lines: list[dict], trained: Sequence[float]) -> list[tuple[float, ...]]:
    """Return ρ_t of each batch: as capacity annealing logged it, else the recipe's."""
    in_force, found = tuple(trained), []
    for line in lines:
        names = [f"capacity_annealing/select_ratio/step_{t + 1}" for t in range(len(trained))]
        if all(name in line for name in names):
            in_force = tuple(line[name] for name in names)
        found.append(in_force)
    return found
