"""Text in a terminal, each token with a shade by its thinking steps."""

import re
from collections.abc import Callable

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

# What a terminal would obey instead of showing it.
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FEW_STEPS, MANY_STEPS = (255, 245, 180), (230, 85, 13)  # background, red green blue


def legend(most: int) -> Text:
    """Return a line that explains the shades; `most` is the largest number of steps."""
    shown = sorted({round(most * part / 3) for part in range(4)})
    line = Text("thinking steps per token: ")
    return line + Text(" … ").join(Text(f" {n} of {most} ", shade(n, most)) for n in shown)


def shade(steps: int | None, most: int) -> Style:
    """Return the style of a token that took so many steps; the terminal's own for none."""
    if not steps:
        return Style()
    share = steps / most
    ends = zip(FEW_STEPS, MANY_STEPS, strict=True)
    mixed = (round(few + share * (many - few)) for few, many in ends)
    return Style.parse(f"black on rgb({','.join(map(str, mixed))})")


def shaded_writer(console: Console, most: int) -> Callable[[str, int | None], None]:
    """Return a function that prints pieces of text, shaded unless `most` is 0."""

    def write(text: str, steps: int | None) -> None:
        if console.is_terminal:
            text = CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)
        if not most:
            console.file.write(text)
        # A shaded line break would shade the rest of the terminal's line.
        for line in text.splitlines(keepends=True) if most else ():
            shown = line.rstrip("\n")
            pieces = [Segment(shown, shade(steps, most)), Segment(line[len(shown) :])]
            console.print(Segments(pieces), end="", soft_wrap=True)
        console.file.flush()

    return write
