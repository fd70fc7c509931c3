"""Draws perplexity over FLOPs for every setting that models were measured at."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from itt_composer.report.axes import NUMBER, Look, colour, looks_of, zoom
from itt_composer.report.curves import ALIKE
from itt_composer.report.experiments import Experiment
from itt_composer.report.figures import Control, Figure, Option, Print
from itt_composer.report.labels import PLACES, placed
from itt_composer.report.measured import Measured
from itt_composer.results.perplexity import PerplexityResults
from itt_composer.results.perplexity_report import RULES, mean_shares, percentages

ALONE = "all tokens, no router"
MOST_NAMES = 8  # more would cover each other; the pointer shows all
FORMS_OF_RULES = {"top-k": "circle", "threshold": "diamond", "top-p": "square"}
CAPTION = (
    "Each point is one trained model, measured after training (on all held-out rows unless the "
    "suite took fewer: not those of the summary above) with the ratios of its "
    "thinking steps set anew, without any training: 50/50/50 lets half of the tokens take "
    "each of the three extra steps, 0/0/0 none (left out until it is asked for above). To the "
    "right costs more per token, lower is better. Top-k picks tokens by looking at the whole "
    "text; thresholds decide token by token, as when text is generated, and a line joins the "
    "same ratios by both rules. "
    "Look for a slope that falls to the right, and for thresholds that stay close to top-k. "
)
Perplexities = Measured[PerplexityResults]
Records = list[dict[str, Any]]


def figure(measured: Perplexities, experiments: Sequence[Experiment]) -> Figure | None:
    """Draw models at several settings in one figure; None if there is none.

    Args:
        measured: perplexities.
        experiments: of the page, whose colours their models have here as well.
    """
    drawn = _drawn(measured)
    if not drawn:
        return None
    records = [record for records in drawn.values() for record in records]
    labels = list(dict.fromkeys(record["experiment"] for record in records))
    routed = {record["experiment"] for record in records if record["rule"] != ALONE}
    for record in records:
        record["named"] &= len(routed) == 1 or record["rule"] == ALONE
        record["number"] = labels.index(record["experiment"])
    _place_names(records)
    chart = _elastic_chart(records, colour(_looks(measured, labels, experiments)))
    has_dense = any(record["rule"] == ALONE for record in records)
    return Figure(
        "elastic",
        "More or less thinking after training",
        CAPTION
        + ("A model without a router stands beside them." if has_dense else "")
        + _covered(records),
        chart.to_dict(validate=False),
        {"settings": records},
        [*_models_control(labels, routed), *_controls()],
        [Print("elastic_executed"), Print("elastic_paper", {"x": 1})],
        description="Perplexity over FLOPs per token for every setting of the ratios.",
    )


def _elastic_chart(records: Records, colours: alt.Color) -> alt.LayerChart:
    """Draw a point for each setting, a line between the rules, and the names that find room."""
    x = alt.X(
        "executed:Q",
        title=_title("executed"),
        scale=alt.Scale(zero=False, padding=24),
        axis=alt.Axis(format=NUMBER, grid=False, tickCount=7),
    )
    y = alt.Y("perplexity:Q", scale=alt.Scale(zero=False, padding=18), axis=alt.Axis(tickCount=6))
    base = alt.Chart(alt.NamedData("settings")).encode(x=x, y=y)
    ties = base.mark_line(strokeWidth=1, opacity=0.5).encode(color=colours, detail="key:N")
    points = base.mark_point(size=70, opacity=0.9).encode(
        color=colours,
        shape=_shapes(list(dict.fromkeys(record["rule"] for record in records))),
        tooltip=[
            alt.Tooltip("experiment:N", title="model"),
            alt.Tooltip("ratios:N", title="ratios, %"),
            alt.Tooltip("rule:N"),
            alt.Tooltip("shares:N", title="took each step, %"),
            alt.Tooltip("perplexity:Q", format=".2f"),
            alt.Tooltip("executed:Q", title="executed MFLOPs per token", format=",.2f"),
            alt.Tooltip("paper:Q", title="paper's MFLOPs per token", format=",.2f"),
        ],
    )
    names = (
        base.transform_filter("datum.named")
        .mark_text(
            dx=alt.ExprRef("datum.dx"),
            dy=alt.ExprRef("datum.dy"),
            align=alt.ExprRef("datum.align"),
            baseline="middle",
            fontSize=10,
        )
        .encode(text="ratios:N")
    )
    layers = [ties, points] + [names] * any(record["named"] for record in records)
    chart = alt.layer(*layers).add_params(zoom())
    return chart.transform_filter("datum.thinks").transform_filter("true")


def _shapes(rules: Sequence[str]) -> alt.Shape:
    forms = [FORMS_OF_RULES.get(rule, "triangle-up") for rule in rules]
    return alt.Shape(
        "rule:N",
        scale=alt.Scale(domain=list(rules), range=forms),
        legend=alt.Legend(title="rule"),
    )


def _controls() -> list[Control]:
    """Make the choices of the FLOPs' count, and of settings at which no step is taken."""
    places = "layer.*.encoding.x"
    counts = [
        Option(name, {f"{places}.field": key, f"{places}.title": _title(key)})
        for key, name in (("executed", "executed FLOPs"), ("paper", "FLOPs as the paper counts"))
    ]
    settings = [
        Option("that think", {}),
        Option("all, 0/0/0 too", {"transform.0.filter": "true"}),
    ]
    return [Control("x", "Over", counts), Control("settings", "Settings", settings)]


