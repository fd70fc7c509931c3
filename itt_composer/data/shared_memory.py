"""Shared memory that killed runs leave behind.

Streaming's ranks and workers meet in segments `/dev/shm/NNNNNN_<name>`, one number per open
dataset. A run that is killed together with its helpers leaves them there; a later run may then be
refused its cache folder, or find another run's place in the data.

Every rank of ours holds a lock on `/dev/shm/NNNNNN_itt_composer_UID` as long as it or a worker of
it lives, in whatever container. Whether a segment is open says less: streaming, looking for a free
number, opens the segments of others.

Two nodes of a run may be on one machine: each takes numbers of its own.
"""

import atexit
import contextlib
import fcntl
import itertools
import math
import os
import re
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from streaming.base.constant import SHM_TO_CLEAN
from streaming.base.shared import SharedMemory, prefix

SHARED_MEMORY = Path("/dev/shm")
OWNER = f"itt_composer_{os.getuid()}"  # a file of another user could not be opened
NUMBERS_PER_NODE = 100_000
SEGMENT = re.compile(rf"(\d{{6,}})_({'|'.join([*SHM_TO_CLEAN, OWNER])})")

NUMBERED = re.compile(r"(\d{6,})_")

_held: list[int] = []  # descriptors, open until the process ends


def hold_segments(number: int, is_first: bool, folder: Path = SHARED_MEMORY) -> None:
    """Mark the segments of a number as in use for the life of this process.

    Args:
        number: of the open dataset.
        is_first: whether this is the node's first rank, which tidies up at its end.
        folder: where the segments are.
    """
    if not folder.is_dir():
        return
    path = folder / f"{number:06}_{OWNER}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held.append(descriptor)
    if is_first:
        atexit.register(path.unlink, missing_ok=True)


def free_number(node_rank: int, folder: Path = SHARED_MEMORY) -> int:
    """Return the first number of a node under which there is no file at all.

    A process that ends removes its segments one after another: a number of which some are gone is
    not free yet.
    """
    places = [place for place in (folder, Path(tempfile.gettempdir())) if place.is_dir()]
    names = (NUMBERED.match(path.name) for place in places for path in place.iterdir())
    taken = {int(match[1]) for match in names if match}
    numbers = itertools.count(node_rank * NUMBERS_PER_NODE)
    return next(number for number in numbers if number not in taken)


@contextlib.contextmanager
def number_taken(number: int) -> Iterator[None]:
    """Make streaming take a free number, after it has looked at its node's others.

    Streaming compares their cache folders with its own. It would take a number of which a process
    that ends has removed a part, and would keep every segment that it looks at open until the
    process ends: a file for each dataset there is, with each new one.
    """

    def look(name: str, create: bool, size: int = 0) -> Any:
        try:
            return SharedMemory(name, create, size, auto_cleanup=create)
        except FileNotFoundError:
            if create or int(name.partition("_")[0]) >= number:
                raise
            return SimpleNamespace(buf=prefix._pack_locals([], 0))  # its process has ended

    first = number - number % NUMBERS_PER_NODE
    with (
        mock.patch.object(prefix, "_each_prefix_int", partial(itertools.count, first)),
        mock.patch.object(prefix, "SharedMemory", look),
    ):
        yield


def nodes_with_segments(folder: Path = SHARED_MEMORY) -> set[int]:
    """List the nodes whose numbers are taken, even by runs that have ended."""
    paths = folder.iterdir() if folder.is_dir() else ()
    matches = (SEGMENT.fullmatch(path.name) for path in paths)
    return {int(match[1]) // NUMBERS_PER_NODE for match in matches if match}


def free_bytes(folder: Path = SHARED_MEMORY) -> float:
    """Return the bytes free for more segments, counting this user's, which are removed first."""
    if not folder.is_dir():
        return math.inf
    free = shutil.disk_usage(folder).free
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if SEGMENT.fullmatch(path.name) and path.stat().st_uid == os.geteuid():
                free += path.stat().st_size
    return free


def remove_stale_segments(folder: Path = SHARED_MEMORY, node_rank: int = 0) -> list[str]:
    """Remove a node's segments of this user that no process uses, and return their names.

    A dataset's segments live and die together: one that is in use keeps all of its number. Call
    it before streaming looks for a free number, and not while another process does.
    """
    segments = defaultdict(list)
    for path in folder.iterdir() if folder.is_dir() else ():
        match = SEGMENT.fullmatch(path.name)
        if match and int(match[1]) // NUMBERS_PER_NODE == node_rank:
            segments[match[1]].append(path)
    removed = []
    for number, paths in segments.items():
        owner = folder / f"{number}_{OWNER}"
        if is_held(owner) if owner in paths else any(is_open(path) for path in paths):
            continue
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # its run has just ended
                if path.stat().st_uid == os.geteuid():
                    path.unlink()
                    removed.append(path.name)
    return sorted(removed)


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock on a file; another user's file counts as held."""

    def lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return _is_refused(path, lock)


def is_open(path: Path) -> bool:
    """Return whether a process has a file open for writing or mapped.

    The kernel grants a write lease only on a file that nobody else has open. Where it cannot
    tell (no leases, another user's file), the file counts as open.
    """

    def lease(descriptor: int) -> None:
        # Whoever opens the file in this moment makes the kernel signal: not by SIGIO, which kills.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    return _is_refused(path, lease)


def _is_refused(path: Path, ask: Callable[[int], None]) -> bool:
    """Return whether the kernel refuses the request for a file, or it is another user's."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return True
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return True
        ask(descriptor)
    except (OSError, AttributeError):  # AttributeError: only Linux has leases
        return True
    finally:
        os.close(descriptor)
    return False
