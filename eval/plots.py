"""The figure of an elastic sweep: perplexity over FLOPs, beside the paper's own.

Text in the figure names the ratios in percent: 70/50/50 is ρ of the steps after the first pass.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from itt_composer.basics.files import whole_file
from itt_composer.paper import figures as paper
from itt_composer.results.perplexity_report import RULES, percentages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that stay apart for every kind of eyesight (Okabe and Ito), and markers that do in print.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
PAPER_STYLE = ("#444444", "o")
SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
LABEL: dict[str, Any] = {"fontsize": 6.0, "color": "#333333"}
TIE: dict[str, Any] = {"color": "#999999", "linewidth": 0.4, "zorder": 0.9}
POINT_RADIUS = 3.0  # in points, marker and a little air
# Directions in which a label may leave its point, and how far, in points: close by first.
DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
DISTANCES = (4, 8, 12, 17, 23, 30, 38)
# A point that is so many times further from the median than others are would press them together.
FAR = 10
CLOSE = 1  # of the distances; a label further away is tied to its point


class Point(NamedTuple):
    """A setting in the figure; `label` is of its ratios, in whole percent."""

    label: str
    flops: float
    perplexity: float
    ratios: tuple[float, ...] = ()


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def beside(
        cls, x: float, y: float, way: tuple[int, int], distance: float, width: float, height: float
    ) -> "Box":
        """Of a size, its near edge that far from a point in one of `DIRECTIONS`."""
        left = x + way[0] * distance - width * (1 - way[0]) / 2
        low = y + way[1] * distance - height * (1 - way[1]) / 2
        return cls(left, low, left + width, low + height)

    def area(self) -> float:
        """In square pixels."""
        return (self.right - self.left) * (self.high - self.low)

    def common_area(self, other: "Box") -> float:
        """Of what lies in both."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, width) * max(0.0, height)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to another one."""
        return min(max(x, self.left), self.right), min(max(y, self.low), self.high)


def has_points(results: dict[str, Any]) -> bool:
    """Whether the FLOPs of what was measured are known."""
    return "executed_flops_per_token" in results["settings"][0]


