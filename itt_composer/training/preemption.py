"""SIGTERM or Ctrl-C ends training with a checkpoint, on all ranks after the same batch."""

import signal

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from itt_composer.basics.processes import SIGNAL_NAMES, StopSignals

# The last one wins where ranks differ: after a Ctrl-C Composer's launcher sends SIGTERM.
ASKED = (None, signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):  # noqa: N818 - not an error
    """Training was asked to end, and its state is saved.

    Attributes:
        by: the signal.
    """

    def __init__(self, by: signal.Signals, place: str):
        super().__init__(
            f"ended by {SIGNAL_NAMES[by]}: {place}; the same command goes on from there"
        )
        self.by = by


class Preemption(Callback):
    """Finds out after each batch whether any rank was asked to end.

    Until the first batch is done there is nothing to save, and after the last one nothing more:
    then a signal ends the rank at once.

    Args:
        signals: of this rank.

    Attributes:
        due_by: the signal by which training is to be saved and ended now, the same on all ranks.
    """

    def __init__(self, signals: StopSignals):
        self._signals = signals
        self.due_by: signal.Signals | None = None

    def batch_end(self, state: State, logger: Logger) -> None:
        own = state.device.tensor_to_device(torch.tensor([ASKED.index(self._signals.asked)]))
        dist.all_reduce(own, "MAX")
        self.due_by = ASKED[int(own.item())]
        self._signals.finishing = (
            "the batch under way is finished and saved, then the run ends; a second Ctrl-C ends "
            "it now, without saving"
        )

    def saved(self, state: State) -> None:
        """Note that there is a checkpoint of this batch."""
        self._signals.at_once = going_on_after(state.timestamp.batch.value)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._signals.finishing = None


def going_on_after(batch: int) -> str:
    """Say what the same command does if the last checkpoint is of this batch; 0: there is none."""
    return (
        f"the same command goes on after batch {batch:,}"
        if batch
        else "nothing was saved, the same command starts anew"
    )
