"""Loss over tokens, compute and time: the curves of all runs, and where they end."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from eval.data_efficiency import Efficiency, data_efficiency, tokens_to_reach
from itt_composer.errors import UserError
from itt_composer.report import theme
from itt_composer.report.figures import WIDE, Control, Figure, Option, Print
from itt_composer.report.runs import Experiment, Run

MOST_POINTS = 1000  # of a run's training curve
MOST_POINTS_IN_ALL = 24_000
HOVERED_POINTS = 60  # of a run's training curve that tell their figures
WINDOW = 50  # the smoothed loss is a mean over this part of a run
BEGINNING = 0.05  # of training, which the axes leave out at first: the loss falls too far there
FEW_RUNS = 3
RAW, SMOOTH, TIE, POINT, HOVER = 0.7, 1.5, 1, 46, 140  # widths of lines, sizes of points
NUMBER = ",~r"  # of an axis


class Unit(NamedTuple):
    """What an axis counts in."""

    size: float
    name: str


class Axis(NamedTuple):
    """What curves may be drawn over."""

    name: str
    label: str
    title: str


def unit_of(largest: float, names: Sequence[tuple[float, str]]) -> Unit:
    """The largest unit of which there is at least one, of names in ascending order."""
    fitting = [Unit(*name) for name in names if largest >= name[0]]
    return fitting[-1] if fitting else Unit(*names[0])


def flops_unit(largest: float) -> Unit:
    """For FLOPs of whole trainings."""
    return unit_of(largest, [(1e9, "GFLOPs"), (1e12, "TFLOPs"), (1e15, "PFLOPs"), (1e18, "EFLOPs")])


def tokens_unit(largest: float) -> Unit:
    """For training tokens."""
    return unit_of(largest, [(1, ""), (1e6, "million"), (1e9, "billion")])


def time_unit(hours: float) -> Unit:
    """For training time, given in hours."""
    return unit_of(hours, [(1 / 60, "minutes"), (1.5, "hours")])


class Units:
    """Units and axes that fit all runs of a report."""

    def __init__(self, runs: Sequence[Run]):
        self.tokens = tokens_unit(max((run.tokens[-1] for run in runs if run.tokens), default=0))
        self.flops = flops_unit(max((run.flops[-1] for run in runs if run.flops), default=0))
        longest = max((run.hours[-1] for run in runs if run.hours), default=0)
        self.time = Unit(*time_unit(longest))
        if self.time.name == "hours":
            self.time = Unit(1.0, "hours")
        self.axes = [
            Axis("tokens", "tokens", f"training tokens ({self.tokens.name})".replace(" ()", "")),
            Axis("flops", "executed FLOPs", f"executed training FLOPs ({self.flops.name})"),
            Axis("time", "time", f"training time ({self.time.name})"),
        ]

    def of(self, tokens: float, flops: float, hours: float) -> dict[str, float]:
        """The three, for a record."""
        return {
            "tokens": tokens / self.tokens.size,
            "flops": flops / self.flops.size,
            "time": hours / self.time.size,
        }


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over so many values around each; gaps (NaN) are left out, the ends take fewer."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(len(values))
    low = np.maximum(places - window // 2, 0)
    high = np.minimum(places + window // 2 + 1, len(values))
    with np.errstate(invalid="ignore"):
        return np.where(
            counts[high] > counts[low],
            (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1),
            np.nan,
        )


def thinned(columns: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """At most so many values of each column: means of equal parts, gaps (NaN) left out."""
    count = len(columns[0])
    if count <= most:
        return list(columns)
    edges = np.linspace(0, count, most + 1).astype(int)[:-1]
    found = []
    for column in columns:
        known = np.isfinite(column)
        sums = np.add.reduceat(np.where(known, column, 0.0), edges)
        counts = np.add.reduceat(known.astype(int), edges)
        found.append(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
    return found


def training_records(run: Run, label: str, units: Units, most: int) -> list[dict[str, Any]]:
    """The training curve of a run, thinned out."""
    losses = np.array([math.nan if x is None else x for x in run.losses], dtype=float)
    if not np.isfinite(losses).any():
        return []
    columns = [
        np.asarray(run.tokens, dtype=float) / units.tokens.size,
        np.asarray(run.flops, dtype=float) / units.flops.size,
        np.asarray(run.hours, dtype=float) / units.time.size,
        losses,
        smoothed(losses, max(1, len(losses) // WINDOW)),
    ]
    thin = thinned(columns, most)
    step = max(1, len(thin[0]) // HOVERED_POINTS)
    names = ("tokens", "flops", "time", "loss", "smooth")
    return [
        {
            "run": run.name,
            "experiment": label,
            **dict(zip(names, map(float, values), strict=True)),
            "hovered": place % step == 0,
        }
        for place, values in enumerate(zip(*thin, strict=True))
        if math.isfinite(values[-1]) and math.isfinite(values[-2])
    ]


def validation_records(run: Run, label: str, units: Units) -> list[dict[str, Any]]:
    """The evaluations of a run."""
    return [
        {
            "run": run.name,
            "experiment": label,
            **units.of(one.tokens, one.flops, one.hours),
            "loss": one.loss,
        }
        for one in run.validations
    ]


def colour(labels: Sequence[str], **options: Any) -> alt.Color:
    """The experiments' colours, the same in every figure; the legend highlights."""
    legend = alt.Legend(title=None, **options)
    return alt.Color("experiment:N", scale=alt.Scale(domain=list(labels)), legend=legend)


