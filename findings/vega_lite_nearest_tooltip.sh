#!/usr/bin/env bash
# Vega-Lite 6.4: with a selection of the nearest point, a tooltip's text fields are "undefined".
#
# Where `nearest` is set, a cell around each point takes the pointer, and the point is its `datum.datum`.
# Vega-Lite 6.1 compiles every field of a tooltip to `datum.datum[…]`. 6.4 does so for numbers, and reads
# texts from `datum[…]`, the cell, which has none. Seen in vl-convert-python 1.9.0.post1, which has both.
# Our report writes the tooltip of its curves as one expression instead (itt_composer/report/curves.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vl-convert-python==1.9.0.post1
"$folder/venv/bin/python" - <<'PYTHON'
import vl_convert

spec = {
    "data": {"values": [{"x": 1, "y": 2, "run": "a"}, {"x": 2, "y": 3, "run": "b"}]},
    "mark": "point",
    "params": [{"name": "near", "select": {"type": "point", "nearest": True, "on": "pointermove"}}],
    "encoding": {
        "x": {"field": "x", "type": "quantitative"},
        "y": {"field": "y", "type": "quantitative"},
        "tooltip": [
            {"field": "run", "type": "nominal"},
            {"field": "x", "type": "quantitative"},
        ],
    },
}
found = {}
for version in ("6.1", "6.4"):
    marks = vl_convert.vegalite_to_vega(spec, vl_version=version)["marks"]
    (cells,) = [mark for mark in marks if "voronoi" in mark["name"]]
    found[version] = cells["encode"]["update"]["tooltip"]["signal"]
    print(f"Vega-Lite {version}: {found[version]}")
of_point = {v: ['datum.datum["run"]' in s, 'datum.datum["x"]' in s] for v, s in found.items()}
assert of_point == {"6.1": [True, True], "6.4": [False, True]}, of_point
print("as described: in 6.4 the text is read from the cell, the number from the point")
PYTHON
