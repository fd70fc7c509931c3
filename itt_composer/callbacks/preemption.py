"""SIGTERM ends training with a checkpoint, after the batch under way, on all ranks at once."""

import signal
from types import FrameType
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

# EX_TEMPFAIL of sysexits.h: the same command, later, goes on.
EXIT_CODE = 75


class Preempted(Exception):  # noqa: N818 - no error
    """Training was asked to end, and its state is saved."""


class Preemption(Callback):
    """Watches for SIGTERM on any rank.

    Attributes:
        is_due: whether training is to be saved and ended now; the same on all ranks.
    """

    def __init__(self) -> None:
        self.is_due = False
        self._is_asked = False
        self._former: Any = None

    def fit_start(self, state: State, logger: Logger) -> None:
        self._former = signal.signal(signal.SIGTERM, self._ask)

    def close(self, state: State, logger: Logger) -> None:
        # Not once it has come: a launcher whose first rank has left sends the others another one.
        if self._former is not None and not self.is_due:
            signal.signal(signal.SIGTERM, self._former)
            self._former = None

    def batch_end(self, state: State, logger: Logger) -> None:
        asked = state.device.tensor_to_device(torch.tensor([int(self._is_asked)]))
        dist.all_reduce(asked, "MAX")
        self.is_due = bool(asked.item())

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
