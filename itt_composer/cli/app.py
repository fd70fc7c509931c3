"""The front door: `itt` lists the commands, `itt NAME …` runs one.

A command is imported when it is asked for, so that the list takes no time and a command that only
checks its input takes little.
"""

from dataclasses import dataclass
from difflib import get_close_matches
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
        "verify": Command("data_prep.__main__:app", "check every byte of the shards", "verify"),
        "stats": Command(
            "data_prep.__main__:app", "count documents, rows and tokens of shards", "stats"
        ),
        "train-tokenizer": Command(
            "data_prep.__main__:app", "train a tokenizer on a corpus", "train-tokenizer"
        ),
        "sample-corpus": Command(
            "data_prep.__main__:app", "collect a small corpus from this Python", "sample-corpus"
        ),
    },
    "Training": {
        "recipes": Command(
            "itt_composer.cli.recipes:app", "list the recipes with FLOPs, GPU-hours and memory"
        ),
        "train": Command("itt_composer.train:app", "train a model from a recipe"),
        "quickstart": Command(
            "itt_composer.cli.quickstart:app", "train a tiny ITT and a LLaMA on a CPU; compare them"
        ),
    },
    "Evaluation": {
        "eval": Command("eval.__main__:app", "measure tasks and perplexity; fetch the tasks' data"),
        "tables": Command("eval.__main__:app", "rebuild the paper's tables from results", "tables"),
        "analyse": Command(
            "itt_composer.cli.analyse:app", "show which tokens think; gradients of hard problems"
        ),
        "report": Command("itt_composer.cli.report:app", "draw what runs measured on one page"),
    },
    "Models": {
        "generate": Command("itt_composer.cli.generate:app", "continue a text"),
        "serve": Command("itt_composer.cli.serve:app", "answer OpenAI's API with a model"),
        "export": Command("itt_composer.cli.export:app", "checkpoint → transformers folder"),
        "from-llama": Command(
            "itt_composer.cli.from_llama:app", "LLaMA → ITT, to be trained further"
        ),
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

    def resolve_command(self, ctx, args):
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "`itt --help` lists them"
            ctx.fail(f"There is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx, formatter) -> None:
        formatter.write(listing())


def listing() -> str:
    """Return a list of every command with what it does."""
    width = max(map(len, COMMANDS))
    lines = ["Usage: itt COMMAND …", "`itt COMMAND --help` describes a command."]
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
