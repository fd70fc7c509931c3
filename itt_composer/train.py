"""Train a model from a recipe.

    composer -n 8 -m itt_composer.train yamls/pretrain/itt_x4_162m.yaml [key=value …]
    itt train yamls/pretrain/quickstart.yaml --print-config

Writes into the recipe's `run_folder`: `recipe.yaml` (resolved), `checkpoints/`, the loggers'
files and, at the end, `model/` (a transformers folder) and `summary.json`. The same command
goes on where an interrupted run was, and does nothing where one has finished.

Exit codes: 0 finished, 1 a mistake or a failure, which is printed, 75 ended by SIGTERM and 130 by
Ctrl-C, both after the batch under way was saved.
"""

from pathlib import Path
from typing import Annotated

import typer

from itt_composer.basics.processes import (
    StopSignals,
    end_with_launcher,
    failures_reported_once,
    is_first_rank,
    say,
)
from itt_composer.recipe.changes import describe
from itt_composer.recipe.schema import load_recipe, recipe_as_yaml
from itt_composer.training.before_start import check_before_start, check_same_shards
from itt_composer.training.training_run import ALLOW_CHANGES, TrainingRun

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to change.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the resolved recipe and stop.")
    ] = False,
    allow_changes: Annotated[
        bool,
        typer.Option(
            ALLOW_CHANGES,
            help="Go on with a run that was begun with another recipe or other shards.",
        ),
    ] = False,
) -> None:
    """Train a model from a recipe."""
    end_with_launcher()
    with failures_reported_once(), StopSignals() as signals:
        recipe = load_recipe(recipe_file, overrides or ())
        if print_config:
            print(recipe_as_yaml(recipe), end="")
            return
        run = TrainingRun(recipe)
        if run.is_finished():
            say(f"{run.path} holds the finished run: nothing to do (delete it to train anew)")
            return
        check_before_start(recipe, run)
        changed = run.check_resumable(allow_changes)
        run.check_writable()
        if is_first_rank():
            run.lock()
        if changed:
            say(f"{run.path} goes on with changed settings: {describe(changed)}")
        if recipe.data.remote is None:
            check_same_shards(recipe, run, allow_changes)
        from itt_composer.training.train import train

        train(recipe, run, signals, "train.max_duration" in changed, allow_changes)


if __name__ == "__main__":
    app()
