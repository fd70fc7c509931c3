"""A process among others: whom a loader process heeds, and which process tells a mistake."""

import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader

from itt_composer.errors import UserError
from itt_composer.launched import failures_told_once, heed_parent_only


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
def test_each_node_tells_a_mistake_and_a_rank_that_nobody_ends_does(
    rank, local_rank, waits, monkeypatch, capsys
):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as caught, failures_told_once():
        raise UserError("data.local=shards is not there")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: data.local=shards is not there\n"
    assert bool(slept) == waits
