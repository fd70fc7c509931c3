"""Metrics as JSON lines: an object per batch, easy to read back with any tool."""

import json
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist


class JsonLinesLogger(LoggerDestination):
    """Appends `{"batch": n, "tokens": …, metric: value, …}` to a file.

    A line holds what was measured with the weights after n batches: the evaluation, and the
    training loss of the batch that follows; after an evaluation a batch has a second line. A run
    that resumes appends too; where it repeats a batch, the later lines belong to the final weights.

    Args:
        path: the file; only rank 0 writes it.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self._line: dict[str, Any] = {}
        self._state: State | None = None

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step != self._line.get("batch"):
            self._write()
            assert self._state is not None, "metrics are logged after init"
            self._line = {"batch": step, "tokens": self._state.timestamp.token.value}
        self._line.update(metrics)

    def eval_end(self, state: State, logger: Logger) -> None:
        # All evaluators in one line, before a checkpoint that a resumed run would start from.
        if state.dataloader_label == state.evaluators[-1].label:
            self._write()

    def close(self, state: State, logger: Logger) -> None:
        self._write()

    def _write(self) -> None:
        if self._line and dist.get_global_rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._line, default=float) + "\n")
        self._line = {}
