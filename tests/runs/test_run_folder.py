"""The run's folder: finished, resumable, or another recipe's."""

import errno
import fcntl
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import check_place
from itt_composer.runs.folder import RunFolder
from itt_composer.runs.summary import RunSummary
from itt_composer.training.training_run import TrainingRun


def finish(run):
    """Mark a run as finished."""
    RunSummary(
        run_name="small",
        thinking="itt",
        thinking_steps=3,
        parameters=9,
        batches=10,
        tokens=1280,
        train_seconds=1.0,
        validation_loss=math.nan,
    ).write(run.summary_file)


@pytest.fixture
def started(small_recipe):
    run = TrainingRun(small_recipe())
    run.write_recipe()
    return run


def test_a_run_is_finished_when_its_summary_is_there(small_recipe, started):
    again = TrainingRun(small_recipe())
    assert not again.is_finished()
    again.check_resumable()
    finish(started)
    assert again.is_finished()


def test_an_empty_folder_is_neither_finished_nor_in_the_way(small_recipe):
    run = TrainingRun(small_recipe())
    assert not run.is_finished()
    run.check_resumable()


def test_another_recipe_is_not_finished_here_and_is_refused_with_what_differs(
    small_recipe, started
):
    finish(started)
    other = TrainingRun(small_recipe("seed=3", "model.hidden_size=64"))
    assert not other.is_finished()
    with pytest.raises(UserError) as caught:
        other.check_resumable()
    sentence = str(caught.value)
    assert sentence.startswith(f"{started.recipe_file} is of another recipe (")
    assert "(seed 17 → 3, model.hidden_size 32 → 64)" in sentence
    assert "vocab_size" not in sentence
    assert "choose another run_name or run_folder" in sentence


def test_what_changes_no_result_may_differ(small_recipe, started):
    free = ("train.microbatch_size=2", "train.keep_checkpoints=5", "data.num_workers=1")
    other = TrainingRun(small_recipe(*free, "callbacks.lr_monitor={}"))
    assert other.check_resumable() == {
        "data.num_workers": (0, 1),
        "train.microbatch_size": (4, 2),
        "train.keep_checkpoints": (2, 5),
        "callbacks.lr_monitor": ("unset", {}),
    }
    finish(started)
    assert other.is_finished()


def test_an_allowed_change_keeps_the_recipe_of_before_and_unmarks_the_run(small_recipe, started):
    before = started.recipe_file.read_text()
    finish(started)
    longer = TrainingRun(small_recipe("train.max_duration=20ba"))
    assert longer.check_resumable(allow_changes=True) == {"train.max_duration": ("10ba", "20ba")}
    longer.write_recipe(batch=10)
    assert (started.path / "recipe_until_batch_10.yaml").read_text() == before
    assert not longer.is_finished()


def test_other_shards_are_refused_once_there_is_a_checkpoint_or_named_where_they_are_allowed(
    small_recipe, started
):
    before = {"train/code": "1" * 64, "train/prose": "2" * 64, "tokenizer": "3" * 64}
    after = before | {"train/code": "4" * 64, "train/wiki": "5" * 64}
    run = TrainingRun(small_recipe())
    assert run.check_same_shards(after) == {}
    started.write_shards(before)
    assert run.check_same_shards(after) == {}  # nothing was trained on them yet
    started.checkpoints.mkdir()
    (started.checkpoints / "ep0-ba5-rank0.pt").touch()
    assert run.check_same_shards(before) == {}
    sentence = (
        r"other shards than these \(train/code 11111111 → 44444444, train/wiki unset → 55555555\)"
    )
    with pytest.raises(UserError, match=sentence):
        run.check_same_shards(after)
    assert run.check_same_shards(after, allow_changes=True) == {
        "train/code": ("1" * 8, "4" * 8),
        "train/wiki": ("unset", "5" * 8),
    }
    started.write_shards(after, 5)
    kept = started.path / "shards_until_batch_5.json"
    assert json.loads(kept.read_text()) == before
    assert json.loads(started.shards_file.read_text()) == after
    started.write_shards(after, 9)
    assert not (started.path / "shards_until_batch_9.json").exists()
    started.shards_file.write_text("[1")
    with pytest.raises(UserError, match=r"shards.json cannot be read .*delete it to go on"):
        run.check_same_shards(before)


