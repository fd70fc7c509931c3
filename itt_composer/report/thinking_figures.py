"""Draws how a trained model thinks on held-out text."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from itt_composer.report.axes import NUMBER
from itt_composer.report.figures import WIDE, Control, Figure, Option, Print
from itt_composer.report.measured import Measured
from itt_composer.results.thinking import ThinkingResults

ALL_TOKENS, OF_THE_STEP = "all tokens", "tokens that take the step"
CLASSES = (ALL_TOKENS, "word begin", "word inside", "digit", "punctuation", "whitespace")
PERCENT = ".0%"
AGAIN, NEW = "took the step before, too", "did not take the step before"
NamedResult = tuple[str, ThinkingResults]
FigureRecord = dict[str, Any]


def step_colour(steps: Sequence[str]) -> alt.Color:
    """Colour steps; each has its colour, whichever others there are."""
    colours = ["#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"]
    of_steps = [
        colours[(int(step) - 1) % len(colours)] if step != "0" else "#8a929c" for step in steps
    ]
    scale = alt.Scale(domain=list(steps), range=of_steps)
    return alt.Color("step:N", scale=scale, legend=alt.Legend(title="step"))


def run_control(names: Sequence[str]) -> list[Control]:
    """Make the choice of the run that is shown, if only to name it; transform 0 picks it."""
    options = [
        Option(name, {"transform.0.filter": f"datum.number === {number}"})
        for number, name in enumerate(names)
    ]
    return [Control("run", "Model", options)]


def step_names(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the steps of records, in order."""
    return sorted({record["step"] for record in records}, key=int)


def by_layer(
    chart: alt.Chart | alt.LayerChart, data: str, records: Sequence[dict[str, Any]], *filters: str
) -> dict[str, Any]:
    """Make a specification with a panel for each layer of the records that pass the filters."""
    layers = sorted({record["layer"] for record in records})
    panels = [f"layer {layer}" for layer in layers]
    facet = alt.Facet("panel:N", title=None, sort=panels)
    faceted = chart.facet(facet=facet, columns=min(4, len(layers)), data=alt.NamedData(data))
    for condition in filters:
        faceted = faceted.transform_filter(condition)
    return faceted.transform_calculate(panel="'layer ' + datum.layer").to_dict(validate=False)


def weights(measured: Measured[ThinkingResults]) -> Figure | None:
    """Draw histograms of the routers' weights; None without a router."""
    routed = [(name, result) for name, result in measured.results if _has_weights(result)]
    records = [one for number, (_, result) in enumerate(routed) for one in _bins(number, result)]
    if not records:
        return None
    steps = max(step.step for _, result in routed for step in result.steps)
    in_order = sorted(records, key=lambda record: record.pop("order"))
    panels = list(dict.fromkeys(record["panel"] for record in in_order))
    spec = (
        _histogram()
        .facet(
            facet=alt.Facet("panel:N", title=None, sort=panels),
            columns=steps,
            data=alt.NamedData("weights"),
        )
        .transform_filter("datum.number === 0")
        .resolve_scale(y="independent")
        .to_dict(validate=False)
    )
    return Figure(
        "router_weights",
        "How sure the routers are",
        "The router of a layer gives every token a weight for each extra step; the step's update "
        "is multiplied by it. Grey: the weights of all tokens; blue: of those that take the step. "
        f"Measured on {_tokens(routed)} held-out tokens; each panel has a scale of its own. A bell "
        "in the middle or two humps are a router that tells tokens apart; everything at one place "
        "is one that does not, and everything at 0 a step without effect.",
        spec,
        {"weights": records},
        run_control([name for name, _ in routed]),
        [Print("router_weights", {}, WIDE, 80, steps)],
        description="Histograms of router weights for every layer and step.",
    )


def _bins(number: int, result: ThinkingResults) -> Iterator[FigureRecord]:
    """Yield a record for each bin of each step's histogram, for all tokens and for the step's."""
    for step in result.steps:
        histogram = step.histogram
        if histogram is None:
            continue
        total = sum(histogram.counts) or 1
        edges = zip(histogram.edges, histogram.edges[1:], strict=False)
        counts = zip(histogram.counts, histogram.selected_counts, strict=False)
        for (low, high), (count, selected) in zip(edges, counts, strict=False):
            for kind, share in ((ALL_TOKENS, count), (OF_THE_STEP, selected)):
                yield {
                    "number": number,
                    "order": (step.layer, step.step),
                    "panel": f"layer {step.layer}, step {step.step}",
                    "low": low,
                    "high": high,
                    "kind": kind,
                    "share": share / total,
                    "mean": step.weight_mean,
                }


