"""What a run says and leaves behind when something fails: real processes, ranks and signals."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from small_recipe import RECIPE

from data_prep.convert import convert_corpus
from data_prep.options import Options
from itt_composer.data.streams import build_dataset
from itt_composer.recipe.schema import load_recipe
from itt_composer.runs.checkpoints.reading import load_checkpoint
from itt_composer.runs.metrics import read_metrics

HERE = Path(__file__).parent
LOGGED = "loggers:\n  json_lines:\n    path: ${run_folder}/metrics.jsonl\n"
LONG = ("train.max_duration=100000ba", "train.save_interval=100000ba", "train.eval_interval=1ep")
DDP = "train.sharding=ddp"
IGNORED = r"Exception ignored in.*\n(Traceback .*\n(?: .*\n)+.*\n)?"


@pytest.fixture
def command(shards, tmp_path):
    """Arguments of a run in `tmp_path/run`, with a log and a guarded loss."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE + LOGGED + "algorithms:\n  loss_guard: {}\n")
    fixed = [f"data.local={shards}", f"run_folder={tmp_path / 'run'}", "train.calibration_rows=8"]
    return lambda *overrides: [recipe, *fixed, *overrides]


def is_training(run):
    return lambda: (run / "metrics.jsonl").exists()


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def batch_rows(command, size=4):
    """(domain, row) of the rows of each training batch, in order of training."""
    recipe, *overrides = map(str, command())
    dataset = build_dataset(load_recipe(recipe, overrides).data, "train", size)
    rows = [(int(row["domain"]), int(row["row"])) for row in dataset]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_a_changed_recipe_goes_on_where_it_is_allowed_and_other_ranks_do_anyway(
    fork_server, command, tmp_path
):
    run = tmp_path / "run"
    short = command("train.max_duration=4ba", DDP)
    result = fork_server.run("itt_composer.train", *short)
    assert result.returncode == 0, result.stderr
    lr = "optimizer.decoupled_adamw.lr"
    new = (f"{lr}=1e-5", "callbacks.lr_monitor={}", "train.keep_checkpoints=1")
    longer = command("train.max_duration=8ba", *new, DDP)
    refused = fork_server.run("itt_composer.train", *longer)
    assert refused.returncode == 1
    assert f"train.max_duration 4ba → 8ba, {lr} 0.001 → 1e-05)" in refused.stderr
    assert "--allow-changes" in refused.stderr
    result = fork_server.run("itt_composer.train", *longer, "--allow-changes", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "train.max_duration 4ba → 8ba, train.keep_checkpoints 2 → 1" in result.stdout
    assert "goes on after batch 4 of 8ba, from " in result.stdout
    rates = [
        line.get("lr-DecoupledAdamW/group0", 1) for line in read_metrics(run / "metrics.jsonl")
    ]
    assert all(rate <= 1e-5 for rate in rates[5:])
    assert "lr: 1.0e-05" in (run / "recipe.yaml").read_text()
    assert json.loads((run / "summary.json").read_bytes())["batches"] == 8
    assert checkpoints(run) == ["ep0-ba8-rank0.pt", "latest-rank0.pt"]
    assert "max_duration: 4ba" in (run / "recipe_until_batch_4.yaml").read_text()
    assert "nothing to do" in fork_server.run("itt_composer.train", *longer).stdout
    shorter = fork_server.run("itt_composer.train", *short, "--allow-changes")
    assert shorter.returncode == 1
    assert "train.max_duration=4ba is over after fewer batches than the 8" in shorter.stderr
    assert "max_duration: 8ba" in (run / "recipe.yaml").read_text()


def test_a_run_goes_on_with_moved_shards_and_with_others_only_where_that_is_allowed(
    fork_server, shards, small_text, command, tmp_path
):
    run, place, moved = tmp_path / "run", tmp_path / "shards", tmp_path / "moved"
    shutil.copytree(shards, place)

    def train(batches, *places):
        overrides = command(f"train.max_duration={batches}ba", DDP, *places)
        return fork_server.run("itt_composer.train", *overrides)

    assert train(4, f"data.local={place}").returncode == 0
    place.rename(moved)
    result = train(6, f"data.local={moved}", "--allow-changes")
    assert result.returncode == 0, result.stderr
    assert "other shards" not in result.stdout
    # Converted anew, with more text, at the place of before.
    text = shutil.copytree(small_text / "text", tmp_path / "text")
    with (text / "code" / "all.jsonl").open("a") as file:
        file.write(json.dumps({"text": "def more(): pass\n" * 500}) + "\n")
    convert_corpus(
        Options(text, str(place), str(small_text / "tokenizer"), 32, validation_share=0.2)
    )
    (run / "summary.json").unlink()
    cached = (f"data.local={tmp_path / 'cache'}", f"data.remote={place}")
    for places in ((f"data.local={place}",), cached):
        result = train(6, *places)
        assert result.returncode == 1
        assert f"{run} was trained on other shards than these (train/code " in result.stderr
        assert "prose" not in result.stderr
    result = train(8, f"data.local={place}", "--allow-changes")
    assert result.returncode == 0, result.stderr
    assert f"{run} goes on with other shards (by their SHA-256): train/code " in result.stdout


def test_a_full_disk_is_reported_and_leaves_the_checkpoints_that_were_there(
    fork_server, command, tmp_path
):
    run = tmp_path / "run"
    before = command("train.max_duration=4ba", "train.save_interval=2ba", DDP)
    assert fork_server.run("itt_composer.train", *before).returncode == 0
    kept = checkpoints(run)
    script, limit = HERE / "small_disk.py", {"LARGEST": "100000"}
    longer = command("train.max_duration=6ba", DDP, "--allow-changes")
    result = fork_server.run(script, *longer, ranks=2, env=limit)
    assert result.returncodes[0] == 1
    assert "ep0-ba5-rank0.pt cannot be saved: File too large" in result.stderr, result.stderr
    assert "ep0-ba4-rank0.pt is whole; make room" in result.stderr
    assert "Traceback" not in result.stderr
    assert checkpoints(run) == kept
    assert fork_server.run("itt_composer.train", *longer).returncode == 0


def test_a_loss_that_is_no_number_stops_all_ranks_with_its_rows_and_saves_nothing(
    fork_server, command, tmp_path
):
    run, rows = tmp_path / "run", batch_rows(command)
    domain, row = rows[2][1]
    env = {"POISONED": json.dumps([[domain, row]])}
    small = ("train.max_duration=6ba", "train.save_interval=1ba", "train.microbatch_size=1", DDP)
    result = fork_server.run(HERE / "poisoned_rows.py", *command(*small), ranks=2, env=env)
    assert result.returncodes[0] == 1
    name = ("code", "prose")[domain]
    assert f"error: batch 3: the loss is nan ({name}: row {row}); stopped before" in result.stderr
    assert checkpoints(run) == ["ep0-ba1-rank0.pt", "ep0-ba2-rank0.pt", "latest-rank0.pt"]
    saved = load_checkpoint((run / "checkpoints" / "latest-rank0.pt").resolve()).weights
    assert all(weight.isfinite().all() for weight in saved.values())

    skipping = command(*small, "algorithms.loss_guard.on_nan=skip", "--allow-changes")
    result = fork_server.run(HERE / "poisoned_rows.py", *skipping, env=env)
    assert result.returncode == 0, result.stderr
    sentence = f"batch 3: the loss is nan ({name}: row {row}): skipped, 1 in all"
    assert sentence in result.stdout
    assert all(weight.isfinite().all() for weight in weights(run).values())
    assert [line["loss_guard/skipped"] for line in read_metrics(run)[2:3]] == [1]


@pytest.mark.parametrize("victim", [1, 0])
def test_a_rank_that_hangs_is_named_and_ends_the_run(fork_server, command, tmp_path, victim):
    arguments = command(*LONG, DDP, "train.rank_timeout=6")
    processes = fork_server.start("itt_composer.train", *arguments, ranks=2)
    processes.wait_until(is_training(tmp_path / "run"))
    os.kill(processes.pids[victim], signal.SIGSTOP)
    processes.wait_until(lambda: processes.poll()[1 - victim] is not None)
    os.kill(processes.pids[victim], signal.SIGKILL)
    result = processes.wait(alone=True)
    assert result.returncodes[1 - victim] == 1
    assert f"error: rank {victim} hangs: " in result.stderr
    assert "(train.rank_timeout=6)" in result.stderr


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSTOP, r"gave no batch for 10 s \(data\.worker_timeout\)"),
        # Where the rank is when torch reports it: at its loader, or anywhere else.
        (signal.SIGKILL, r"lost a process|DataLoader worker .* killed by signal: Killed"),
    ],
)
def test_a_loader_process_that_hangs_or_dies_is_reported(
    fork_server, command, tmp_path, number, words
):
    arguments = command(*LONG, "data.num_workers=1", "data.worker_timeout=10")
    processes = fork_server.start("itt_composer.train", *arguments)
    processes.wait_until(is_training(tmp_path / "run"))
    children = psutil.Process(processes.pids[0]).children()
    loaders = [child for child in children if "resource_tracker" not in str(child.cmdline())]
    for loader in loaders:
        os.kill(loader.pid, number)
    result = processes.wait(timeout=60)
    assert result.returncode == 1
    # torch raises wherever the rank is when a loader dies; within a destructor Python shows it.
    stderr = re.sub(IGNORED, "", result.stderr)
    assert "Traceback" not in stderr
    (sentence,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert "rank 0" in sentence
    assert re.search(words, sentence)


def test_a_second_start_is_refused_until_the_first_has_ended_however(
    fork_server, command, tmp_path
):
    arguments = command(*LONG, "data.num_workers=1")
    processes = fork_server.start("itt_composer.train", *arguments)
    processes.wait_until(is_training(tmp_path / "run"))
    refused = fork_server.run("itt_composer.train", *arguments)
    assert refused.returncode == 1
    assert f"is in use by another run (process {processes.pids[0]} on " in refused.stderr
    os.kill(processes.pids[0], signal.SIGKILL)
    processes.wait()
    again = fork_server.start("itt_composer.train", *arguments)
    owner = tmp_path / "run" / ".lock"
    again.wait_until(lambda: owner.read_text().startswith(f"{again.pids[0]} on "))
    again.signal(signal.SIGKILL)
    assert "in use" not in again.wait().stderr


def test_a_resume_on_another_number_of_ranks_trains_to_the_same_weights(
    fork_server, command, tmp_path
):
    undisturbed = tmp_path / "undisturbed"
    whole = fork_server.run("itt_composer.train", *command(f"run_folder={undisturbed}", DDP))
    assert whole.returncode == 0, whole.stderr
    run, interrupted = tmp_path / "run", command(DDP, "train.save_interval=1ba")
    for ranks, batch in ((1, 2), (2, 5)):
        processes = fork_server.start("itt_composer.train", *interrupted, ranks=ranks)
        file = run / "checkpoints" / f"ep0-ba{batch}-rank0.pt"
        processes.wait_until(lambda file=file: file.exists())
        processes.signal(signal.SIGKILL)
        processes.wait()
    assert fork_server.run("itt_composer.train", *interrupted).returncode == 0
    resumed = weights(run)
    for name, weight in weights(undisturbed).items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=2e-4, msg=name)
