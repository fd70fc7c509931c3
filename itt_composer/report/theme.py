"""Sets how figures look on a light page, on a dark one and in print."""

from typing import Any

# Colours that stay apart for every kind of eyesight (Okabe and Ito), the first one, grey, for dense
# models alone; where a colour returns, lines and points take another form.
LIGHT = ("#474d55", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DARK = ("#c3c8cf", "#3d9fe0", "#f0803c", "#1fc095", "#e09cc4", "#8fd0f5", "#f0b63c")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 5])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DENSE = LIGHT[0]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
PRINT_FONT = "DejaVu Sans, sans-serif"


def config(is_dark: bool = False, font: str = FONT) -> dict[str, Any]:
    """Return Vega-Lite's configuration."""
    text, faint, grid = (
        ("#e4e7eb", "#9aa3ad", "#2b3138") if is_dark else ("#1c2127", "#5b6470", "#e8eaed")
    )
    colours = list(DARK if is_dark else LIGHT)
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": faint,
            "titleColor": text,
            "gridColor": grid,
            "domainColor": faint,
            "tickColor": faint,
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelFlush": False,
            "tickSize": 4,
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "axisQuantitative": {"labelOverlap": "greedy", "labelSeparation": 10},
        "legend": {
            "labelColor": text,
            "titleColor": faint,
            "labelFontSize": 11.5,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "orient": "top",
            "direction": "horizontal",
            "labelLimit": 320,
            "symbolLimit": 0,
            "columnPadding": 18,
            "rowPadding": 3,
            "offset": 12,
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
            "symbolBaseFillColor": faint,
            "symbolBaseStrokeColor": faint,
        },
        "header": {
            "labelColor": text,
            "titleColor": faint,
            "labelFontSize": 11.5,
            "labelFontWeight": "normal",
            "titleFontWeight": "normal",
        },
        "text": {"color": faint, "fontSize": 10.5},
        "rule": {"color": faint},
        "range": {"category": colours},
        "line": {"strokeWidth": 1.8, "strokeJoin": "round", "strokeCap": "butt"},
        "point": {"filled": True, "size": 42},
    }


def print_config() -> dict[str, Any]:
    """Return the configuration for figures of a paper: light, on white."""
    return {**config(font=PRINT_FONT), "background": "white"}
