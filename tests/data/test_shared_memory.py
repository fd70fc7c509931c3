"""Shared memory of killed runs is removed, that of live ones is not."""

import contextlib
import fcntl
import itertools
import math
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from streaming.base.shared import SharedMemory, prefix
from streaming.base.shared.prefix import _unpack_locals

from itt_composer.data import shared_memory, streams
from itt_composer.data.prepare import prepare_shards
from itt_composer.data.shared_memory import (
    OWNER,
    SHARED_MEMORY,
    free_bytes,
    free_number,
    is_open,
    nodes_with_segments,
    number_taken,
    remove_stale_segments,
)
from itt_composer.data.streams import build_dataloader

REPOSITORY = Path(__file__).parents[2]
LIVE = """\
import sys
from itt_composer.recipe.schema import load_recipe
from itt_composer.data.streams import build_dataloader
loader = build_dataloader(load_recipe(sys.argv[1], sys.argv[2:]).data, "train", 16).dataloader
batches = iter(loader)
print(next(batches)["input_ids"].sum().item(), flush=True)
while sys.stdin.readline() == "more\\n":
    print(next(batches)["input_ids"].sum().item(), flush=True)
"""

pytestmark = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="segments have no folder here")


@pytest.fixture
def temporary_folders():
    """One per job, as schedulers give them; their names are short enough for a socket's."""
    folders = [Path(tempfile.mkdtemp(prefix="itt", dir="/tmp")) for _ in range(3)]
    yield folders
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def start(*command, temporary_folder, **settings):
    """Start a process in a group of its own, so that a kill takes its helpers along."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        start_new_session=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary_folder)},
        **settings,
    )


def kill(process):
    """Send SIGKILL to a process and its helpers; all are gone when this returns."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def segments_of(folder):
    """List the segments of the open datasets that read below a folder."""
    names = set()
    for path in SHARED_MEMORY.glob("[0-9]*_locals"):
        try:
            folders, _ = _unpack_locals(path.read_bytes())
        except (OSError, ValueError):
            continue  # about to be written
        if any(Path(local).is_relative_to(folder) for local in folders):
            names |= {other.name for other in SHARED_MEMORY.glob(f"{path.name[:6]}_*")}
    return names


