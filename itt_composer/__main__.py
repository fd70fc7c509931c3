"""The commands: `python -m itt_composer` lists them, `python -m itt_composer NAME …` runs one."""

import runpy
import sys

COMMANDS = {
    "quickstart": "train a tiny ITT and the dense model on a CPU and compare them",
    "recipes": "list the recipes with FLOPs, GPU-hours and memory",
    "train": "train a model from a recipe",
    "calibrate": "measure a model's thresholds anew",
    "export": "a checkpoint, or a LLaMA, as a transformers folder",
    "generate": "go on with a text",
    "analysis": "which tokens think; gradients of easy and hard problems",
    "report": "a page of runs",
}
OTHERS = {
    "data_prep": "text to tokenizer and token shards",
    "eval": "tasks, perplexity, the paper's tables",
}


def main() -> None:
    """Run the command that the first word names, or list all.

    Raises:
        SystemExit: with 2 where there is no such command.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"{__package__}.{name}", run_name="__main__", alter_sys=True)
    elif name in ("-h", "--help"):
        print(listing())
    else:
        print(f"error: there is no command {name}\n\n{listing()}", file=sys.stderr)
        raise SystemExit(2)


def listing() -> str:
    """Every command with what it does; each has a --help of its own."""
    lines = ["Commands, each with --help:", ""]
    lines += [f"  python -m itt_composer.{name:<12} {what}" for name, what in COMMANDS.items()]
    lines += [f"  python -m {name:<25} {what}" for name, what in OTHERS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
