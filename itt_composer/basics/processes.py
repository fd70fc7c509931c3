"""Handles what other processes do to this one: launchers start it, ranks leave, signals end it."""

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from itt_composer.basics.errors import LoaderError, UserError
from itt_composer.basics.startup import INTERRUPTED, end_with_parent

# EX_TEMPFAIL of sysexits.h: the same command, later, goes on.
PREEMPTED = 75
SIGNAL_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
# Set by `scripts/forward_sigterm.sh`, which ends with 130 itself.
FORWARDED = "ITT_SIGNALS_ARE_FORWARDED"
NO_SIGNAL = b"\0"
# torchrun passes on, a moment later, the SIGINT that the terminal has sent to every process.
ONE_KEY_PRESS = 1.0  # seconds
SIGNS_OF_LOSS = ("connection closed by peer", "connection reset by peer", "ncclremoteerror")
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def end_with_launcher() -> None:
    """Make this rank save and end (by SIGTERM) when its launcher ends, for whatever reason.

    A launcher that is killed would leave its ranks training. A process that no launcher started
    may outlive its shell, and is left alone.
    """
    if "RANK" in os.environ:
        end_with_parent(signal.SIGTERM)


def heed_parent_only(worker: int) -> None:
    """Make this loader process end by SIGTERM only if its rank sends it, and never by SIGINT.

    A scheduler sends SIGTERM to every process of a job, a terminal's Ctrl-C SIGINT, and the rank
    needs its loaders for the batch under way. They end with the rank in any case.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if sys.platform == "linux":
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopSignals:
    """Hears SIGTERM and SIGINT (Ctrl-C) at once, wherever Python's main thread waits.

    A process that has nothing to save ends at the first one. While `finishing` is set the first
    one is kept in `asked`, for the main thread to save and end; a second Ctrl-C ends at once.
    Exit codes are those of `exit_code`. Python hands a signal to its main thread, which may
    wait for another rank or a kernel for minutes, so that a thread of its own listens here.

        with StopSignals("the same command starts anew"):
            measure()

    Attributes:
        asked: the signal by which training was asked to end; None before.
        at_once: printed where the process ends at once: what the same command does then.
        finishing: printed at the first Ctrl-C while something is to be finished; None ends at
            once.
    """

    def __init__(self, at_once: str = "the same command starts anew"):
        self.asked: signal.Signals | None = None
        self.at_once = at_once
        self.finishing: str | None = None
        self._pressed_at: float | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._pipe = reader, writer
        self._former = {number: signal.getsignal(number) for number in SIGNAL_NAMES}
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_hear_no_more)  # a child's signals are its own
        self.take()
        self._listener = threading.Thread(target=self._listen, args=[reader], daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.asked is not None:
            return  # a launcher whose first rank has left sends the others another SIGTERM
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        reader, writer = self._pipe
        os.write(writer, NO_SIGNAL)  # closing it is not enough: forked loaders hold it, too
        self._listener.join()
        os.close(reader)
        os.close(writer)

    def take(self) -> None:
        """Take the signals (again): Composer takes them when it is imported."""
        for number in SIGNAL_NAMES:
            signal.signal(number, _left_to_the_listener)

    def _listen(self, reader: int) -> None:
        while (numbers := os.read(reader, 1)) != NO_SIGNAL:
            if numbers[0] in SIGNAL_NAMES:  # Python passes on every signal that has a handler
                self._hear(signal.Signals(numbers[0]))

    def _hear(self, number: signal.Signals) -> None:
        if self.finishing is None:
            self._end(number, f"ended by {SIGNAL_NAMES[number]}; {self.at_once}")
        self.asked = self.asked or number
        if number == signal.SIGTERM:
            return
        now = time.monotonic()
        if self._pressed_at is None:
            self._pressed_at = now
            print_at_once(f"Ctrl-C: {self.finishing}")
        elif now - self._pressed_at > ONE_KEY_PRESS:
            self._end(number, f"ended at once by a second Ctrl-C; {self.at_once}")

    def _end(self, number: signal.Signals, sentence: str) -> NoReturn:
        print_at_once(sentence)
        for loader in multiprocessing.active_children():
            loader.kill()
        os._exit(exit_code(number))


def exit_code(number: signal.Signals) -> int:
    """Return the exit code of a rank that a signal has ended: 75 after SIGTERM, 130 after Ctrl-C.

    After Ctrl-C a node's first rank reports for all: a launcher prints the output, or a traceback,
    of each rank that does not end with 0.
    """
    if number == signal.SIGTERM:
        return PREEMPTED
    is_reported = os.environ.get("LOCAL_RANK", "0") != "0" or FORWARDED in os.environ
    return 0 if is_reported else INTERRUPTED


def _left_to_the_listener(number: int, frame: object) -> None:
    """Do nothing: without a Python handler `set_wakeup_fd` would receive nothing."""


def _hear_no_more() -> None:
    signal.set_wakeup_fd(-1)


def print_at_once(sentence: str) -> None:
    """Print a line on stderr, on this node's first rank, from any thread.

    It bypasses Python's streams, which the main thread may hold, and overwrites a progress bar.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        start = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""  # a bar may hide the cursor
        os.write(2, f"{start}{sentence}\n".encode())


def is_loss_of_a_rank(error: RuntimeError) -> bool:
    """Return whether an operation of several ranks failed because one of them is gone."""
    text = str(error).lower()
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(
        sign in text for sign in SIGNS_OF_LOSS
    )


def is_loss_of_a_worker(error: Exception) -> bool:
    """Return whether a loader process was killed; torch raises that wherever the rank is."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def is_first_rank() -> bool:
    """Return whether this process prints and writes for all ranks."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line on the first rank, at once."""
    if is_first_rank():
        print(text, flush=True)


@contextlib.contextmanager
def failures_reported_once() -> Iterator[None]:
    """End with one sentence where the user can put things right, whatever the number of ranks.

    Raises:
        SystemExit: with code 1, after the sentence has been printed.
    """
    try:
        with _failures_as_sentences():
            yield
    except RuntimeError as error:
        if not is_loss_of_a_worker(error):
            raise
        # torch raises for each loader that dies, even while the first one is being reported.
        fail(LoaderError(f"rank {os.environ.get('RANK', '0')}: {error}"))


@contextlib.contextmanager
def _failures_as_sentences() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        fail(error)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            place = error.filename or "a file of the run"
            sentence = f"{place} cannot be written: {error.strerror}; make room, start again"
            fail(LoaderError(sentence))
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
    """Print the mistake once per node, not once per rank, and exit with code 1."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise for each loader
    for loader in multiprocessing.active_children():
        loader.kill()  # the exit would wait for a frozen one
    if os.environ.get("LOCAL_RANK", "0") != "0" and not isinstance(error, LoaderError):
        for number in SIGNAL_NAMES:
            signal.signal(number, signal.SIG_DFL)
        # The launcher prints the output of every rank that failed, but not of those it stops:
        # a rank that is still there then is the only one with the mistake.
        time.sleep(30)
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)
