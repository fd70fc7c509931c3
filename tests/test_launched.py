"""A loader process ends by SIGTERM where its rank sends it, and nobody else."""

import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from itt_composer.launched import heed_parent_only


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
