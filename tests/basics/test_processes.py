"""Loader processes end with their rank alone, and one process reports a mistake for all."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from itt_composer.basics.errors import UserError
from itt_composer.basics.processes import failures_reported_once, heed_parent_only

REPOSITORY = Path(__file__).parents[2]
# Starts the rank, reports when it is ready, and waits to be killed.
LAUNCHER = """
import os, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
rank.wait()
"""
RANK = """
import ctypes, os, signal
from itt_composer.basics.processes import end_with_launcher

def ask_for_signal_at_parents_end():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    print(number.value, flush=True)

for rank in (None, "0"):
    if rank is not None:
        os.environ["RANK"] = rank
    end_with_launcher()
    ask_for_signal_at_parents_end()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
print("SIGTERM" if signal.sigtimedwait({signal.SIGTERM}, 60) else "nothing", flush=True)
"""
# Saves after each line on stdin; without one it waits outside of Python, as for another rank.
ASKED = """
import hashlib, os, signal, sys
from itt_composer.basics import processes

processes.ONE_KEY_PRESS = 0.2
with processes.StopSignals("the same command goes on after batch 7") as signals:
    signals.finishing = "the batch is saved" if sys.argv[1] == "training" else None
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)  # its parent hears nothing of it
        os._exit(0)
    os.waitpid(child, 0)
    print(signals.asked, flush=True)
    if sys.argv[1] == "training":
        sys.stdin.readline()
        print(signals.asked.name, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="who sent a signal is asked on Linux only")
def test_a_loader_process_outlives_the_sigterm_of_a_scheduler():
    rows = list(range(8))
    batches = iter(
        DataLoader(rows, batch_size=None, num_workers=1, worker_init_fn=heed_parent_only)
    )
    taken = [next(batches)]
    [worker] = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    taken += list(batches)
    assert taken == rows


def test_a_loader_process_ends_when_its_rank_says_so():
    batches = iter(DataLoader(list(range(8)), num_workers=1, worker_init_fn=heed_parent_only))
    next(batches)
    [worker] = batches._workers
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
    del batches


@pytest.mark.parametrize(
    ("rank", "local_rank", "waits"), [("0", "0", False), ("8", "0", False), ("11", "3", True)]
)
def test_each_node_reports_a_mistake_and_a_rank_that_nobody_ends_does(
    rank, local_rank, waits, monkeypatch, capsys
):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as caught, failures_reported_once():
        raise UserError("data.local=shards is not there")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: data.local=shards is not there\n"
    assert bool(slept) == waits


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at a parent's end is Linux's")
def test_a_rank_gets_sigterm_when_its_launcher_is_killed_and_other_processes_do_not():
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK],
        cwd=REPOSITORY,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher.stdout as printed:
        assert [printed.readline() for _ in range(3)] == [
            "0\n",
            f"{int(signal.SIGTERM)}\n",
            "ready\n",
        ]
        launcher.kill()
        assert printed.read() == "SIGTERM\n"
    launcher.wait()


@pytest.mark.parametrize(
    ("failure", "ranks", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl"),
            *(1, "run/metrics.jsonl cannot be written: No space left on device; make room, start"),
        ),
        (OSError(errno.EDQUOT, "Quota"), 1, "a file of the run cannot be written: Quota; make r"),
        (OSError(errno.EACCES, "Permission denied", "run"), 1, "cannot use run: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), 1, None),
        (RuntimeError("gloo: Connection closed by peer [::1]"), 2, "rank 1 ends: another rank is"),
        (RuntimeError("ncclRemoteError: a call failed"), 2, "rank 1 ends: another rank is gone, s"),
        (RuntimeError("Connection closed by peer"), 1, None),
        (RuntimeError("shapes do not fit"), 2, None),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            *(1, "rank 1: DataLoader worker (pid 7) is killed by signal: Killed. Did its memory"),
        ),
    ],
)
def test_failures_that_a_user_can_mend_are_sentences_and_others_stay_as_they_are(
    failure, ranks, sentence, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with (
        pytest.raises(SystemExit if sentence else type(failure)) as caught,
        failures_reported_once(),
    ):
        raise failure
    if sentence:
        assert caught.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: {sentence}")
        # The first rank reports what every rank meets; a rank that is alone reports at once.
        assert bool(slept) == sentence.startswith("cannot use")
    else:
        assert caught.value is failure


@pytest.fixture
def asked():
    """Start a process that is `training`, or not; signals are heard once it has said "None"."""
    processes = []

    def start(what, rank="0"):
        process = subprocess.Popen(
            [sys.executable, "-c", ASKED, what],
            cwd=REPOSITORY,
            env={**os.environ, "LOCAL_RANK": rank},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "None\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "rank", "code", "sentence"),
    [
        (signal.SIGINT, "0", 130, "ended by Ctrl-C; the same command goes on after batch 7\n"),
        (signal.SIGTERM, "0", 75, "ended by SIGTERM; the same command goes on after batch 7\n"),
        (signal.SIGINT, "1", 0, ""),
    ],
)
def test_a_signal_ends_what_has_nothing_to_save_at_once_even_outside_of_python(
    asked, number, rank, code, sentence
):
    process = asked("starting", rank)
    process.send_signal(number)
    assert process.wait(20) == code
    assert process.stderr.read() == sentence


def test_training_is_asked_by_the_first_ctrl_c_and_ended_by_the_second(asked):
    process = asked("training")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # as launchers hand it on
        process.send_signal(number)
        time.sleep(0.05)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "SIGINT\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read().splitlines() == [
        "Ctrl-C: the batch is saved",
        "ended at once by a second Ctrl-C; the same command goes on after batch 7",
    ]


def test_a_loader_process_outlives_ctrl_c():
    batches = iter(DataLoader(list(range(8)), num_workers=1, worker_init_fn=heed_parent_only))
    taken = [int(next(batches))]
    os.kill(batches._workers[0].pid, signal.SIGINT)
    taken += [int(batch) for batch in batches]
    assert taken == list(range(8))