def plot_elastic(results: dict[str, Any], path: Path) -> None:
    """Draw the results of a perplexity suite and, beside them, the paper's elastic table.

    Args:
        results: of `perplexity.run`, with FLOPs.
        path: of the PNG, which replaces an older one when it is complete.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(SETTINGS):
        figure, (executed, counted, papers) = pyplot.subplots(
            1, 3, figsize=(12.5, 5), dpi=200, layout="constrained"
        )
        executed.sharey(counted)
        name = results["model"]["name"]
        drawn = [
            (executed, points(results, "executed"), f"{name}: FLOPs executed"),
            (counted, points(results, "paper"), f"{name}: FLOPs as the paper counts them"),
            (papers, {"": papers_points()}, "The paper: its 162M model, its count"),
        ]
        panels = [(axes, *within_frame(series), title) for axes, series, title in drawn]
        for axes, series, beyond, title in panels:
            draw(axes, series, title)
            note(axes, beyond)
        for axes in (executed, counted):
            axes.set_xlabel("MFLOPs per token of a forward pass")
        papers.set_xlabel("TFLOPs of a forward pass over 4,096 tokens")
        executed.set_ylabel(f"{results['suite']['split']} perplexity")
        counted.tick_params(labelleft=True)
        figure.draw_without_rendering()  # from here on texts have sizes
        figure.set_layout_engine("none")
        for axes, series, *_ in panels:
            place_labels(axes, list(series.values()))
        with whole_file(path) as partial:
            figure.savefig(partial, format="png")
        pyplot.close(figure)


def points(results: dict[str, Any], count: str) -> dict[str, list[Point]]:
    """What was measured, by rule; a setting that stands twice in the suite is one point.

    Args:
        results: of `perplexity.run`.
        count: of the FLOPs, "executed" or "paper".
    """
    series: dict[str, dict[tuple, Point]] = {}
    for setting in results["settings"]:
        rule = RULES.get(setting["router_selection"], results["model"]["name"])
        if setting["early_exit"]:
            rule += f", early exit at {setting['early_exit']:g}"
        ratios = tuple(setting["select_ratios"])
        flops = setting[f"{count}_flops_per_token"] / 1e6
        point = Point(percentages(ratios), flops, setting["perplexity"], ratios)
        series.setdefault(rule, {})[ratios] = point
    return {rule: list(by_ratios.values()) for rule, by_ratios in series.items()}


def papers_points() -> list[Point]:
    """The elastic table; the models beside it by their names."""
    return [
        Point(percentages(row.select_ratios) if row.select_ratios else row.model, *figures)
        for row in paper.elastic()
        for figures in [(row.tflops, row.perplexity)]
    ]


def within_frame(series: dict[str, list[Point]]) -> tuple[dict[str, list[Point]], list[Point]]:
    """The points to draw, and those whose perplexity would press all others together."""
    perplexities = [point.perplexity for own in series.values() for point in own]
    middle = median(perplexities)
    highest = middle + FAR * median(abs(value - middle) for value in perplexities)
    drawn = {
        rule: [point for point in own if point.perplexity <= highest]
        for rule, own in series.items()
    }
    if not all(drawn.values()):
        return series, []
    beyond = [point for own in series.values() for point in own if point.perplexity > highest]
    return drawn, beyond


def note(axes: "Axes", beyond: list[Point]) -> None:
    """Tell the points above the frame, each once: without steps all rules are one."""
    lines = [f"↑ {point.label}: {point.perplexity:.2f} at {point.flops:.2f}" for point in beyond]
    text = "\n".join(dict.fromkeys(lines))
    axes.text(0.02, 0.98, text, transform=axes.transAxes, ha="left", va="top", **LABEL)


def draw(axes: "Axes", series: dict[str, list[Point]], title: str) -> None:
    """Points of every series, with a legend where there are several."""
    styles = STYLES if len(series) > 1 else (PAPER_STYLE,)
    for (rule, own), (color, marker) in zip(series.items(), itertools.cycle(styles)):
        flops, perplexities = [p.flops for p in own], [p.perplexity for p in own]
        axes.plot(flops, perplexities, marker, color=color, label=rule, markersize=3.8, alpha=0.85)
    by_ratios: dict[tuple, list[Point]] = {}
    for point in itertools.chain(*series.values()):
        by_ratios.setdefault((point.label, point.ratios), []).append(point)
    for same in by_ratios.values():  # the same ratios by other rules
        axes.plot([p.flops for p in same], [p.perplexity for p in same], **TIE)
    axes.set_title(title, loc="left", fontsize=9)
    axes.margins(0.14)
    if len(series) > 1:
        axes.legend(loc="upper right")


def place_labels(axes: "Axes", series: Sequence[list[Point]]) -> None:
    """Name the points of the first series, each name where it covers no point and no other name.

    Args:
        axes: with its final limits and size.
        series: all points that are drawn.
    """
    pixels = axes.figure.dpi / 72
    inverse = axes.transData.inverted()
    radius = POINT_RADIUS * pixels
    drawn = axes.transData.transform([point[1:3] for own in series for point in own])
    taken = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in drawn]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(Box(*legend.get_window_extent().extents))
    taken += [Box(*text.get_window_extent().extents) for text in axes.texts]
    frame = Box(*axes.get_window_extent().extents)
    for point in series[0]:
        text = axes.text(0, 0, point.label, ha="left", va="bottom", **LABEL)
        extent = text.get_window_extent()
        x, y = axes.transData.transform(point[1:3])
        boxes = [
            Box.beside(x, y, direction, distance * pixels, extent.width, extent.height)
            for distance in DISTANCES
            for direction in DIRECTIONS
        ]
        # Of places that are equally free, `min` takes the first, which is the closest.
        best = min(boxes, key=lambda box: _covered(box, taken, frame))
        taken.append(best)
        text.set_position(tuple(inverse.transform((best.left, best.low))))
        if boxes.index(best) >= len(DIRECTIONS) * CLOSE:
            ends = inverse.transform([(x, y), best.nearest(x, y)])
            axes.plot(*ends.T, **TIE)


def _covered(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """How much of a box is covered already or lies outside of the frame, in square pixels."""
    outside = box.area() - box.common_area(frame)
    return round(outside + sum(box.common_area(other) for other in taken), 3)
