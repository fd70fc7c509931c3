"""The shell commands of README.md, CONTRIBUTING.md and docs/, as a reader would type them."""

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

REPOSITORY = Path(__file__).parents[1]
DOCS = sorted(f"docs/{page.name}" for page in REPOSITORY.glob("docs/*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
PROGRAM = re.compile(
    r"(?:\w+=\S* )*(?:\.venv/bin/)?(?:python|composer|torchrun|make|bash|pip|apt-get|aws|lm_eval"
    r"|scripts/\w+\.sh)(?: |$)"
)
PACKAGES = ("data_prep", "eval", "itt_composer.analysis", "itt_composer.report")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
INDENTED = re.compile(r"^    (\S.*)", re.MULTILINE)


@dataclass(frozen=True)
class Documented:
    """A command of a page.

    Attributes:
        page: relative to the repository.
        words: of the command line; without the environment, comments and what it is piped to.
        launcher: words of the launcher before `-m MODULE`, if one starts it.
    """

    page: str
    words: tuple[str, ...]
    launcher: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For messages, and to tell commands apart."""
        return " ".join(self.words)

    @property
    def module(self) -> str | None:
        """The module that `-m` names."""
        return self.words[2] if self.words[:2] == ("python", "-m") else None


def documented() -> list[Documented]:
    """Every command, in the order of the pages; one that stands twice on a page counts once."""
    found: dict[Documented, None] = {}
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for line in _lines(text):
            found.setdefault(_parsed(page, line))
    return list(found)


def _lines(text: str) -> Iterator[str]:
    for language, block in BLOCK.findall(text):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield line
    prose = BLOCK.sub("", text)
    for command in [*INLINE.findall(prose), *INDENTED.findall(prose)]:
        line = " ".join(command.split())
        if PROGRAM.match(line) and "/<" not in line and " " in line:
            yield line


def _parsed(page: str, line: str) -> Documented:
    """A line as words: `composer … -m MODULE …` becomes `python -m MODULE …` and its launcher."""
    nested = re.search(r"bash -c '(.*)'", line)
    line = nested[1] if nested else line
    line = re.sub(r"\$\(\(.*?\)\)", "16", re.sub(r"\$\(scripts[^)]*\)", "RECIPE", line))
    words = shlex.split(line.replace(" [RUN …]", ""), comments=True)
    words = [word for word in words if word != "&"]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if words and words[0] == "scripts/forward_sigterm.sh" and len(words) > 1:
        del words[0]
    if words and words[0] in ("composer", "torchrun"):
        at = words.index("-m")
        return Documented(page, ("python", *words[at:]), tuple(words[:at]))
    if words:
        words[0] = words[0].removeprefix(".venv/bin/")
    return Documented(page, tuple(words))


def parse(command: Documented) -> dict[str, object]:
    """Have the command line of a module of ours read its arguments; gives their values.

    A command that is only named, as `python -m eval tables`, has to be one.

    Raises:
        click.exceptions.UsageError: an option, argument or value that it does not know.
    """
    module, arguments = command.words[2], list(command.words[3:])
    place = f"{module}.__main__" if module in PACKAGES else module
    program = typer.main.get_command(importlib.import_module(place).app)
    if hasattr(program, "commands") and (not arguments or arguments[1:] == []):
        assert set(arguments) <= set(program.commands), command.text
        return {}
    context = program.make_context(module, arguments)
    while hasattr(context.command, "resolve_command"):
        left = [*context._protected_args, *context.args]
        name, inner, left = context.command.resolve_command(context, left)
        context = inner.make_context(name, left, parent=context)
    return dict(context.params)
