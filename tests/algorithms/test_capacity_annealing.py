"""Capacity annealing: the schedule as numbers, and in force in a real training."""

import pytest
from composer.core import Callback

from itt_composer.algorithms.capacity_annealing import (
    CapacityAnnealing,
    anneal,
    anneal_select_ratios,
)
from itt_composer.models.composer_model import unwrap

# Ratios from 0.1 to 0.5 and 0.8, temperature from 2 to 1, over the first five of ten batches.
ANNEALED = (
    "algorithms.capacity_annealing="
    "{start_ratio: 0.1, start_temperature: 2.0, end_temperature: 1.0, duration: 0.5dur}"
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


def test_annealing_goes_straight_from_start_to_end_and_stays():
    assert [anneal(2.0, 1.0, progress) for progress in (0, 0.25, 0.5, 1, 7)] == [2, 1.75, 1.5, 1, 1]


def test_ratios_rise_from_the_start_to_their_targets():
    steps = [anneal_select_ratios(0.2, [0.5, 0.9, 1.0], i / 20) for i in range(30)]
    assert steps[0] == [0.2, 0.2, 0.2]
    assert steps[20] == steps[29] == [0.5, 0.9, 1.0]
    for ratios in zip(*steps, strict=True):
        assert list(ratios) == sorted(ratios)


def test_a_target_below_the_start_is_kept_from_the_beginning():
    assert anneal_select_ratios(0.6, [0.3, 0.7], 0) == [0.3, 0.6]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_ratio", -0.1),
        ("start_ratio", 1.1),
        ("start_temperature", 0),
        ("end_temperature", -1),
        ("duration", "0ba"),
    ],
)
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must .*{value}"):
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


def test_the_trained_model_has_exactly_the_targets(small_recipe, make_trainer):
    # Annealing over the whole training reaches its end only after the last batch.
    recipe = small_recipe(ANNEALED, "algorithms.capacity_annealing.duration=1dur")
    trainer, _ = make_trainer(recipe)
    trainer.fit()
    model = unwrap(trainer.state.model)
    assert model.config.select_ratios == [0.5, 0.8]
    for layer in model.thinking_layers:
        assert layer.router_temperature.item() == 1.0


def test_a_resumed_training_logs_what_an_uninterrupted_one_does(
    small_recipe, make_trainer, tmp_path
):
    annealed = (ANNEALED, "algorithms.capacity_annealing.duration=0.8dur")
    whole, expected = make_trainer(small_recipe(*annealed))
    whole.fit()

    elsewhere = small_recipe(
        *annealed, f"run_folder={tmp_path / 'other'}", "train.save_interval=3ba"
    )
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
