"""Draws nuclear norms of the gradients of easy problems and of hard ones."""

from collections.abc import Iterator
from typing import Any

import altair as alt

from itt_composer.report.figures import WIDE, Figure, Print
from itt_composer.report.measured import Measured
from itt_composer.results.gradients import GradientResults

BETWEEN = " · "  # projection and model, which stand in two lines


def gradients(measured: Measured[GradientResults]) -> Figure | None:
    """Draw the norms over layers, easy problems against hard ones; None without results."""
    records = [one for name, result in measured.results for one in _norm_records(name, result)]
    if not records:
        return None
    columns = max(len(result.projections) for _, result in measured.results)
    panels = list(dict.fromkeys(record["panel"] for record in records))
    header = alt.Header(labelExpr=f"split(datum.label, '{BETWEEN}')", labelLimit=190)
    spec = (
        _panel()
        .facet(
            facet=alt.Facet("panel:N", title=None, sort=panels, header=header),
            columns=columns,
            data=alt.NamedData("gradients"),
        )
        .to_dict(validate=False)
    )
    counts = "; ".join(
        f"{name}: {result.easy.problems} and {result.hard.problems}, "
        f"{100 * result.problems.accuracy:.0f} % right, "
        f"{100 * result.problems.chance:.0f} % by chance"
        for name, result in measured.results
    )
    return Figure(
        "gradients",
        "Where hard problems pull",
        "The nuclear norm (sum of singular values) of the loss gradient of each attention "
        "projection (q, k, v, o), layer by layer: how much the model would have to change there "
        "for a problem. Easy problems are those it answers rightly, hard ones those it does not "
        f"({counts}); where it answers as chance does, that sets little apart. Lines are means, "
        "bands one standard deviation. "
        "Layers are counted from 0. The paper's motivation is that hard problems cause spikes in "
        "some layers, which easy ones do not, so that depth is worth spending there.",
        spec,
        {"gradients": records},
        [],
        [Print("gradients", {}, WIDE, 120, columns)],
        description="Gradient nuclear norm over layers, easy against hard problems.",
    )


def _panel() -> alt.LayerChart:
    """Draw the means as lines with points, and bands of one standard deviation."""
    base = alt.Chart().encode(
        x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
        color=alt.Color(
            "kind:N",
            scale=alt.Scale(domain=["easy", "hard"], range=["#0072B2", "#D55E00"]),
            legend=alt.Legend(title="problems"),
        ),
    )
    title = "gradient nuclear norm"
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=title), y2="high:Q")
    line = base.mark_line(strokeWidth=1.6).encode(y=alt.Y("mean:Q", title=title))
    points = base.mark_point(size=46).encode(
        y=alt.Y("mean:Q", title=title),
        tooltip=[
            alt.Tooltip("panel:N", title="projection"),
            alt.Tooltip("layer:Q"),
            alt.Tooltip("kind:N", title="problems"),
            alt.Tooltip("mean:Q", format=".3f"),
            alt.Tooltip("thinks:N", title="thinking layer"),
        ],
    )
    return alt.layer(band, line, points).properties(width=170, height=150)


def _norm_records(name: str, result: GradientResults) -> Iterator[dict[str, Any]]:
    """Yield a record for each projection, kind of problem and layer."""
    for projection in result.projections:
        for kind, group in (("easy", result.easy), ("hard", result.hard)):
            norms = zip(result.layers, group.mean[projection], group.std[projection], strict=True)
            for layer, mean, std in norms:
                if mean is None:
                    continue
                yield {
                    "panel": f"{projection}{BETWEEN}{name}",
                    "layer": layer,
                    "kind": kind,
                    "mean": mean,
                    "low": max(0.0, mean - (std or 0)),
                    "high": mean + (std or 0),
                    "thinks": layer in result.thinking_layers,
                }