def _drawn(measured: Perplexities) -> dict[str, Records]:
    """Return the records of the figure by model; empty where no model has several settings.

    Models without a router stand beside them; other models need three settings or more.
    """
    every = {name: records_of(name, result) for name, result in measured.results}
    every = {name: records for name, records in every.items() if records}
    alone = {n: found for n, found in every.items() if all(r["rule"] == ALONE for r in found)}
    several = {n: found for n, found in every.items() if len(found) > 2 and n not in alone}
    return {**alone, **several} if several else {}


def not_drawn(measured: Perplexities) -> list[str]:
    """Write a sentence for each model that the figure leaves out, with its perplexities."""
    drawn, sentences = _drawn(measured), []
    for name, result in measured.results:
        if name in drawn:
            continue
        figures = ", ".join(
            f"{setting.perplexity:.2f} at {percentages(setting.select_ratios)} by "
            f"{RULES.get(setting.router_selection or '', ALONE)}"
            for setting in result.settings
        )
        sentences.append(
            f"the perplexities of {name} are in no figure, which needs FLOPs and a model with a "
            f"router at three settings or more: {figures}"
        )
    return sentences


def _models_control(labels: Sequence[str], routed: set[str]) -> list[Control]:
    """Make the choice of the sweep, as seeds share a colour; others than sweeps always show."""
    alone = [number for number, label in enumerate(labels) if label not in routed]
    options = [Option("all", {"transform.1.filter": "true"})]
    for number, label in enumerate(labels):
        if label in routed:
            shown = {"field": "number", "oneOf": [*alone, number]}
            options.append(Option(label, {"transform.1.filter": shown}))
    return [Control("model", "Model", options)] if len(routed) > 1 else []


def records_of(name: str, result: PerplexityResults) -> Records:
    """Make a record for each setting whose FLOPs are known; one that stands twice is one."""
    found: dict[tuple, dict[str, Any]] = {}
    for setting in result.settings:
        executed, paper = setting.executed_flops_per_token, setting.paper_flops_per_token
        if executed is None or paper is None:
            continue
        ratios = percentages(setting.select_ratios)
        rule = RULES.get(setting.router_selection or "", ALONE)
        if setting.early_exit:
            rule += f", early exit at {setting.early_exit:g}"
        exact = tuple(setting.select_ratios)
        found[exact, rule] = {
            "experiment": name,
            "key": f"{name} {exact}",
            "ratios": name if ratios == "–" else ratios,
            "rule": rule,
            "shares": percentages(mean_shares(setting)),
            "perplexity": setting.perplexity,
            "executed": executed / 1e6,
            "paper": paper / 1e6,
            "named": False,
            "thinks": rule == ALONE or any(exact),
        }
    records = list(found.values())
    first: Sequence[dict] = [one for one in records if one["rule"] == records[0]["rule"]]
    for record in first:
        record["named"] = len(first) <= MOST_NAMES
    return records


def _covered(records: Sequence[dict[str, Any]]) -> str:
    """Write a sentence on ratios whose points lie on one another, whatever the rule."""
    shown = [record for record in records if record["thinks"]]
    by_ratios: dict[str, list[float]] = {}
    for record in shown:
        by_ratios.setdefault(record["key"], []).append(record["perplexity"])
    values = [record["perplexity"] for record in shown]
    most = ALIKE * (max(values, default=0.0) - min(values, default=0.0))
    close = [
        1 for found in by_ratios.values() if len(found) > 1 and max(found) - min(found) <= most
    ]
    if not close:
        return ""
    return (
        f" Of {len(close)} of {len(by_ratios)} settings the points of two rules lie on one "
        "another; zoom in, and the pointer shows both."
    )


def _place_names(records: Sequence[dict[str, Any]]) -> None:
    """Note on which side of its point each name stands; leave out one that finds no room."""
    shown = [at for at, record in enumerate(records) if record["thinks"]]
    views = [
        {at: (records[at][count], records[at]["perplexity"]) for at in view}
        for view in (range(len(records)), shown)
        for count in ("executed", "paper")
    ]
    names = {at: one["ratios"] for at, one in enumerate(records) if one["named"]}
    found = placed(names, views)
    for at, record in enumerate(records):
        record["named"] = at in found
        record |= found.get(at, PLACES[0])._asdict()


def _looks(
    measured: Perplexities, names: Sequence[str], experiments: Sequence[Experiment]
) -> dict[str, Look]:
    """Return the looks that models have on the whole page, then those of models from elsewhere."""
    labels = {run.name: one.label for one in experiments for run in one.runs}
    results = dict(measured.results)
    others = [name for name in names if name not in labels]
    are_dense = {one.label: one.runs[0].is_dense for one in experiments}
    are_dense |= {name: results[name].model.thinking == "dense" for name in others}
    found = looks_of(are_dense)
    return {name: found[labels.get(name, name)] for name in names}


def _title(count: str) -> str:
    how = {"executed": "executed", "paper": "as the paper counts them"}[count]
    return f"MFLOPs per token of a forward pass, {how}"
