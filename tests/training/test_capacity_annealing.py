"""Capacity annealing: the schedule as numbers, and in force in a real training."""

import re

import pytest
import torch
from composer.core import Callback

from itt_composer.basics.errors import UserError
from itt_composer.models.composer_model import unwrap
from itt_composer.runs.checkpoints.places import find_checkpoint
from itt_composer.runs.checkpoints.reading import load_checkpoint
from itt_composer.training.capacity_annealing import CapacityAnnealing
from itt_composer.training.training_run import TrainingRun

# Ratios from 0.1 to 0.5 and 0.8, temperature from 2 to 1, over the first five of ten batches.
ANNEALED = (
    "algorithms.capacity_annealing={start_ratio: 0.1, start_temperature: 2.0, "
    "end_temperature: 1.0, duration: 0.5dur, levels: continuous}"
)
SCHEDULE = {
    "select_ratio/step_1": [0.1, 0.18, 0.26, 0.34, 0.42, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    "select_ratio/step_2": [0.1, 0.24, 0.38, 0.52, 0.66, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
    "temperature": [2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
}


class InForce(Callback):
    """What the thinking layer is about to use, by batch."""

    def __init__(self):
        self.rows = []

    def before_forward(self, state, logger):
        model = unwrap(state.model)
        (layer,) = model.thinking_layers
        self.rows.append((*model.config.select_ratios, layer.router_temperature.item()))


class Evaluated(Callback):
    """The ratios of each evaluation."""

    def __init__(self):
        self.ratios = []

    def eval_end(self, state, logger):
        self.ratios.append(list(unwrap(state.model).config.select_ratios))


class Interrupt(Callback):
    """Stops a training after some batches."""

    def __init__(self, batches):
        self.batches = batches

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.batches:
            raise InterruptedError


def logged(log, key):
    """Logged values by batch."""
    return {timestamp.batch.value: value for timestamp, value in log.data[key]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_ratio", -0.1),
        ("start_ratio", 0),
        ("start_ratio", 1.1),
        ("start_ratio", [0.1, 1.1]),
        ("target_ratio", [0.1, -1]),
        ("levels", 1),
        ("shape", "step"),
        ("start_temperature", 0),
        ("end_temperature", -1),
        ("duration", "0ba"),
    ],
)
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must .*{re.escape(str(value))}"):
        CapacityAnnealing(**{name: value})


@pytest.mark.parametrize("duration", ["0.5dur", "640tok"])
def test_each_batch_runs_with_what_the_schedule_says_and_the_log_shows(
    small_recipe, make_trainer, duration
):
    recipe = small_recipe(ANNEALED, f"algorithms.capacity_annealing.duration={duration}")
    in_force = InForce()
    trainer, log = make_trainer(recipe, in_force)
    trainer.fit()
    columns = zip(*in_force.rows, strict=True)
    for (name, schedule), used in zip(SCHEDULE.items(), columns, strict=True):
        assert list(used) == pytest.approx(schedule[:10])
        values = logged(log, f"capacity_annealing/{name}")
        assert values == {batch: pytest.approx(value) for batch, value in enumerate(schedule)}


# Four levels over the whole of training, from a start per step to full capacity.
TO_FULL_CAPACITY = (
    "algorithms.capacity_annealing="
    "{start_ratio: [0.1, 0.4], target_ratio: 1, duration: 1dur, levels: 4}"
)
BY_LEVELS = [(0.1, 0.4)] * 3 + [(0.4, 0.6)] * 2 + [(0.7, 0.8)] * 3 + [(1.0, 1.0)] * 2


def test_levels_are_trained_at_and_full_capacity_is_what_the_model_keeps(
    small_recipe, make_trainer
):
    in_force = InForce()
    trainer, _ = make_trainer(small_recipe(TO_FULL_CAPACITY), in_force)
    trainer.fit()
    ratios = [row[:2] for row in in_force.rows]
    assert ratios == [pytest.approx(level) for level in BY_LEVELS]
    assert len(set(ratios)) == 4
    model = unwrap(trainer.state.model)
    assert model.config.select_ratios == [1.0, 1.0]
    assert model.thinking_layers[0].router_temperature.item() == 1.0


def test_the_last_evaluation_and_checkpoint_are_of_the_targets(small_recipe, make_trainer):
    # A continuous annealing over the whole training ends only after the last batch.
    recipe = small_recipe(ANNEALED, "algorithms.capacity_annealing.duration=1dur")
    evaluated = Evaluated()
    trainer, _ = make_trainer(recipe, evaluated)
    trainer.fit()
    assert evaluated.ratios[-1] == [0.5, 0.8]
    checkpoint = load_checkpoint(find_checkpoint(TrainingRun(recipe).path))
    assert checkpoint.batches == 10
    assert checkpoint.config["select_ratios"] == [0.5, 0.8]


def test_a_finished_run_that_is_only_evaluated_again_uses_its_targets(small_recipe, make_trainer):
    recipe = small_recipe(TO_FULL_CAPACITY)
    make_trainer(recipe)[0].fit()
    evaluated = Evaluated()
    again, _ = make_trainer(recipe, evaluated)
    assert unwrap(again.state.model).config.select_ratios == [0.5, 0.8]
    again.eval()
    assert evaluated.ratios[-1] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("start_ratio=[0.1]", "start_ratio has 1 value, but thinking_steps=3 needs 2"),
        ("target_ratio=[1,1,1]", "target_ratio has 3 values, but thinking_steps=3 needs 2"),
        ("start_ratio=[0.1,0.9]", "start_ratio of step 2 is 0.9, above the 0.8 it should rise to"),
        ("target_ratio=[0,1]", "target_ratio=[0, 1]: should be a share of the tokens above 0"),
        ("start_ratio=0", "start_ratio=0: should be a share of the tokens above 0 and up to 1"),
        ("start_ratio=1.5", "start_ratio=1.5: should be a share of the tokens above 0 and up to"),
        ("levels=continuous", "levels=continuous: with train.compile every level is a compil"),
        ("levels=1", 'levels=1: should be an integer of at least 2 or "continuous"'),
    ],
)
def test_a_schedule_that_does_not_fit_the_model_is_refused_with_the_recipe(
    small_recipe, override, words
):
    key = "algorithms.capacity_annealing"
    with pytest.raises(UserError) as caught:
        small_recipe("train.compile=true", f"{key}={{}}", f"{key}.{override}")
    assert str(caught.value).startswith(f"command line: {key}.{override.split('=')[0]}")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_resumed_training_logs_what_an_uninterrupted_one_does(
    small_recipe, make_trainer, tmp_path
):
    annealed = (ANNEALED, "algorithms.capacity_annealing.duration=0.8dur")
    torch.manual_seed(0)
    whole, expected = make_trainer(small_recipe(*annealed))
    whole.fit()

    elsewhere = small_recipe(
        *annealed, f"run_folder={tmp_path / 'other'}", "train.save_interval=3ba"
    )
    torch.manual_seed(0)
    interrupted, _ = make_trainer(elsewhere, Interrupt(5))
    with pytest.raises(InterruptedError):
        interrupted.fit()
    resumed, log = make_trainer(elsewhere)
    assert resumed.state.timestamp.batch == 3
    resumed.fit()

    for name in SCHEDULE:
        key = f"capacity_annealing/{name}"
        later = {batch: value for batch, value in logged(expected, key).items() if batch >= 3}
        assert logged(log, key) == later
    losses = logged(expected, "loss/train/total")
    assert logged(log, "loss/train/total") == {batch: losses[batch] for batch in range(3, 10)}
