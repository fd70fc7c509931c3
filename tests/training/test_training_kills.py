"""Training killed at any moment: the same command ends with the loss curve and the very weights of
an undisturbed run.

`make test` kills a few times; `make stress` sets KILLS to more, and SEED to repeat a failure.
"""

import os
import random
import shutil
import signal
import time

import pytest
from small_recipe import RECIPE

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints.places import batch_of
from itt_composer.runs.metrics import read_metrics

KILLS = int(os.environ.get("KILLS", "2"))  # for each number of ranks
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 32)
BATCHES = 24
EVERYTHING = f"""\
algorithms:
  capacity_annealing:
    start_ratio: 0.1
    duration: 0.7dur
  gradient_clipping: {{}}
  loss_guard:
    on_spike: skip
    window: 5
callbacks:
  domain_shares:
    interval: 1ba
  lr_monitor: {{}}
loggers:
  json_lines:
    path: ${{run_folder}}/metrics.jsonl
train:
  max_duration: {BATCHES}ba
  microbatch_size: 2
  eval_interval: 8ba
  save_interval: 3ba
  calibration_rows: 8
  sharding: ddp
"""


@pytest.fixture(scope="module")
def train(fork_server, shards, tmp_path_factory):
    """Start a run of everything that has a state, in a folder of its own: (folder, ranks, …)."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "small.yaml").write_text(RECIPE)
    recipe = folder / "everything.yaml"
    # A part is merged key by key; one text with the key twice would not be.
    recipe.write_text("parts:\n  train: small.yaml\nrun_name: killed\n" + EVERYTHING)

    def start(name, *overrides, ranks=1):
        run = folder / name
        arguments = [recipe, f"data.local={shards}", f"run_folder={run}", *overrides]
        return run, fork_server.start("itt_composer.train", *arguments, ranks=ranks)

    return start


@pytest.fixture(scope="module")
def undisturbed(train):
    """The folder of a run that nobody disturbs, by number of ranks."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks], run = train(f"undisturbed_{ranks}", ranks=ranks)
        result = run.wait()
        assert result.returncode == 0, result.stderr
    return folders


def wait_for_batch(run, ranks, batch):
    """Wait until a run has logged a batch; False if it ends before."""
    deadline = time.monotonic() + 120
    while None in ranks.poll():
        assert time.monotonic() < deadline
        try:
            metrics = read_metrics(run)
        except UserError:  # no file yet
            metrics = []
        if metrics and metrics[-1]["batch"] >= batch:
            return True
        time.sleep(0.002)
    return False


def finish(train, name, ranks):
    """Run to the end; returns the folder and what was printed."""
    run, again = train(name, ranks=ranks)
    result = again.wait()
    assert result.returncode == 0, result.stderr
    return run, result.stdout


def assert_same(run, undisturbed):
    """The same loss curve, domain shares, schedules and weights, to the last bit."""
    assert read_metrics(run) == read_metrics(undisturbed)
    for name in ("model.safetensors", "config.json"):
        assert (run / "model" / name).read_bytes() == (undisturbed / "model" / name).read_bytes()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_random_steps_ends_as_if_it_had_not_been(train, undisturbed, ranks):
    chance = random.Random(SEED + ranks)
    killed, attempt = 0, 0
    while killed < KILLS:
        name = f"killed_{ranks}_{attempt}"
        attempt += 1
        for _ in range(chance.randint(1, 2)):  # a resumed run may be killed again
            run, processes = train(name, ranks=ranks)
            batch, delay = chance.randrange(BATCHES), chance.random() * 0.05
            victims = chance.choice([[0], [ranks - 1], list(range(ranks))])
            if wait_for_batch(run, processes, batch):
                time.sleep(delay)
                for rank in victims:
                    os.kill(processes.pids[rank], signal.SIGKILL)
                killed += 1
            result = processes.wait()
        sentence = (
            f"SEED={SEED}: ranks {victims} of {ranks} killed at batch {batch} + {delay:.3f} s"
        )
        print(sentence, "·", result.returncodes)
        run, _ = finish(train, name, ranks)
        try:
            assert_same(run, undisturbed[ranks])
        except AssertionError:
            pytest.fail(sentence)
        shutil.rmtree(run)


@pytest.mark.parametrize(
    ("number", "name", "codes"),
    [(signal.SIGTERM, "SIGTERM", [75, 75]), (signal.SIGINT, "Ctrl-C", [130, 0])],
)
def test_a_signal_to_one_rank_saves_the_same_batch_on_all_and_the_run_goes_on(
    train, undisturbed, number, name, codes
):
    run, processes = train(f"ended_by_{name}", ranks=2)
    assert wait_for_batch(run, processes, 4)
    os.kill(processes.pids[1], number)
    result = processes.wait(alone=True)
    assert result.returncodes == codes, result.stderr
    latest = (run / "checkpoints" / "latest-rank0.pt").resolve()
    batch, _ = batch_of(latest)
    assert 4 < batch < BATCHES
    sentence = f"ended by {name}: batch {batch} is saved in {latest}; the same command goes on"
    assert result.stdout.splitlines()[-1].startswith(sentence)
    run, printed = finish(train, f"ended_by_{name}", ranks=2)
    assert f"goes on after batch {batch} of {BATCHES}ba, from {latest}" in printed
    assert_same(run, undisturbed[2])


def test_a_checkpoint_that_was_cut_gives_way_to_the_one_before_it(train, undisturbed):
    run = undisturbed[1].with_name("damaged")
    shutil.copytree(undisturbed[1], run, symlinks=True)
    (run / "summary.json").unlink()
    checkpoints = run / "checkpoints"
    newest, before = checkpoints / f"ep0-ba{BATCHES}-rank0.pt", checkpoints / "ep0-ba21-rank0.pt"
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    damaged = checkpoints / "ep0-ba23-rank0.pt"
    damaged.write_bytes(newest.read_bytes())
    (checkpoints / "ep0-ba24-rank0.pt.partial").write_bytes(b"half")
    _, printed = finish(train, "damaged", ranks=1)
    assert f"warning: {newest} is damaged (cut short, or not a checkpoint)" in printed
    assert f"warning: {damaged} is damaged (cut short, or not a checkpoint)" in printed
    assert f"removed {newest}.partial" in printed
    assert f"goes on after batch 21 of {BATCHES}ba, from {before}" in printed
    assert_same(run, undisturbed[1])
    assert {path.name for path in checkpoints.iterdir()} == {
        newest.name,
        before.name,
        "latest-rank0.pt",
    }
