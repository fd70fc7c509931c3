"""A bar on the last line of a terminal, below the lines that the run prints."""

import sys
import time
from collections.abc import Callable

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from itt_composer.training.heartbeat import beats_of

REFRESH_SECONDS = 0.1


class ProgressBar(Callback):
    """Shows how far training is, and within it an evaluation or the calibration.

    Lines that this process prints meanwhile come above the bar, whole. It is drawn in the main
    thread only: a lock that a drawing thread holds would stay closed in forked loaders.

    Args:
        console: on stderr by default; without a terminal, and on other ranks, nothing is shown.
    """

    def __init__(self, console: Console | None = None):
        console = console or Console(stderr=True, soft_wrap=True)
        self._is_shown = console.is_terminal and dist.get_local_rank() == 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not self._is_shown,  # otherwise rich ends it with an empty line
            redirect_stdout=sys.stdout.isatty(),  # otherwise it goes where the user has sent it
        )
        self._training = self._bar.add_task("training", total=1.0)
        self._part = self._bar.add_task("", visible=False)
        self._drawn_at = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._is_shown:
            self._bar.start()
            self._bar.console.show_cursor(True)  # a run that is killed would leave it hidden

    def batch_end(self, state: State, logger: Logger) -> None:
        elapsed = state.get_elapsed_duration()
        text = f"batch {state.timestamp.batch.value:,}"
        done = 0.0 if elapsed is None else min(elapsed.value, 1.0)
        self._bar.update(self._training, description=text, completed=done)
        self._draw()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        total = state.dataloader_len
        if total is not None:
            self.show_part("validating", state.eval_timestamp.batch.value, total.value)

    def show_part(self, what: str, done: float, total: float) -> None:
        """Show something within training in its place, until all of it is done."""
        is_going_on = done < total
        if is_going_on and self._bar.tasks[self._part].description != what:
            self._bar.reset(self._part, description=what)
        self._bar.update(
            self._part,
            description=what if is_going_on else "",
            completed=done,
            total=total,
            visible=is_going_on,
        )
        self._bar.update(self._training, visible=not is_going_on)
        self._draw()

    def close(self, state: State, logger: Logger) -> None:
        self._bar.stop()

    def _draw(self) -> None:
        now = time.monotonic()
        if self._is_shown and now - self._drawn_at >= REFRESH_SECONDS:
            self._drawn_at = now
            self._bar.refresh()


def format_time(seconds: float) -> str:
    """Write seconds in the largest unit that says enough: `42 s`, `3 min`, `7 h 05 min`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def progress_of(state: State, what: str) -> Callable[[float, float], None]:
    """Return a function of (done, total) that shows how far a part of this run is."""
    beat = beats_of(state)
    bars = [callback for callback in state.callbacks if isinstance(callback, ProgressBar)]

    def report(done: float, total: float) -> None:
        beat(done, total)
        for bar in bars:
            bar.show_part(what, done, total)

    return report
