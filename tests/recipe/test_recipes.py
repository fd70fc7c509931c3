"""Every recipe: its figures beside the paper's, its settings, and no two that say the same."""

import io
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from typer.testing import CliRunner

from itt_composer.cli import recipes
from itt_composer.models import IttForCausalLM
from itt_composer.models.building import model_of_recipe
from itt_composer.recipe.checks import tokens_in
from itt_composer.recipe.layers import read_yaml
from itt_composer.recipe.schema import Recipe, load_recipe

REPOSITORY = Path(__file__).parents[2]
YAMLS = REPOSITORY / "yamls"
RECIPES = dict(recipes.find_recipes(YAMLS / "pretrain"))
ON_GPU = [name for name, recipe in RECIPES.items() if recipe.train.device == "gpu"]
# Without routers and step encodings; the first three are Table 5 of the paper.
DENSE_PARAMETERS = {
    "llama_162m": 162_022_400,
    "llama_230m": 249_325_056,
    "llama_466m": 466_651_136,
    "llama_1b": 1_100_048_384,
    "llama_3b": 3_015_355_392,
    "tiny": 1_803_904,
}
EVERY_LAYER_OR_ONE = ["loop_x3", "loop_x4", "itt_x2", "itt_x3", "itt_x4"]


@cache
def row(name: str) -> recipes.RecipeRow:
    assumptions = recipes.Assumptions(mfu_a100=0.4, mfu_h100=0.3, gpus_per_node=8)
    return recipes.recipe_row(name, RECIPES[name], assumptions)


