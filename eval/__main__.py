"""The command line: `python -m eval SUITE.yaml model=FOLDER data=SHARDS [key=value …]`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer.core import TyperGroup

from eval import fetch, paper, task_report
from eval.suite import TaskSuite, load_suite
from eval.task_progress import TaskProgress
from itt_composer.errors import errors_as_sentences
from itt_composer.files import write_whole


class SuiteByDefault(TyperGroup):
    """A group whose arguments mean `run` unless they begin with a command's name."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=SuiteByDefault,
    help="Evaluate models: `python -m eval SUITE.yaml model=PATH [KEY=VALUE]…`.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def main() -> None:
    """Keeps `run` a command among others."""


@app.command()
def run(
    suite_file: Annotated[Path, typer.Argument(metavar="SUITE", help="A YAML of eval/suites.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Suite keys to set.")
    ] = None,
) -> None:
    """Run a suite on a model; the word `run` may be left out."""
    with errors_as_sentences():
        suite = load_suite(suite_file, overrides or [])
        if isinstance(suite, TaskSuite):
            run_tasks(suite)
            return
        # After the checks, because it imports torch.
        from eval import perplexity

        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("evaluating")
            results = perplexity.run(
                suite, lambda done, total: bar.update(task, completed=done, total=total)
            )
        print_results(results)
        if suite.output is not None:
            write_whole(Path(suite.output), json.dumps(results, indent=1) + "\n")


def run_tasks(suite: TaskSuite) -> None:
    """Measure a suite of tasks, print its table and write its files."""
    if suite.compare_with is not None:
        paper.row(suite.compare_with)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of lm-eval and datasets
    from eval import harness, ranks

    with TaskProgress() as progress:
        results = harness.run(suite, progress)
    if ranks.rank() == 0:
        folder = Path(suite.output)
        task_report.write_results(results, folder)
        task_report.write_harness_results(results, folder)
        task_report.print_table(results, Console())
        print(f"results in {folder}")
    ranks.leave()


def print_results(results: dict[str, Any]) -> None:
    """Print how each setting thought, what that took and its perplexity; then that per domain."""
    suite, settings = results["suite"], results["settings"]
    title = f"{results['model']['name']}: {suite['split']} perplexity"
    routed = any(setting["router_selection"] for setting in settings)
    exits = any(setting["early_exit"] for setting in settings)
    ours = "executed_flops_per_token" in settings[0]
    columns = ["select\nratios, %"]
    columns += ["\nrule", "took each\nstep, %"] if routed else []
    columns += ["early\nexit", "steps\nsaved", "perpl.\nadded"] if exits else []
    counts = ["paper", "executed"] if not exits else ["executed"]
    columns += [f"MFLOPs,\n{count}" for count in counts] if ours else []
    rows = []
    for setting in settings:
        cells = [percentages(setting["select_ratios"])]
        if routed:
            means = [sum(layers) / max(1, len(layers)) for layers in setting["realised_shares"]]
            cells += [
                setting["router_selection"] or "–",
                percentages(means, digits=0 if exits else 1),
            ]
        if exits:
            cells += [f"{setting['early_exit']:g}", *cost_of_exit(setting, settings)]
        if ours:
            cells += [f"{setting[f'{count}_flops_per_token'] / 1e6:,.2f}" for count in counts]
        rows.append([*cells, f"{setting['perplexity']:.2f}"])
    print_table(title, [*columns, "\nperplexity"], rows)
    domains = list(settings[0]["domains"])
    if len(domains) > 1:
        kept = 2 if routed else 1
        per_domain = [
            row[:kept] + [f"{setting['domains'][name]['perplexity']:.2f}" for name in domains]
            for row, setting in zip(rows, settings, strict=True)
        ]
        print_table("per domain", columns[:kept] + domains, per_domain)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a narrow table; the first column is text, the others are figures."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def cost_of_exit(setting: dict[str, Any], settings: list[dict[str, Any]]) -> tuple[str, str]:
    """Thinking steps saved and perplexity added against the same setting without early exit."""
    kind = ("select_ratios", "router_selection")
    for other in settings:
        if other["early_exit"] == 0 and all(other[name] == setting[name] for name in kind):
            steps = sum(map(sum, other["realised_shares"]))
            saved = 1 - sum(map(sum, setting["realised_shares"])) / steps if steps else 0.0
            added = setting["perplexity"] / other["perplexity"] - 1
            return f"{100 * saved:.1f} %", f"{100 * added:+.2f} %"
    return "–", "–"


def percentages(shares: list[float], digits: int = 0) -> str:
    """`70/50/50`, or `–` where there is no step."""
    return "/".join(f"{100 * share:.{digits}f}" for share in shares) or "–"


app.command("fetch")(fetch.command)

if __name__ == "__main__":
    app(prog_name="python -m eval")
