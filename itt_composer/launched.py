"""A process among others: started by a launcher, left by other ranks, and one of many to speak."""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from itt_composer.data.shards import LoaderError
from itt_composer.errors import UserError

SIGNAL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG of prctl(2)
SIGNS_OF_LOSS = ("connection closed by peer", "connection reset by peer", "ncclremoteerror")
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def is_first_rank() -> bool:
    """Whether this process prints and writes what all have come to."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def failures_told_once() -> Iterator[None]:
    """End with one sentence where a user can put things right, whatever the number of ranks.

    Raises:
        SystemExit: with code 1, after the sentence has been printed.
    """
    try:
        with _told():
            yield
    except RuntimeError as error:
        if not is_loss_of_a_worker(error):
            raise
        # torch raises for each loader that dies, be it while the first one is being told.
        fail(LoaderError(f"rank {os.environ.get('RANK', '0')}: {error}"))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        fail(error)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            place = error.filename or "a file of the run"
            told = f"{place} cannot be written: {error.strerror}; make room, start again"
            fail(LoaderError(told))
        if error.filename is None:
            raise
        fail(UserError(f"cannot use {error.filename}: {error.strerror}"))
    except RuntimeError as error:
        rank = os.environ.get("RANK", "0")
        if is_loss_of_a_rank(error):
            fail(LoaderError(f"rank {rank} ends: another rank is gone, see its message"))
        if is_loss_of_a_worker(error):
            loss = str(error).rstrip(". ")
            fail(LoaderError(f"rank {rank}: {loss}. Did its memory run out? Then start again"))
        raise


def fail(error: UserError) -> NoReturn:
    """Tell the mistake once per node, not once per rank, and exit with code 1."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise for each
    for loader in multiprocessing.active_children():
        loader.kill()  # a frozen one would be waited for at the exit
    if os.environ.get("LOCAL_RANK", "0") != "0" and not isinstance(error, LoaderError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The launcher prints the output of every rank that failed, but not of those it stops:
        # whoever is still there then is alone with the mistake.
        time.sleep(30)
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)
