"""The paper's tables: figures that agree with each other, and models that are found in them."""

from pathlib import Path

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.cli.recipes import find_recipes
from itt_composer.models.building import model_config
from itt_composer.models.configuration import THINKING_FIELDS
from itt_composer.paper import figures as paper
from itt_composer.recipe.description import GEOMETRY_FIELDS

YAMLS = Path(__file__).parents[2] / "yamls"
CONFIGS = {name: model_config(recipe) for name, recipe in find_recipes(YAMLS / "pretrain")}


def description(recipe, **changes):
    """What `LoadedModel.description` says of a recipe's model."""
    config = CONFIGS[recipe]
    return {
        name: getattr(config, name) for name in ("model_type", *GEOMETRY_FIELDS, *THINKING_FIELDS)
    } | changes


@pytest.mark.parametrize("row", paper.rows().values(), ids=lambda row: row.name)
def test_the_average_printed_is_about_that_of_the_ten_tasks(row):
    assert len(row.accuracies) == 10
    assert sum(row.accuracies.values()) / 10 == pytest.approx(row.average, abs=0.15)


def test_figures_are_found_by_row_and_task():
    assert paper.accuracy("LLaMA-162M", "lambada_openai") == 28.6
    assert paper.accuracy("ITT×4-466M", "arc_challenge") == 22.4
    assert paper.accuracy("ITT×4-466M", "nq_open") is None
    assert len(paper.rows()) == 18
    assert paper.tasks()[0] == "sciq"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ITTx4-162M", "has no row 'ITTx4-162M'; did you mean 'ITT×4-162M'? It has LLaMA-162M, "),
        ("other", "has no row 'other'; it has LLaMA-162M, Loop×3-162M, "),
    ],
)
def test_an_unknown_row_is_reported_with_those_there_are(name, message):
    with pytest.raises(UserError) as caught:
        paper.accuracy(name, "piqa")
    assert message in str(caught.value)


@pytest.mark.parametrize("row", paper.rows().values(), ids=lambda row: row.name)
def test_the_model_of_a_rows_recipe_is_found_in_table_1(row):
    assert paper.row_of(description(row.recipe)) == row.name
    every_other_layer = row.recipe.removesuffix("_one_layer")
    assert paper.row_of(description(every_other_layer)) == row.name


def test_a_transformers_llama_is_a_row_by_its_geometry():
    config = {name: getattr(CONFIGS["llama_230m"], name) for name in GEOMETRY_FIELDS}
    assert paper.row_of({"model_type": "llama", **config}) == "LLaMA-230M"
    assert paper.row_of({"model_type": "mistral", **config}) is None
    assert paper.row_of({"model_type": "gpt2"}) is None


def test_thresholds_stand_for_top_k():
    causal = description("itt_x4_162m", router_selection="threshold")
    assert paper.row_of(causal) == "ITT×4-162M"
    assert paper.ablation_of(causal) == "ITT×4"


@pytest.mark.parametrize(
    "changes",
    [
        {"select_ratios": [0.7, 0.7, 0.7]},
        {"early_exit": 0.1},
        {"thinking_layers": [3]},  # printed FLOPs say every other layer
        {"step_encoding_init": 0.0},
    ],
    ids=str,
)
def test_a_model_that_is_another_is_in_no_table(changes):
    other = description("itt_x4_162m", **changes)
    assert (paper.row_of(other), paper.ablation_of(other)) == (None, None)


@pytest.mark.parametrize("changes", [{"vocab_size": 50_304}, {"num_key_value_heads": 8}], ids=str)
def test_a_model_of_another_size_is_in_table_3_only(changes):
    other = description("itt_x4_162m", **changes)
    assert (paper.row_of(other), paper.ablation_of(other)) == (None, "ITT×4")


@pytest.mark.parametrize("row", paper.ablations().values(), ids=lambda row: row.name)
def test_the_model_of_an_ablations_recipe_is_found_in_table_3_only(row):
    model = description(row.recipe)
    assert paper.ablation_of(model) == row.name
    assert (paper.row_of(model) is None) == (row.name != "ITT×4")


def test_two_ablations_at_once_are_none_of_the_papers():
    both = description("itt_x4_162m_tanh", step_encoding=False)
    assert (paper.row_of(both), paper.ablation_of(both)) == (None, None)


def test_the_columns_of_table_1_add_up_to_what_the_papers_do():
    columns = zip(
        *([row.tflops, *row.accuracies.values(), row.average] for row in paper.rows().values()),
        strict=True,
    )
    assert [round(sum(column), 2) for column in columns] == [
        *(74.85, 1332.7, 1168.0, 939.6, 787.7, 367.7, 548.8, 391.9, 1042.2, 619.4, 467.6, 766.5)
    ]


def test_the_perplexities_are_those_that_the_paper_prints():
    assert [row.perplexity for row in paper.elastic()] == [
        *(10.52, 10.27, 10.40, 10.36, 10.56, 10.25, 10.23, 10.21, 10.22, 10.26, 10.26, 10.29),
        *(10.34, 10.36, 10.34, 10.47, 11.13, 10.78),
    ]
    assert {name: row.perplexity for name, row in paper.ablations().items()} == {
        "ITT×4": 10.25,
        "without RTC": 11.02,
        "without routing": 10.44,
        "without step encoding": 10.56,
        "top-p": 10.34,
        "tanh": 10.38,
        "symmetric": 10.41,
    }


def test_the_elastic_table_has_sixteen_settings_and_two_models_beside_them():
    *settings, llama, loop = paper.elastic()
    assert len({row.select_ratios for row in settings}) == 16
    best = min(settings, key=lambda row: row.perplexity)
    assert (best.select_ratios, best.perplexity, best.tflops) == ((0.7, 0.7, 0.9), 10.21, 4.04)
    assert [(row.model, row.select_ratios) for row in (llama, loop)] == [
        ("LLaMA-162M", ()),
        ("Loop×4-162M", ()),
    ]


def test_the_flops_of_the_elastic_table_follow_from_the_ratios():
    dense = paper.row("LLaMA-162M").tflops
    for row in paper.elastic()[:16]:
        assert dense * (1 + sum(row.select_ratios) / 2) == pytest.approx(row.tflops, abs=0.02)
