"""What figures of several runs share: units, axes, colours, zoom and highlight."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from itt_composer.report import theme
from itt_composer.report.experiments import Experiment
from itt_composer.report.figures import Control, Option
from itt_composer.report.runs import Run

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
        """The three, for a record."""
        return {
            "tokens": tokens / self.tokens.size,
            "flops": flops / self.flops.size,
            "time": hours / self.time.size,
        }


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


def colour(labels: Sequence[str], places: Sequence[int] | None = None, **options: Any) -> alt.Color:
    """The experiments' colours, the same in every figure; the legend highlights.

    Args:
        labels: what the legend names.
        places: of each among all experiments of the page; by default the labels are these.
        options: of the legend.
    """
    own = [theme.LIGHT[place % len(theme.LIGHT)] for place in places or range(len(labels))]
    scale = alt.Scale(domain=list(labels), range=own)
    return alt.Color("experiment:N", scale=scale, legend=alt.Legend(title=None, **options))


def dash(labels: Sequence[str]) -> alt.StrokeDash:
    """The experiments' dashes, which tell apart those whose colours return."""
    dashes = [theme.dash_of(place) for place in range(len(labels))]
    scale = alt.Scale(domain=list(labels), range=dashes)
    return alt.StrokeDash("experiment:N", scale=scale, legend=alt.Legend(title=None))


def shape(labels: Sequence[str], places: Sequence[int] | None = None) -> alt.Shape:
    """The experiments' points, likewise; arguments as of `colour`."""
    shapes = [theme.shape_of(place) for place in places or range(len(labels))]
    scale = alt.Scale(domain=list(labels), range=shapes)
    return alt.Shape("experiment:N", scale=scale, legend=alt.Legend(title=None))


def is_crowded(experiments: Sequence[Experiment]) -> bool:
    """Whether there are more experiments than colours."""
    return len(experiments) > len(theme.LIGHT)


def first_shown(experiments: Sequence[Experiment]) -> list[str]:
    """Of more experiments than colours, those that stand out at first; else none, which is all."""
    usual = [one.label for one in experiments if not one.differences]
    return usual if is_crowded(experiments) else []


def highlight(shown: Sequence[str]) -> alt.Parameter:
    """Experiments that stand out: these, until others are clicked in the legend."""
    first = _chosen(shown) if shown else alt.Undefined
    return alt.selection_point(name="highlight", fields=["experiment"], bind="legend", value=first)


def models_control(experiments: Sequence[Experiment], shown: Sequence[str]) -> list[Control]:
    """Which experiments stand out, for those who have no Shift key; none if few are shown."""
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
    """Opacity of marks that the legend highlights."""
    return alt.condition(highlighted, alt.value(shown), alt.value(hidden))


def at_first(experiments: Sequence[Experiment]) -> str:
    """What a caption says of the experiments that are faint at first."""
    if not first_shown(experiments):
        return ""
    return (
        " At first the models of usual settings stand out; others are chosen above or by a click "
        "in the legend (with Shift one more)."
    )


def zoom() -> alt.Parameter:
    """Moves and zooms; the wheel alone goes on scrolling the page."""
    return alt.selection_interval(
        name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
    )


def _chosen(labels: Sequence[str]) -> list[dict[str, str]]:
    return [{"experiment": label} for label in labels]
