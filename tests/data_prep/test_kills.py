"""A conversion killed at any moment: nothing half-written is visible, and the same command ends
with the bytes of an undisturbed run.

`make test` kills a few times; `make stress` sets KILLS to hundreds, and SEED to repeat a failure.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from small_conversions import REPOSITORY, content, texts_of, write_jsonl

KILLS = int(os.environ.get("KILLS", "2"))  # of each kind of conversion
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 32)
PATIENCE = 120  # seconds until something that should happen has not
SHARES = "code: 5\ndocstrings: 3\npackages: 1\nreference: 1\n"

# What a run makes, one after the other: a kill comes shortly after one of these has appeared.
# {state} is the folder that is set aside in the last moments.
MOMENTS = [
    ".shards.partial/.state",
    ".shards.partial/.state/recipe.json",
    ".shards.partial/.state/work/*/train/*.mds",
    ".shards.partial/train/*/*",
    ".shards.partial/.state/parts/*/*.json",
    ".shards.partial/.state/parts/*/*.json.*.partial",
    ".shards.partial/.state/work/tails/*",
    ".shards.partial/train/*/tails",
    ".shards.partial/*/*/index.json",
    ".shards.partial/tokenizer",
    ".shards.partial/manifest.json*",
    ".shards.state",
    "shards",
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, corpus, tokenizer):
    """Arguments of two conversions: of everything, and of budgets that cut parts."""
    folder = tmp_path_factory.mktemp("shares")
    (folder / "shares.yaml").write_text(SHARES)
    common = ("convert", corpus, "--tokenizer", tokenizer, "--seq-len", 64)
    common = (*common, "--part-size", "100kb", "--shard-size", "30kb")
    budgets = ("--train-tokens", "500k", "--validation-tokens", "20k", "--validation-share", 0.3)
    return {
        "everything": common,
        "budgets": (*common, *budgets, "--shares", folder / "shares.yaml"),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, run, arguments):
    """What each conversion makes when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    made = {}
    for name, given in arguments.items():
        result = run(*given, "--out", folder / name, "--workers", 1)
        assert result.exit_code == 0, result.output
        made[name] = content(folder / name)
    return made


