"""A loss that is not finite or jumps: the step is skipped, or training stops."""

import copy
import math
import re

import pytest
import torch
from composer.core import Algorithm, Event

from itt_composer.basics.errors import UserError
from itt_composer.training.loss_guard import RunningLoss, all_finite, name_rows

GUARD = "algorithms.loss_guard"


class Disturb(Algorithm):
    """Changes the loss of some batches, and keeps the state before and after each."""

    def __init__(self, batches, change):
        self.batches = batches
        self.change = change
        self.states = []

    def match(self, event, state):
        return event in (Event.BEFORE_LOSS, Event.BATCH_START, Event.BATCH_END)

    def apply(self, event, state, logger):
        if event == Event.BEFORE_LOSS:
            if state.timestamp.batch.value in self.batches:
                state.outputs["loss"] = self.change(state.outputs["loss"])
        else:
            weights = copy.deepcopy(state.model.state_dict())
            self.states.append((weights, copy.deepcopy(state.optimizers[0].state_dict()["state"])))


@pytest.fixture
def train(small_recipe, make_trainer):
    """Train with a disturbance; returns the trainer and its log."""

    def run(disturb, *overrides):
        trainer, log = make_trainer(small_recipe("train.microbatch_size=2", *overrides))
        trainer.state.algorithms.insert(0, disturb)
        trainer.fit()
        return trainer, log

    return run


def same(before, after):
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_running_loss_is_a_plain_mean_first_and_then_forgets():
    running = RunningLoss()
    for loss in (4.0, 2.0, 3.0):
        running.add(loss, window=3)
    assert running.mean == pytest.approx(3.0)
    assert running.variance == pytest.approx(2 / 3)
    assert running.limit(nats=0.5, deviations=1.0) == pytest.approx(3.0 + math.sqrt(2 / 3))
    assert running.limit(nats=1.5, deviations=1.0) == pytest.approx(4.5)
    for _ in range(100):
        running.add(1.0, window=3)
    assert running.mean == pytest.approx(1.0)
    assert running.variance == pytest.approx(0.0)


def test_rows_are_named_by_stream_and_not_without_end():
    assert name_rows([(1, 5), (0, 17), (0, 3)], ["code", "prose"]) == (
        "code: rows 3, 17; prose: row 5"
    )
    assert name_rows([(0, row) for row in range(20)], ["code"]).endswith("15; and 4 more")


def test_gradients_are_finite_or_not():
    assert all_finite([torch.ones(3), None, torch.ones(0)])
    assert not all_finite([torch.ones(3), torch.tensor([math.nan])])
    assert not all_finite([torch.tensor([math.inf])])
    assert all_finite([None])


def test_a_skipped_batch_leaves_weights_and_optimizer_as_they_are(train, capsys):
    disturb = Disturb({3, 7}, lambda loss: loss * math.nan)
    _, log = train(disturb, f"{GUARD}.on_nan=skip", "train.eval_interval=10ba")
    for batch in range(10):
        before, after = disturb.states[2 * batch : 2 * batch + 2]
        if batch in (3, 7):
            same(before, after)
        elif batch < 9:  # the thresholds are calibrated after the last
            with pytest.raises(AssertionError):
                same(before, after)
    printed = capsys.readouterr().out
    assert "batch 4: the loss is nan (code: " in printed
    assert ": skipped, 2 in all" in printed
    assert log.data["loss_guard/skipped"][-1][1] == 2


def test_a_loss_far_above_its_mean_stops_training_with_its_rows(train):
    disturb = Disturb({5}, lambda loss: loss + 3)  # the first after a window of batches
    with pytest.raises(
        UserError, match=r"^batch 6: the loss is 9\.\d+, its running mean 6\.\d+ .*row"
    ):
        train(disturb, f"{GUARD}.on_spike=stop", f"{GUARD}.window=5")


def test_a_batch_far_above_the_mean_is_skipped_where_that_is_asked_for(train, capsys):
    disturb = Disturb({6}, lambda loss: loss + 3)
    train(disturb, f"{GUARD}.on_spike=skip", f"{GUARD}.window=5", "train.eval_interval=10ba")
    for batch in (5, 6, 7):
        before, after = disturb.states[2 * batch : 2 * batch + 2]
        assert (before[0]["model.lm_head.weight"] == after[0]["model.lm_head.weight"]).all() == (
            batch == 6
        )
    assert re.search(r"batch 7: the loss is 9\.\d+, .*: skipped, 1 in all", capsys.readouterr().out)


def test_a_gradient_that_is_not_finite_stops_training_though_the_loss_is(train):
    class Spoil(Algorithm):
        def match(self, event, state):
            return event == Event.AFTER_BACKWARD and state.timestamp.batch.value == 2

        def apply(self, event, state, logger):
            next(state.model.parameters()).grad[0, 0] = math.inf

    with pytest.raises(UserError, match=r"^batch 3: a gradient is not finite \(.*row"):
        train(Spoil(), f"{GUARD}.on_nan=stop")


def test_skips_in_a_row_come_to_an_end(train):
    disturb = Disturb(range(2, 10), lambda loss: loss * math.inf)
    with pytest.raises(UserError, match=r"batch 5: .* stopped after 3 skipped batches in a row"):
        train(disturb, f"{GUARD}.on_nan=skip", f"{GUARD}.max_skips=3")


def test_a_batch_that_is_not_skipped_ends_the_skips_in_a_row(train):
    disturb = Disturb({1, 2, 4, 5}, lambda loss: loss * math.inf)
    skipping = (f"{GUARD}.on_nan=skip", f"{GUARD}.max_skips=3", "train.eval_interval=10ba")
    _, log = train(disturb, *skipping)
    assert [count for _, count in log.data["loss_guard/skipped"]] == [1, 2, 3, 4]


def test_counts_and_mean_are_in_the_checkpoints(train, small_recipe, make_trainer):
    guarded = (f"{GUARD}.on_nan=skip", "train.eval_interval=10ba")
    trainer, _ = train(Disturb({3}, lambda loss: loss * math.nan), *guarded)
    resumed, _ = make_trainer(small_recipe("train.microbatch_size=2", *guarded))
    (before, after) = (each.state.algorithms for each in (trainer, resumed))
    before, after = (
        next(algorithm for algorithm in each if type(algorithm).__name__ == "LossGuard")
        for each in (before, after)
    )
    assert after.running == before.running
    assert (after.skipped, after.running.count) == (1, 9)
