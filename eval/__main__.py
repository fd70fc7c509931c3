"""The command line: `python -m eval SUITE.yaml model=FOLDER data=SHARDS [key=value …]`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eval.suite import load_suite
from itt_composer.errors import errors_as_sentences
from itt_composer.files import write_whole

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    suite_file: Annotated[Path, typer.Argument(metavar="SUITE", help="A YAML of eval/suites.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Suite keys to set.")
    ] = None,
) -> None:
    """Measure a model's perplexity on shards, at one or several elastic settings."""
    with errors_as_sentences():
        suite = load_suite(suite_file, overrides or [])
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


def print_results(results: dict[str, Any]) -> None:
    """Print a row per setting: how it thought, what that took, and perplexity."""
    suite, domains = results["suite"], list(results["settings"][0]["domains"])
    routed = any(setting["router_selection"] for setting in results["settings"])
    exits = any(setting["early_exit"] for setting in results["settings"])
    ours = "executed_flops_per_token" in results["settings"][0]
    table = Table(title=f"{suite['model']}: {suite['split']} perplexity", title_justify="left")
    table.add_column("select ratios")
    if routed:
        table.add_column("rule")
        table.add_column("took each step, %", justify="right")
    if exits:
        for header in ("early exit", "steps saved, %", "perplexity, %"):
            table.add_column(header, justify="right")
    if ours:
        table.add_column("MFLOPs/token, paper", justify="right")
        table.add_column("executed", justify="right")
    for header in ("all", *domains, "tokens/s"):
        table.add_column(header, justify="right")
    for setting in results["settings"]:
        cells = [percentages(setting["select_ratios"])]
        if routed:
            means = [sum(layers) / max(1, len(layers)) for layers in setting["realised_shares"]]
            cells += [setting["router_selection"], percentages(means, digits=1)]
        if exits:
            cells += [f"{setting['early_exit']:g}", *cost_of_exit(setting, results["settings"])]
        if ours:
            for count in ("paper", "executed"):
                cells.append(f"{setting[f'{count}_flops_per_token'] / 1e6:,.2f}")
        perplexities = (setting, *(setting["domains"][domain] for domain in domains))
        cells += [f"{entry['perplexity']:.2f}" for entry in perplexities]
        table.add_row(*cells, f"{setting['tokens_per_second']:,.0f}")
    Console().print(table)


def cost_of_exit(setting: dict[str, Any], settings: list[dict[str, Any]]) -> tuple[str, str]:
    """Thinking steps saved and perplexity added against the same setting without early exit."""
    kind = ("select_ratios", "router_selection")
    for other in settings:
        if other["early_exit"] == 0 and all(other[name] == setting[name] for name in kind):
            steps = sum(map(sum, other["realised_shares"]))
            saved = 1 - sum(map(sum, setting["realised_shares"])) / steps if steps else 0.0
            added = setting["perplexity"] / other["perplexity"] - 1
            return f"{100 * saved:.1f}", f"{100 * added:+.2f}"
    return "–", "–"


def percentages(shares: list[float], digits: int = 0) -> str:
    """`70/50/50`, or `–` where there is no step."""
    return "/".join(f"{100 * share:.{digits}f}" for share in shares) or "–"


if __name__ == "__main__":
    app(prog_name="python -m eval")
