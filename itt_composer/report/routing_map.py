"""Draws the routing map: a text with each token shaded by the thinking steps it took."""

import math
import unicodedata
from typing import Any

import altair as alt

from itt_composer.report.figures import Figure, Print
from itt_composer.report.measured import Measured
from itt_composer.results.thinking import ShownText, ThinkingResults

MAP_DIGITS = 3
# Of the print, in characters and pixels.
LINE_LENGTH, MOST_LINES, CHARACTER, LINE_HEIGHT = 84, 22, 6.0, 17
NEWLINE = "⏎"
CAPTION = (
    "A held-out document, or a text that was given, token by token. The stronger its shade, the "
    "more extra thinking steps a token took; one of weight 0 counts, but changes nothing. Choose a "
    "layer and a step to see that choice alone, shaded by the router's weight. Point at a token, "
    "tap it or move with the arrow keys to see its weight in every layer and step; "
    f"{NEWLINE} is a line break, ⇥ a "
    "tab, ∅ a token without a text of its own, such as the first bytes of a character."
)


def content(measured: Measured[ThinkingResults]) -> list[dict[str, Any]]:
    """Return what the page's script draws the map from: every model with its texts."""
    return [
        {"name": name, "texts": [_text(text) for text in result.texts]}
        for name, result in measured.results
        if any(text.steps for text in result.texts)
    ]


def _text(text: ShownText) -> dict[str, Any]:
    steps = [
        {
            "layer": step.layer,
            "step": step.step,
            "weights": [_short(weight) for weight in step.weights or []],
            "selected": step.selected,
        }
        for step in text.steps
    ]
    return {"name": text.name, "tokens": text.tokens, "steps": steps}


def _short(weight: float) -> float | None:
    return round(weight, MAP_DIGITS) if math.isfinite(weight) else None


def for_print(measured: Measured[ThinkingResults]) -> list[Figure]:
    """Draw, for PNG, the first printable text of every model, as far as it fits."""
    return [
        _figure(number, name, text)
        for number, (name, result) in enumerate(measured.results, start=1)
        for text in [text for text in result.texts if _is_printable(text)][:1]
    ]


def unprinted(measured: Measured[ThinkingResults]) -> list[str]:
    """Write a sentence for each model without a PNG, as lines are laid out from left to right."""
    return [
        f"{name} has no routing map as PNG: its texts have letters that are written from right to "
        "left; the page shows them"
        for name, result in measured.results
        if any(text.steps for text in result.texts)
        and not any(_is_printable(text) for text in result.texts)
    ]


def _is_printable(text: ShownText) -> bool:
    letters = {unicodedata.bidirectional(letter) for token in text.tokens for letter in token}
    return bool(text.steps and letters) and not letters & {"R", "AL"}


def _figure(number: int, name: str, text: ShownText) -> Figure:
    taken = [sum(values) for values in zip(*(step.selected for step in text.steps), strict=True)]
    records = laid_out(text.tokens, taken)
    lines = 1 + max(record["line"] for record in records)
    most = len(text.steps)
    base = alt.Chart(alt.NamedData("tokens")).encode(
        x=alt.X("start:Q", axis=None, scale=alt.Scale(domain=[0, LINE_LENGTH], nice=False)),
    )
    boxes = base.mark_rect(height=LINE_HEIGHT - 3, cornerRadius=2).encode(
        x2="end:Q",
        y=alt.Y("line:O", axis=None),
        color=alt.Color(
            "steps:Q",
            scale=alt.Scale(domain=[0, most], range=["#ffffff", "#56B4E9"], interpolate="rgb"),
            legend=alt.Legend(
                title=f"extra steps taken (of {most})",
                format="d",
                tickMinStep=1,
                gradientLength=160,
            ),
        ),
    )
    words = base.mark_text(
        align="left", font="DejaVu Sans Mono", fontSize=9.6, color="#111"
    ).encode(x="word:Q", y=alt.Y("line:O", axis=None), text="text:N")
    return Figure(
        "routing_map",
        name,
        CAPTION,
        alt.layer(boxes, words).to_dict(validate=False),
        {"tokens": records},
        prints=[
            Print(
                f"routing_map_{number}",
                {},
                round(LINE_LENGTH * CHARACTER),
                lines * LINE_HEIGHT,
                title=name,
            )
        ],
    )


def laid_out(tokens: list[str], steps: list[int]) -> list[dict[str, Any]]:
    """Lay tokens out in lines of equal characters; a line break ends a line."""
    found: list[dict[str, Any]] = []
    line = column = 0
    for token, taken in zip(tokens, steps, strict=True):
        shown = token.replace("\n", NEWLINE).replace("\t", "  ")
        for part in _parts(shown):
            if column and column + columns_of(part) > LINE_LENGTH:
                line, column = line + 1, 0
            if line >= MOST_LINES:
                return found
            # Texts are drawn without the spaces at their ends.
            word, end = column + len(part) - len(part.lstrip()), column + columns_of(part)
            place = {"line": line, "start": column, "word": word, "end": end}
            found.append({**place, "text": part, "steps": taken})
            column = end
        if "\n" in token:
            line, column = line + 1, 0
    return found


def _parts(text: str) -> list[str]:
    """Divide a text into parts that a line has room for; an empty one into none."""
    parts: list[str] = []
    for letter in text:
        if not parts or columns_of(parts[-1] + letter) > LINE_LENGTH:
            parts.append("")
        parts[-1] += letter
    return parts


def columns_of(text: str) -> int:
    """Return how many columns a text takes: two for a wide letter, none for a combining mark."""
    marks = ("Mn", "Me", "Cf")
    letters = [letter for letter in text if unicodedata.category(letter) not in marks]
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in letters)
