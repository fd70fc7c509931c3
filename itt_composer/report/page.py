"""Renders the page: one HTML file with its data, its figures and all that draws them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from itt_composer.report import theme
from itt_composer.report.figures import Figure, packed
from itt_composer.report.summary import Summary

TEMPLATES = Path(__file__).with_name("page")


@dataclass
class Page:
    """The content of the page.

    Attributes:
        title: of the page.
        runs: their number.
        summary: the table of experiments.
        figures: in order.
        maps: data of the routing map, see `routing_map.content`.
        map_caption: below the map.
        warnings: sentences on what does not compare.
        missing: (what has not been measured, the command that measures it).
    """

    title: str
    runs: int
    summary: Summary
    figures: Sequence[Figure]
    maps: Sequence[dict[str, Any]] = ()
    map_caption: str = ""
    warnings: Sequence[str] = ()
    missing: Sequence[tuple[str, str]] = field(default_factory=list)


def render(page: Page) -> str:
    """Render the whole file, which loads nothing from anywhere."""
    import vl_convert

    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    data = {
        "figures": [packed(figure) for figure in page.figures],
        "maps": list(page.maps),
        "dark": dict(zip(theme.LIGHT, theme.DARK, strict=True)),
        "config": {"light": theme.config(), "dark": theme.config(is_dark=True)},
    }
    return environment.get_template("page.html").render(
        page=page,
        style=_as_is(TEMPLATES / "page.css"),
        script=_as_is(TEMPLATES / "page.js"),
        library=Markup(library.replace("</script", "<\\/script")),
        data=Markup(as_script(data)),
    )


def as_script(data: Any) -> str:
    """Write JSON in which no text can end the script element around it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _as_is(file: Path) -> Markup:
    return Markup(file.read_text(encoding="utf-8"))
