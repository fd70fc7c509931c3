"""Which checkpoint a run goes on from, with real files that were damaged."""

import errno
import os
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from composer.core import Callback
from damage import flip_a_bit

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints.damage import damage
from itt_composer.runs.checkpoints.places import find_checkpoint, point_latest_to, remove
from itt_composer.runs.checkpoints.writing import write_file
from itt_composer.training.resume import Start, find_start, fitting_checkpoint
from itt_composer.training.training_run import TrainingRun


@pytest.fixture
def run(small_recipe):
    """A run folder with the checkpoints of batches 5 and 10."""
    run = TrainingRun(small_recipe())
    for batch in (5, 10):
        write_file({"weight": torch.randn(1000)}, run.checkpoints / f"ep0-ba{batch}-rank0.pt")
    return run


@pytest.fixture
def sharded(tmp_path):
    """The folder of a sharded checkpoint, as torch writes it."""
    folder = tmp_path / "ep0-ba5"
    dcp.save({"weight": torch.randn(1000)}, checkpoint_id=folder, no_dist=True)
    return folder


def cut(file, left):
    os.truncate(file, int(file.stat().st_size * left))


def test_the_newest_whole_checkpoint_is_taken_whatever_the_link_says(run):
    newest = run.checkpoints / "ep0-ba10-rank0.pt"
    point_latest_to(run.checkpoints / "ep0-ba5-rank0.pt")
    start = find_start(run)
    assert (start.checkpoint, start.batch, start.damaged) == (newest, 10, {})
    assert (run.checkpoints / "latest-rank0.pt").resolve() == newest.resolve()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_links_does_without_and_says_so_once(
    run, monkeypatch, capsys, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    latest, newest = run.checkpoints / "latest-rank0.pt", run.checkpoints / "ep0-ba10-rank0.pt"
    shutil.copy(run.checkpoints / "ep0-ba5-rank0.pt", latest)  # as copies through a store leave it
    monkeypatch.setattr(os, "symlink", refuse)
    for _ in range(2):
        assert find_start(run).checkpoint == newest
    assert [path.name for path in run.checkpoints.iterdir() if "latest" in path.name] == []
    note = f"note: {latest} cannot be made ({os.strerror(number)}), and is done without"
    assert capsys.readouterr().err.count(note) == 1
    for meant in (run.path, latest):
        assert find_checkpoint(meant) == newest.resolve()


def test_a_sharded_checkpoint_that_a_store_made_of_the_link_gives_way_to_a_link(run, sharded):
    latest = run.checkpoints / "latest-rank0.pt"
    shutil.copytree(sharded, latest)
    newest = find_start(run).checkpoint
    assert latest.is_symlink()
    assert latest.resolve() == newest.resolve()


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.99])
def test_a_cut_checkpoint_gives_way_to_the_one_before_it(run, left):
    newest, before = run.list_checkpoints()
    cut(newest, left)
    (run.checkpoints / "latest-rank0.pt").symlink_to("ep0-ba7-rank0.pt")  # dangling
    start = find_start(run)
    assert start.checkpoint == before
    assert list(start.damaged) == [newest]
    assert (run.checkpoints / "latest-rank0.pt").resolve() == before.resolve()


def test_one_flipped_bit_is_seen(run):
    newest, before = run.list_checkpoints()
    flip_a_bit(newest)
    assert "checksum" in (damage(newest) or "")
    assert damage(before) is None


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(run):
    for checkpoint in run.list_checkpoints():
        cut(checkpoint, 0.5)
    with pytest.raises(UserError, match=r"holds no whole checkpoint .ep0-ba10-rank0.pt: cut short"):
        find_start(run)


def test_what_was_never_finished_is_removed_and_counts_for_nothing(run, sharded):
    partial = run.checkpoints / "ep0-ba15-rank0.pt.partial"
    partial.write_bytes(b"half")
    (sharded / ".metadata").unlink()
    unfinished = sharded.rename(run.checkpoints / "ep0-ba15")
    start = find_start(run)
    assert start.batch == 10
    assert sorted(start.removed) == sorted([partial, unfinished])
    assert not partial.exists()
    assert not unfinished.exists()


def test_sharded_checkpoints_are_whole_or_reported(sharded):
    assert damage(sharded) is None
    part = next(sharded.glob("*.distcp"))
    cut(part, 0.9)
    assert damage(sharded) == f"{part.name} is cut short"
    part.unlink()
    assert damage(sharded) == f"{part.name} is missing"
    cut(sharded / ".metadata", 0.5)
    assert ".metadata" in (damage(sharded) or "")


@pytest.mark.parametrize("other", ["whole", "cut", "missing"])
@pytest.mark.parametrize("is_sharded", [True, False])
def test_the_other_form_of_a_checkpoint_is_taken_if_it_is_whole_and_else_made(
    run, sharded, is_sharded, other
):
    of_batch_5 = {False: run.checkpoints / "ep0-ba5-rank0.pt", True: run.checkpoints / "ep0-ba5"}
    shutil.copytree(sharded, of_batch_5[True])
    made_of, wanted = of_batch_5[not is_sharded], of_batch_5[is_sharded]
    content = next(wanted.glob("*.distcp")) if is_sharded else wanted
    before = content.read_bytes()
    if other == "cut":
        cut(content, 0.5)
    elif other == "missing":
        remove(wanted)
    assert fitting_checkpoint(Start(made_of), is_sharded) == wanted
    assert damage(wanted) is None
    assert (content.exists() and content.read_bytes() == before) == (other == "whole")
    assert (run.checkpoints / "latest-rank0.pt").resolve() == wanted.resolve()


class Draws(Callback):
    """Draws a random number at every batch, as dropout would."""

    def __init__(self):
        self.drawn = {}

    def batch_start(self, state, logger):
        self.drawn[state.timestamp.batch.value] = torch.rand(1).item()


def test_random_numbers_go_on_where_they_were(small_recipe, make_trainer):
    recipe = small_recipe("train.eval_interval=100ba")
    whole, resumed = Draws(), Draws()
    make_trainer(recipe, whole)[0].fit()
    newest, _ = TrainingRun(recipe).list_checkpoints()
    newest.unlink()
    trainer, _ = make_trainer(recipe, resumed)
    trainer.fit()
    assert resumed.drawn == {n: number for n, number in whole.drawn.items() if n >= 5}
