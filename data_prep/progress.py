"""How far a long command is: a bar on a terminal, lines at log level elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from data_prep.conversion import Progress

logger = logging.getLogger("data_prep")
LOG_SECONDS = 10.0


@contextmanager
def conversion_progress(
    total_bytes: Callable[[], int], done_before: Progress
) -> Iterator[Callable[[Progress], None]]:
    """Give a function to call with what this run has done so far; writes to stderr.

    Args:
        total_bytes: gives those of the input, as it lies on disk, that will be read; what a budget
            needs is known better the more is done.
        done_before: by earlier runs of the same conversion.
    """
    meter = _Meter(total_bytes, done_before)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield meter.log
        meter.log(meter.done, last=True)
        return
    columns = TextColumn("converting"), BarColumn(), TextColumn("{task.fields[state]}")
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, state="")

        def show(done: Progress) -> None:
            meter.done = done
            completed = done_before.input_bytes + done.input_bytes
            total = max(1, total_bytes())
            bar.update(task, completed=completed, total=total, state=meter.text())

        show(meter.done)
        yield show


class _Meter:
    def __init__(self, total_bytes: Callable[[], int], before: Progress) -> None:
        self.total_bytes = total_bytes
        self.before = before
        self.done = Progress(0, 0, 0)
        self.started = self.logged = time.monotonic()

    def log(self, done: Progress, last: bool = False) -> None:
        self.done = done
        now = time.monotonic()
        if last or now - self.logged >= LOG_SECONDS:
            self.logged = now
            logger.info(self.text())

    def text(self) -> str:
        """Documents, MB, speeds and time left, as one line."""
        seconds = max(1e-9, time.monotonic() - self.started)
        rate = self.done.input_bytes / seconds
        completed = self.before.input_bytes + self.done.input_bytes
        total = self.total_bytes()
        documents = self.before.documents + self.done.documents
        line = (
            f"{documents:,} documents, {completed / 1e6:,.1f} of {total / 1e6:,.1f} MB, "
            f"{rate / 1e6:.1f} MB/s, {self.done.tokens / seconds / 1e6:.2f} M tokens/s"
        )
        left = max(0, total - completed)
        return f"{line}, {_clock(left / rate)} left" if rate else line


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
