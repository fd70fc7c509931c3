"""Draws what the runs reached for their cost, and what they needed for the dense loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import altair as alt

from itt_composer.basics.errors import UserError
from itt_composer.basics.losses import perplexity
from itt_composer.basics.tables import Table
from itt_composer.paper.data_efficiency import Efficiency, data_efficiency, tokens_to_reach
from itt_composer.report import theme
from itt_composer.report.axes import (
    NUMBER,
    Look,
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
from itt_composer.report.figures import Control, Figure, Print
from itt_composer.report.runs import Run


def ends(experiments: Sequence[Experiment], units: Units) -> Figure | None:
    """Draw the validation loss at the end of each run over its cost; None for fewer than two."""
    records = [
        {
            "run": run.name,
            "experiment": experiment.label,
            **units.of(last.tokens, last.flops, last.hours),
            "loss": last.loss,
            "perplexity": perplexity(last.loss),
        }
        for experiment in experiments
        for run in experiment.runs
        if (last := run.end) is not None
    ]
    if len(records) < 2:
        return None
    ended = {record["experiment"] for record in records}
    own = {label: look for label, look in looks(experiments).items() if label in ended}
    shown = first_shown(experiments)
    if shown:
        shown += [e.label for e in experiments if is_plain_dense(e) and e.label not in shown]
    dense = dense_line(experiments, units)
    sizes = [record["geometry"] for record in dense]
    joins = len(sizes) > len(set(sizes))  # a line takes two points of one size
    joined = (
        "The dashed line joins the dense LLaMA trained for different lengths: a model below it is "
        "better than a LLaMA at the same cost, one above it is worse. "
        if joins
        else "With LLaMA runs of other lengths, a line through them shows what a dense model makes "
        "of the same cost. "
    )
    order = axis_options(units, ["layer.*.encoding.x"])
    return Figure(
        "equal_compute",
        "What it costs",
        f"{len(records)} finished runs, a point each: the validation loss at the end over the "
        "executed training FLOPs (forward and backward), the tokens or the time that went in. "
        f"{joined}"
        f"Time is of the machine that trained and of what else ran on it.{at_first(experiments)}",
        _cost_chart(own, shown, joins, units).to_dict(validate=False),
        {"dense": dense, "ends": records},
        [
            Control("x", "Over", [*order[1:], order[0]]),
            *models_control(experiments, shown),
        ],
        [
            Print(f"equal_compute_{axis.name}", {"x": place})
            for place, axis in enumerate([*units.axes[1:], units.axes[0]])
        ],
        efficiency_table(experiments),
        "Validation loss at the end of each run over FLOPs, time or tokens.",
    )


def _cost_chart(
    own: Mapping[str, Look], shown: Sequence[str], joins: bool, units: Units
) -> alt.LayerChart:
    """Draw a point for each run and, if asked, a line that joins the dense ones."""
    highlighted = highlight(shown)
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
    line = (
        alt.Chart(alt.NamedData("dense"))
        .mark_line(strokeDash=[4, 3], strokeWidth=1.2, color=theme.DENSE)
        .encode(x=x, y=y, detail="geometry:N")
    )
    points = (
        alt.Chart(alt.NamedData("ends"))
        .mark_point(size=85)
        .encode(
            x=x,
            y=y,
            color=colour(own),
            shape=forms(own).get("shape", alt.Undefined),
            opacity=when_highlighted(highlighted, 0.95, 0.1),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("loss:Q", title="validation loss", format=".4f"),
                alt.Tooltip("perplexity:Q", format=".2f"),
                *units.tooltips(),
            ],
        )
    )
    # The first layer is what the legend acts on.
    return alt.layer(points, *[line] * joins).add_params(highlighted, zoom())


def is_plain_dense(experiment: Experiment) -> bool:
    """Say whether it is the dense model with nothing changed but its length."""
    others = set(experiment.differences) - {"train.max_duration"}
    return experiment.runs[0].kind == "LLaMA" and all(key.startswith("model.") for key in others)


def dense_line(experiments: Sequence[Experiment], units: Units) -> list[dict[str, Any]]:
    """Return the mean end, over seeds, of the dense model for each length it was trained for."""
    found = []
    for experiment in experiments:
        last = [run.end for run in experiment.runs if run.end is not None]
        if not is_plain_dense(experiment) or not last:
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


def efficiency_table(experiments: Sequence[Experiment]) -> Table | None:
    """Tabulate where each experiment reaches the dense model's final loss; None without one."""
    ended = [run for one in experiments for run in one.runs if run.end is not None]
    rows, notes = [], []
    for experiment in experiments:
        pairs = [pair for run in experiment.runs for pair in _beside_dense(run, ended)]
        if not pairs:
            continue
        shares = [_shares_needed(run, dense) for run, dense, _ in pairs]
        bound = "≤ " if any(efficiency.is_bound for *_, efficiency in pairs) else ""
        seeds = len(shares) + sum(run.end is None for run in experiment.runs)
        cells = [
            share_text([share[number] for share in shares], bound, seeds) for number in range(3)
        ]
        targets = [efficiency.target for *_, efficiency in pairs]
        finals = [efficiency.final_loss for *_, efficiency in pairs]
        rows.append([experiment.label, f"{mean(targets):.4f}", f"{mean(finals):.4f}", *cells])
        for run, dense, efficiency in pairs:
            if efficiency.warnings:
                unlike = "; ".join(efficiency.warnings)
                notes.append(f"{run.name} beside {dense.name}: {unlike}.")
    if not rows:
        return None
    return Table(
        "Data efficiency: what each needs to reach the final loss of the dense LLaMA of "
        "its size, as a share of what that took (read between validations; mean over seeds)",
        ["run", "LLaMA's loss", "own loss", "tokens", "FLOPs", "time"],
        rows,
        notes=notes,
    )


def _beside_dense(run: Run, runs: Sequence[Run]) -> list[tuple[Run, Run, Efficiency]]:
    """Return (run, dense run, efficiency) with the most similar dense run, if there is one."""
    if run.kind == "LLaMA" or run.end is None:
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


def _shares_needed(run: Run, dense: Run) -> list[float | None]:
    """Return tokens, FLOPs and time to the dense run's final loss, as shares of its own.

    None means never, NaN that it was not logged.
    """
    end = dense.end
    assert end is not None
    found: list[float | None] = []
    for name in ("tokens", "flops", "hours"):
        curve = [(asdict(one)[name], one.loss) for one in run.validations]
        needed, whole = tokens_to_reach(curve, end.loss), getattr(end, name)
        found.append(None if needed is None else needed / whole if whole else math.nan)
    return found


def share_text(shares: Sequence[float | None], bound: str, seeds: int) -> str:
    """Show the mean of the shares that were reached, and of how many seeds it is."""
    reached = [share for share in shares if share is not None]
    if not reached:
        return "not reached"
    if any(math.isnan(share) for share in reached):
        return "–"  # nobody took the time
    text = f"{bound}{100 * mean(reached):.0f} %"
    return text if len(reached) == seeds else f"{text} ({len(reached)} of {seeds})"
