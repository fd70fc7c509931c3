"""Metrics as JSON lines: an object per batch, easy to read back with any tool."""

import os
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from itt_composer.basics.files import json_text, numbers_only


class JsonLinesLogger(LoggerDestination):
    """Appends `{"batch": n, "tokens": …, metric: value, …}` to a file.

    A line holds what was measured with the weights after n batches: the evaluation, and the
    training loss of the batch that follows; after an evaluation or a checkpoint a batch has a
    second line. NaN and infinity are written as null, as JSON has no number for them. A run that
    resumes appends; `itt_composer.runs.metrics.read_metrics` puts it together.

    Args:
        path: the file; only rank 0 writes it.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self._line: dict[str, Any] = {}
        self._is_appending = False
        self._state: State | None = None

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step != self._line.get("batch"):
            self.flush()
            assert self._state is not None, "metrics are logged after init"
            self._line = {"batch": step, "tokens": self._state.timestamp.token.value}
        self._line.update(metrics)

    def eval_end(self, state: State, logger: Logger) -> None:
        if state.dataloader_label == state.evaluators[-1].label:
            self.flush()  # all evaluators in one line

    def close(self, state: State, logger: Logger) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what was logged so far."""
        if self._line and dist.get_global_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # One write: a run that is killed leaves the whole line or, at worst, a part of it.
                metrics = {
                    name: value.item() if hasattr(value, "item") else value
                    for name, value in self._line.items()
                }
                line = json_text(numbers_only(metrics), str(self.path)) + "\n"
                file.write((self._end_of_cut_line() + line).encode())
        self._line = {}

    def _end_of_cut_line(self) -> str:
        """Return what ends a line that was being written when an earlier start was killed."""
        if self._is_appending:
            return ""
        self._is_appending = True
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return "\n" if file.read(1) not in (b"", b"\n") else ""
