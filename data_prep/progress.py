"""How far a long command is: a bar on a terminal, a line per tenth elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_of_bytes(description: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with the bytes done and the bytes in all; writes to stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_tenths(console, description)
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_tenths(console: Console, description: str) -> Callable[[int, int], None]:
    printed = 0

    def report(done: int, total: int) -> None:
        nonlocal printed
        tenth = 10 * done // total
        if tenth > printed:
            printed = tenth
            console.print(f"{description}: {done / 1e6:.1f} of {total / 1e6:.1f} MB")

    return report
