"""How a model thought while it trained."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import altair as alt
import numpy as np

from itt_composer.report.axes import NUMBER, Units, axis_options
from itt_composer.report.curves import ALIKE, thinned
from itt_composer.report.experiments import Experiment
from itt_composer.report.figures import WIDE, Control, Figure, Option, Print
from itt_composer.report.measured import place_in_list, runs_of
from itt_composer.report.thinking_figures import (
    by_layer,
    run_control,
    step_colour,
    steps_of,
)

MOST_POINTS, LEAST_POINTS, MOST_POINTS_IN_ALL = 150, 25, 40_000
# What `thinking_stats` logs: title of the axis, and what to look for.
FIGURES = {
    "weight_mean": "router weight, mean",
    "weight_std": "router weight, standard deviation",
    "share_selected": "share of tokens that take the step",
    "overlap": "share that took the step before, too",
    "update_norm": "change of a token's state by the step",
    "step_encoding_mean": "step encoding φ, mean",
}
ROUTED = ("weight_mean", "step_encoding_mean")  # a Loop has neither


def training(experiments: Sequence[Experiment], units: Units) -> Figure | None:
    """What `thinking_stats` logged, by layer."""
    logged = [
        (run.name, run)
        for run in runs_of(experiments)
        if any(figure in ROUTED for *_, figure in run.thinking)
    ]
    logged.sort(key=lambda named: place_in_list(named[1]))
    series = sum(len(run.thinking) for _, run in logged)
    if not series:
        return None
    most = max(LEAST_POINTS, min(MOST_POINTS, MOST_POINTS_IN_ALL // series))
    records = []
    for number, (_, run) in enumerate(logged):
        for (layer, step, figure), values in run.thinking.items():
            if figure not in FIGURES:
                continue
            places = np.array([place for place, _ in values])
            columns = [
                np.asarray(column, dtype=float)[places]
                for column in (run.tokens, run.flops, run.hours)
            ]
            columns.append(np.array([value for _, value in values], dtype=float))
            records += [
                {
                    "number": number,
                    "layer": layer,
                    "step": str(step),
                    "figure": figure,
                    **units.of(*row[:3]),
                    "value": row[3],
                }
                for row in zip(
                    *(map(float, column) for column in thinned(columns, most)), strict=True
                )
            ]
    names = [figure for figure in FIGURES if any(one["figure"] == figure for one in records)]
    layers = sorted({record["layer"] for record in records})
    x = alt.X(
        "tokens:Q", title=units.axes[0].title, axis=alt.Axis(format=NUMBER, grid=False, tickCount=4)
    )
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(opacity=0, size=90))
        .encode(
            x=x,
            y=alt.Y("value:Q", title=FIGURES[names[0]], scale=alt.Scale(zero=False)),
            color=step_colour(steps_of(records)),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("step:N"),
                *(
                    alt.Tooltip(f"{axis.name}:Q", title=axis.title, format=",.4~g")
                    for axis in units.axes
                ),
                alt.Tooltip("value:Q", format=".4~g"),
            ],
        )
        .properties(width=200, height=170)
    )
    spec = by_layer(
        line,
        "thinking",
        records,
        "datum.number === 0",
        f"datum.figure === '{names[0]}'",
        "true",
    )
    figure_options = []
    for name in names:
        steps = steps_of([record for record in records if record["figure"] == name])
        coloured: Any = step_colour(steps).to_dict()
        changes = {
            "transform.1.filter": f"datum.figure === '{name}'",
            "spec.encoding.y.title": FIGURES[name],
            # φ has step 0 as well.
            "spec.encoding.color.scale": coloured["scale"],
        }
        figure_options.append(Option(FIGURES[name], changes))
    layer_options = [Option("all", {"transform.2.filter": "true"})] + [
        Option(str(layer), {"transform.2.filter": f"datum.layer === {layer}", "columns": 1})
        for layer in layers
    ]
    return Figure(
        "training_thinking",
        "Thinking while training",
        "What each extra step of each thinking layer did during training, on the first batch of "
        "every interval. A router weight is how much a token's update counts, and the tokens with "
        "the largest weights take the step: a weight that falls to 0 with no spread is a step that "
        "has switched itself off. The share of tokens rises to its target while capacity is "
        "annealed. Overlap above the share of the step before means that the same tokens think "
        "again, below it that steps divide the tokens among them. φ starts at 1 unless a "
        "recipe says otherwise; step 0 is the layer's first pass, which every token takes. Layers "
        f"are counted from 0.{_covered(records)}",
        spec,
        {"thinking": records},
        [
            *run_control([name for name, _ in logged]),
            Control("figure", "Figure", figure_options),
            Control("layer", "Layer", layer_options),
            Control("x", "Over", axis_options(units, ["spec.encoding.x"])),
        ],
        [
            Print(f"training_{name}", {"figure": place}, WIDE, 120, min(4, len(layers)))
            for place, name in enumerate(names)
        ],
        description="Statistics of every thinking step over training, a panel for each layer.",
    )


def _covered(records: Sequence[dict[str, Any]]) -> str:
    """Sentences on steps whose lines lie on one another, as those of equal shares do."""
    found = []
    for figure, title in FIGURES.items():
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
    """Whether two steps of a layer are never further apart than this."""
    return any(
        len(one) == len(other) and all(abs(a - b) <= most for a, b in zip(one, other, strict=True))
        for one, other in combinations(panel.values(), 2)
    )
