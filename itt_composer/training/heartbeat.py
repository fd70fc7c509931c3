"""A rank that hangs ends the run with a message that names it."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed import TCPStore

# What a rank does one after the other, counted from a batch's end.
PHASES = ("evaluating", "saving a checkpoint", "loading data", "training")
LONGEST_INTERVAL = 10.0


@dataclass
class Report:
    """What a rank says of itself.

    Attributes:
        beats: how often it has said so.
        batch: batches done.
        phase: one of `PHASES`.
        seconds: since it last got ahead.
        host: where it runs.
    """

    beats: int
    batch: int
    phase: str
    seconds: float
    host: str


def blame(reports: dict[int, Report], silent: set[int]) -> str:
    """Say which ranks the others wait for, in a sentence without its end.

    Args:
        reports: the last one of each rank.
        silent: ranks that no longer report.
    """
    if silent:
        return (
            f"{_ranks(silent)} {'hangs' if len(silent) == 1 else 'hang'}: no sign of life since "
            f"{_work(reports, silent)}"
        )
    behind = min((report.batch, PHASES.index(report.phase)) for report in reports.values())
    ranks = {
        rank
        for rank, report in reports.items()
        if (report.batch, PHASES.index(report.phase)) == behind
    }
    seconds = max(reports[rank].seconds for rank in ranks)
    sentence = f"{_ranks(ranks)} {'hangs' if len(ranks) == 1 else 'hang'}: for {seconds:.0f} s "
    sentence += _work(reports, ranks)
    if len(ranks) < len(reports):
        sentence += ", while the others wait"
    elif len(ranks) > 1:
        sentence += ", none behind the others"
    return sentence


def _work(reports: dict[int, Report], ranks: set[int]) -> str:
    known = [reports[rank] for rank in sorted(ranks) if rank in reports]
    if not known:
        return "the start"
    report = known[0]
    number = report.batch + (report.phase in ("loading data", "training"))
    return f"{report.phase} at batch {number:,} (on {report.host})"


def _ranks(ranks: set[int]) -> str:
    shown = ", ".join(str(rank) for rank in sorted(ranks)[:8])
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{' …' if len(ranks) > 8 else ''}"


class Progress:
    """What this rank is doing, and since when."""

    def __init__(self) -> None:
        self.batch = 0
        self._phase = PHASES[2]
        self._since = time.monotonic()
        self._beats = 0

    def enter(self, phase: str, batch: int | None = None) -> None:
        """Note that something new begins."""
        self.batch = self.batch if batch is None else batch
        self._phase, self._since = phase, time.monotonic()

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Note a phase, and at its end that data is loaded."""
        self.enter(phase)
        yield
        self.enter("loading data")

    def report(self) -> Report:
        """Return the next report."""
        self._beats += 1
        seconds = time.monotonic() - self._since
        return Report(self._beats, self.batch, self._phase, seconds, socket.gethostname())


