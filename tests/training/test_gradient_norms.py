"""Gradient norms: of the whole batch, before clipping, by kind of parameter."""

import pytest
from composer.core import Callback
from torch import nn

from itt_composer.models.composer_model import unwrap
from itt_composer.training.watching.gradient_norms import gradient_norms

NORMS = ("callbacks.gradient_norms={interval: 3ba}", "algorithms.gradient_clipping={}")


def test_before_any_gradient_there_is_no_norm():
    assert gradient_norms(nn.Linear(2, 2)) == {}


class Summed(Callback):
    """Squares of gradients, added up one by one at the end of each backward pass."""

    def __init__(self):
        self.norms = {}

    def after_backward(self, state, logger):
        squares = {"routers": 0.0, "step_encoding": 0.0, "rest": 0.0}
        for name, parameter in unwrap(state.model).named_parameters():
            kind = next((kind for kind in squares if f".{kind}" in name), "rest")
            squares[kind] += sum(value**2 for value in parameter.grad.flatten().tolist())
        squares["global"] = sum(squares.values())
        norms = {kind: square**0.5 for kind, square in squares.items()}
        self.norms[state.timestamp.batch.value] = norms


def logged(log, kind):
    values = log.data[f"gradient_norm/{kind}"]
    return {timestamp.batch.value: value for timestamp, value in values}


def test_norms_are_of_the_whole_batch_before_it_is_clipped(small_recipe, make_trainer):
    clipped = "algorithms.gradient_clipping.clipping_threshold=0.1"
    summed = Summed()
    recipe = small_recipe(*NORMS, clipped, "train.microbatch_size=2", "train.max_duration=5ba")
    trainer, log = make_trainer(recipe, summed)
    trainer.fit()
    for kind in ("routers", "step_encoding", "rest", "global"):
        expected = {batch: summed.norms[batch][kind] for batch in (0, 3)}
        assert logged(log, kind) == pytest.approx(expected, rel=1e-4)
    assert logged(log, "global")[0] > 0.1  # the threshold: what is left after clipping
    assert set(summed.norms) == set(range(5))


def test_a_kind_without_gradients_is_left_out(small_recipe, make_trainer):
    trainer, log = make_trainer(
        small_recipe(
            *NORMS,
            "thinking={thinking: dense, thinking_steps: null, select_ratios: null}",
            "train.max_duration=1ba",
        )
    )
    trainer.fit()
    assert {key for key in log.data if key.startswith("gradient_norm/")} == {
        "gradient_norm/rest",
        "gradient_norm/global",
    }
