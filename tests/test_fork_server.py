"""The tests' own means: real processes that are forked, killed and collected."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fork_server import ForkServer

STOPPED = 128 + signal.SIGTERM  # Composer, once imported, exits in order on this signal
RANK = """\
import os, sys, threading, time
print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.getcwd(), *sys.argv[1:])
print("to stderr", file=sys.stderr)
word = sys.argv[1]
if word == "fail" and os.environ["RANK"] == "0":
    raise ValueError("on purpose")
if word == "abort":
    os.abort()
if word in ("sleep", "fail"):
    time.sleep(60)
if word == "meet":
    from composer.utils import dist
    import torch
    assert len(threading.enumerate()) == 1
    dist.initialize_dist("cpu")
    total = torch.ones(1)
    dist.all_reduce(total)
    print("met", int(total))
sys.exit(3 if word == "three" else 0)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("script") / "rank.py"
    file.write_text(RANK)
    return file


def test_ranks_meet_and_their_output_comes_back(fork_server, script, tmp_path):
    result = fork_server.run(script, "meet", "ä", ranks=2, cwd=tmp_path, timeout=60)
    assert result.returncodes == [0, 0], result.stderr
    assert result.stdout == f"0 2 {tmp_path} meet ä\nmet 2\n1 2 {tmp_path} meet ä\nmet 2\n"
    assert result.stderr.count("to stderr") == 2


def test_ends_of_every_kind_are_reported_and_leave_the_server_alive(fork_server, script):
    sleeping = fork_server.start(script, "sleep", ranks=2)
    assert sleeping.poll() == [None, None]
    assert fork_server.run(script, "three").returncode == 3
    assert fork_server.run(script, "abort").returncode == -signal.SIGABRT
    failed = fork_server.run(script, "fail", ranks=2)
    assert failed.returncodes == [1, STOPPED]
    assert "ValueError: on purpose" in failed.stderr
    os.kill(sleeping.pids[1], signal.SIGKILL)
    assert sleeping.wait().returncodes == [STOPPED, -signal.SIGKILL]
    sleeping = fork_server.start(script, "sleep")
    printed, _ = sleeping.outputs[0]
    sleeping.wait_until(lambda: printed.exists() and "0 1" in printed.read_text())
    with pytest.raises(TimeoutError, match="0 1"):
        sleeping.wait(timeout=0.1)
    with pytest.raises(RuntimeError, match="to stderr"):
        fork_server.start(script, "three").wait_until(lambda: False)


def test_a_module_runs_as_by_its_command_line(fork_server):
    result = fork_server.run("itt_composer.train", "no_such.yaml")
    assert result.returncode == 1
    assert result.stderr == "error: no_such.yaml: there is no such file\n"


def has_ended(pid):
    """Whether a process is gone, or has ended and nobody has asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_ranks_die_with_whoever_started_them(script, tmp_path):
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fork_server import ForkServer
from pathlib import Path
server = ForkServer(Path({str(tmp_path / "forks")!r}), imported=())
print(*server.start({str(script)!r}, "sleep", ranks=2).pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    pids = [int(pid) for pid in printed.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while not all(has_ended(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_server_ends_though_a_fork_of_its_client_lives_on(tmp_path):
    server = ForkServer(tmp_path, imported=())
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    closing = threading.Thread(target=server.close, daemon=True)
    closing.start()
    closing.join(20)
    is_closed = not closing.is_alive()
    child.kill()
    assert is_closed