def start(arguments, folder, workers=2):
    """Start a conversion to `folder/shards` in a session of its own."""
    command = [sys.executable, "-m", "data_prep", *arguments, "--out", folder / "shards"]
    command += ["--workers", workers]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def session(leader):
    """Living processes of a session, with their parents: {process: parent}."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            state, parent, _, belongs_to = fields[:4]
            if int(belongs_to) == leader and state not in "ZX":
                found[int(folder.name)] = int(parent)
    return found


def workers_of(leader):
    """Processes that convert: children of children of the first."""
    processes = session(leader)
    return [pid for pid, parent in processes.items() if parent in processes and parent != leader]


def assert_all_end(leader):
    deadline = time.monotonic() + 20
    while left := session(leader):
        if time.monotonic() > deadline:
            os.killpg(leader, signal.SIGKILL)
            pytest.fail(f"{len(left)} processes outlive the first by 20 s")
        time.sleep(0.05)


def is_there(folder, pattern):
    try:
        return any(folder.glob(pattern))
    except FileNotFoundError:  # a folder was moved while it was looked through
        return False


def wait_for(folder, pattern, process):
    """Wait until a path that fits the pattern is there; False if the run ended before."""
    deadline = time.monotonic() + PATIENCE
    while not is_there(folder, pattern):
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def kill(process, only_the_first):
    if only_the_first:
        process.kill()
    else:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert_all_end(process.pid)
    process.stderr.close()


def disturb(arguments, folder, how):
    """Start a conversion, do `how` to it once some parts are done, and wait for its end.

    Again if it was too fast for that. Returns its exit code and what it wrote to stderr.
    """
    for _ in range(5):
        process = start(arguments, folder)
        if wait_for(folder, ".shards.partial/.state/parts/*/00007.json", process):
            how(process)
        stderr = process.communicate(timeout=PATIENCE)[1]
        assert_all_end(process.pid)
        if process.returncode != 0:
            return process.returncode, stderr
        shutil.rmtree(folder / "shards")
    pytest.fail("five times too late")


@pytest.mark.parametrize("name", ["everything", "budgets"])
def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(
    name, arguments, undisturbed, run, tmp_path
):
    chance = random.Random(f"{SEED} {name}")
    out = tmp_path / "shards"
    kills, attempts, finished, moments = 0, 0, 0, []
    while kills < KILLS:
        attempts += 1
        assert attempts < 10 * KILLS + 10
        moment = chance.choice(MOMENTS)
        process = start(arguments[name], tmp_path, workers=chance.choice([2, 2, 1]))
        if wait_for(tmp_path, moment, process):
            time.sleep(chance.choice([0, 0.001, 0.01, 0.1, 0.5]) * chance.random())
        was_running = process.poll() is None
        kill(process, only_the_first=chance.random() < 0.5)
        kills += was_running
        moments.append(moment)
        if out.exists():  # as a whole, or not at all
            assert content(out) == undisturbed[name], (SEED, moments)
            shutil.rmtree(out)
            finished += 1
            moments = []
    result = run(*arguments[name], "--out", out, "--workers", 1)
    assert result.exit_code == 0, (SEED, moments, result.output)
    assert content(out) == undisturbed[name], (SEED, moments)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    print(f"{name}: {kills} kills, {finished + 1} conversions finished, all with the same bytes")


def test_a_killed_worker_is_one_sentence_and_the_run_goes_on_later(
    arguments, undisturbed, run, tmp_path
):
    """As the kernel does it when memory runs out."""

    def kill_a_worker(process):
        for pid in workers_of(process.pid)[:1]:
            os.kill(pid, signal.SIGKILL)

    code, stderr = disturb(arguments["everything"], tmp_path, kill_a_worker)
    assert code == 1
    assert stderr.splitlines()[-1].startswith("error: a worker process was killed, perhaps for")
    assert "Traceback" not in stderr
    assert not (tmp_path / "shards").exists()
    partial = tmp_path / ".shards.partial"
    done = [name for record in partial.rglob("parts/*/*.json") for name in files_of(record)]
    assert done
    before = [(partial / name).stat().st_mtime_ns for name in done]
    result = run(*arguments["everything"], "--out", tmp_path / "shards", "--workers", 1)
    assert result.exit_code == 0, result.output
    # What was done is not done again.
    assert [(tmp_path / "shards" / name).stat().st_mtime_ns for name in done] == before
    assert content(tmp_path / "shards") == undisturbed["everything"]


def files_of(record):
    return json.loads(record.read_text())["files"]


def test_control_c_ends_every_process_and_the_run_goes_on_later(
    arguments, undisturbed, run, tmp_path
):
    _, stderr = disturb(
        arguments["everything"], tmp_path, lambda process: os.killpg(process.pid, signal.SIGINT)
    )
    assert "Traceback" not in stderr
    assert not (tmp_path / "shards").exists()
    result = run(*arguments["everything"], "--out", tmp_path / "shards", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "shards") == undisturbed["everything"]


def test_two_conversions_to_one_folder_at_once_are_refused(arguments, run, tmp_path):
    process = start(arguments["everything"], tmp_path)
    try:
        assert wait_for(tmp_path, ".shards.partial/.state/recipe.json", process)
        result = run(*arguments["everything"], "--out", tmp_path / "shards", "--workers", 1)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: another conversion is writing")
        assert process.poll() is None
    finally:
        kill(process, only_the_first=False)


@pytest.fixture
def disk_of(tmp_path):
    """Mounts a file system of a size in tmpfs's words; a second call makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size):
        options = f"remount,size={size}" if disk.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small file system needs root")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_is_one_sentence_and_with_more_space_the_run_goes_on(
    arguments, undisturbed, run, disk_of, workers
):
    disk = disk_of("3m")
    command = (*arguments["everything"], "--out", disk / "shards", "--workers", workers)
    result = run(*command)
    assert result.exit_code == 1
    progress = re.compile(r"\d\d:\d\d:\d\d ")  # logged after ten seconds
    assert [line for line in result.stderr.splitlines() if not progress.match(line)] == [
        f"error: the disk is full and {disk / 'shards'} is not finished: free space and run the "
        "same command again to go on"
    ]
    assert not (disk / "shards").exists()
    records = set((disk / ".shards.partial").rglob("parts/*/*.json"))
    assert len(records) > 3
    disk_of("100m")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert content(disk / "shards") == undisturbed["everything"]


def test_full_disk_before_the_first_part_leaves_nothing(tmp_path, run, tokenizer, corpus, disk_of):
    disk = disk_of("64k")
    write_jsonl(tmp_path / "root" / "code" / "a.jsonl", texts_of(corpus / "code"))
    options = ("--out", disk / "shards", "--tokenizer", tokenizer, "--seq-len", 64)
    result = run("convert", tmp_path / "root", *options, "--workers", 1)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the disk is full")
    assert result.stderr.count("\n") == 1
    assert list(disk.iterdir()) == []
