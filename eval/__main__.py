"""Runs suites and fetches their data.

itt eval SUITE.yaml model=PATH [key=value …]      measures a model
itt eval fetch DIR                                fetches the tasks' data, for data_dir=DIR
itt tables RESULTS…                               puts the paper's tables beside one's own
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperGroup

from eval import fetch
from eval.suite import PerplexitySuite, TaskSuite, load_suite
from eval.task_data import check_present
from eval.task_progress import TaskProgress
from itt_composer.basics.processes import (
    StopSignals,
    end_with_launcher,
    failures_reported_once,
    is_first_rank,
)
from itt_composer.basics.tables import wide_console
from itt_composer.cli import tables
from itt_composer.paper import figures as paper
from itt_composer.paper import task_report
from itt_composer.results.perplexity import PerplexityResults


class SuiteByDefault(TyperGroup):
    """Runs a suite where no command is named: `eval SUITE.yaml` is `eval run SUITE.yaml`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    default = "run"


app = typer.Typer(
    cls=SuiteByDefault,
    help="Evaluate models: `itt eval SUITE.yaml model=PATH [KEY=VALUE]…`.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def main() -> None:
    """Evaluate models."""


@app.command()
def run(
    suite_file: Annotated[
        Path, typer.Argument(metavar="SUITE", help="A YAML suite, of eval/suites.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Suite keys to set.")
    ] = None,
) -> None:
    """Run a suite on a model; the word `run` may be left out."""
    end_with_launcher()
    with failures_reported_once(), StopSignals("nothing is written") as signals:
        suite = load_suite(suite_file, overrides or [])
        if isinstance(suite, TaskSuite):
            signals.at_once = (
                f"finished tasks are kept in {suite.output}/tasks, and the same command goes on "
                "with the next"
            )
            run_tasks(suite, signals)
        else:
            signals.at_once = "nothing is written, and the same command starts anew"
            measure_perplexity(suite, signals)


def measure_perplexity(suite: PerplexitySuite, signals: StopSignals) -> None:
    """Measure on all ranks; the first prints and writes."""
    # After the checks, because it imports torch.
    from eval import perplexity, ranks
    from itt_composer.results.perplexity_report import print_results, write_results

    signals.take()  # Composer has been imported
    console = Console(stderr=True)
    is_shown = console.is_terminal and is_first_rank()
    ranks.join()
    with Progress(console=console, transient=True, disable=not is_shown) as bar:
        task = bar.add_task("evaluating")
        results = perplexity.measure_settings(
            suite, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if is_first_rank():
        assert suite.output is not None  # load_suite names one
        output = Path(suite.output)
        print_results(results, wide_console())
        write_results(results, output)
        if suite.plot:
            plot_results(results, output.with_suffix(".png"))
        print(f"results in {output}")
    ranks.leave()


def run_tasks(suite: TaskSuite, signals: StopSignals) -> None:
    """Measure a suite of tasks, print its table and write its files."""
    if suite.compare_with is not None:
        paper.row(suite.compare_with)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of datasets, and of the bootstrap
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # of which a second on one core is enough
    check_present(suite.selected_tasks(), suite.data_dir)
    from eval import harness, ranks
    from eval.harness_files import write_harness_results

    signals.take()  # Composer has been imported
    with TaskProgress() as progress:
        results = harness.run_task_suite(suite, progress)
    if is_first_rank():
        assert suite.output is not None  # load_suite names one
        folder = Path(suite.output)
        task_report.write_task_results(results, folder)
        write_harness_results(results, folder)
        task_report.print_task_results(results, wide_console())
        print(f"results in {folder}")
    ranks.leave()


def plot_results(results: PerplexityResults, path: Path) -> None:
    """Draw perplexity over executed FLOPs as the report does, if there is a sweep to draw."""
    from itt_composer.report import elastic
    from itt_composer.report.figures import WIDE, Print, png
    from itt_composer.report.measured import Measured

    figure = elastic.figure(Measured([(results.model.name, results)]), [])
    if figure is None:
        print("no plot: it needs a model of this project with a router, at three settings or more")
        return
    title = f"{results.model.name}: {results.suite.split} perplexity"
    png(figure, Print("elastic", width=WIDE, title=title), path)
    print(f"plot: {path}")


app.command("fetch")(fetch.fetch_command)
app.command("tables")(tables.command)

if __name__ == "__main__":
    app(prog_name="python -m eval")
