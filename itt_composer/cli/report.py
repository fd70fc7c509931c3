"""`itt report RUN [RUN …] --out report.html`: what runs measured.

The page is one file that needs no network; `--figures DIR` writes the same figures as PNG for
papers, `--markdown FILE` the table of the runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.basics.files import check_place, write_whole
from itt_composer.basics.text import readable

if TYPE_CHECKING:
    from itt_composer.report.build import Report

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs; they need not be finished."),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for the figures as PNG.", metavar="DIR")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="File for the table of runs.", metavar="FILE")
    ] = None,
    perplexity: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Results of a perplexity suite besides RUN/perplexity.json; may be repeated.",
        ),
    ] = None,
    gradients: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Gradient norms besides RUN/analysis/gradients.json; may be repeated.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "What the runs have measured",
) -> None:
    """Draw runs on one page: summary, curves, elastic settings, routers and a routing map."""
    with errors_as_sentences():
        _check_places(out, figures, markdown)
        from itt_composer.report.build import build

        report = build(runs, perplexity or [], title, gradients or [])
        _write(report, out, figures, markdown)


def _check_places(out: Path, figures: Path | None, markdown: Path | None) -> None:
    """Refuse impossible places before anything is read."""
    for option, file in (("--out", out), ("--markdown", markdown)):
        if file is not None and file.is_dir():
            raise UserError(f"{option} {file} is a folder; name a file, such as {file / 'report'}")
        if file is not None:
            check_place(file, option)
    if markdown is not None and markdown.absolute() == out.absolute():
        raise UserError(f"--out and --markdown both name {out}; name two files")
    if figures is not None:
        check_place(figures, "--figures")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise UserError(f"--figures {figures} is a file; name a folder")


def _write(report: "Report", out: Path, figures: Path | None, markdown: Path | None) -> None:
    from itt_composer.basics.tables import wide_console

    console = wide_console()
    report.page.summary.brief().print(console)
    for warning in report.page.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    for what, command in report.page.missing:
        console.print(f"{what}: {command}", markup=False, highlight=False, soft_wrap=True)
    report.write(out)
    print(readable(f"page in {out} ({out.stat().st_size / 1e6:.1f} MB)"))
    if figures is not None:
        print(readable(f"{len(report.write_figures(figures))} figures in {figures}"))
    if markdown is not None:
        write_whole(markdown, report.page.summary.table().markdown())
        print(readable(f"table in {markdown}"))