def leaves(content: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def settings(recipe: Recipe) -> dict[str, object]:
    """Every key that a recipe sets or implies, in dots, without the name of the run."""
    content = recipe.model_dump(exclude={"run_name", "run_folder", "parts"})
    content["thinking"] = vars(recipe.resolved_thinking())
    keys = dict(leaves(content))
    assert str(keys.pop("loggers.json_lines.path")).startswith(recipe.run_folder)
    return keys


def different_keys(one: dict[str, object], other: dict[str, object]) -> set[str]:
    return {key for key in one | other if one.get(key) != other.get(key)}


def on_meta_device(recipe: Recipe) -> IttForCausalLM:
    """The recipe's model without memory for its weights."""
    with torch.device("meta"):
        return model_of_recipe(recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_instantiated_with_the_parameters_of_its_row(name):
    recipe = RECIPES[name]
    model = on_meta_device(recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == row(name).parameters
    thinking = [
        parameter.numel()
        for layer in model.thinking_layers
        for key, parameter in layer.named_parameters()
        if "routers" in key or "step_encoding" in key
    ]
    geometry = Path(recipe.parts.model).stem
    vocab_size = 2_048 if geometry == "tiny" else 32_000
    further_ids = 2 * (recipe.model.vocab_size - vocab_size) * recipe.model.hidden_size
    assert row(name).parameters - sum(thinking) - further_ids == DENSE_PARAMETERS[geometry]


@pytest.mark.parametrize("name", recipes.PAPER_TFLOPS)
def test_a_recipe_has_the_tflops_that_the_paper_prints(name):
    assert row(name).paper_tflops == pytest.approx(recipes.PAPER_TFLOPS[name], abs=0.01)


def test_every_row_of_table_1_has_a_recipe():
    table = {f"llama_{size}" for size in ("162m", "230m", "466m")}
    table |= {f"{kind}_162m" for kind in EVERY_LAYER_OR_ONE}
    table |= {
        f"{kind}_{size}_one_layer" for kind in EVERY_LAYER_OR_ONE for size in ("230m", "466m")
    }
    assert len(table) == 18
    assert table <= set(recipes.PAPER_TFLOPS)


@pytest.mark.parametrize("size", ["230m", "466m"])
@pytest.mark.parametrize("kind", EVERY_LAYER_OR_ONE)
def test_both_readings_of_the_thinking_layers_differ_in_nothing_else(kind, size):
    one, every = (settings(RECIPES[f"{kind}_{size}{suffix}"]) for suffix in ("_one_layer", ""))
    assert different_keys(one, every) == {"thinking.thinking_layers"}
    assert (one["thinking.thinking_layers"], every["thinking.thinking_layers"]) == (
        [3],
        [1, 3, 5, 7],
    )


@pytest.mark.parametrize(
    ("suffix", "changed"),
    [
        ("no_rtc", {"thinking.residual_thinking": False}),
        (
            "no_step_encoding",
            {"thinking.step_encoding": False, "thinking.step_encoding_init": None},
        ),
        ("top_p", {"thinking.router_selection": "top_p"}),
        ("tanh", {"thinking.router_norm": "tanh"}),
        ("symmetric", {"thinking.reweighting": "symmetric"}),
        ("elastic", {"thinking.select_ratios": [0.7, 0.7, 0.7]}),
        ("1gpu", {"train.sharding": "none", "train.eval_batch_size": 4}),
    ],
)
def test_a_variant_of_itt_x4_162m_changes_what_its_name_says_and_nothing_else(suffix, changed):
    base, variant = (settings(RECIPES[name]) for name in ("itt_x4_162m", f"itt_x4_162m_{suffix}"))
    assert different_keys(base, variant) == set(changed)
    assert {key: variant[key] for key in changed} == changed


def test_the_ablation_without_routing_has_no_router_and_no_annealing():
    recipe = RECIPES["itt_x4_162m_no_routing"]
    assert recipe.resolved_thinking().select_ratios == [1.0, 1.0, 1.0]
    assert not recipe.resolved_thinking().adaptive_routing
    assert "capacity_annealing" not in recipe.algorithms.named()


@pytest.mark.parametrize("name", [name for name in ON_GPU if name != "gpu_smoke"])
def test_a_recipe_on_redpajama_has_the_papers_training_settings(name):
    recipe = RECIPES[name]
    assert recipe.data.seq_len == 4096
    assert recipe.train.global_batch_size == 256
    assert recipe.train.max_duration == "50000ba"
    assert recipe.optimizer.named()["decoupled_adamw"].model_dump() == {
        "lr": 3e-4,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    schedule = recipe.scheduler.named()["cosine_with_warmup"]
    assert (schedule.t_warmup, schedule.alpha_f) == ("0.03dur", 0.1)
    clipping = recipe.algorithms.named()["gradient_clipping"]
    assert (clipping.clipping_type, clipping.clipping_threshold) == ("norm", 1.0)
    assert recipe.train.precision == "amp_bf16"
    assert recipe.data.domains == {
        "cc": 0.67,
        "c4": 0.15,
        "github": 0.045,
        "book": 0.045,
        "wiki": 0.045,
        "arxiv": 0.025,
        "stackexchange": 0.02,
    }


@pytest.mark.parametrize("name", ON_GPU)
def test_a_training_step_fits_the_gpu_and_its_rows_split_over_the_ranks(name):
    recipe = RECIPES[name]
    limit = 24e9 if recipe.train.sharding == "none" else 75e9  # of 80 GB, for what is not counted
    assert row(name).memory_bytes < limit
    ranks = {"none": 1, "hybrid": 16}.get(recipe.train.sharding, 8)
    rows = recipe.train.global_batch_size // ranks
    assert rows % recipe.train.microbatch_size == 0
    assert recipe.train.eval_batch_size % ranks == 0


def test_the_recipe_for_two_nodes_streams_a_part_of_the_shards_to_each():
    two, one = (settings(RECIPES[name]) for name in ("itt_x4_1b_2nodes", "itt_x4_1b"))
    assert different_keys(two, one) == {
        "data.remote",
        "data.num_canonical_nodes",
        "train.sharding",
    }
    assert two["data.num_canonical_nodes"] == 2


def test_no_two_recipes_resolve_to_the_same_run():
    resolved = {json.dumps(settings(recipe)): name for name, recipe in RECIPES.items()}
    assert set(resolved.values()) == set(RECIPES)


def test_runs_are_named_after_their_recipes_and_share_no_folder():
    named = {name for name, recipe in RECIPES.items() if recipe.run_name == name}
    assert set(RECIPES) - named == {"quickstart"}  # its run is named beside the dense one's
    assert len({recipe.run_folder for recipe in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_nothing_that_its_parts_say_already(name):
    file = YAMLS / f"pretrain/{name}.yaml"
    own = OmegaConf.to_container(read_yaml(file))
    files = [file.parent / part for part in own.pop("parts").values()]
    parts = dict(leaves(OmegaConf.to_container(OmegaConf.merge(*map(read_yaml, files)))))
    assert [key for key, value in leaves(own) if key in parts and parts[key] == value] == []


def test_every_part_is_part_of_a_recipe():
    used = {
        (YAMLS / "pretrain" / part).resolve()
        for recipe in RECIPES.values()
        for part in recipe.parts.model_dump(exclude_none=True).values()
    }
    others = ("pretrain", "experiments")  # what `scripts/experiment.sh` puts in place of parts
    files = {file for file in YAMLS.glob("*/*.yaml") if file.parent.name not in others}
    assert used == {file.resolve() for file in files}


def test_every_run_of_the_experiment_is_a_recipe():
    script = REPOSITORY / "scripts/experiment.sh"
    for size, count in (("2m", 36), ("6m", 12)):
        listed = subprocess.run([script, "list", size], capture_output=True, text=True, check=True)
        runs = [line.split() for line in listed.stdout.splitlines()]
        recipes_of_runs = [load_recipe(REPOSITORY / file, changes) for file, *changes in runs]
        assert len({recipe.run_folder for recipe in recipes_of_runs}) == len(runs) == count
        sizes = {recipe.model.hidden_size for recipe in recipes_of_runs}
        assert sizes == {{"2m": 128, "6m": 256}[size]}


def listing(*arguments: str) -> str:
    folder = f"--folder={YAMLS / 'pretrain'}"
    result = CliRunner().invoke(recipes.app, [folder, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_table_in_the_docs_is_the_commands():
    page = (REPOSITORY / "docs/recipes.md").read_text()
    table = [line for line in listing("--markdown").splitlines() if line.startswith("|")]
    assert "\n".join(table) in page, "put in what itt recipes --markdown prints"


def test_the_list_is_filtered_by_name_and_gives_the_figures_as_json():
    recipes_listed = json.loads(listing("x4*_one_layer", "--json", "--mfu-a100=0.2"))["recipes"]
    names = [recipe["recipe"] for recipe in recipes_listed]
    assert names == [
        "loop_x4_230m_one_layer",
        "itt_x4_230m_one_layer",
        "loop_x4_466m_one_layer",
        "itt_x4_466m_one_layer",
    ]
    figures = recipes_listed[0]
    assert figures["a100_hours"] == pytest.approx(2 * row(names[0]).a100_hours)
    assert figures["tflops_in_paper"] == 3.95
    assert figures["tokens"] == 50_000 * 2**20


def test_the_terminals_table_has_a_line_per_recipe():
    lines = [line.split() for line in listing("162m").splitlines() if "162m" in line]
    assert [line[0] for line in lines] == [name for name in RECIPES if "162m" in name]


def test_a_pattern_that_fits_nothing_is_reported_in_a_sentence():
    result = CliRunner().invoke(recipes.app, ["itt_x9", f"--folder={YAMLS / 'pretrain'}"])
    assert result.exit_code == 1
    assert "has no recipe whose name contains 'itt_x9'" in result.stderr


def test_tokens_of_a_run_follow_from_its_duration():
    def tokens(duration: str) -> int | None:
        recipe = load_recipe(YAMLS / "pretrain/llama_162m.yaml", [f"train.max_duration={duration}"])
        return tokens_in(duration, recipe)

    assert tokens("1000ba") == 1000 * 256 * 4096
    assert tokens("300sp") == 300 * 4096
    assert tokens("2e9tok") == 2 * 10**9
    assert tokens("1ep") is None


def test_names_and_figures_are_whole_on_a_terminal_of_80_columns():
    out = io.StringIO()
    names = ["itt_x4_162m_no_step_encoding", "llama_162m"]
    recipes.recipe_table([row(name) for name in names]).print(Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for name in names:
        shown = [line for line in lines if line.startswith(f" {name} ")]
        assert len(shown) > 1
        assert (
            " ".join(shown).replace(name, "").split()
            == " ".join(recipes.cells(row(name))[1:]).split()
        )
