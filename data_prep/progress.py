"""Shows the progress of a long command: a bar on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from data_prep.part_rows import Progress

logger = logging.getLogger("data_prep")
LOG_SECONDS = 10.0
MEASURED_SECONDS = 1.0  # of work, before its speed is shown


@contextmanager
def conversion_progress(
    total_bytes: Callable[[], int], done_before: Progress
) -> Iterator[Callable[[Progress], None]]:
    """Yield a function to call with what this run has done so far; it writes to stderr.

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
    columns = (
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
    )
    with Bar(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, state="")

        def show(done: Progress) -> None:
            meter.add(done)
            completed = done_before.input_bytes + done.input_bytes
            total = max(1, total_bytes())
            bar.update(task, completed=completed, total=total, state=meter.short())

        show(meter.done)
        yield show


class _Meter:
    """Measures from the first work done, so that starting processes does not count."""

    def __init__(self, total_bytes: Callable[[], int], before: Progress) -> None:
        self.total_bytes = total_bytes
        self.before = before
        self.done = self.first = Progress(0, 0, 0)
        self.started = self.logged = time.monotonic()

    def add(self, done: Progress) -> None:
        """Take what this run has done so far."""
        if not self.first.input_bytes:
            self.first, self.started = done, time.monotonic()
        self.done = done

    def log(self, done: Progress, last: bool = False) -> None:
        self.add(done)
        now = time.monotonic()
        if last or now - self.logged >= LOG_SECONDS:
            self.logged = now
            logger.info(self.text())

    def text(self) -> str:
        """Write documents, MB, speeds and time left in one line."""
        return f"{self.before.documents + self.done.documents:,} documents, {self.short()}"

    def short(self) -> str:
        """Write the same without documents, which fits beside a bar in 80 columns."""
        completed, total = self._bytes()
        line = f"{completed / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        rate, tokens = self._speeds()
        if not rate:
            return line
        left = _clock(max(0, total - completed) / rate)
        return f"{line}, {rate / 1e6:.1f} MB/s, {tokens / 1e6:.2f} M tokens/s, {left} left"

    def _bytes(self) -> tuple[int, int]:
        """Return the bytes of the input that are done, and all of them."""
        return self.before.input_bytes + self.done.input_bytes, self.total_bytes()

    def _speeds(self) -> tuple[float, float]:
        """Return bytes and tokens per second; 0 until enough was done to know."""
        seconds = time.monotonic() - self.started
        if not self.first.input_bytes or seconds < MEASURED_SECONDS:
            return 0.0, 0.0
        size = self.done.input_bytes - self.first.input_bytes
        return size / seconds, (self.done.tokens - self.first.tokens) / seconds


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
