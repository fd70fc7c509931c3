"""Draws loss over tokens, compute and time: the curves of all runs."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from itt_composer.basics.losses import MOST_NATS
from itt_composer.report.axes import (
    NUMBER,
    Units,
    at_first,
    axis_options,
    colour,
    first_shown,
    forms,
    highlight,
    looks,
    models_control,
    when_highlighted,
    zoom,
)
from itt_composer.report.experiments import Experiment
from itt_composer.report.figures import WIDE, Control, Figure, Option, Print
from itt_composer.report.runs import Run

MOST_POINTS = 1000  # of a run's training curve
MOST_POINTS_IN_ALL = 24_000
HOVERED_POINTS = 60  # of a run's training curve that show their figures to the pointer
WINDOW = 50  # the smoothed loss is a mean over this part of a run
BEGINNING = 0.05  # of training, which the axes leave out at first: the loss falls too far there
FEW_RUNS = 3
RAW, SMOOTH, TIE, POINT, HOVER = 0.7, 1.5, 1, 46, 60  # widths of lines, sizes of points
ENDS = ("least", "greatest")  # of the axis of losses, in nats
PARAMS = (*ENDS, "is_perplexity")
ALIKE = 0.01  # curves that are never further apart, as a share of the axis, cover one another


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over so many values around each, fewer at the ends, without gaps (NaN)."""
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
    """Return at most so many values of each column: means of equal parts, without gaps (NaN)."""
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
    """Return the training curve of a run, thinned out."""
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
    """Return a record for each evaluation of a run."""
    return [
        {
            "run": run.name,
            "experiment": label,
            **units.of(one.tokens, one.flops, one.hours),
            "loss": one.loss,
        }
        for one in run.validations
    ]


