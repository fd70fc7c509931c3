"""Makes what figures of several runs share: units, axes, colours, zoom and highlight."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from itt_composer.report import theme
from itt_composer.report.experiments import Experiment
from itt_composer.report.figures import Control, Option
from itt_composer.report.runs import Run

NUMBER = ",~r"  # of an axis


class Unit(NamedTuple):
    """A unit of an axis: its size, and its name."""

    size: float
    name: str


class Axis(NamedTuple):
    """A quantity that curves may be drawn over."""

    name: str
    label: str
    title: str


def unit_of(largest: float, names: Sequence[tuple[float, str]]) -> Unit:
    """Choose the largest unit that `largest` holds at least once; units are in ascending order."""
    fitting = [Unit(*name) for name in names if largest >= name[0]]
    return fitting[-1] if fitting else Unit(*names[0])


def flops_unit(largest: float) -> Unit:
    """Choose the unit for FLOPs of whole trainings."""
    return unit_of(largest, [(1e9, "GFLOPs"), (1e12, "TFLOPs"), (1e15, "PFLOPs"), (1e18, "EFLOPs")])


def tokens_unit(largest: float) -> Unit:
    """Choose the unit for training tokens."""
    return unit_of(largest, [(1, ""), (1e6, "million"), (1e9, "billion")])


def time_unit(hours: float) -> Unit:
    """Choose the unit for training time, given in hours."""
    return unit_of(hours, [(1 / 60, "minutes"), (1.5, "hours")])


class Units:
    """Units and axes that fit all runs of a report."""

    def __init__(self, runs: Sequence[Run]):
        self.tokens = tokens_unit(max((run.tokens[-1] for run in runs if run.tokens), default=0))
        self.flops = flops_unit(max((run.flops[-1] for run in runs if run.flops), default=0))
        known = [run.hours[-1] for run in runs if run.hours and not math.isnan(run.hours[-1])]
        longest = max(known, default=0)
        self.time = Unit(*time_unit(longest))
        if self.time.name == "hours":
            self.time = Unit(1.0, "hours")
        self.axes = [
            Axis("tokens", "tokens", f"training tokens ({self.tokens.name})".replace(" ()", "")),
            Axis("flops", "executed FLOPs", f"executed training FLOPs ({self.flops.name})"),
            Axis("time", "time", f"training time ({self.time.name})"),
        ][: 3 if longest else 2]  # without `speed_monitor` nobody knows the time

    def of(self, tokens: float, flops: float, hours: float) -> dict[str, float]:
        """Return the three in these units, for a record."""
        return {
            "tokens": tokens / self.tokens.size,
            "flops": flops / self.flops.size,
            "time": hours / self.time.size,
        }

    def tooltips(self, digits: str = ",.4~g") -> list[alt.Tooltip]:
        """Return a tooltip for each axis."""
        return [
            alt.Tooltip(f"{axis.name}:Q", title=axis.title, format=digits) for axis in self.axes
        ]


def axis_options(units: Units, places: Sequence[str]) -> list[Option]:
    """Make the choices of the x axis; `places` are those of the x encodings."""
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


class Look(NamedTuple):
    """How something is drawn in every figure; `form` tells those of one colour apart."""

    colour: str
    form: int


def looks(experiments: Sequence[Experiment]) -> dict[str, Look]:
    """Return the look of each experiment by its label."""
    return looks_of({one.label: one.runs[0].is_dense for one in experiments})


def looks_of(are_dense: Mapping[str, bool]) -> dict[str, Look]:
    """Give out looks in this order: grey to dense models, the colours in turn to the others."""
    found: dict[str, Look] = {}
    counts = {True: 0, False: 0}
    for label, is_dense in are_dense.items():
        colours = (theme.DENSE,) if is_dense else theme.LIGHT[1:]
        form, place = divmod(counts[is_dense], len(colours))
        found[label] = Look(colours[place], form)
        counts[is_dense] += 1
    return found


def colour(own: Mapping[str, Look], **options: Any) -> alt.Color:
    """Colour by experiment, with a legend; `options` are the legend's."""
    scale = alt.Scale(domain=list(own), range=[look.colour for look in own.values()])
    return alt.Color("experiment:N", scale=scale, legend=alt.Legend(title=None, **options))


def forms(own: Mapping[str, Look]) -> dict[str, Any]:
    """Encode dashes (`strokeDash`) and points (`shape`); empty where no colour is used twice."""
    if not any(look.form for look in own.values()):
        return {}
    dashes = [theme.DASHES[look.form % len(theme.DASHES)] for look in own.values()]
    shapes = [theme.SHAPES[look.form % len(theme.SHAPES)] for look in own.values()]
    legend = alt.Legend(title=None)
    return {
        "strokeDash": alt.StrokeDash(
            "experiment:N", scale=alt.Scale(domain=list(own), range=dashes), legend=legend
        ),
        "shape": alt.Shape(
            "experiment:N", scale=alt.Scale(domain=list(own), range=shapes), legend=legend
        ),
    }


def first_shown(experiments: Sequence[Experiment]) -> list[str]:
    """Choose the experiments that stand out at first; none (all) if there are enough colours."""
    usual = [one.label for one in experiments if not one.differences]
    return usual if len(experiments) > len(theme.LIGHT) else []


def highlight(shown: Sequence[str]) -> alt.Parameter:
    """Make the selection of experiments that stand out: these, until the legend is clicked."""
    first = _chosen(shown) if shown else alt.Undefined
    return alt.selection_point(name="highlight", fields=["experiment"], bind="legend", value=first)


def models_control(experiments: Sequence[Experiment], shown: Sequence[str]) -> list[Control]:
    """Make the choice of what stands out, for those without a Shift key; empty if all do."""
    if not shown:
        return []
    kinds: dict[str, list[str]] = {}
    for experiment in experiments:
        kinds.setdefault(experiment.runs[0].kind, []).append(experiment.label)
    choices = {"usual settings": shown, "all": [one.label for one in experiments]}
    choices |= {f"every {kind}": labels for kind, labels in kinds.items() if len(labels) > 1}
    return [
        Control(
            "models",
            "Models",
            [Option(name, {"params.0.value": _chosen(labels)}) for name, labels in choices.items()],
        )
    ]


def when_highlighted(highlighted: alt.Parameter, shown: float, hidden: float = 0.08) -> Any:
    """Set the opacity of marks that the legend highlights, and of the others."""
    return alt.condition(highlighted, alt.value(shown), alt.value(hidden))


def at_first(experiments: Sequence[Experiment]) -> str:
    """Write a caption's sentence on the experiments that are faint at first."""
    if not first_shown(experiments):
        return ""
    return (
        " At first the models of usual settings stand out; others are chosen above or by a click "
        "in the legend (with Shift one more)."
    )


def zoom() -> alt.Parameter:
    """Let the pointer move and zoom; the wheel alone still scrolls the page."""
    return alt.selection_interval(
        name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
    )


def _chosen(labels: Sequence[str]) -> list[dict[str, str]]:
    return [{"experiment": label} for label in labels]
