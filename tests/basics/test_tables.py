"""Tables of results: their cells are text, and none is cut off, whatever the terminal's width."""

import io

import pytest
from rich.console import Console

from itt_composer.basics.tables import Table


def printed(table, width):
    out = io.StringIO()
    table.print(Console(file=out, width=width))
    return out.getvalue()


def test_brackets_in_a_cell_are_shown_as_they_are():
    table = Table("runs [/all]", ["model"], [["LLaMA (runs [/old])"], ["a [x4] b"]])
    for text in ("runs [/all]", "LLaMA (runs [/old])", "a [x4] b"):
        assert text in printed(table, 80)


NAMES = ["itt_x4_162m_without_step_encoding", "llama_162m"]


def wide(figures=12):
    columns = ["model", *(f"figure\n{number}" for number in range(figures))]
    rows = [[name, *(f"{1000 + number}.25" for number in range(figures))] for name in NAMES]
    return Table("A title of some length, " * 5, columns, rows, notes=["a note"])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_wider_than_the_terminal_comes_in_parts_with_its_first_column_whole(width):
    title, *lines = printed(wide(), width).splitlines()
    assert title.strip() == wide().title.strip()
    assert max(map(len, lines)) <= width
    for name in NAMES:
        rows = [line for line in lines if line.startswith(f" {name} ")]
        cells = [cell for row in rows for cell in row.split()[1:]]
        assert cells == [f"{1000 + number}.25" for number in range(12)]
    parts = len(rows)
    assert parts > 1
    assert lines.count("further columns of the same rows:") == parts - 1
    assert lines[-1] == "a note"


def test_a_table_that_fits_is_whole_and_one_that_cannot_be_parted_goes_on_beyond_the_edge():
    assert "further columns" not in printed(wide(), 200)
    lines = printed(wide(1), 30).splitlines()
    assert f" {NAMES[0]}  1000.25 " in lines
