"""Real processes without their imports: one server has imported everything and forks on request.

    ranks = fork_server.start("itt_composer.train", "recipe.yaml", "key=value", ranks=2)
    os.kill(ranks.pids[1], signal.SIGKILL)
    result = ranks.wait(timeout=60)

A fork runs a module (or a script, by its path) as `python -m` would, with the environment that
Composer's launcher sets. It leads a process group of its own, writes into files of its own, and
dies with the server, which dies with whoever started it. The server has one thread and has opened
nothing; what packages read from the environment while they are imported is the server's.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
IMPORTED = (
    "composer",
    "streaming",
    "transformers",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "itt_composer.train",
    "itt_composer.runs.export",
    "itt_composer.models.upcycling",
    "itt_composer.models.composer_model",
    "composer.algorithms",
    "itt_composer.training.loss_guard",
    "itt_composer.training.threshold_estimate",
    "itt_composer.training.checkpoint_saving",
    "itt_composer.data.prepare",
    "itt_composer.data.streams",
    "itt_composer.cli.generate",
    "itt_composer.cli.calibrate",
    "itt_composer.training.train",
    "eval.perplexity",
    "eval.harness",
    "eval.task_data",
    "eval.lm_eval_callback",
)
# Threads do not survive a fork: neither OpenMP's nor that of Arrow's allocator may be there.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


def _name_processor() -> None:
    """Composer names it in every checkpoint; to find the name takes processes and a second."""
    import cpuinfo

    cpuinfo.get_cpu_info = lambda: {"brand_raw": "CPU"}


def _read_tasks() -> None:
    """lm-eval's 14,000 files."""
    from eval.leaf_tasks import task_manager

    task_manager()


PREPARED = {"composer": _name_processor, "eval.task_data": _read_tasks}
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
STOP_SECONDS = 10.0


@dataclass
class Result:
    """How the ranks ended.

    Attributes:
        returncodes: of each rank; -9 means killed by signal 9.
        stdout, stderr: of all ranks, one after the other.
    """

    returncodes: list[int]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        """0, or that of the first rank that failed."""
        return next((code for code in self.returncodes if code), 0)