def dash(labels: Sequence[str]) -> alt.StrokeDash:
    """The experiments' dashes, which tell apart those whose colours return."""
    dashes = [theme.dash_of(place) for place in range(len(labels))]
    scale = alt.Scale(domain=list(labels), range=dashes)
    return alt.StrokeDash("experiment:N", scale=scale, legend=alt.Legend(title=None))


def shape(labels: Sequence[str]) -> alt.Shape:
    """The experiments' points, likewise."""
    shapes = [theme.shape_of(place) for place in range(len(labels))]
    scale = alt.Scale(domain=list(labels), range=shapes)
    return alt.Shape("experiment:N", scale=scale, legend=alt.Legend(title=None))


def highlight(experiments: Sequence[Experiment]) -> alt.Parameter:
    """Experiments that were clicked in the legend; of many, at first those of usual settings."""
    usual = [{"experiment": one.label} for one in experiments if not one.differences]
    first = usual if is_crowded(experiments) and usual else alt.Undefined
    return alt.selection_point(name="highlight", fields=["experiment"], bind="legend", value=first)


def is_crowded(experiments: Sequence[Experiment]) -> bool:
    """Whether there are more experiments than colours."""
    return len(experiments) > len(theme.LIGHT)


def zoom() -> alt.Parameter:
    """Moves and zooms; the wheel alone goes on scrolling the page."""
    return alt.selection_interval(
        name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
    )


def when_highlighted(highlighted: alt.Parameter, shown: float, hidden: float = 0.08) -> Any:
    """Opacity of marks that the legend highlights."""
    return alt.condition(highlighted, alt.value(shown), alt.value(hidden))


def axis_options(units: Units, places: Sequence[str]) -> list[Option]:
    """What x may be; `places` are those of the x encodings."""
    return [
        Option(
            axis.label,
            {
                f"{place}.{key}": value
                for place in places
                for key, value in (("field", axis.name), ("title", axis.title))
            },
        )
        for axis in units.axes
    ]


