"""Gradient nuclear norms in training: of the whole batch, before clipping.

On several ranks: `test_watching_ranks.py`.
"""

import numpy as np
import pytest
import torch
from composer.core import Callback
from torch import nn

from itt_composer.analysis.gradients import problem_nuclear_norms
from itt_composer.analysis.problems import EncodedProblem
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.composer_model import unwrap
from itt_composer.training.watching.gradient_nuclear_norm import gradient_nuclear_norms

WATCHED = "callbacks.gradient_nuclear_norm={interval: 3ba}"
NAMES = [f"layer_{layer}/{name}" for layer in range(2) for name in "qkvo"]


class Decomposed(Callback):
    """Singular values at the end of each backward pass, by numpy; the last of a batch counts."""

    def __init__(self):
        self.norms = {}

    def after_backward(self, state, logger):
        layers = unwrap(state.model).model.layers
        self.norms[state.timestamp.batch.value] = {
            f"layer_{number}/{name}": np.linalg.svd(
                getattr(layer.self_attn, f"{name}_proj").weight.grad.numpy().astype(np.float64)
            )[1].sum()
            for number, layer in enumerate(layers)
            for name in "qkvo"
        }


def test_norms_are_of_the_whole_batch_before_it_is_clipped(small_recipe, make_trainer):
    clipped = "algorithms.gradient_clipping={clipping_threshold: 0.1}"
    decomposed = Decomposed()
    recipe = small_recipe(WATCHED, clipped, "train.microbatch_size=2", "train.max_duration=5ba")
    trainer, log = make_trainer(recipe, decomposed)
    trainer.fit()
    prefix = "gradient_nuclear_norm/"
    assert {key for key in log.data if key.startswith(prefix)} == {prefix + name for name in NAMES}
    for name in NAMES:
        logged = {time.batch.value: value for time, value in log.data[prefix + name]}
        expected = {batch: decomposed.norms[batch][name] for batch in (0, 3)}
        assert logged == pytest.approx(expected, rel=1e-9), name
    assert logged[0] > 0.1  # the threshold: what is left after clipping


def test_norms_are_those_of_the_analysis_on_the_same_row():
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = IttForCausalLM(
        IttConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=96)
    )
    assert gradient_nuclear_norms(model) == {}
    row = torch.randint(3, 96, (7,)).tolist()
    model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss.backward()
    (norms_LP,) = problem_nuclear_norms(model, [EncodedProblem([], 0, row, 1, lost=0)])
    norms = gradient_nuclear_norms(model)
    assert list(norms) == NAMES
    stacked = torch.stack(list(norms.values()))
    torch.testing.assert_close(stacked, norms_LP.flatten(), rtol=1e-5, atol=0)


def test_a_projection_without_a_gradient_is_left_out():
    attention = nn.Module()
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        attention.add_module(name, nn.Linear(3, 3))
    attention.k_proj.weight.grad = torch.diag(torch.tensor([3.0, -4.0, 0.0]))
    norms = gradient_nuclear_norms(nn.ModuleList([attention]))
    assert {name: norm.item() for name, norm in norms.items()} == {"layer_0/k": pytest.approx(7.0)}
