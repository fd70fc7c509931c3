"""The paper's recipes: instantiated on the meta device, with the figures of its tables."""

from pathlib import Path

import pytest
import torch

from itt_composer.config import Recipe, load_recipe
from itt_composer.flops import paper_tflops
from itt_composer.models import IttForCausalLM
from itt_composer.train import build_model

PRETRAIN = Path(__file__).parents[1] / "yamls/pretrain"


def on_meta_device(recipe: Recipe) -> IttForCausalLM:
    """The recipe's model without memory for its weights."""
    with torch.device("meta"):
        return build_model(recipe)


@pytest.mark.parametrize(
    ("name", "parameters", "tflops"),
    [("llama_162m", 162_022_400, 1.88), ("itt_x4_162m", 162_022_400 + 28_672, 3.29)],
)
def test_a_recipe_has_the_figures_of_its_row(name, parameters, tflops):
    recipe = load_recipe(PRETRAIN / f"{name}.yaml")
    model = on_meta_device(recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert paper_tflops(model.config, recipe.data.seq_len) == pytest.approx(tflops, abs=0.01)


def test_the_paper_recipes_have_its_training_set_up():
    recipe = load_recipe(PRETRAIN / "itt_x4_162m.yaml")
    assert recipe.data.seq_len * recipe.train.global_batch_size == 2**20  # tokens per step
    assert recipe.train.max_duration == "50000ba"
    assert recipe.optimizer.named()["decoupled_adamw"].lr == 3e-4
    assert sum(recipe.data.domains.values()) == pytest.approx(1)


def test_the_loop_part_makes_a_loop_of_the_same_size():
    recipe = load_recipe(
        PRETRAIN / "llama_162m.yaml",
        [f"parts.thinking={PRETRAIN.parent / 'thinking/loop_x4.yaml'}"],
    )
    model = on_meta_device(recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == 162_022_400
    assert paper_tflops(model.config) == pytest.approx(4.70, abs=0.01)
