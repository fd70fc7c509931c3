"""SIGTERM ends training with a checkpoint, after the batch under way, on all ranks at once."""

import signal
from types import FrameType

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

    def fit_start(self, state: State, logger: Logger) -> None:
        # Stays to the end: a launcher whose first rank has left sends the others another one.
        signal.signal(signal.SIGTERM, self._ask)

    def batch_end(self, state: State, logger: Logger) -> None:
        asked = state.device.tensor_to_device(torch.tensor([int(self._is_asked)]))
        dist.all_reduce(asked, "MAX")
        self.is_due = bool(asked.item())

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