def _histogram() -> alt.Chart:
    return (
        alt.Chart()
        .mark_bar(binSpacing=0)
        .encode(
            x=alt.X(
                "low:Q",
                bin="binned",
                title="router weight",
                axis=alt.Axis(tickCount=5, grid=False, format=NUMBER),
            ),
            x2="high:Q",
            y=alt.Y(
                "share:Q",
                title="share of tokens",
                stack=None,
                axis=alt.Axis(format=PERCENT, tickCount=4),
            ),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=[ALL_TOKENS, OF_THE_STEP], range=["#aab2bc", "#0072B2"]),
                legend=alt.Legend(title=None, symbolType="square"),
            ),
            tooltip=[
                alt.Tooltip("panel:N", title="step"),
                alt.Tooltip("low:Q", title="weight from", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                alt.Tooltip("kind:N", title="of"),
                alt.Tooltip("share:Q", title="share of all tokens", format=".1%"),
                alt.Tooltip("mean:Q", title="mean weight", format=".3f"),
            ],
        )
        .properties(width=200, height=110)
    )


def _tokens(results: Sequence[NamedResult]) -> str:
    """Return how many tokens were looked at, a range where models differ in it."""
    counts = sorted({result.data.tokens for _, result in results})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _has_weights(result: ThinkingResults) -> bool:
    return any(step.histogram is not None for step in result.steps)


def step_encodings(measured: Measured[ThinkingResults]) -> Figure | None:
    """Draw mean, spread and range of each φ over its values; None for models without."""
    encoded = [(name, result) for name, result in measured.results if result.step_encodings]
    records = [
        {
            "number": number,
            "layer": one.layer,
            "step": str(one.step),
            "mean": one.mean,
            "low": one.mean - one.std,
            "high": one.mean + one.std,
            "least": one.min,
            "greatest": one.max,
        }
        for number, (_, result) in enumerate(encoded)
        for one in result.step_encodings
    ]
    if not records:
        return None
    layers = {record["layer"] for record in records}
    spec = by_layer(_ranges(records), "encodings", records, "datum.number === 0")
    for layer in spec["spec"]["layer"]:
        layer["encoding"]["color"]["legend"] = None
    return Figure(
        "step_encodings",
        "Step encodings φ",
        "Each thinking step of a layer has a learned vector φ that scales what the step adds, "
        "value by value; they start at 1 unless a recipe says otherwise. Point: the mean of its "
        "values, thick line: one standard deviation to either side, thin line: the least to the "
        "greatest. Step 0 is the first pass. A mean above 1 strengthens a step, below 1 weakens "
        "it.",
        spec,
        {"encodings": records},
        run_control([name for name, _ in encoded]),
        [Print("step_encodings", {}, WIDE, 130, min(4, len(layers)))],
        description="Mean and range of each step encoding, a panel for each layer.",
    )


def _ranges(records: Sequence[FigureRecord]) -> alt.LayerChart:
    base = alt.Chart().encode(
        x=alt.X("step:N", title="step", axis=alt.Axis(labelAngle=0, grid=False)),
        color=step_colour(step_names(records)).copy(),
        tooltip=[
            alt.Tooltip("layer:O"),
            alt.Tooltip("step:N"),
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "least", "greatest")),
        ],
    )
    y: dict[str, Any] = {"title": "values of φ", "scale": alt.Scale(zero=False)}
    return alt.layer(
        base.mark_rule(strokeWidth=1.2, opacity=0.8).encode(
            y=alt.Y("least:Q", **y), y2="greatest:Q"
        ),
        base.mark_rule(strokeWidth=6, opacity=0.55).encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        base.mark_point(size=60, opacity=1).encode(y=alt.Y("mean:Q", **y)),
    ).properties(width=160, height=170)


def token_classes(measured: Measured[ThinkingResults]) -> Figure | None:
    """Draw which kinds of tokens take each step; None where nothing is known of kinds."""
    routed = [(name, result) for name, result in measured.results if result.steps]
    records = [one for number, (_, result) in enumerate(routed) for one in _kinds(number, result)]
    if not any(record["class"] != ALL_TOKENS for record in records):
        return None
    layers = {record["layer"] for record in records}
    found = dict.fromkeys(record["class"] for record in records)
    order = [name for name in CLASSES if name in found] + [n for n in found if n not in CLASSES]
    points = (
        alt.Chart()
        .mark_point(size=65, opacity=0.9)
        .encode(
            x=alt.X(
                "share:Q",
                title="share",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format=PERCENT, values=[0, 0.5, 1], labelFlush=True),
            ),
            y=alt.Y("class:N", sort=order, title=None, axis=alt.Axis(grid=True, labelLimit=120)),
            color=step_colour(step_names(records)),
            tooltip=[
                alt.Tooltip("class:N"),
                alt.Tooltip("layer:O"),
                alt.Tooltip("step:N"),
                alt.Tooltip("share:Q", format=".1%"),
                alt.Tooltip("tokens:Q", title="tokens of the class", format=","),
            ],
        )
        .properties(width=170, height=170)
    )
    return Figure(
        "token_classes",
        "Which tokens think",
        "The share of each kind of token that takes each extra step, on held-out text. A kind far "
        "to the right of “all tokens” is one the model thinks about longer, as far as the router's "
        "weights are not 0. Rare and frequent are counted in the same text: frequent tokens make "
        "up half of it, rare ones a tenth.",
        by_layer(points, "classes", records, "datum.number === 0"),
        {"classes": records},
        run_control([name for name, _ in routed]),
        [Print("token_classes", {}, WIDE, 130, min(4, len(layers)))],
        description="Share of tokens that take each step by kind of token, a panel for each layer.",
    )


