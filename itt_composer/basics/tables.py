"""Renders a table of results for a terminal, a page and a spreadsheet."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

NO_LIMIT = 10_000  # columns, where there is no terminal
GAP = "–"  # a cell without a figure


def wide_console() -> Console:
    """Return the terminal's console; without a terminal, one so wide that tables stay whole."""
    console = Console()
    if not console.is_terminal:  # a pipe has no width of its own
        console.width = NO_LIMIT
    return console


@dataclass
class Table:
    """Cells as they are shown; the first `text_columns` are text, the others figures.

    Attributes:
        title: printed above the table.
        columns: headings, which may hold line breaks, for the terminal.
        rows: one cell for each column.
        notes: sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    text_columns: int = 1
    notes: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """Print on a terminal; no column is narrowed.

        A table that is wider is printed in parts, the first columns in each; a part that is still
        wider goes on beyond the edge.
        """
        if self.title:
            console.print(f"[table.title]{escape(self.title)}[/]", highlight=False, soft_wrap=True)
        for number, part in enumerate(self._parts(console)):
            if number:
                console.print("further columns of the same rows:", highlight=False)
            table, width = self._of_columns(part), console.width
            console.width = max(width, _table_width(table, console))
            console.print(table)
            console.width = width
        for note in self.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)

    def _parts(self, console: Console) -> list[list[int]]:
        """Divide the columns, by their places, into parts that fit the console."""
        first = list(range(self.text_columns))
        if _table_width(self._of_columns(first), console) > console.width / 2:
            first = [0]
        parts, part = [], list(first)
        for place in range(len(first), len(self.columns)):
            if (
                part != first
                and _table_width(self._of_columns([*part, place]), console) > console.width
            ):
                parts.append(part)
                part = list(first)
            part.append(place)
        return [*parts, part]

    def _of_columns(self, places: Sequence[int]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for place in places:
            justify: Literal["left", "right"] = "left" if place < self.text_columns else "right"
            column = escape(self.columns[place])
            table.add_column(column, justify=justify, no_wrap=True, vertical="bottom")
        for row in self.rows:
            table.add_row(*(escape(row[place]) for place in places))
        return table

    def markdown(self) -> str:
        """Write Markdown for a page: a heading, the table, its notes."""
        rules = [":---" if place < self.text_columns else "---:" for place in self._places()]
        lines = [[_in_one_line(column) for column in self.columns], rules, *self.rows]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        return "\n\n".join([f"## {_in_one_line(self.title)}", table, *self.notes]) + "\n"

    def _places(self) -> range:
        return range(len(self.columns))


def _table_width(table: RichTable, console: Console) -> int:
    """Return the width of a table in which no column is narrowed."""
    options = console.options.update(max_width=NO_LIMIT)
    return Measurement.get(console, options, table).maximum


@dataclass
class Section:
    """A table and the same figures for programs.

    Attributes:
        name: the name of its files.
        table: the table as it is shown.
        records: flat, all with the same keys; None where there is no value.
    """

    name: str
    table: Table
    records: list[dict[str, Any]]

    def csv(self) -> str:
        """Write the records as CSV, a line each."""
        columns = list(self.records[0]) if self.records else []
        return as_csv(columns, [list(record.values()) for record in self.records])


def shown(value: float | None, digits: int, sign: str = "", missing: str = GAP) -> str:
    """Show a number with so many digits after the point.

    Args:
        value: the number; None is shown as `missing`.
        digits: after the point.
        sign: "+" shows the sign of positive numbers, too.
        missing: "–", or the empty text.
    """
    return missing if value is None else f"{value:{sign},.{digits}f}"


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write rows for a spreadsheet; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _in_one_line(text: str) -> str:
    """Join a heading of several lines; words that were divided become whole again."""
    return " ".join(text.replace("-\n", "").split())


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
