"""Draws how a model thought while it trained."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import altair as alt
import numpy as np

from itt_composer.report.axes import NUMBER, Units, axis_options
from itt_composer.report.curves import ALIKE, thinned
from itt_composer.report.experiments import Experiment
from itt_composer.report.figures import WIDE, Control, Figure, Option, Print
from itt_composer.report.measured import place_in_list, runs_of
from itt_composer.report.runs import Run
from itt_composer.report.thinking_figures import (
    by_layer,
    run_control,
    step_colour,
    step_names,
)

# Points: of a statistic of a layer and step, and of all together.
MOST_OF_STATISTIC, LEAST_OF_STATISTIC, MOST_STATISTICS = 150, 25, 40_000
# What `thinking_stats` logs, with the title of the axis.
LOGGED = {
    "weight_mean": "router weight, mean",
    "weight_std": "router weight, standard deviation",
    "share_selected": "share of tokens that take the step",
    "overlap": "share that took the step before, too",
    "update_norm": "change of a token's state by the step",
    "step_encoding_mean": "step encoding φ, mean",
}
CAPTION = (
    "What each extra step of each thinking layer did during training, on the first batch of "
    "every interval. A router weight is how much a token's update counts, and the tokens with "
    "the largest weights take the step: a weight that falls to 0 with no spread is a step that "
    "has switched itself off. The share of tokens rises to its target while capacity is "
    "annealed. Overlap above the share of the step before means that the same tokens think "
    "again, below it that steps divide the tokens among them. φ starts at 1 unless a "
    "recipe says otherwise; step 0 is the layer's first pass, which every token takes. Layers "
    "are counted from 0."
)
ROUTED = ("weight_mean", "step_encoding_mean")  # a Loop has neither


def training(experiments: Sequence[Experiment], units: Units) -> Figure | None:
    """Draw what `thinking_stats` logged, by layer; None where no run has a router."""
    logged = [
        run
        for run in runs_of(experiments)
        if any(statistic in ROUTED for *_, statistic in run.thinking)
    ]
    logged.sort(key=place_in_list)
    series = sum(len(run.thinking) for run in logged)
    if not series:
        return None
    most = max(LEAST_OF_STATISTIC, min(MOST_OF_STATISTIC, MOST_STATISTICS // series))
    records = [
        one
        for number, run in enumerate(logged)
        for one in _statistic_records(number, run, units, most)
    ]
    names = [name for name in LOGGED if any(one["figure"] == name for one in records)]
    layers = sorted({record["layer"] for record in records})
    filters = ("datum.number === 0", f"datum.figure === '{names[0]}'", "true")
    layer_options = [Option("all", {"transform.2.filter": "true"})] + [
        Option(str(layer), {"transform.2.filter": f"datum.layer === {layer}", "columns": 1})
        for layer in layers
    ]
    return Figure(
        "training_thinking",
        "Thinking while training",
        f"{CAPTION}{_covered_lines(records)}",
        by_layer(_line_chart(records, LOGGED[names[0]], units), "thinking", records, *filters),
        {"thinking": records},
        [
            *run_control([run.name for run in logged]),
            Control("figure", "Figure", _statistic_options(names, records)),
            Control("layer", "Layer", layer_options),
            Control("x", "Over", axis_options(units, ["spec.encoding.x"])),
        ],
        [
            Print(f"training_{name}", {"figure": place}, WIDE, 120, min(4, len(layers)))
            for place, name in enumerate(names)
        ],
        description="Statistics of every thinking step over training, a panel for each layer.",
    )


def _statistic_records(number: int, run: Run, units: Units, most: int) -> Iterator[dict[str, Any]]:
    """Yield the statistics of a run, at most so many of each layer and step."""
    for (layer, step, statistic), values in run.thinking.items():
        if statistic not in LOGGED:
            continue
        places = np.array([place for place, _ in values])
        columns = [
            np.asarray(column, dtype=float)[places] for column in (run.tokens, run.flops, run.hours)
        ]
        columns.append(np.array([value for _, value in values], dtype=float))
        for row in zip(*(map(float, column) for column in thinned(columns, most)), strict=True):
            yield {
                "number": number,
                "layer": layer,
                "step": str(step),
                "figure": statistic,
                **units.of(*row[:3]),
                "value": row[3],
            }


def _line_chart(records: Sequence[dict[str, Any]], title: str, units: Units) -> alt.Chart:
    return (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(opacity=0, size=90))
        .encode(
            x=alt.X(
                "tokens:Q",
                title=units.axes[0].title,
                axis=alt.Axis(format=NUMBER, grid=False, tickCount=4),
            ),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=step_colour(step_names(records)),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("step:N"),
                *units.tooltips(),
                alt.Tooltip("value:Q", format=".4~g"),
            ],
        )
        .properties(width=200, height=170)
    )


def _statistic_options(names: Sequence[str], records: Sequence[dict[str, Any]]) -> list[Option]:
    options = []
    for name in names:
        steps = step_names([record for record in records if record["figure"] == name])
        coloured: Any = step_colour(steps).to_dict()
        changes = {
            "transform.1.filter": f"datum.figure === '{name}'",
            "spec.encoding.y.title": LOGGED[name],
            # φ has step 0 as well.
            "spec.encoding.color.scale": coloured["scale"],
        }
        options.append(Option(LOGGED[name], changes))
    return options


def _covered_lines(records: Sequence[dict[str, Any]]) -> str:
    """Write a sentence on steps whose lines lie on one another, as those of equal shares do."""
    found = []
    for figure, title in LOGGED.items():
        lines: dict[tuple, dict[str, list[float]]] = {}
        for one in records:
            if one["figure"] == figure:
                panel = lines.setdefault((one["number"], one["layer"]), {})
                panel.setdefault(one["step"], []).append(one["value"])
        values = [value for panel in lines.values() for line in panel.values() for value in line]
        span = max(values, default=0.0) - min(values, default=0.0)
        if any(_have_one_line(panel, ALIKE * span) for panel in lines.values()):
            found.append(title)
    if not found:
        return ""
    return (
        " Steps of equal values lie on one another, and the last of them is seen: here of the "
        f"{' and the '.join(found)}."
    )


def _have_one_line(panel: Mapping[str, Sequence[float]], most: float) -> bool:
    """Say whether two steps of a layer are never further apart than this."""
    return any(
        len(one) == len(other) and all(abs(a - b) <= most for a, b in zip(one, other, strict=True))
        for one, other in combinations(panel.values(), 2)
    )