def loss_curves(experiments: Sequence[Experiment], units: Units) -> Figure | None:
    """Training and validation loss of all runs."""
    labels = [experiment.label for experiment in experiments]
    pairs = [(run, experiment.label) for experiment in experiments for run in experiment.runs]
    most = min(MOST_POINTS, max(100, MOST_POINTS_IN_ALL // len(pairs)))
    training = [one for run, label in pairs for one in training_records(run, label, units, most)]
    validation = [one for run, label in pairs for one in validation_records(run, label, units)]
    if not training and not validation:
        return None
    top = _top_of_axis(pairs, training, units)
    highlighted = highlight(experiments)
    x = alt.X(
        "tokens:Q", title=units.axes[0].title, axis=alt.Axis(grid=False, format=NUMBER, tickCount=7)
    )
    y = alt.Y(
        "y:Q",
        title="loss, nats per token",
        scale=alt.Scale(domain=[*top], nice=False),
    )
    told = [
        alt.Tooltip("experiment:N"),
        alt.Tooltip("run:N"),
        *(alt.Tooltip(f"{axis.name}:Q", title=axis.title, format=",.4~g") for axis in units.axes),
    ]
    base: dict[str, Any] = {
        "color": colour(labels, symbolType="stroke"),
        "detail": "run:N",
        "x": x,
        "y": y,
    }
    dashed = {"strokeDash": dash(labels)} if is_crowded(experiments) else {}
    raw = (
        alt.Chart(alt.NamedData("training"))
        .transform_calculate(y="datum.loss")
        .mark_line(strokeWidth=RAW if len(pairs) <= FEW_RUNS else 0, clip=True)
        .encode(**base, opacity=when_highlighted(highlighted, 0.28, 0.03))
    )
    line = (
        alt.Chart(alt.NamedData("training"))
        .transform_calculate(y="datum.smooth")
        .mark_line(strokeWidth=SMOOTH, clip=True)
        .encode(**base, **dashed, opacity=when_highlighted(highlighted, 0.9))
    )
    hovered = (
        alt.Chart(alt.NamedData("training"))
        .transform_calculate(y="datum.smooth")
        .transform_filter("datum.hovered")
        .mark_point(opacity=0, size=HOVER, clip=True)
        .encode(
            **base,
            tooltip=[*told, alt.Tooltip("smooth:Q", title="training loss, smoothed", format=".4f")],
        )
    )
    measured = alt.Chart(alt.NamedData("validation")).transform_calculate(
        y="datum.loss", perplexity="exp(datum.loss)"
    )
    joined = measured.mark_line(strokeWidth=TIE, strokeDash=[1, 3], clip=True).encode(
        **base, opacity=when_highlighted(highlighted, 0.7)
    )
    points = measured.mark_point(clip=True, size=POINT).encode(
        **base,
        opacity=when_highlighted(highlighted, 1),
        tooltip=[
            *told,
            alt.Tooltip("loss:Q", title="validation loss", format=".4f"),
            alt.Tooltip("perplexity:Q", title="validation perplexity", format=".2f"),
        ],
    )
    if is_crowded(experiments):
        points = points.encode(shape=shape(labels))
    chart = alt.layer(raw, line, hovered, joined, points).add_params(highlighted, zoom())
    return Figure(
        "curves",
        "Loss while training",
        f"{len(pairs)} runs. Lines: the training loss, smoothed over a {WINDOW}th of the run; "
        "points: the validation loss, on text that is held out. Lower is better. Runs that differ "
        "in their seeds only share a colour. Over tokens, all models have read the same at the "
        "same place; over executed FLOPs (what the code computes, forward and backward) and over "
        "time, a model that thinks more is further to the right, and its curve must lie below the "
        "dense one's there for thinking to pay. "
        f"Time is of the machine that trained, without evaluations.{_at_first(experiments)}",
        chart.to_dict(validate=False),
        {"training": training, "validation": validation},
        [
            Control("x", "Over", axis_options(units, ["layer.*.encoding.x"])),
            Control("y", "Measure", _measures(top)),
            Control(
                "scale",
                "Scale",
                [
                    Option("linear", {}),
                    Option("logarithmic", {"layer.*.encoding.y.scale.type": "log"}),
                ],
            ),
            Control("shown", "Show", _shown(len(pairs))),
        ],
        [
            Print(
                f"curves_{'perplexity' if measure else 'loss'}_{axis.name}",
                {"x": place, "y": measure},
                WIDE,
                320,
            )
            for place, axis in enumerate(units.axes)
            for measure in (0, 1)
        ],
        description="Training and validation loss of every run over tokens, FLOPs or time.",
    )


def _at_first(experiments: Sequence[Experiment]) -> str:
    """What a caption says of the experiments that are faint at first."""
    if not is_crowded(experiments):
        return ""
    return (
        " At first the models of usual settings stand out; a click in the legend chooses another, "
        "with Shift one more, and a double click all."
    )


def _top_of_axis(
    pairs: Sequence[tuple[Run, str]], training: Sequence[dict], units: Units
) -> tuple[float, float]:
    """Least and greatest loss after the beginning."""
    shown = []
    for run, _ in pairs:
        start = BEGINNING * run.tokens[-1] / units.tokens.size if run.tokens else 0
        own = [one for one in training if one["run"] == run.name]
        shown += [one["smooth"] for one in own if one["tokens"] >= start]
        shown += [validation.loss for validation in run.validations]
    low, high = min(shown), max(shown)
    margin = 0.03 * (high - low) or 0.1
    return low - margin, high + margin


def _measures(top: tuple[float, float]) -> list[Option]:
    layers = ("loss", "smooth", "smooth", "loss", "loss")

    def option(label: str, title: str, form: str, domain: Sequence[float]) -> Option:
        calculated = {
            f"layer.{number}.transform.0.calculate": form.format(name)
            for number, name in enumerate(layers)
        }
        axes = {"layer.*.encoding.y.title": title, "layer.*.encoding.y.scale.domain": list(domain)}
        return Option(label, {**calculated, **axes})

    return [
        option("loss", "loss, nats per token", "datum.{}", top),
        option("perplexity", "perplexity", "exp(datum.{})", [math.exp(loss) for loss in top]),
    ]


def _shown(runs: int) -> list[Option]:
    def option(label: str, raw: bool, line: bool, validation: bool) -> Option:
        sizes = {
            "0.mark.strokeWidth": RAW * raw,
            "1.mark.strokeWidth": SMOOTH * line,
            "2.mark.size": HOVER * line,
            "3.mark.strokeWidth": TIE * validation,
            "4.mark.size": POINT * validation,
        }
        return Option(label, {f"layer.{place}": size for place, size in sizes.items()})

    options = [
        option("training and validation", False, True, True),
        option("every batch, too", True, True, True),
        option("validation only", False, False, True),
        option("training only", False, True, False),
    ]
    return [options[1], options[0], *options[2:]] if runs <= FEW_RUNS else options


def ends(experiments: Sequence[Experiment], units: Units) -> Figure | None:
    """The validation loss at the end of each run over what it has cost."""
    labels = [experiment.label for experiment in experiments]
    records = [
        {
            "run": run.name,
            "experiment": experiment.label,
            **units.of(last.tokens, last.flops, last.hours),
            "loss": last.loss,
            "perplexity": math.exp(last.loss),
        }
        for experiment in experiments
        for run in experiment.runs
        if run.is_finished
        for last in run.validations[-1:]
    ]
    if len(records) < 2:
        return None
    highlighted = highlight(experiments)
    x = alt.X(
        "tokens:Q",
        title=units.axes[0].title,
        scale=alt.Scale(zero=False, padding=24),
        axis=alt.Axis(format=NUMBER, grid=False, tickCount=7),
    )
    y = alt.Y(
        "loss:Q",
        title="validation loss at the end, nats per token",
        scale=alt.Scale(zero=False, padding=18),
        axis=alt.Axis(tickCount=6),
    )
    dense = dense_line(experiments, units)
    line = (
        alt.Chart(alt.NamedData("dense"))
        .mark_line(strokeDash=[4, 3], strokeWidth=1.2, color="#8a929c")
        .encode(x=x, y=y, detail="geometry:N")
    )
    forms = {"shape": shape(labels)} if is_crowded(experiments) else {}
    points = (
        alt.Chart(alt.NamedData("ends"))
        .mark_point(size=85)
        .encode(
            x=x,
            y=y,
            color=colour(labels),
            **forms,
            opacity=when_highlighted(highlighted, 0.95, 0.1),
            tooltip=[
                alt.Tooltip("experiment:N"),
                alt.Tooltip("run:N"),
                alt.Tooltip("loss:Q", title="validation loss", format=".4f"),
                alt.Tooltip("perplexity:Q", format=".2f"),
                *(
                    alt.Tooltip(f"{axis.name}:Q", title=axis.title, format=",.4~g")
                    for axis in units.axes
                ),
            ],
        )
    )
    # The first layer is what the legend acts on.
    chart = alt.layer(points, *[line] * (len(dense) > 1)).add_params(highlighted, zoom())
    axis_places = ["layer.*.encoding.x"]
    order = axis_options(units, axis_places)
    joined = (
        "The dashed line joins the dense LLaMA trained for different lengths: a model below it is "
        "better than a LLaMA at the same cost, one above it is worse. "
        if len(dense) > 1
        else "With LLaMA runs of other lengths, a line through them shows what a dense model makes "
        "of the same cost. "
    )
    return Figure(
        "equal_compute",
        "What it costs",
        f"{len(records)} finished runs, a point each: the validation loss at the end over the "
        "executed training FLOPs (forward and backward), the tokens or the time that went in. "
        f"{joined}"
        f"Time is of the machine that trained and of what else ran on it.{_at_first(experiments)}",
        chart.to_dict(validate=False),
        {"dense": dense, "ends": records},
        [Control("x", "Over", [order[1], order[2], order[0]])],
        [
            Print(f"equal_compute_{units.axes[number].name}", {"x": place})
            for place, number in enumerate((1, 2, 0))
        ],
        efficiency_table(experiments),
        "Validation loss at the end of each run over FLOPs, time or tokens.",
    )


def dense_line(experiments: Sequence[Experiment], units: Units) -> list[dict[str, Any]]:
    """The dense model trained for several lengths, all else alike: the mean over seeds of each."""
    found = []
    for experiment in experiments:
        others = set(experiment.differences) - {"train.max_duration"}
        is_plain = all(key.startswith("model.") for key in others)
        runs = [run for run in experiment.runs if run.is_finished and run.validations]
        last = [run.validations[-1] for run in runs]
        if experiment.runs[0].kind != "LLaMA" or not is_plain or not last:
            continue
        found.append(
            {
                "geometry": str(experiment.runs[0].geometry),
                **units.of(
                    mean(one.tokens for one in last),
                    mean(one.flops for one in last),
                    mean(one.hours for one in last),
                ),
                "loss": mean(one.loss for one in last),
            }
        )
    return found


def efficiency_table(experiments: Sequence[Experiment]) -> dict[str, Any] | None:
    """Where each experiment reaches the final loss of the dense model; None without one."""
    ended = [run for one in experiments for run in one.runs if run.is_finished and run.validations]
    rows = []
    for experiment in experiments:
        pairs = [pair for run in experiment.runs for pair in _beside_dense(run, ended)]
        if not pairs:
            continue
        shares = [_shares(run, dense) for run, dense, _ in pairs]
        bound = "≤ " if any(efficiency.is_bound for *_, efficiency in pairs) else ""
        cells = [_told([share[number] for share in shares], bound) for number in range(3)]
        targets = [efficiency.target for *_, efficiency in pairs]
        finals = [efficiency.final_loss for *_, efficiency in pairs]
        rows.append([experiment.label, f"{mean(targets):.4f}", f"{mean(finals):.4f}", *cells])
    if not rows:
        return None
    return {
        "title": "Data efficiency: what each needs to reach the final loss of the dense LLaMA of "
        "its size, as a share of what that took (read between validations; mean over seeds)",
        "columns": ["model", "LLaMA's loss", "own loss", "tokens", "FLOPs", "time"],
        "rows": rows,
    }


def _beside_dense(run: Run, runs: Sequence[Run]) -> list[tuple[Run, Run, Efficiency]]:
    """(run, dense run, efficiency) with the dense run that is most like it, if there is one."""
    if run.kind == "LLaMA" or not (run.is_finished and run.validations):
        return []
    dense = [other for other in runs if other.kind == "LLaMA" and other.geometry == run.geometry]
    same_seed = [other for other in dense if other.seeds == run.seeds] or dense
    same_length = [
        other
        for other in same_seed
        if other.recipe["train"]["max_duration"] == run.recipe["train"]["max_duration"]
    ] or same_seed
    try:
        logs = [other.loss_log() for other in [*same_length, run]]
        (efficiency,) = data_efficiency(logs)
    except UserError:
        return []  # no dense run of this size
    reference = next(
        other for other in same_length if other.loss_log().label == efficiency.reference
    )
    return [(run, reference, efficiency)]


def _shares(run: Run, dense: Run) -> list[float | None]:
    """Tokens, FLOPs and time to the dense run's final loss, as shares of the dense run's."""
    end = dense.validations[-1]
    found: list[float | None] = []
    for name in ("tokens", "flops", "hours"):
        curve = [(asdict(one)[name], one.loss) for one in run.validations]
        needed, whole = tokens_to_reach(curve, end.loss), getattr(end, name)
        found.append(None if needed is None or not whole else needed / whole)
    return found


def _told(shares: Sequence[float | None], bound: str) -> str:
    reached = [share for share in shares if share is not None]
    if not reached:
        return "not reached"
    text = f"{bound}{100 * mean(reached):.0f} %"
    return text if len(reached) == len(shares) else f"{text} ({len(reached)} of {len(shares)})"