def test_a_run_is_not_begun_anew_over_its_checkpoints(small_recipe, started):
    started.checkpoints.mkdir()
    (started.checkpoints / "ep0-ba5-rank0.pt").touch()
    anew = TrainingRun(small_recipe("train.autoresume=false"))
    with pytest.raises(UserError, match=r"train.autoresume=false; delete the folder"):
        anew.check_resumable()


@pytest.mark.parametrize(("reason", "is_held"), [(errno.EAGAIN, True), (errno.ENOLCK, False)])
def test_a_file_system_without_locks_is_no_other_run(started, monkeypatch, capsys, reason, is_held):
    def refuse(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if is_held:
        with pytest.raises(UserError, match="is in use by another run"):
            started.lock()
    else:
        started.lock()
        assert "is on a file system without locks (No locks available)" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [True, False])
def test_the_lock_of_another_machine_is_waited_for(started, monkeypatch, capsys, ends):
    held = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, 2); print(); input()"
    lock = started.path / ".lock"
    lock.write_text("7 on a machine that has crashed\n")
    with subprocess.Popen(
        [sys.executable, "-c", held, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()

        def end_holder(seconds):
            if ends:
                holder.communicate(b"\n")

        monkeypatch.setattr("time.sleep", end_holder)
        if ends:
            started.lock()
            assert lock.read_text() == f"{os.getpid()} on {socket.gethostname()}\n"
        else:
            with pytest.raises(UserError, match=r"in use by another run \(process 7 on a"):
                started.lock()
            holder.communicate(b"\n")
    assert capsys.readouterr().out.count("waiting for 120 s") == 1


def test_an_interrupted_write_leaves_what_was_there(started, monkeypatch):
    finish(started)
    before = started.summary_file.read_bytes()

    def write_half(path, text, **options):
        path.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(KeyboardInterrupt):
        finish(started)
    assert started.summary_file.read_bytes() == before


def test_a_write_leaves_nothing_but_its_file(started):
    finish(started)
    names = {path.name for path in started.path.iterdir()}
    assert names == {"recipe.yaml", "summary.json"}


def test_a_folder_that_cannot_be_made_or_written_to_is_reported_before_the_start(
    small_recipe, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    below_a_file = TrainingRun(small_recipe(f"run_folder={tmp_path / 'file/run'}"))
    with pytest.raises(UserError, match=r"file/run cannot be made: Not a directory; choose"):
        below_a_file.check_writable()
    with pytest.raises(
        UserError, match=rf"^--out \S+/run: {tmp_path / 'file'} is not a folder; name"
    ):
        check_place(tmp_path / "file/run", "--out")
    check_place(tmp_path / "other/run", "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError, match=r"run cannot be written to; choose another"):
        TrainingRun(small_recipe()).check_writable()


def test_a_run_is_read_by_its_folder_alone(started):
    read = RunFolder(started.path)
    assert read.summary() is None
    finish(started)
    assert (read.recipe()["run_name"], read.shards().name) == ("small", "shards")
    summary = read.summary()
    assert (summary.batches, math.isnan(summary.validation_loss)) == (10, True)
    content = json.loads(read.summary_file.read_bytes())
    assert content["format"] == 1
    assert content["validation_loss"] is None


def test_a_summary_of_a_later_version_or_without_its_batches_is_refused(started):
    finish(started)
    content = json.loads(started.summary_file.read_bytes())
    for changed in ({"format": 2}, {"batches": "10"}, {"batches": None}):
        started.summary_file.write_text(json.dumps(content | changed))
        with pytest.raises(UserError, match=r"summary.json cannot be read; delete it"):
            RunFolder(started.path).summary()


def test_what_is_not_the_recipe_of_a_run_is_named(started, tmp_path):
    with pytest.raises(UserError, match=r"not a run folder .it has no recipe.yaml.; name the"):
        RunFolder(tmp_path / "none").recipe()
    for content in ("[1", "[1]", "run_name: x", "run_name: x\nmodel: 1\nthinking: 1\ndata: 1\n"):
        started.recipe_file.write_text(content)
        with pytest.raises(UserError, match=r"recipe.yaml does not hold the recipe of a run"):
            RunFolder(started.path).recipe()
