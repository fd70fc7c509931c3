"""A process among others: started by a launcher, and left by other ranks."""

import ctypes
import os
import signal
import sys
import threading

SIGNAL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG of prctl(2)
SIGNS_OF_LOSS = ("connection closed by peer", "connection reset by peer", "ncclremoteerror")


def end_with_launcher() -> None:
    """Have this rank saved and ended (by SIGTERM) when its launcher ends, however that comes.

    A launcher that is killed would leave its ranks training. A process that no launcher started
    may outlive its shell, and is left alone.
    """
    if "RANK" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_END, signal.SIGTERM)


def heed_parent_only(worker: int) -> None:
    """Have this loader process end by SIGTERM only where its rank sends it.

    A scheduler sends SIGTERM to every process of a job, and the rank needs its loaders for the
    batch under way. They end with the rank in any case.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if sys.platform == "linux":
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def is_loss_of_a_rank(error: RuntimeError) -> bool:
    """Whether an operation of several ranks failed as one of them is gone."""
    text = str(error).lower()
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(
        sign in text for sign in SIGNS_OF_LOSS
    )


def is_loss_of_a_worker(error: Exception) -> bool:
    """Whether a loader process was killed; torch says so wherever the rank is at the moment."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
