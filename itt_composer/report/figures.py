"""Figures of the report: a Vega-Lite chart, its data, its controls and its caption.

The page and the PNG share one specification. A control's choice is a set of changes to it, which
the page makes in the browser and `png` makes here.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itt_composer.basics.files import whole_file
from itt_composer.basics.tables import Table
from itt_composer.report import theme

DIGITS = 5  # of numbers on the page
# Of a PNG: a column of a paper is about 3.3 inches wide, two are 7.
NARROW, WIDE = 300, 620
SCALE = 4.0
LETTER, SYMBOL = 6.0, 34  # pixels of a legend's letter and of what stands before and after

Changes = Mapping[str, Any]


@dataclass
class Option:
    """A choice of a control; `changes` are new values by place, like `layer.0.mark.opacity`.

    `*` in a place stands for every part of a list; a place that is not there stays so.
    """

    label: str
    changes: Changes


@dataclass
class Control:
    """A choice above a figure; the first option is taken until another is chosen."""

    name: str
    label: str
    options: list[Option]


@dataclass
class Print:
    """A PNG of a figure: what is chosen, by the names of controls and numbers of options."""

    name: str
    choices: Mapping[str, int] = field(default_factory=dict)
    width: int = NARROW
    height: int | None = None
    columns: int | None = None
    title: str | None = None


@dataclass
class Figure:
    """A chart of the page.

    Attributes:
        name: for links and files.
        title: of its section.
        caption: explains to a reader new to the paper what is plotted and what to look for.
        spec: of Vega-Lite, its data by name.
        data: by name, records that all have the same keys.
        controls: in order.
        prints: the PNGs.
        table: to stand below it, or None.
        description: for those who cannot see it.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    data: dict[str, list[dict[str, Any]]]
    controls: list[Control] = field(default_factory=list)
    prints: list[Print] = field(default_factory=list)
    table: Table | None = None
    description: str = ""


def prints_of(figure: Figure) -> list[Print]:
    """Return all PNGs of a figure; where it shows one model, one for each model, with its name."""
    models = next((one.options for one in figure.controls if one.name == "run"), [])
    if not models:
        return list(figure.prints)
    return [
        replace(
            wanted,
            name=f"{wanted.name}_{number + 1}",
            choices={**wanted.choices, "run": number},
            title=model.label,
        )
        for wanted in figure.prints
        for number, model in enumerate(models)
    ]


def packed(figure: Figure) -> dict[str, Any]:
    """Return what the page's script draws the figure from."""
    return {
        "name": figure.name,
        "spec": {key: part for key, part in figure.spec.items() if key != "$schema"},
        "data": {name: pack(records) for name, records in figure.data.items()},
        "controls": [
            {
                "name": control.name,
                "label": control.label,
                "options": [vars(option) for option in control.options],
            }
            for control in figure.controls
        ],
        "description": figure.description or figure.title,
    }


def pack(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pack records by column, with each text once and numbers of five digits."""
    columns: dict[str, Any] = {}
    for name in records[0] if records else ():
        values = [record[name] for record in records]
        if all(isinstance(value, str) for value in values):
            texts = list(dict.fromkeys(values))
            places = {text: place for place, text in enumerate(texts)}
            columns[name] = {"texts": texts, "places": [places[value] for value in values]}
        else:
            columns[name] = {"values": [rounded(value) for value in values]}
    return {"count": len(records), "columns": columns}


def rounded(value: Any) -> Any:
    """Round a number as the page holds it; return other values as they are."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    if value != value or value in (float("inf"), float("-inf")):
        return None  # JSON has no such numbers
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def changed(spec: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Return a copy of a specification with other values in some places."""
    spec = copy.deepcopy(spec)
    for place, value in changes.items():
        _set(spec, place.split("."), value)
    return spec


def _set(part: Any, place: list[str], value: Any) -> None:
    if isinstance(part, list):
        numbers = range(len(part)) if place[0] == "*" else [int(place[0])]
        for number in numbers:
            if len(place) == 1:
                part[number] = value
            elif number < len(part):
                _set(part[number], place[1:], value)
    elif isinstance(part, dict):
        if len(place) == 1:
            part[place[0]] = value
        elif place[0] in part:
            _set(part[place[0]], place[1:], value)


def png(figure: Figure, wanted: Print, path: Path) -> None:
    """Draw a figure for print, without a browser."""
    import vl_convert

    spec = print_spec(figure, wanted)
    image = vl_convert.vegalite_to_png(json.dumps(spec), scale=SCALE)
    with whole_file(path) as partial:
        partial.write_bytes(image)


def print_spec(figure: Figure, wanted: Print) -> dict[str, Any]:
    """Make a whole specification, with its data, in the size for print."""
    spec = figure.spec
    for control in figure.controls:
        spec = changed(spec, control.options[wanted.choices.get(control.name, 0)].changes)
    spec = copy.deepcopy(spec)
    if "facet" in spec:
        columns = wanted.columns or spec.get("columns", 1)
        spec["columns"] = columns
        spec["spec"] |= {"width": wanted.width // columns - 28}
        if wanted.height:
            spec["spec"]["height"] = wanted.height
    else:
        spec |= {"width": wanted.width, "height": wanted.height or round(wanted.width * 0.68)}
    if wanted.title:
        spec["title"] = wanted.title
    spec["datasets"] = {
        name: [{key: rounded(value) for key, value in record.items()} for record in records]
        for name, records in figure.data.items()
    }
    spec["config"] = theme.print_config()
    longest = max([len(text) for text in _texts_of_scales(spec)], default=1)
    spec["config"]["legend"] |= {
        "columns": max(1, wanted.width // round(LETTER * longest + SYMBOL)),
        "layout": {"top": {"anchor": "start", "direction": "vertical"}},
    }
    return spec


def _texts_of_scales(part: Any) -> list[str]:
    """Return the texts that legends show."""
    if isinstance(part, list):
        return [text for one in part for text in _texts_of_scales(one)]
    if not isinstance(part, dict):
        return []
    found = [text for text in part.get("domain") or () if isinstance(text, str)]
    return found + [
        text for name in part if name != "datasets" for text in _texts_of_scales(part[name])
    ]
