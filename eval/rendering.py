"""A table of results for a terminal, a page and a spreadsheet."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

LEAST_WIDTH = 160  # of what is printed where there is no terminal


def wide_console() -> Console:
    """Of the terminal, or where there is none wide enough that nothing is cut off."""
    console = Console()
    if not console.is_terminal:  # a pipe has no width of its own
        console.width = LEAST_WIDTH
    return console


@dataclass
class Table:
    """Cells as they are shown; the first `text_columns` are text, the others figures.

    Attributes:
        title: above the table.
        columns: may hold line breaks, for the terminal.
        rows: as many cells each as there are columns.
        notes: sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    text_columns: int = 1
    notes: list[str] = field(default_factory=list)

    def print(self, console: Console) -> None:
        """For a terminal."""
        table = RichTable(
            title=escape(self.title),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        for number, column in enumerate(self.columns):
            is_text = number < self.text_columns
            table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)

    def markdown(self) -> str:
        """For a page: a heading, the table, its notes."""
        rules = [":---" if place < self.text_columns else "---:" for place in self._places()]
        lines = [[_in_one_line(column) for column in self.columns], rules, *self.rows]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        return "\n\n".join([f"## {_in_one_line(self.title)}", table, *self.notes]) + "\n"

    def _places(self) -> range:
        return range(len(self.columns))


@dataclass
class Section:
    """A table and the same figures for programs.

    Attributes:
        name: of its files.
        table: as it is shown.
        records: flat and all of the same keys; None where there is nothing.
    """

    name: str
    table: Table
    records: list[dict[str, Any]]

    def csv(self) -> str:
        """The records, a line each."""
        columns = list(self.records[0]) if self.records else []
        return as_csv(columns, [list(record.values()) for record in self.records])


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """For a spreadsheet: None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _in_one_line(text: str) -> str:
    """A heading of several lines; a part that was divided is put together again."""
    return " ".join(text.replace("-\n", "").split())


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
