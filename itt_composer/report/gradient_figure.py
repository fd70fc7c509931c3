"""Nuclear norms of the gradients of easy problems and of hard ones."""

import altair as alt

from itt_composer.report.figures import WIDE, Figure, Print
from itt_composer.report.measured import Measured

BETWEEN = " · "  # projection and model, which stand in two lines


def gradients(measured: Measured) -> Figure | None:
    """Nuclear norms of gradients over layers, easy problems against hard ones."""
    records = []
    for name, result in measured.results:
        for projection in result["projections"]:
            for kind in ("easy", "hard"):
                means, spreads = (result[kind][key].get(projection) for key in ("mean", "std"))
                if not means or not result[kind]["problems"]:
                    continue
                for layer, mean, std in zip(result["layers"], means, spreads, strict=True):
                    if mean is None:
                        continue
                    records.append(
                        {
                            "panel": f"{projection}{BETWEEN}{name}",
                            "layer": layer,
                            "kind": kind,
                            "mean": mean,
                            "low": max(0.0, mean - (std or 0)),
                            "high": mean + (std or 0),
                            "thinks": layer in result.get("thinking_layers", []),
                        }
                    )
    if not records:
        return None
    panels = list(dict.fromkeys(record["panel"] for record in records))
    columns = max(len(result["projections"]) for _, result in measured.results)
    kinds = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=["easy", "hard"], range=["#0072B2", "#D55E00"]),
        legend=alt.Legend(title="problems"),
    )
    base = alt.Chart().encode(
        x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
        color=kinds,
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
    spec = (
        alt.layer(band, line, points)
        .properties(width=170, height=150)
        .facet(
            facet=alt.Facet(
                "panel:N",
                title=None,
                sort=panels,
                header=alt.Header(labelExpr=f"split(datum.label, '{BETWEEN}')", labelLimit=190),
            ),
            columns=columns,
            data=alt.NamedData("gradients"),
        )
        .to_dict(validate=False)
    )
    counts = "; ".join(
        f"{name}: {result['easy']['problems']} and {result['hard']['problems']}, "
        f"{100 * result['problems']['accuracy']:.0f} % right, "
        f"{100 * result['problems']['chance']:.0f} % by chance"
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