def wait_for(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def next_line(process):
    waiting = select.poll()  # of any number of open files, unlike select.select
    waiting.register(process.stdout, select.POLLIN)
    assert waiting.poll(240_000), "the live run says nothing"
    return process.stdout.readline()


def test_a_run_starts_after_a_killed_one_and_leaves_a_live_one_alone(
    small_recipe, shards, tmp_path, temporary_folders, monkeypatch
):
    cache = tmp_path / "cache"
    places = [f"data.remote={shards}", f"data.local={cache}", "data.num_workers=1"]
    recipe = small_recipe(*places)
    file = tmp_path / "small.yaml"
    killed = start(
        *("-m", "itt_composer.train", str(file), *places, "train.max_duration=100000ba"),
        f"run_folder={tmp_path / 'run'}",
        temporary_folder=temporary_folders[0],
    )
    live = start(
        *("-c", LIVE, str(file), f"data.local={shards}", "data.num_workers=1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        temporary_folder=temporary_folders[1],
    )
    try:
        assert int(next_line(live)) > 0
        checkpoint = tmp_path / "run/checkpoints/latest-rank0.pt"
        wait_for(checkpoint.exists, killed)
        stale, of_live = segments_of(cache), segments_of(shards)
        kill(killed)
        assert len(stale) >= 12  # training's and validation's
        assert len(of_live) >= 6

        monkeypatch.setattr(tempfile, "tempdir", str(temporary_folders[2]))
        prepare_shards(recipe.data, vocab_size=512, batch_size=4)
        loader = build_dataloader(recipe.data, "train", 16).dataloader
        assert len(next(iter(loader))["input_ids"]) == 16

        assert of_live <= {path.name for path in SHARED_MEMORY.iterdir()}
        live.stdin.write("more\n")
        live.stdin.flush()
        assert int(next_line(live)) > 0
        in_use = segments_of(cache) | segments_of(shards)
        assert in_use
        assert not in_use & set(remove_stale_segments())
        live.stdin.write("end\n")
        live.stdin.flush()
        assert live.wait(240) == 0
    finally:
        for process in (killed, live):
            if process.poll() is None:
                kill(process)


@pytest.fixture
def segment(tmp_path):
    path = tmp_path / "000123_locals"
    path.write_bytes(bytes(mmap.PAGESIZE))
    return path


def test_a_file_is_open_while_it_is_open_or_mapped(segment):
    assert not is_open(segment)
    with segment.open("r+b") as file:
        assert is_open(segment)
        mapped = mmap.mmap(file.fileno(), 0)
    assert is_open(segment)
    mapped.close()
    assert not is_open(segment)


def test_one_segment_in_use_keeps_all_of_its_number(tmp_path, segment):
    others = [tmp_path / name for name in ("000123_barrier", "000124_barrier", "000123_other")]
    for path in others:
        path.write_bytes(b"1234")
    with segment.open("r+b"):
        assert remove_stale_segments(tmp_path) == ["000124_barrier"]
    assert remove_stale_segments(tmp_path) == ["000123_barrier", "000123_locals"]
    assert [path.name for path in tmp_path.iterdir()] == ["000123_other"]


def test_the_lock_of_the_owner_decides_where_there_is_one(tmp_path, segment):
    owner = tmp_path / f"000123_{OWNER}"
    with owner.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert remove_stale_segments(tmp_path) == []
    # Others that look for a free number open it and keep it open.
    with segment.open("r+b"):
        assert remove_stale_segments(tmp_path) == [owner.name, segment.name]


def test_segments_of_a_run_that_ends_meanwhile_are_none_to_remove(tmp_path, segment, monkeypatch):
    def end(path):
        path.unlink()
        return False

    monkeypatch.setattr(shared_memory, "is_open", end)
    assert remove_stale_segments(tmp_path) == []


def test_a_folder_that_is_not_there_has_no_segments(tmp_path):
    assert remove_stale_segments(tmp_path / "no") == []
    assert nodes_with_segments(tmp_path / "no") == set()


def test_what_runs_left_counts_as_free(tmp_path, segment, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    (tmp_path / "of_others").write_bytes(bytes(1000))
    assert free_bytes(tmp_path) == 100 + mmap.PAGESIZE
    assert free_bytes(tmp_path / "no") == math.inf


def test_each_node_of_a_machine_has_numbers_of_its_own(tmp_path, segment):
    (tmp_path / "100123_locals").write_bytes(b"1234")
    (tmp_path / "300123_something_else").touch()
    assert nodes_with_segments(tmp_path) == {0, 1}
    assert remove_stale_segments(tmp_path, node_rank=2) == []
    assert remove_stale_segments(tmp_path, node_rank=1) == ["100123_locals"]
    assert segment.exists()
    assert remove_stale_segments(tmp_path) == [segment.name]
    for node in (0, 1):
        with number_taken(free_number(node, tmp_path)):
            assert next(prefix._each_prefix_int()) == 100_000 * node


def test_a_number_of_which_something_is_left_is_not_free(tmp_path, monkeypatch):
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "locks"))
    (tmp_path / "000000_barrier").touch()
    (tmp_path / "locks" / "000001_cache_filelock").touch()
    (tmp_path / "000003_locals").touch()
    assert free_number(0, tmp_path) == 2
    assert free_number(1, tmp_path) == 100_000


def test_a_dataset_opens_beside_those_of_processes_that_end(small_recipe, monkeypatch):
    monkeypatch.setattr(streams.dist, "get_node_rank", lambda: 7)
    left = [SharedMemory(name, True, 4) for name in ("700000_barrier", "700001_locals")]
    loader = build_dataloader(small_recipe().data, "train", 4).dataloader
    assert loader.dataset._shm_prefix_int == 700_002
    for segment in left:
        segment.cleanup()


def test_a_new_dataset_keeps_none_of_the_others_memory_open(small_recipe):
    def opened():
        return len(list(Path("/proc/self/fd").iterdir()))

    loaders, counts = [], [opened()]
    for _ in range(4):
        loaders.append(build_dataloader(small_recipe().data, "train", 4))
        counts.append(opened())
    added = [after - before for before, after in itertools.pairwise(counts)]
    assert len(set(added[1:])) == 1


def test_memory_of_other_nodes_is_removed_unless_one_of_them_is_opening_its_data(
    tmp_path, monkeypatch
):
    removed = []
    monkeypatch.setattr(streams, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(streams, "nodes_with_segments", lambda: {0, 1, 2})
    monkeypatch.setattr(
        streams, "remove_stale_segments", lambda node_rank: removed.append(node_rank)
    )
    with streams._lock(1), streams._lock(2):
        streams._remove_what_runs_left(2)
    assert removed == [2, 0]