class Heartbeat(Callback):
    """Ends this rank when none gets ahead for too long, and says which one hangs.

    A thread of every rank reports to the store in which the ranks met. When any has waited for
    `timeout`, rank 0 finds out who is silent or behind, and says so to the others before it ends.

    Args:
        timeout: seconds without progress; a phase of a batch, or a batch of evaluation, is one.
        progress: of this rank.
    """

    def __init__(self, timeout: float, progress: Progress):
        self._timeout = timeout
        self._interval = min(LONGEST_INTERVAL, timeout / 4)
        self.progress = progress
        self._ended = threading.Event()

    def fit_start(self, state: State, logger: Logger) -> None:
        self.progress.enter("loading data", state.timestamp.batch.value)
        self._ended.clear()
        _in_thread(self._watch)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.progress.enter("training", state.timestamp.batch.value)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.progress.enter("loading data", state.timestamp.batch.value)

    def eval_start(self, state: State, logger: Logger) -> None:
        self.progress.enter("evaluating")

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self.progress.enter("evaluating")

    def eval_end(self, state: State, logger: Logger) -> None:
        self.progress.enter("loading data")

    def fit_end(self, state: State, logger: Logger) -> None:
        self._ended.set()

    def close(self, state: State, logger: Logger) -> None:
        self._ended.set()

    def _watch(self) -> None:
        board = _Board(self._interval) if dist.get_world_size() > 1 else None
        if board is not None:
            _in_thread(board.post, self.progress, self._ended)
        while not self._ended.wait(self._interval):
            report = self.progress.report()
            if report.seconds <= self._timeout and not (board and board.is_asked.is_set()):
                continue
            sentence = board.verdict() if board else blame({0: report}, set())
            if not self._ended.is_set():
                self._end(sentence)

    def _end(self, sentence: str | None) -> None:
        if sentence is not None:
            print(
                f"error: {sentence} (train.rank_timeout={self._timeout:g}); the run ends here, the "
                "same command goes on from its last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(self._interval)  # the others still read in rank 0's store
        os._exit(1)


def beats_of(state: State) -> Callable[[float, float], None]:
    """Return a function of (done, total) that notes, in an evaluation, that the run gets ahead."""
    heartbeats = [callback for callback in state.callbacks if isinstance(callback, Heartbeat)]

    def beat(done: float, total: float) -> None:
        for heartbeat in heartbeats:
            heartbeat.progress.enter("evaluating")

    return beat


class _Board:
    """Posts and reads the ranks' reports in the store that rank 0, or its launcher, keeps.

    A question to a store that does not answer never returns, whatever its time-out; so each is
    asked in a thread of its own. A launcher that starts the ranks anew keeps its store.
    """

    def __init__(self, interval: float):
        self._interval = interval
        self._rank, self._world_size = dist.get_global_rank(), dist.get_world_size()
        self._prefix = f"heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.is_asked = threading.Event()  # at rank 0: another rank has waited for too long

    def post(self, progress: Progress, ended: threading.Event) -> None:
        """Report every interval."""
        store = _connect()
        with contextlib.suppress(RuntimeError):  # rank 0 is gone: `verdict` says so, if need be
            while not ended.wait(self._interval):
                store.set(f"{self._prefix}/{self._rank}", json.dumps(asdict(progress.report())))
                if self._rank == 0 and store.check([f"{self._prefix}/due"]):  # type: ignore[attr-defined]
                    self.is_asked.set()

    def verdict(self) -> str | None:
        """Say who hangs; None where rank 0 says it on this node."""
        found: list[str] = []
        asking = _in_thread(self._judge if self._rank == 0 else self._ask, found)
        asking.join(6 * self._interval)
        if not found:
            return "rank 0 hangs: it does not answer the other ranks"
        return found[0] if dist.get_local_rank() == 0 else None

    def _judge(self, found: list[str]) -> None:
        store = _connect()
        before = self._read(store)
        time.sleep(2 * self._interval)
        now = self._read(store)
        silent = {rank for rank in now if rank in before and now[rank].beats == before[rank].beats}
        sentence = blame(now, silent | (set(range(self._world_size)) - now.keys()))
        store.set(f"{self._prefix}/verdict", sentence)
        found.append(sentence)

    def _ask(self, found: list[str]) -> None:
        store = _connect()
        with contextlib.suppress(RuntimeError):
            store.set(f"{self._prefix}/due", "")
            while not store.check([f"{self._prefix}/verdict"]):  # type: ignore[attr-defined]
                time.sleep(self._interval / 4)
            found.append(store.get(f"{self._prefix}/verdict").decode())

    def _read(self, store: TCPStore) -> dict[int, Report]:
        reports: dict[int, Report] = {}
        for rank in range(self._world_size):
            key = f"{self._prefix}/{rank}"
            if store.check([key]):  # type: ignore[attr-defined]
                reports[rank] = Report(**json.loads(store.get(key)))
        return reports


def _connect() -> TCPStore:
    """Open another connection: the main thread may wait in its own for ever."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, wait_for_workers=False)


def _in_thread(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, name="heartbeat", daemon=True)
    thread.start()
    return thread