class Ranks:
    """Processes that were started together; `pids` and `outputs` (files) are by local rank."""

    def __init__(self, server: "ForkServer", pids: list[int], folder: Path):
        self._server = server
        self.pids = pids
        self.outputs = [
            (folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(len(pids))
        ]
        self._codes: list[int | None] = [None] * len(pids)

    def poll(self) -> list[int | None]:
        """Exit codes; None for a rank that is still there."""
        for rank, pid in enumerate(self.pids):
            if self._codes[rank] is None:
                self._codes[rank] = self._server.ask(poll=pid)
        return list(self._codes)

    def signal(self, number: int) -> None:
        """Send a signal to every rank that is still there, and to the processes it started."""
        for pid, code in zip(self.pids, self.poll(), strict=True):
            if code is None:
                os.killpg(pid, number)

    def wait_until(self, condition: Callable[[], object], timeout: float = 120.0) -> None:
        """Wait until something is there that the ranks, or some of them, are to bring about.

        Raises:
            TimeoutError: after `timeout` seconds, with what they printed.
            RuntimeError: likewise, if all have ended without it.
        """
        deadline = time.monotonic() + timeout
        while True:
            has_ended = None not in self.poll()
            if condition():
                return
            if has_ended:
                raise RuntimeError(f"all have ended: {self._result()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout} s: {self._result()}")
            time.sleep(0.01)

    def wait(self, timeout: float = 240.0, alone: bool = False) -> Result:
        """Wait for the end of all ranks; when one fails, the others are stopped, as by a launcher.

        Args:
            timeout: in seconds; after that all are killed.
            alone: wait for the others when one fails.

        Raises:
            TimeoutError: with what the ranks printed.
        """
        deadline = time.monotonic() + timeout
        is_stopping = False
        while None in self.poll():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                if not is_stopping:
                    raise TimeoutError(f"after {timeout} s: {self._result()}")
            if not alone and not is_stopping and any(self._codes):
                self.signal(signal.SIGTERM)
                deadline, is_stopping = time.monotonic() + STOP_SECONDS, True
            time.sleep(0.01)
        return self._result()

    def _result(self) -> Result:
        texts = [
            "".join(
                file.read_text(encoding="utf-8", errors="replace")
                for file in files
                if file.exists()  # or it was killed before it had one
            )
            for files in zip(*self.outputs, strict=True)
        ]
        return Result([-1 if code is None else code for code in self._codes], *texts)


class ForkServer:
    """The client's side: starts the server, asks it to fork, ends it.

    Args:
        folder: where the ranks' output goes.
        imported: modules that every fork has.
    """

    def __init__(self, folder: Path, imported: Sequence[str] = IMPORTED):
        self._folder = folder
        self._starts = 0
        self._connection, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno()), *imported],
                pass_fds=[other.fileno()],
                cwd=REPOSITORY,
                env=_with_repository({**os.environ, **ENVIRONMENT}),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._lines = self._connection.makefile("rw", encoding="utf-8")

    def start(
        self,
        module: str | Path,
        *arguments: str | Path,
        ranks: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        node_rank: int = 0,
        nodes: int = 1,
        port: int | None = None,
    ) -> Ranks:
        """Fork the ranks of one node and return at once.

        Args:
            module: a module's name, or a script's path.
            arguments: its command line.
            ranks: of this node; every node has as many.
            env: on top of this process's environment.
            cwd: the current folder of the ranks.
            node_rank: of this node.
            nodes: in all.
            port: where the ranks meet; None takes a free one.
        """
        folder = self._folder / str(self._starts)
        folder.mkdir(parents=True)
        self._starts += 1
        shared = {
            "WORLD_SIZE": ranks * nodes,
            "LOCAL_WORLD_SIZE": ranks,
            "NODE_RANK": node_rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port or free_port(),
        }
        tasks = []
        for rank in range(ranks):
            own = {**shared, "RANK": node_rank * ranks + rank, "LOCAL_RANK": rank}
            named = {name: str(value) for name, value in own.items()}
            tasks.append(
                {
                    "module": str(module),
                    "arguments": [str(argument) for argument in arguments],
                    "env": _with_repository({**os.environ, **ENVIRONMENT, **named, **(env or {})}),
                    "cwd": str(cwd),
                    "stdout": str(folder / f"{rank}.out"),
                    "stderr": str(folder / f"{rank}.err"),
                }
            )
        return Ranks(self, self.ask(start=tasks), folder)

    def run(
        self,
        module: str | Path,
        *arguments: str | Path,
        ranks: int = 1,
        timeout: float = 240.0,
        **places: Any,
    ) -> Result:
        """Fork and wait; see `start` and `Ranks.wait`."""
        return self.start(module, *arguments, ranks=ranks, **places).wait(timeout)

    def ask(self, **request: Any) -> Any:
        """Send one request to the server and return its answer."""
        try:
            self._lines.write(json.dumps(request) + "\n")
            self._lines.flush()
            return json.loads(self._lines.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            raise RuntimeError(f"the fork server has ended with code {code}") from None

    def close(self) -> None:
        """End the server and every rank that is still there."""
        # Closed alone, it would stay open in a loader process that was forked from this one.
        self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()
        self._process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _with_repository(environment: dict[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONPATH": str(REPOSITORY)}


# The server's side.


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the other side is gone; in a fork, return what it has to run."""
    running: set[int] = set()
    with connection, connection.makefile("rw", encoding="utf-8") as lines:
        for request in _requests(lines):
            if "start" in request:
                pids = []
                for task in request["start"]:
                    pid = os.fork()
                    if pid == 0:
                        return task
                    os.setpgid(pid, pid)  # here and in the fork: neither may come too late
                    pids.append(pid)
                running.update(pids)
                answer: Any = pids
            else:
                answer = _exit_code(request["poll"])
                if answer is not None:
                    running.remove(request["poll"])
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    for pid in running:
        os.killpg(pid, signal.SIGKILL)
    return None


def _requests(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)


def _exit_code(pid: int) -> int | None:
    """The exit code of a fork that has ended, None before."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def run_task(task: dict[str, Any]) -> None:
    """Become the process that was asked for; called in the fork."""
    import numpy as np

    os.setpgid(0, 0)
    for target, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, target)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(task["env"])
    os.chdir(task["cwd"])
    random.seed()
    np.random.seed()
    module = task["module"]
    sys.argv = [module, *task["arguments"]]
    warnings.filterwarnings("ignore", "'.*' found in sys.modules after import", RuntimeWarning)
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(descriptor: int, imported: Sequence[str]) -> None:
    die_with_parent()
    for module in imported:
        importlib.import_module(module)
        PREPARED.get(module, lambda: None)()
    threads = [path.joinpath("comm").read_text() for path in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, f"a fork would lose threads of the server: {threads}"
    server = os.getpid()
    gc.freeze()  # a collection would copy, page by page, what a fork shares
    task = serve(socket.socket(fileno=descriptor))
    if task is not None:
        die_with_parent()
        if os.getppid() == server:
            run_task(task)


def exit_early(code: int) -> None:
    """End as Python does, but for taking apart all that was imported, which takes two seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that comes."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder; a fork adds its own
    code: Any = 0
    try:
        main(int(sys.argv[1]), sys.argv[2:])
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    exit_early(code or 0)