def loss_curves(experiments: Sequence[Experiment], units: Units) -> Figure | None:
    """Draw the training and validation loss of all runs; None where nothing was logged."""
    pairs = [(run, experiment.label) for experiment in experiments for run in experiment.runs]
    most = min(MOST_POINTS, max(100, MOST_POINTS_IN_ALL // len(pairs)))
    training = [one for run, label in pairs for one in training_records(run, label, units, most)]
    validation = [one for run, label in pairs for one in validation_records(run, label, units)]
    if not training and not validation:
        return None
    bounds = _bounds(pairs, training, units)
    spec = _spec(experiments, units, len(pairs) <= FEW_RUNS, bounds["all"])
    validated = (
        "points: the validation loss, on text that is held out. "
        if validation
        else "the validation loss, on text that is held out, is still to come. "
    )
    return Figure(
        "curves",
        "Loss while training",
        f"{len(pairs)} run{'s' * (len(pairs) > 1)}. Lines: the training loss, smoothed over a "
        f"{WINDOW}th of the run; {validated}Lower is better. Runs that differ "
        "in their seeds only share a colour. Over tokens, runs of one seed have read the same at "
        "the same place; over executed FLOPs (what the code computes, forward and backward) and "
        "over time, a model that thinks more is further to the right, and its curve must lie below "
        "the dense one's there for thinking to pay. "
        f"Time is of the machine that trained, without evaluations.{at_first(experiments)}"
        f"{_hidden(pairs, training, bounds)}",
        spec,
        {"training": training, "validation": validation},
        [
            Control("x", "Over", axis_options(units, ["layer.*.encoding.x"])),
            Control("y", "Measure", _measures(_place_of(spec, "is_perplexity"))),
            Control(
                "scale",
                "Scale",
                [
                    Option("linear", {}),
                    Option("logarithmic", {"layer.*.encoding.y.scale.type": "log"}),
                ],
            ),
            Control("shown", "Show", _shown(len(pairs), bounds, _place_of(spec, ENDS[0]))),
            *models_control(experiments, first_shown(experiments)),
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


def _spec(
    experiments: Sequence[Experiment], units: Units, has_raw: bool, ends: tuple[float, float]
) -> dict[str, Any]:
    """Make the specification, with parameters for the ends of the axis of losses."""
    own = looks(experiments)
    highlighted = highlight(first_shown(experiments))
    base: dict[str, Any] = {
        "color": colour(own, symbolType="stroke"),
        "detail": "run:N",
        "x": alt.X(
            "tokens:Q",
            title=units.axes[0].title,
            axis=alt.Axis(grid=False, format=NUMBER, tickCount=7),
        ),
        "y": alt.Y(
            "y:Q",
            title="loss, nats per token",
            scale=alt.Scale(
                domain=[alt.ExprRef(f"is_perplexity ? exp({end}) : {end}") for end in ENDS],
                nice=False,
            ),
        ),
    }
    layers = [
        *_loss_lines(base, forms(own), highlighted, units, has_raw),
        *_points(base, forms(own), highlighted, units),
    ]
    spec = alt.layer(*layers).add_params(highlighted, zoom()).to_dict(validate=False)
    spec["params"].sort(key=lambda param: param["name"] != highlighted.name)  # as elsewhere
    values = (*ends, False)
    spec["params"] += [
        {"name": name, "value": value} for name, value in zip(PARAMS, values, strict=True)
    ]
    return spec


def _loss_lines(
    base: dict[str, Any],
    styles: dict[str, Any],
    highlighted: alt.Parameter,
    units: Units,
    has_raw: bool,
) -> list[alt.Chart]:
    """Draw each batch's training loss, the smoothed one, and the points that the pointer finds."""
    nearest = alt.selection_point(
        name="nearest", nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    dashed = {name: style for name, style in styles.items() if name == "strokeDash"}
    raw = (
        alt.Chart(alt.NamedData("training"))
        .transform_calculate(y="datum.loss")
        .mark_line(strokeWidth=RAW if has_raw else 0, clip=True)
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
        .mark_point(size=HOVER, clip=True)
        .encode(
            **base,
            opacity=alt.condition(nearest, alt.value(0.9), alt.value(0), empty=False),
            tooltip=alt.value(alt.ExprRef(_tooltip_of_nearest(units))),
        )
        .add_params(nearest)
    )
    return [raw, line, hovered]


def _points(
    base: dict[str, Any], styles: dict[str, Any], highlighted: alt.Parameter, units: Units
) -> list[alt.Chart]:
    """Draw the validation losses, and a line that joins them."""
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
            alt.Tooltip("run:N"),
            *units.tooltips(),
            alt.Tooltip("loss:Q", title="validation loss", format=".4f"),
            alt.Tooltip("perplexity:Q", title="validation perplexity", format=".2f"),
        ],
    )
    return [joined, points.encode(shape=styles["shape"]) if styles else points]


def _tooltip_of_nearest(units: Units) -> str:
    """Write an expression for the tooltip of the nearest point.

    A list of fields does not work: in the cell that surrounds a point Vega-Lite looks for numbers
    in the point and for texts in the cell.
    """
    figures = [(axis.title, axis.name, ",.4~g") for axis in units.axes]
    figures.append(("training loss, smoothed", "smooth", ".4f"))
    point = "(datum.datum || datum)"
    parts = [f"{json.dumps(t)}: format({point}.{name}, '{form}')" for t, name, form in figures]
    return f"{{'run': {point}.run, {', '.join(parts)}}}"


def _place_of(spec: dict[str, Any], name: str) -> int:
    """Return the number of a parameter in a specification."""
    return [param["name"] for param in spec["params"]].index(name)


def _bounds(
    pairs: Sequence[tuple[Run, str]], training: Sequence[dict], units: Units
) -> dict[str, tuple[float, float]]:
    """Return the least and greatest loss after the beginning, of all curves and of each kind."""
    longest = max((run.tokens[-1] for run, _ in pairs if run.tokens), default=0)
    start = BEGINNING * longest / units.tokens.size
    trained = [one["smooth"] for one in training if one["tokens"] >= start]
    trained = trained or [one["smooth"] for one in training]  # it has logged its beginning only
    validated = [validation.loss for run, _ in pairs for validation in run.validations]
    kinds = {"all": trained + validated, "training": trained, "validation": validated}
    return {name: _with_margin(losses or kinds["all"]) for name, losses in kinds.items()}


def _with_margin(losses: Sequence[float]) -> tuple[float, float]:
    low, high = min(losses), min(max(losses), MOST_NATS)
    margin = 0.03 * (high - low) or 0.1
    return max(low - margin, 0.9 * low), high + margin  # a logarithm has no other places


def _measures(place: int) -> list[Option]:
    layers = ("loss", "smooth", "smooth", "loss", "loss")

    def option(label: str, title: str, form: str) -> Option:
        calculated = {
            f"layer.{number}.transform.0.calculate": form.format(name)
            for number, name in enumerate(layers)
        }
        is_perplexity = {f"params.{place}.value": label == "perplexity"}
        return Option(label, {**calculated, "layer.*.encoding.y.title": title, **is_perplexity})

    return [
        option("loss", "loss, nats per token", "datum.{}"),
        option("perplexity", "perplexity", "exp(datum.{})"),
    ]


def _shown(runs: int, bounds: dict[str, tuple[float, float]], place: int) -> list[Option]:
    def option(label: str, raw: bool, line: bool, validation: bool) -> Option:
        sizes: dict[str, Any] = {
            "0.mark.strokeWidth": RAW * raw,
            "1.mark.strokeWidth": SMOOTH * line,
            "2.mark.size": HOVER * line,
            "3.mark.strokeWidth": TIE * validation,
            "4.mark.size": POINT * validation,
        }
        of = "all" if line and validation else "training" if line else "validation"
        ends = {f"params.{place + end}.value": bounds[of][end] for end in (0, 1)}
        return Option(label, {f"layer.{place}": size for place, size in sizes.items()} | ends)

    options = [
        option("training and validation", False, True, True),
        option("every batch, too", True, True, True),
        option("validation only", False, False, True),
        option("training only", False, True, False),
    ]
    return [options[1], options[0], *options[2:]] if runs <= FEW_RUNS else options


def _hidden(
    pairs: Sequence[tuple[Run, str]],
    training: Sequence[dict],
    bounds: dict[str, tuple[float, float]],
) -> str:
    """Write a sentence on curves that cannot be seen because others cover them."""
    low, high = bounds["all"]
    curves = {
        run.name: np.array(
            [[one["tokens"], one["smooth"]] for one in training if one["run"] == run.name]
        )
        for run, _ in pairs
    }
    return covering({name: curve for name, curve in curves.items() if len(curve)}, high - low)


def covering(curves: Mapping[str, np.ndarray], height: float) -> str:
    """Write a sentence on lines that lie on one another where both are; empty without any.

    Args:
        curves: (x, y) of points in the order of x, by name; a later one is drawn over an earlier.
        height: of the axis, in the units of y.
    """
    under: dict[str, list[str]] = {}
    names = list(curves)
    for place, name in enumerate(names):
        own = curves[name]
        for other in names[place + 1 :]:
            upper = curves[other]
            both = own[(own[:, 0] >= upper[0, 0]) & (own[:, 0] <= upper[-1, 0])]
            if len(both) == len(own) and _are_alike(both, upper, height):
                under.setdefault(other, []).append(name)
                break
    return "".join(
        f" Where you see the line of {upper}, that of {' and '.join(lower)} lies below it."
        for upper, lower in under.items()
    )


def _are_alike(curve: np.ndarray, other: np.ndarray, height: float) -> bool:
    read = np.interp(curve[:, 0], other[:, 0], other[:, 1])
    return bool(np.abs(read - curve[:, 1]).max() <= ALIKE * height)
