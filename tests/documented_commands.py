"""The shell commands of README.md, CONTRIBUTING.md and docs/, as a reader would type them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from itt_composer.cli.app import COMMANDS, app

REPOSITORY = Path(__file__).parents[1]
DOCS = sorted(f"docs/{page.name}" for page in REPOSITORY.glob("docs/*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
PROGRAM = re.compile(
    r"(?:\w+=\S* )*(?:\.venv/bin/)?(?:itt|python|composer|torchrun|make|bash|pip|apt-get|aws"
    r"|lm_eval|scripts/\w+\.sh)(?: |$)"
)
# What people know beside `itt`.
WAYS_IN = {"itt_composer.train": "train", "eval": "eval"}
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
    def is_form(self) -> bool:
        """Whether it shows how commands look, instead of being one."""
        return "…" in self.words or "COMMAND" in self.words

    @property
    def module(self) -> str | None:
        """The module that `-m` names, unless it is a benchmark; that of `itt`."""
        if self.benchmark is not None:
            return None
        return self.words[2] if self.words[:2] == ("python", "-m") else None

    @property
    def benchmark(self) -> str | None:
        """The benchmark that `-m` names."""
        package, _, name = self.words[2].partition(".") if len(self.words) > 2 else ("", "", "")
        return name if package == "benchmarks" else None

    @property
    def command(self) -> tuple[str, ...]:
        """Of a command of ours, the words that begin with its name in `itt`."""
        if self.module in ("data_prep", "itt_composer"):
            return self.words[3:]
        return (WAYS_IN[self.module or ""], *self.words[3:])


def documented() -> list[Documented]:
    """Every command, in the order of the pages; one that stands twice on a page counts once."""
    found: dict[Documented, None] = {}
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for line in _lines(text):
            found.setdefault(_parsed(page, line))
    return list(found)


def python_blocks() -> list[tuple[str, str]]:
    """The Python code of every page, a page's blocks as one text."""
    pages = ((page, (REPOSITORY / page).read_text(encoding="utf-8")) for page in PAGES)
    codes = (
        (page, "\n".join(code for language, code in BLOCK.findall(text) if language == "python"))
        for page, text in pages
    )
    return [(page, code) for page, code in codes if code]


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
    if words and words[0] == "itt":
        words[:1] = ["python", "-m", "itt_composer"]
    return Documented(page, tuple(words))


def parse(command: Documented) -> dict[str, object]:
    """Have the command line of a module of ours read its arguments; gives their values.

    A command that is only named (`itt tables`) or shown by its form (`itt train RECIPE …`) has to
    be one.

    Raises:
        click.exceptions.UsageError: an option, argument or value that it does not know.
    """
    program, arguments = typer.main.get_command(app), list(command.command)
    if len(arguments) < 2 or command.is_form:
        assert set(arguments[:1]) <= {*COMMANDS, "--help", "COMMAND"}, command.text
        return {}
    context = program.make_context("itt", arguments)
    while hasattr(context.command, "resolve_command"):
        left = [*context._protected_args, *context.args]
        name, inner, left = context.command.resolve_command(context, left)
        if hasattr(inner, "commands") and left[1:] == []:
            assert set(left) <= set(inner.commands), command.text
            return {}
        context = inner.make_context(name, left, parent=context)
    return dict(context.params)