def _kinds(number: int, result: ThinkingResults) -> Iterator[FigureRecord]:
    """Yield a record for each step and kind of token."""
    for step in result.steps:
        shares = {ALL_TOKENS: (result.data.tokens, step.share)}
        shares |= {name: (kind.tokens, kind.share) for name, kind in step.classes.items()}
        for name, (tokens, share) in shares.items():
            if share is not None and tokens:
                yield {
                    "number": number,
                    "layer": step.layer,
                    "step": str(step.step),
                    "class": name,
                    "tokens": tokens,
                    "share": share,
                }


def overlap(measured: Measured[ThinkingResults]) -> Figure | None:
    """Draw whether consecutive steps take the same tokens; None where layers have one step."""
    routed = [(name, result) for name, result in measured.results if result.steps]
    records = [one for number, (_, result) in enumerate(routed) for one in _again(number, result)]
    if not records:
        return None
    layers = {record["layer"] for record in records}
    spec = by_layer(_bars(), "overlap", records, "datum.number === 0")
    for place in (0, 1):
        spec["spec"]["layer"][place]["encoding"]["x"]["title"] = "tokens of the step"
    return Figure(
        "overlap",
        "The same tokens again?",
        "Of the tokens that take a step, how many took the layer's step before it as well (dark) "
        "and how many did not (light). The orange mark is what chance would give. Dark beyond the "
        "mark: the same tokens think on. Dark short of it: steps share the tokens out among them.",
        spec,
        {"overlap": records},
        run_control([name for name, _ in routed]),
        [Print("overlap", {}, WIDE, None, min(4, len(layers)))],
        description="Overlap of consecutive steps, a panel for each layer.",
    )


def _again(number: int, result: ThinkingResults) -> Iterator[FigureRecord]:
    """Yield, for each step with a step before it, the shares that took that one and did not."""
    shares = {(step.layer, step.step): step.share for step in result.steps}
    for step in result.steps:
        # The step before, which is an earlier one where that has the ratio 0.
        before = [at for at in shares if at[0] == step.layer and at[1] < step.step]
        chance = shares[max(before)] if before else None
        if step.overlap is None or chance is None:
            continue
        for kind, share in ((AGAIN, step.overlap), (NEW, 1 - step.overlap)):
            yield {
                "number": number,
                "layer": step.layer,
                "step": str(step.step),
                "kind": kind,
                "share": share,
                "chance": chance,
                "union": step.union,
            }


def _bars() -> alt.LayerChart:
    tips = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("step:N"),
        alt.Tooltip("kind:N", title="tokens"),
        alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("chance:Q", title="by chance", format=".1%"),
        alt.Tooltip("union:Q", title="of all tokens, took either step", format=".1%"),
    ]
    base = alt.Chart().encode(
        y=alt.Y("step:N", title="step", axis=alt.Axis(grid=False)), tooltip=tips
    )
    x: dict[str, Any] = {
        "axis": alt.Axis(format=PERCENT, values=[0, 0.5, 1], labelFlush=True),
        "title": "tokens of the step",
    }
    bars = base.mark_bar(height=18).encode(
        x=alt.X("share:Q", scale=alt.Scale(domain=[0, 1]), **x),
        color=alt.Color(
            "kind:N",
            scale=alt.Scale(domain=[AGAIN, NEW], range=["#0072B2", "#9fc9e6"]),
            legend=alt.Legend(title=None, symbolType="square"),
        ),
        order=alt.Order("kind:N", sort="descending"),
    )
    chance = base.mark_tick(thickness=2.5, size=26, color="#D55E00").encode(
        x=alt.X("chance:Q", **x)
    )
    return alt.layer(bars, chance).properties(width=170, height=alt.Step(30))
