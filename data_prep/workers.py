"""Processes that convert parts, and what they have done so far.

With one worker everything runs in this process. Workers are forked from a server process that
has imported the heavy libraries once; they end when this process does, however it ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for_sentinel
from typing import Any

from data_prep.part_rows import Progress
from itt_composer.basics.errors import UserError

POLL_SECONDS = 0.5
PRELOADED = ["data_prep.part_shards", "streaming", "gigatoken", "awkward"]

_counters: Any = None  # of a worker process: shared with the process that started it


class Workers:
    """Runs functions that take a progress callback as their last argument.

    Args:
        count: processes; 1 runs them here.
        on_progress: called in this process, every half second or so, with the sums so far.
    """

    def __init__(self, count: int, on_progress: Callable[[Progress], None]) -> None:
        self.count = count
        self.on_progress = on_progress
        self.sums = Progress(0, 0, 0)
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Forked from a server, not from here: this process may have threads.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            self.counters = context.Array("q", 3)
            _start_server()
            self.pool = ProcessPoolExecutor(count, context, _start, (self.counters,))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Run `function(*arguments, on_progress)` on a worker; at once if there is only one."""
        if self.pool is not None:
            return self.pool.submit(_call, function, *arguments)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, self._add))
        except Exception as error:
            future.set_exception(error)
        return future

    def wait(self, futures: "set[Future[Any]]") -> "set[Future[Any]]":
        """Wait until one of them is done, reporting progress meanwhile; return those done.

        Raises:
            UserError: a worker was killed.
        """
        while True:
            done = wait(futures, POLL_SECONDS, FIRST_COMPLETED).done
            if self.pool is not None:
                self.on_progress(Progress(*self.counters[:]))
            for future in done:
                if isinstance(future.exception(), BrokenProcessPool):
                    raise UserError(
                        "a worker process was killed, perhaps for lack of memory: run the same "
                        "command again to go on, with fewer --workers if it happens again"
                    )
            if done:
                return done

    def stop(self) -> None:
        """End the processes at once, whatever they are doing."""
        if self.pool is not None:
            processes = list((self.pool._processes or {}).values())
            manager: Any = self.pool._executor_manager_thread
            self.pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            if manager is not None:
                manager.join(10)  # at exit Python wakes it through a pipe that it may be closing

    def _add(self, done: Progress) -> None:
        self.sums = Progress(*(a + b for a, b in zip(self.sums, done, strict=True)))
        self.on_progress(self.sums)


@contextmanager
def workers(count: int, on_progress: Callable[[Progress], None]) -> Iterator[Workers]:
    """Yield workers that end with the block."""
    running = Workers(count, on_progress)
    try:
        yield running
    finally:
        running.stop()


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_server() -> None:
    """Start the server of workers so that Ctrl-C, meant for this process, does not reach it."""
    if threading.current_thread() is not threading.main_thread():
        return forkserver.ensure_running()  # signals are the main thread's
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def _start(counters: Any) -> None:
    global _counters
    _counters = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinel([parent.sentinel])
        os._exit(1)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments, _count)


def _count(done: Progress) -> None:
    with _counters.get_lock():
        for place, amount in enumerate(done):
            _counters[place] += amount
