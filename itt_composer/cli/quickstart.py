"""`itt quickstart`: from this Python installation's text to a trained ITT and what it bought.

Runs the product's own commands one after another and prints each. A stage whose output is there
and valid is skipped, so an interrupted quickstart goes on where it was. Torch is imported only
by the commands, not here.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from itt_composer.basics.errors import errors_as_sentences
from itt_composer.basics.tables import Table
from itt_composer.data.manifest import Manifest
from itt_composer.recipe.schema import load_recipe
from itt_composer.results.base import read_result
from itt_composer.results.perplexity import PerplexityResults, Setting
from itt_composer.results.perplexity_report import percentages
from itt_composer.runs.folder import RunFolder
from itt_composer.runs.summary import RunSummary
from itt_composer.training.training_run import TrainingRun

QUICKSTART_FOLDER = Path("runs/quickstart")
CORPUS, TOKENIZER, SHARDS = (
    QUICKSTART_FOLDER / "corpus",
    QUICKSTART_FOLDER / "tokenizer",
    QUICKSTART_FOLDER / "shards",
)
DENSE_RECIPE = Path("yamls/pretrain/quickstart_dense.yaml")
ITT_RECIPE = Path("yamls/pretrain/quickstart.yaml")
# Two threads that wait for each other crawl when anything else runs; two ranks do not.
RANKS = 2
ITT = Path(sys.executable).with_name("itt")
# Keeps Ctrl-C from the launcher, which would print a traceback and leave 30 seconds to save.
LAUNCH = [Path(__file__).parents[2] / "scripts" / "forward_sigterm.sh"]
THREADS_PER_RANK = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // RANKS))}
THINKING = "analysis/thinking.json"
ELASTIC_SETTINGS = ("[0.9,0.9,0.9]", "[0.3,0.3,0.3]", "[0.9,0.9,0]", "[0,0,0]")

LOAD_SUITE = "eval.suite:load_suite"
GOES_ON = "what is finished is kept, and `make quickstart` goes on from here"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main() -> None:
    """Train a tiny ITT and the dense LLaMA on text of this Python, and compare them.

    Takes half an hour of CPU time, shared by two cores, and writes into runs/quickstart.
    The same command goes on after an interruption, and skips what is finished.
    """
    started = time.monotonic()
    with errors_as_sentences(GOES_ON):
        prepare_data()
        runs = [train_recipe(DENSE_RECIPE), train_recipe(ITT_RECIPE)]
        results = [
            evaluate(runs[0], "eval/suites/perplexity.yaml", ["null"]),
            evaluate(runs[1], "eval/suites/elastic.yaml", ["null", *ELASTIC_SETTINGS]),
        ]
        summaries = [summary for run in runs if (summary := run.summary()) is not None]
        analyse_thinking(runs[1])
        page = report(runs)
    print_comparison(summaries, results)
    print(
        f"Done in {time.monotonic() - started:.0f} s; "
        f"everything is in {QUICKSTART_FOLDER}, on a page: {page}"
    )
    print_next(runs[1])


def print_next(run: RunFolder) -> None:
    """Print commands that go on from here."""
    print("\nWhat comes next:")
    for arguments, what in (
        (["generate", run.model, "--prompt", "'class Path'", "--color"], "go on with a text"),
        (["analyse", "tokens", run.path, "--data", SHARDS], "which tokens think"),
        (["recipes"], "the paper's models, to train on your own text: docs/data.md"),
    ):
        print(f"\n# {what}\n{' '.join([as_typed(str(ITT)), *map(str, arguments)])}")


def as_typed(word: str) -> str:
    """Return a word of a command as a user would type it here."""
    path = Path(word)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else word)


def prepare_data() -> None:
    """Make corpus, tokenizer and shards; each command skips what is complete."""
    recipe = load_recipe(ITT_RECIPE)
    run_itt("sample-corpus", "--out", CORPUS)
    vocab_size = ["--vocab-size", recipe.model.vocab_size]
    run_itt("train-tokenizer", CORPUS, "--out", TOKENIZER, *vocab_size)
    options = ["--out", SHARDS, "--tokenizer", TOKENIZER, "--seq-len", recipe.data.seq_len]
    run_itt("convert", CORPUS, *options)


def train_recipe(recipe_file: Path) -> RunFolder:
    """Train a recipe through the `composer` launcher, unless its run is finished."""
    run = TrainingRun(load_recipe(recipe_file))
    if run.is_finished():
        print(f"{run.path} holds the finished run of {recipe_file}: nothing to do", flush=True)
    else:
        launcher = [*LAUNCH, Path(sys.executable).with_name("composer"), "-n", RANKS]
        run_printed([*launcher, "-m", "itt_composer.train", recipe_file], THREADS_PER_RANK)
    return run


def evaluate(run: RunFolder, suite_file: str, settings: list[str]) -> PerplexityResults:
    """Measure perplexity on all validation rows at each setting, unless that has been done."""
    output = run.path / "perplexity.json"
    overrides = [
        f"model={run.model}",
        f"data={SHARDS}",
        f"select_ratios=[{','.join(settings)}]",
        f"output={output}",
    ]
    if is_newer(output, run.summary_file):
        measured = read_result(output, PerplexityResults, advice=f"delete {output}")
        if (
            measured.suite.given()
            == resolve_name(LOAD_SUITE)(Path(suite_file), overrides).model_dump()
        ):
            print(f"{output} holds the evaluation: nothing to do", flush=True)
            return measured
    run_itt("eval", suite_file, *overrides)
    return read_result(output, PerplexityResults, advice=f"delete {output}")


def analyse_thinking(run: RunFolder) -> None:
    """Measure which tokens think, unless that has been done."""
    output = run.path / THINKING
    if is_newer(output, run.summary_file):
        print(f"{output} holds which tokens think: nothing to do", flush=True)
    else:
        run_itt("analyse", "tokens", run.path, "--data", SHARDS)


def report(runs: list[RunFolder]) -> Path:
    """Write one page on the runs, unless it is there and newer than what it shows."""
    page = QUICKSTART_FOLDER / "report.html"
    results = [run.path / name for run in runs for name in ("perplexity.json", THINKING)]
    sources = [*(run.summary_file for run in runs), *results]
    if all(is_newer(page, source) for source in sources if source.is_file()):
        print(f"{page} holds the report: nothing to do", flush=True)
    else:
        run_itt("report", *(run.path for run in runs), "--out", page)
    return page


def is_newer(output: Path, source: Path) -> bool:
    """Whether `output` exists and was written after `source`."""
    return output.is_file() and output.stat().st_mtime >= source.stat().st_mtime


def run_itt(*arguments: object) -> None:
    """Run a command of this project in a process of its own."""
    run_printed([ITT, *arguments])


def run_printed(command: list[Any], environment: dict[str, str] | None = None) -> None:
    """Print a command as a user would type it, and run it.

    Raises:
        SystemExit: the command failed; with its exit code.
        KeyboardInterrupt: Ctrl-C was pressed, and the command has ended.
    """
    words = [str(word) for word in command]
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    print(f"\n$ {' '.join([*settings, *map(as_typed, words)])}", flush=True)
    # Threads that wait asleep: spinning, two of them crawl as soon as anything else runs.
    variables = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(environment or {})}
    is_interrupted = False

    def wait_for_its_end(number: int, frame: FrameType | None) -> None:
        """Wait: the terminal has interrupted the command as well, which saves and says so."""
        nonlocal is_interrupted
        is_interrupted = True

    former = signal.signal(signal.SIGINT, wait_for_its_end)
    try:
        code = subprocess.run(words, check=False, env=variables).returncode
    finally:
        signal.signal(signal.SIGINT, former)
    if is_interrupted:
        raise KeyboardInterrupt
    if code:
        print(f"quickstart: stopped at the command above; {GOES_ON}", file=sys.stderr)
        raise SystemExit(code if code > 0 else 128 - code)


def by_both_rules(settings: list[Setting]) -> Iterator[tuple[Setting, Setting]]:
    """Yield each setting by top-k and by thresholds; a dense model has the same figures twice."""
    causal = {
        tuple(setting.select_ratios): setting
        for setting in settings
        if setting.router_selection != "top_k"
    }
    for setting in settings:
        if setting.router_selection != "threshold":
            yield setting, causal[tuple(setting.select_ratios)]


def print_comparison(summaries: list[RunSummary], results: list[PerplexityResults]) -> None:
    """Print a row per model, then the ITT's elastic settings; fits 80 columns."""
    manifest = Manifest.read(SHARDS)
    documents = manifest.totals["validation"].documents
    table = Table(
        f"What thinking bought: perplexity on {documents} held-out documents, one seed\n"
        f"(trained on {summaries[0].tokens / 1e6:.2f} M tokens, vocabulary "
        f"{manifest.vocab_size:,}; MFLOPs per token of a\nforward pass; causal: by thresholds)",
        [
            *("\nmodel", "select\nratios %", "\nparams", "MFLOPs\npaper", "MFLOPs\nexecuted"),
            *("perplexity\ntop-k", "\ncausal"),
        ],
    )
    for summary, result in zip(summaries, results, strict=True):
        name = "LLaMA" if summary.thinking == "dense" else f"ITT×{summary.thinking_steps}"
        parameters = f"{summary.parameters / 1e6:.3f} M"
        for setting, causal in by_both_rules(result.settings):
            flops = (setting.paper_flops_per_token, setting.executed_flops_per_token)
            in_millions = ["–" if count is None else f"{count / 1e6:.2f}" for count in flops]
            perplexities = [f"{one.perplexity:.2f}" for one in (setting, causal)]
            cells = [name, percentages(setting.select_ratios), parameters]
            table.rows.append([*cells, *in_millions, *perplexities])
            name, parameters = "  elastic", "same"
    print()
    table.print(Console())
