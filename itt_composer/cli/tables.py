"""`itt tables RESULTS…`: the paper's tables from result files, ours beside its own.

Table 1 comes from results of task suites, Tables 2 and 3 from perplexity results, data efficiency
from the loss logs of runs. Cells that no result covers are marked.
"""

import re
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.basics.files import write_json, write_whole
from itt_composer.basics.tables import Section, wide_console
from itt_composer.paper import (
    ablation_table,
    accuracy_table,
    data_efficiency,
    elastic_table,
    perplexity_table,
)
from itt_composer.paper import figures as paper
from itt_composer.paper.measurements import by_text, merged
from itt_composer.results.files import Results, read_results

Item = TypeVar("Item")
FORMAT = 2
OWN_FILE = re.compile(r"(table_\d+|perplexity|data_efficiency)(_\d+)?\.csv")


def command(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Results of suites (folders, JSON files) and folders of runs.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables as Markdown, CSV and JSON.")
    ] = None,
    compare_with: Annotated[
        str | None,
        typer.Option(help='Row of Table 1, like "ITT×4-162M", for models that are not in it.'),
    ] = None,
) -> None:
    """Rebuild the paper's tables from results."""
    with errors_as_sentences():
        if compare_with is not None:
            paper.row(compare_with)
        if out is not None and out.is_file():
            raise UserError(f"--out {out} is a file; name a folder")
        sections = build(read_results(results), compare_with)
        console = wide_console()
        for section in sections:
            section.table.print(console)
            console.print()
        if out is not None:
            write(sections, out)
            print(f"tables in {out}")


def build(results: Results, compare_with: str | None) -> list[Section]:
    """Return every table that something was given for.

    Args:
        results: of suites and runs.
        compare_with: row of Table 1 for models that are none of its, or None.

    Raises:
        UserError: a row that the paper does not have; no dense run.
    """
    sections = []
    if results.tasks:
        sections.append(accuracy_table.section(results.tasks, compare_with))
    compared = compare_with is not None
    perplexities, notes = merged(results.perplexities)
    sweeps = [result for result in perplexities if elastic_table.is_sweep(result)]
    for name, sweep in _numbered("table_2", sweeps):
        sections.append(elastic_table.section(sweep, perplexities, name, compared))
    for name, group in _numbered("table_3", ablation_table.groups_of(perplexities)):
        sections.append(ablation_table.section(group, name, compared))
    for name, on_text in _numbered("perplexity", by_text(perplexities)):
        sections.append(perplexity_table.section(on_text, name))
    if notes:
        sections[-1].table.notes += notes
    if results.runs:
        try:
            sections.append(data_efficiency.section(results.runs))
        except UserError as error:
            if not sections:
                raise
            sections[-1].table.notes.append(f"no data efficiency: {error}")
    return sections


def _numbered(name: str, items: list[Item]) -> list[tuple[str, Item]]:
    """Name the files of several tables: `table_2`, `table_2_2`, …"""
    names = [name] + [f"{name}_{number}" for number in range(2, len(items) + 1)]
    return list(zip(names, items, strict=False))


def write(sections: list[Section], out: Path) -> None:
    """Write `tables.md`, `tables.json` and a CSV file for each table; older ones go."""
    kept = {f"{section.name}.csv" for section in sections}
    for old in out.glob("*.csv"):
        if OWN_FILE.fullmatch(old.name) and old.name not in kept:
            old.unlink()
    write_whole(out / "tables.md", "\n".join(section.table.markdown() for section in sections))
    for section in sections:
        write_whole(out / f"{section.name}.csv", section.csv())
    content = {section.name: section.records for section in sections}
    document = {"kind": "tables", "format": FORMAT, **content}
    write_json(out / "tables.json", document)
