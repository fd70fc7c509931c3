"""The front door: `itt` lists the commands, `itt NAME …` runs one.

A command is imported when it is asked for, so that the list takes no time and a command that only
checks its input takes little.
"""

from dataclasses import dataclass
from pkgutil import resolve_name

import typer
from typer.core import TyperGroup


@dataclass(frozen=True)
class Command:
    """A command: where it is, and what it does.

    Attributes:
        app: "module:attribute" of its `typer.Typer`.
        what: a line of help.
        name: of one command of an app that has several; None is the whole app.
    """

    app: str
    what: str
    name: str | None = None


GROUPS = {
    "Data": {
        "convert": Command("data_prep.__main__:app", "text → token shards", "convert"),
        "verify": Command("data_prep.__main__:app", "check shards against their text", "verify"),
        "stats": Command("data_prep.__main__:app", "count what shards hold", "stats"),
        "train-tokenizer": Command(
            "data_prep.__main__:app", "make a tokenizer of a corpus", "train-tokenizer"
        ),
        "sample-corpus": Command(
            "data_prep.__main__:app", "a small corpus, of this Python's text", "sample-corpus"
        ),
    },
    "Training": {
        "recipes": Command(
            "itt_composer.cli.recipes:app", "list the recipes with FLOPs, GPU-hours and memory"
        ),
        "train": Command("itt_composer.train:app", "train a model from a recipe"),
        "quickstart": Command(
            "itt_composer.cli.quickstart:app", "train a tiny ITT and LLaMA on a CPU and compare"
        ),
    },
    "Evaluation": {
        "eval": Command("eval.__main__:app", "tasks and perplexity, by a suite; fetch its data"),
        "tables": Command("eval.__main__:app", "the paper's tables from results", "tables"),
        "analyse": Command(
            "itt_composer.cli.analyse:app", "which tokens think; gradients of hard problems"
        ),
        "report": Command("itt_composer.cli.report:app", "one page of what runs measured"),
    },
    "Models": {
        "generate": Command("itt_composer.cli.generate:app", "continue a text"),
        "export": Command("itt_composer.cli.export:app", "a checkpoint → a transformers folder"),
        "from-llama": Command("itt_composer.cli.from_llama:app", "a LLaMA → an ITT to train on"),
        "calibrate": Command("itt_composer.cli.calibrate:app", "measure a model's thresholds"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


class LazyCommands(TyperGroup):
    """Imports a command when it is asked for, and lists all without importing any."""

    def list_commands(self, ctx) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name: str):
        if cmd_name not in COMMANDS:
            return None
        command = COMMANDS[cmd_name]
        found = typer.main.get_command(resolve_name(command.app))
        return found if command.name is None else found.commands[command.name]  # type: ignore[attr-defined]

    def format_help(self, ctx, formatter) -> None:
        formatter.write(listing())


def listing() -> str:
    """Return a list of every command with what it does."""
    width = max(map(len, COMMANDS))
    lines = ["Usage: itt COMMAND …; itt COMMAND --help says more."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {command.what}" for name, command in commands.items()]
    return "\n".join(lines) + "\n"


app = typer.Typer(cls=LazyCommands, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def _commands(ctx: typer.Context) -> None:
    """Inner Thinking Transformers: data, training, evaluation and models."""
    if ctx.invoked_subcommand is None:
        # typer's own no_args_is_help prints only what rich draws, which is not this list
        typer.echo(listing(), nl=False)
        raise typer.Exit(2)
