"""Tables of results: their cells are text, whatever stands in them."""

import io

from rich.console import Console

from eval.rendering import Table


def test_brackets_in_a_cell_are_shown_as_they_are():
    out = io.StringIO()
    Table("runs [/all]", ["model"], [["LLaMA (runs [/old])"], ["a [x4] b"]]).print(
        Console(file=out, width=80)
    )
    for text in ("runs [/all]", "LLaMA (runs [/old])", "a [x4] b"):
        assert text in out.getvalue()
