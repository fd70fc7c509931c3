"""The paper's tables from result files: figures, differences, gaps, and data efficiency."""

import copy
import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from refusals import assert_refused
from typer.testing import CliRunner

from eval.__main__ import app
from itt_composer.basics.errors import UserError
from itt_composer.cli.recipes import find_recipes
from itt_composer.cli.tables import every_table
from itt_composer.models.building import model_config
from itt_composer.models.configuration import THINKING_FIELDS
from itt_composer.models.flops import dense_parameters, paper_tflops, thinking_parameters
from itt_composer.paper import figures as paper
from itt_composer.paper.data_efficiency import tokens_to_reach
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.recipe.schema import recipe_as_yaml
from itt_composer.results.files import read_results

RECIPES = dict(find_recipes(Path(__file__).parents[2] / "yamls/pretrain"))


def description(recipe, **changes):
    """What `LoadedModel.description` says of a recipe's model."""
    config = model_config(RECIPES[recipe])
    fields = {name: getattr(config, name) for name in (*GEOMETRY_FIELDS, *THINKING_FIELDS)}
    count = dense_parameters(config) + thinking_parameters(config)
    names = {"path": f"runs/{recipe}", "name": recipe, "model_type": "itt", "parameters": count}
    run = {"sha256": recipe, "weights_sha256": recipe, "dtype": "float32"}
    run["experiment_sha256"] = recipe
    return {**names, "trained_batches": 50_000, **fields, **run, **changes}


def task_results(model, accuracies, seeds=(None,), **suite):
    """Of a task suite: the same accuracies (in percent) for every seed, one more with each."""
    tasks = {
        task: {
            "shots": paper.conditions().get(task, (0, "acc"))[0],
            "metric": paper.conditions().get(task, (0, "acc"))[1],
            "documents": 100,
            "questions_sha256": task,
            "value": value / 100,
            "stderr": None,
            "standard_error": None,
            "notes": [],
            "warnings": [],
            "runs": [
                {
                    "model": model["path"],
                    "fewshot_seed": seed,
                    "value": (value + number) / 100,
                    "stderr": None,
                    "requests": 100,
                    "requests_cut": 0,
                    "seconds": 1.0,
                    "file": f"{task}.json",
                }
                for number, seed in enumerate(seeds)
            ],
        }
        for task, value in accuracies.items()
    }
    settings = {"tasks": {task: {} for task in tasks}, "fewshot_seeds": [1234], **suite}
    return {"kind": "tasks", "format": 2, "suite": settings, "models": [model], "tasks": tasks}


def perplexity_results(model, perplexities, tokens=1000, text="redpajama", split="validation"):
    """Of a perplexity suite, from `{(ratios, rule): perplexity}`."""
    settings = [
        {
            "select_ratios": list(ratios),
            "router_selection": rule,
            "early_exit": 0.0,
            "tokens": tokens,
            "bytes": None,
            "loss": math.log(value),
            "perplexity": value,
            "bits_per_byte": 1.0,
            "domains": {},
            "paper_flops_per_token": 1e9 * (1 + sum(ratios)),
            "executed_flops_per_token": 1e8 * (1 + sum(ratios)),
        }
        for (ratios, rule), value in perplexities.items()
    ]
    kind = {"kind": "perplexity", "format": 2, "text_sha256": f"{text} {split}"}
    suite = {"split": split, "data": f"data/{text}"}
    return {**kind, "suite": suite, "model": model, "settings": settings}


@pytest.fixture
def sections(tmp_path):
    """The sections of results, by name, by way of their files."""

    def sections(*results, runs=(), compare_with=None):
        files = []
        for number, content in enumerate(results):
            files.append(tmp_path / f"{number}.json")
            files[-1].write_text(json.dumps(content))
        return {s.name: s for s in every_table(read_results([*files, *runs]), compare_with)}

    return sections


TEN = dict.fromkeys(paper.tasks(), 50.0)


def lines_of(section, model):
    """From the line of a model on, until the next one's."""
    rows = section.table.rows
    start = next(number for number, row in enumerate(rows) if row[0].startswith(model))
    return [rows[start], *(row for row in rows[start + 1 : start + 3] if not row[0])]


def records_of(section, **wanted):
    return [r for r in section.records if all(r[key] == value for key, value in wanted.items())]


def test_a_row_of_table_1_stands_beside_the_papers(sections):
    table_1 = sections(task_results(description("itt_x4_162m"), TEN))["table_1"]
    reported, ours, difference = lines_of(table_1, "ITT×4-162M")
    assert reported[1:5] == ["paper", "3.29", "72.4", "63.9"]
    assert ours[1:5] == ["ours", "3.28", "50.0", "50.0"]
    assert difference[1:5] == ["difference", "", "-22.4", "-13.9"]
    (average,) = records_of(table_1, task="average")
    assert (average["ours"], average["paper"]) == (50.0, 42.1)
    assert "17 of 18 rows have no result" in table_1.table.notes
    assert lines_of(table_1, "LLaMA-162M")[0][1] == "paper; no result"


def test_what_no_result_covers_is_marked(sections):
    table_1 = sections(task_results(description("llama_230m"), {"piqa": 60.0, "nq_open": 2.0}))
    reported, ours, _ = lines_of(table_1["table_1"], "LLaMA-230M")
    assert ours[3:6] == ["–", "60.0", "–"]
    assert (reported[-1], ours[-1]) == ("–", "2.0")  # NQ-open is in no row of the paper's
    assert ours[-2] == "–"  # no average of a part
    notes = "\n".join(table_1["table_1"].table.notes)
    assert "LLaMA-230M: no result for SciQ, WG, ARC-E" in notes


def test_seeds_of_a_row_are_its_mean_and_standard_error(sections):
    model = description("loop_x3_466m")
    files = [
        task_results({**model, "path": f"{n}", "weights_sha256": f"{n}"}, {"piqa": 60 + value})
        for n, value in enumerate((0.0, 1.0, 5.0))
    ]
    copy_of_first = copy.deepcopy(files[0])  # without a run folder
    copy_of_first["models"][0] |= {"sha256": "exported", "path": "elsewhere"}
    copy_of_first["models"][0] |= {"experiment_sha256": None, "trained_batches": None}
    copy_of_first["tasks"]["piqa"]["runs"][0]["model"] = "elsewhere"
    table_1 = sections(*files, files[0], copy_of_first)["table_1"]
    (record,) = records_of(table_1, task="piqa")
    assert (record["ours"], record["runs"]) == (pytest.approx(62), 3)
    assert record["standard_error"] == pytest.approx(math.sqrt(7 / 3))
    assert lines_of(table_1, "Loop×3-466M")[1][4] == "62.0±1.5"
    assert not any("the first counts" in note for note in table_1.table.notes)


def test_models_that_are_not_known_to_be_repeats_have_a_row_each(sections):
    row, tiny = description("llama_162m"), description("itt_x4_tiny")
    neox = {"model_type": "gpt_neox", "parameters": 1000, "dtype": "float32"}
    neox |= {"experiment_sha256": None, "trained_batches": None}
    models = [
        {**row, "name": "lr", "weights_sha256": "0", "experiment_sha256": "another rate"},
        row,
        {**row, "name": "short", "weights_sha256": "1", "trained_batches": 900},
        {**tiny, "name": "x4-seed17", "weights_sha256": "2"},
        {**tiny, "name": "x4-seed18", "weights_sha256": "3"},
        {**neox, "name": "pythia", "path": "pythia", "weights_sha256": "4"},
        {**neox, "name": "deduped", "path": "a/deduped", "weights_sha256": "5"},
        {**neox, "name": "deduped", "path": "b/deduped", "weights_sha256": "6"},
    ]
    files = [
        task_results({**model, "path": model["path"] + str(n)}, {"piqa": 60.0 + n})
        for n, model in enumerate(models)
    ]
    found = records_of(sections(*files)["table_1"], task="piqa")
    assert [(record["model"], record["ours"], record["runs"]) for record in found] == [
        ("LLaMA-162M (lr)", 60.0, 1),
        ("LLaMA-162M (llama_162m)", 61.0, 1),
        ("LLaMA-162M (short)", 62.0, 1),
        ("ITT×4 50/50/50 (x4-seed17/18), top-k", 63.5, 2),
        ("gpt_neox (pythia)", 65.0, 1),
        ("gpt_neox (a/deduped6)", 66.0, 1),
        ("gpt_neox (b/deduped7)", 67.0, 1),
    ]


def test_a_second_accuracy_of_the_same_weights_is_a_note(sections):
    first, again = (
        task_results(description("itt_x4_162m", path=path, sha256=path), {"piqa": value})
        for path, value in (("runs/first", 60.0), ("runs/again", 62.5))
    )
    table_1 = sections(first, first, again)["table_1"]
    (record,) = records_of(table_1, task="piqa")
    assert (record["ours"], record["runs"]) == (60.0, 1)
    noted = [note for note in table_1.table.notes if "the first counts" in note]
    assert noted == [
        "ITT×4-162M, top-k: PIQA came to 60 and 62.5 with the same weights, asked in the same "
        "way; the first counts, not that of runs/again"
    ]


def test_fewshot_seeds_are_runs_and_other_shots_are_left_out(sections):
    model = description("llama_162m")
    results = task_results(model, {"boolq": 40.0}, seeds=(1, 2))
    other = copy.deepcopy(results)
    other["tasks"]["boolq"] |= {"shots": 5, "documents": 1000}
    other["tasks"]["boolq"]["runs"] = [{**other["tasks"]["boolq"]["runs"][0], "fewshot_seed": 3}]
    table_1 = sections(other, results)["table_1"]
    (record,) = records_of(table_1, task="boolq")
    assert (record["ours"], record["runs"]) == (40.5, 2)
    noted = "BoolQ is left out at 5 shots by acc on 1,000 questions, where it is 40.0: the column"
    assert any(noted in note for note in table_1.table.notes)


def test_a_column_of_accuracies_is_of_the_same_questions(sections):
    whole = task_results(description("llama_162m"), {"piqa": 60.0})
    itt = description("itt_x4_162m", router_selection="threshold")
    part = task_results(itt, {"piqa": 80.0}, limit=20)
    part["tasks"]["piqa"]["documents"] = 20
    other = task_results(description("loop_x4_162m"), {"piqa": 70.0})
    other["tasks"]["piqa"]["questions_sha256"] = "of another file"
    table_1 = sections(part, other, whole)["table_1"]
    values = {record["model"]: record["ours"] for record in records_of(table_1, task="piqa")}
    assert [value for value in values.values() if value is not None] in ([60.0], [70.0])
    assert values["ITT×4-162M"] is None
    notes = "\n".join(table_1.table.notes)
    assert "ITT×4-162M: PIQA is left out at 0 shots by acc on 20 questions, where it is 80" in notes
    assert "on 100 questions, which are others" in notes


def test_the_same_weights_in_another_precision_are_no_repeat(sections):
    results = [
        task_results(description("llama_162m", dtype=dtype, weights_sha256=dtype), {"piqa": 60.0})
        for dtype in ("float32", "bfloat16")
    ]
    records = records_of(sections(*results)["table_1"], task="piqa")
    assert [(record["model"], record["runs"]) for record in records] == [
        ("LLaMA-162M", 1),
        ("LLaMA-162M, bfloat16", 1),
    ]


def test_what_a_figure_is_of_stands_below_the_table(sections):
    results = task_results(description("llama_162m"), {"boolq": 40.0})
    results["tasks"]["boolq"]["notes"] = ["8 of 8 requests are longer"]
    table_1 = sections(results, results)["table_1"]
    assert table_1.table.notes.count("LLaMA-162M: BoolQ: 8 of 8 requests are longer") == 1


def test_by_top_k_is_another_line_than_by_thresholds(sections):
    both = [
        task_results(description("itt_x4_162m", router_selection=rule, sha256=rule), TEN)
        for rule in ("threshold", "top_k")
    ]
    records = records_of(sections(*both)["table_1"], task="piqa")
    assert [(record["model"], record["runs"]) for record in records] == [
        ("ITT×4-162M", 1),
        ("ITT×4-162M, top-k", 1),
    ]


def test_other_models_have_the_papers_figures_on_request_only(sections):
    results = task_results(description("itt_x4_tiny"), TEN)
    table_1 = sections(results)["table_1"]
    assert lines_of(table_1, "ITT×4 50/50/50 (itt_x4_tiny)")[0][1] == "ours"
    assert len(table_1.table.rows) == 19
    table_1 = sections(results, compare_with="ITT×4-230M")["table_1"]
    reported, ours, difference = lines_of(table_1, "ITT×4 50/50/50 (itt_x4_tiny)")
    assert reported[1:4] == ["ITT×4-230M", "3.41", "75.1"]
    assert (ours[1], difference[3]) == ("ours", "-25.1")
    assert lines_of(table_1, "ITT×4-230M")[0][1] == "paper; no result"


def test_flops_of_ours_are_of_our_model(sections):
    """The reading with every other layer has more than the paper prints."""
    every_other = description("itt_x4_230m")
    (record,) = records_of(
        sections(task_results(every_other, {"piqa": 1.0}))["table_1"], task="piqa"
    )
    assert record["tflops"] == pytest.approx(paper_tflops(model_config(RECIPES["itt_x4_230m"])))
    assert record["tflops_in_paper"] == 3.41 < record["tflops"]
    llama = {"model_type": "llama", "path": "hub/llama", "name": "llama", "weights_sha256": "0"}
    geometry = {name: every_other[name] for name in GEOMETRY_FIELDS}
    for tied in (0, 32_000 * 1536):
        model = {**llama, **geometry, "parameters": 249_325_056 - tied}
        (record,) = records_of(sections(task_results(model, {"piqa": 1.0}))["table_1"], task="piqa")
        assert record["tflops"] == pytest.approx(2.87 - 2 * tied * 4096 / 1e12, abs=0.01)


ELASTIC = {
    (row.select_ratios, rule): row.perplexity + (0.5 if rule == "top_k" else 1.0)
    for row in paper.elastic()[:16]
    for rule in ("top_k", "threshold")
}


def test_the_elastic_table_holds_every_setting_by_every_rule(sections):
    own = perplexity_results(
        description("itt_x4_162m_elastic"), ELASTIC | {((0, 0, 0), "top_k"): 20}
    )
    dense = perplexity_results(description("llama_162m"), {((), None): 12.0})
    table_2 = sections(own, dense)["table_2"]
    rows = {row[0]: row[1:] for row in table_2.table.rows}
    assert rows["70/70/90"] == [
        "4.04",
        "13.52",
        "1.35",
        "10.21",
        "10.71",
        "+0.50",
        "11.21",
        "+1.00",
    ]
    assert rows["0/0/0"][3:6] == ["–", "20.00", "–"]
    assert rows["LLaMA"][3:6] == ["11.13", "12.00", "+0.87"]
    assert rows["Loop×4"][3:6] == ["10.78", "–", "–"]
    assert table_2.table.notes == ["no result for Loop×4"]
    (record,) = records_of(table_2, setting="50/50/50", rule="threshold")
    assert (record["ours"], record["paper"]) == (11.47, 10.47)


def test_ratios_at_which_a_model_was_asked_to_exit_early_are_no_sweep(sections):
    own = perplexity_results(description("itt_x4_162m_elastic"), ELASTIC)
    for setting in own["settings"]:
        setting["early_exit"] = 0.2
    assert "table_2" not in sections(own)
    kept = [setting for setting in own["settings"] if setting["router_selection"] == "top_k"]
    for setting in kept:
        setting["early_exit"] = 0.0
    table_2 = sections(own)["table_2"]
    assert {record["rule"] for record in table_2.records} == {"top_k"}


def test_models_on_another_text_are_not_put_beside(sections):
    own = perplexity_results(description("itt_x4_162m_elastic"), ELASTIC)
    dense = perplexity_results(description("llama_162m"), {((), None): 12.0}, text="other")
    notes = sections(own, dense)["table_2"].table.notes
    assert notes == ["no result for LLaMA, Loop×4"]


def test_another_elastic_model_has_no_differences(sections):
    part = {key: value for key, value in ELASTIC.items() if key[0][0] != 0.9}
    results = perplexity_results(description("itt_x4_tiny"), part)
    table_2 = sections(results)["table_2"]
    assert all(record["difference"] is None for record in table_2.records)
    assert table_2.table.notes[0].startswith("no result for 90/90/90, 90/90/0, 90/0/90, 90/90/70")
    assert "not the paper's elastic model" in table_2.table.notes[1]
    compared = sections(results, compare_with="ITT×4-162M")["table_2"]
    assert records_of(compared, setting="70/70/70", rule="top_k")[0]["difference"] == 0.5


def test_runs_that_show_nothing_are_a_note_beside_other_tables(sections, run):
    results = task_results(description("llama_162m"), TEN)
    found = sections(results, runs=[run("llama_162m", DENSE)])
    assert list(found) == ["table_1"]
    assert "no data efficiency: there are only dense runs" in found["table_1"].table.notes[-1]


def test_other_shots_or_metrics_have_no_figure_of_the_paper(sections):
    results = task_results(description("llama_162m"), TEN)
    results["tasks"]["sciq"]["metric"] = "acc_norm"
    table_1 = sections(results)["table_1"]
    (sciq,) = records_of(table_1, task="sciq")
    (piqa,) = records_of(table_1, task="piqa")
    (average,) = records_of(table_1, task="average")
    assert (sciq["ours"], sciq["paper"], piqa["paper"]) == (50.0, None, 62.7)
    assert average["ours"] is None
    assert any("SciQ by other shots or another metric" in note for note in table_1.table.notes)


def test_other_shots_are_noted_of_the_models_that_were_asked_so_alone(sections):
    asked = task_results(description("itt_x4_162m"), TEN)
    asked["tasks"]["sciq"]["metric"] = "acc_norm"
    without = task_results(description("llama_162m"), {"piqa": TEN["piqa"]})
    notes = sections(asked, without)["table_1"].table.notes
    other = [note for note in notes if "SciQ by other shots or another metric" in note]
    assert [note.partition(":")[0] for note in other] == ["ITT×4-162M, top-k"]


HALF = (0.5, 0.5, 0.5)


def test_any_models_perplexity_is_listed_as_it_thinks_by_itself_a_column_a_rule(sections):
    itt = description("itt_x4_162m", router_selection="threshold")
    own = {(HALF, "threshold"): 10.6, (HALF, "top_k"): 10.5}
    swept = perplexity_results(itt, {**own, ((0.9, 0.9, 0.9), "threshold"): 10.2})
    hub = {"name": "pythia", "path": "pythia", "model_type": "gpt_neox", "dtype": "float16"}
    hub["parameters"] = 1000
    pythia = perplexity_results(hub, {((), None): 9.0})
    causal = description("itt_x3_162m", router_selection="threshold")
    causal = perplexity_results(causal, {((0.7, 0.7), "threshold"): 11.0})
    listed = sections(swept, pythia, causal)["perplexity"]
    assert [record["perplexity"] for record in listed.records] == [10.6, 10.5, 9.0, 11.0]
    assert listed.table.title == "Perplexity on redpajama, validation, 1,000 tokens"
    assert listed.table.columns[3:5] == ["perplexity,\ntop-k", "perplexity,\nthreshold"]
    rows = [row[:5] for row in listed.table.rows]
    assert rows[0] == ["itt_x4_162m", "ITT×4", "50/50/50", "10.50", "10.60"]
    assert rows[1] == ["pythia", "gpt_neox, float16", "–", "9.00", "9.00"]
    assert rows[2][3:] == ["–", "11.00"]


def test_a_measurement_counts_once_in_however_many_files_it_stands(sections):
    saved = description("itt_x4_162m", router_selection="threshold")
    both = perplexity_results(saved, {(HALF, "top_k"): 20.0, (HALF, "threshold"): 20.6})
    causal = perplexity_results({**saved, "path": "exported"}, {(HALF, "threshold"): 20.6})
    train = perplexity_results(saved, {(HALF, "top_k"): 16.0}, split="train")
    elsewhere = perplexity_results(saved, {(HALF, "top_k"): 30.0}, text="c4")
    found = sections(causal, both, both, train, elsewhere)
    whole = records_of(found["table_3"], ablation="ITT×4")
    assert [(r["ours"], r["runs"], r["standard_error"]) for r in whole] == [(20.0, 1, None)]
    assert [record["perplexity"] for record in found["perplexity"].records] == [20.6, 20.0]
    # Other texts are tables of their own.
    texts = ["redpajama, train", "c4, validation"]
    for number, (text, value) in enumerate(zip(texts, (16.0, 30.0), strict=True), start=2):
        (record,) = records_of(found[f"table_3_{number}"], ablation="ITT×4")
        assert (record["ours"], record["runs"]) == (value, 1)
        listed = found[f"perplexity_{number}"]
        assert [record["perplexity"] for record in listed.records] == [value]
        assert text in listed.table.title
    assert "3 figures stand in the files more than once, and count once" in listed.table.notes


def test_a_sweep_in_two_files_is_one_table(sections):
    saved = description("itt_x4_162m_elastic", router_selection="threshold")
    halves = [
        perplexity_results(saved, {key: v for key, v in ELASTIC.items() if key[1] == rule})
        for rule in ("threshold", "top_k")
    ]
    found = sections(*halves)
    assert "table_2_2" not in found
    assert (
        found["table_2"].records == sections(perplexity_results(saved, ELASTIC))["table_2"].records
    )


def test_the_same_weights_with_other_figures_are_reported(sections):
    """Thresholds that were estimated anew move what they decide, but repeat no training."""
    saved = description("itt_x4_162m", router_selection="threshold")
    first, again = (
        perplexity_results({**saved, "path": path}, {(HALF, "threshold"): value})
        for path, value in (("a", 20.0), ("b", 20.5))
    )
    found = sections(first, again)
    (record,) = records_of(found["table_3"], ablation="ITT×4")
    assert (record["ours"], record["runs"]) == (20.0, 1)
    assert found["perplexity"].table.notes[0].startswith("a and b have the same weights and were")


def test_a_column_of_ablations_is_by_one_rule(sections):
    saved = description("itt_x4_162m", router_selection="threshold")
    tanh = description("itt_x4_162m_tanh", router_selection="threshold", path="runs/tanh")
    both = perplexity_results(saved, {(HALF, "top_k"): 20.0, (HALF, "threshold"): 20.6})
    causal = perplexity_results(tanh, {(HALF, "threshold"): 22.0})
    table_3 = sections(both, causal)["table_3"]
    (record,) = records_of(table_3, ablation="tanh")
    assert (record["ours"], record["change"]) == (None, None)
    assert table_3.table.notes[0] == (
        "runs/tanh (tanh) was not measured at its own ratios by top-k, as this column is, and is "
        "left out"
    )
    # By thresholds where no model was measured by top-k.
    both["settings"] = both["settings"][1:]
    (record,) = records_of(sections(both, causal)["table_3"], ablation="tanh")
    assert (record["ours"], record["rule"]) == (22.0, "threshold")
    assert record["change"] == pytest.approx(22 / 20.6 - 1)


def test_ablations_are_found_by_their_settings_and_measured_as_trained(sections):
    half = (0.5, 0.5, 0.5)
    saved = description("itt_x4_162m", router_selection="threshold")
    whole = perplexity_results(saved, {(half, "threshold"): 99.0, (half, "top_k"): 20.0})
    results = [
        perplexity_results(description("itt_x4_162m_top_p"), {(half, "top_p"): 21.0}),
        perplexity_results(description("itt_x4_162m_no_routing"), {((1.0,) * 3, None): 22.0}),
        *(
            perplexity_results(
                description("itt_x4_162m_tanh", weights_sha256=str(v)), {(half, "top_k"): v}
            )
            for v in (22, 24)
        ),
    ]
    table_3 = sections(whole, *results)["table_3"]
    found = {r["ablation"]: r for r in table_3.records}
    assert (found["ITT×4"]["ours"], found["ITT×4"]["rule"]) == (20.0, "top-k")
    assert (found["top-p"]["change"], found["top-p"]["rule"]) == (pytest.approx(0.05), "top-p")
    assert found["top-p"]["change_in_paper"] == pytest.approx(10.34 / 10.25 - 1)
    assert found["without routing"]["difference"] == pytest.approx(22 - 10.44)
    assert (found["tanh"]["ours"], found["tanh"]["standard_error"]) == (23.0, 1.0)
    assert found["without RTC"]["ours"] is None
    assert table_3.table.notes == ["no result for without RTC, without step encoding, symmetric"]


def test_ablations_that_are_not_known_to_be_repeats_have_a_row_each(sections):
    recipes = {"usual": 20.0, "of another rate": 40.0}
    results = [
        perplexity_results(
            description(recipe, name=own, weights_sha256=recipe + own, experiment_sha256=own),
            {(HALF, "top_k"): value * change},
        )
        for recipe, change in (("itt_x4_162m", 1), ("itt_x4_162m_tanh", 1.5))
        for own, value in recipes.items()
    ]
    results.append(
        perplexity_results(
            description("itt_x4_162m_tanh", weights_sha256="seed", experiment_sha256="usual"),
            {(HALF, "top_k"): 32.0},
        )
    )
    table_3 = sections(*results)["table_3"]
    rows = {row[0]: row[5] for row in table_3.table.rows if row[5] != "–"}
    assert rows == {
        "ITT×4 (usual)": "20.00",
        "ITT×4 (of another rate)": "40.00",
        "tanh (usual + 1 more)": "31.00±1.00",
        "tanh (of another rate)": "60.00",
    }
    whole, _, tanh, _ = (record for record in table_3.records if record["ours"] is not None)
    assert (whole["change"], tanh["change"], tanh["runs"]) == (0, pytest.approx(0.55), 2)
    assert "changes are against ITT×4 (usual), the first of 2" in table_3.table.notes


def test_ablations_of_another_size_are_a_table_of_their_own(sections):
    half = {((0.5, 0.5, 0.5), "top_k"): 20.0}
    tiny = description("itt_x4_tiny", step_encoding=False)
    found = sections(
        perplexity_results(description("itt_x4_162m"), half), perplexity_results(tiny, half)
    )
    assert "162M" in found["table_3"].table.title
    assert "2.3M" in found["table_3_2"].table.title
    assert all(record["difference"] is None for record in found["table_3_2"].records)


@pytest.fixture
def run(tmp_path):
    """A run folder with validation losses by tokens."""

    def run(recipe, losses, finished=True, **changes):
        folder = tmp_path / f"{recipe}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        content = yaml.safe_load(recipe_as_yaml(RECIPES[recipe]))
        content["train"].update(changes)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
        lines = [{"batch": 0, "tokens": 0, "loss/train/total": 9.0}]
        lines += [
            {"batch": number, "tokens": tokens, "metrics/eval/LanguageCrossEntropy": loss}
            for number, (tokens, loss) in enumerate(losses.items(), start=1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text + '{"batch": 99, "to')
        if finished:
            (folder / "summary.json").write_text("{}")
        return folder

    return run


DENSE = {100: 4.0, 200: 3.5, 400: 3.0}


def test_data_efficiency_is_interpolated_between_validations(sections, run):
    runs = [run("llama_162m", DENSE), run("itt_x4_162m", {100: 3.8, 200: 3.2, 400: 2.8})]
    efficiency = sections(runs=runs)["data_efficiency"]
    (record,) = efficiency.records
    assert record["share"] == pytest.approx((200 + 200 * 0.2 / 0.4) / 400)
    assert (record["target"], record["final_loss"], record["paper"]) == (3.0, 2.8, 0.568)
    assert efficiency.table.rows[0][-2:] == ["75.0 %", "56.8 %"]
    assert efficiency.table.notes == []


def test_a_loss_that_is_never_reached_or_was_there_at_once_is_reported(sections, run):
    runs = [
        run("llama_162m", DENSE),
        run("loop_x4_162m", {100: 5.0, 400: 3.1}),
        run("itt_x3_162m", {100: 2.9, 400: 2.5}),
    ]
    rows = sections(runs=runs)["data_efficiency"].table.rows
    assert [row[-2:] for row in rows] == [["not reached", "–"], ["≤ 25.0 %", "–"]]


def test_tokens_to_reach_takes_the_first_time():
    assert tokens_to_reach([(0, 4.0), (100, 3.0), (200, 3.5), (300, 2.0)], 3.5) == 50
    assert tokens_to_reach([(10, 3.0)], 3.0) == 10
    assert tokens_to_reach([(10, 3.1)], 3.0) is None
    assert tokens_to_reach([], 3.0) is None


def test_runs_that_differ_in_data_or_schedule_are_warned_of(sections, run):
    dense = run("llama_162m", DENSE)
    other = run("itt_x4_162m", DENSE, finished=False, max_duration="9ba", compile=False)
    notes = sections(runs=[dense, other])["data_efficiency"].table.notes
    assert [note.partition("): ")[2] for note in notes] == [
        f"train.max_duration is 9ba in {other.name}, 50000ba in {dense.name}",
        f"{other.name} is not finished, and its last validation is taken",
    ]


def test_the_dense_run_that_is_most_alike_is_taken(sections, run):
    runs = [run("llama_162m", DENSE, max_duration="9ba"), run("llama_162m", {100: 1.0, 200: 0.5})]
    runs += [run("llama_466m", DENSE), run("itt_x4_162m", {100: 1.0, 200: 0.4})]
    (record,) = sections(runs=runs)["data_efficiency"].records
    assert record["target"] == 0.5


def test_losses_on_other_rows_are_not_compared(sections, run):
    runs = [run("llama_162m", DENSE), run("itt_x4_162m", DENSE)]
    for folder, rows in zip(runs, ("a", "b"), strict=True):
        digests = {"tokenizer": "t", "train/c4": rows, "validation/c4": "same"}
        (folder / "shards.json").write_text(json.dumps(digests))
    assert len(sections(runs=runs)["data_efficiency"].records) == 1
    (runs[0] / "shards.json").write_text(json.dumps({"tokenizer": "t", "validation/c4": "other"}))
    with pytest.raises(UserError, match=r"itt_x4_162m\d+ was validated on the same rows with the"):
        sections(runs=runs)


def test_a_copy_of_a_run_counts_once_and_one_that_diverged_is_left_out(sections, run):
    itt = run("itt_x4_162m", DENSE)
    copied = shutil.copytree(itt, itt.with_name("copy"))
    diverged = run("itt_x3_162m", {100: 4.0, 200: None})
    efficiency = sections(runs=[run("llama_162m", DENSE), itt, copied, diverged])["data_efficiency"]
    assert len(efficiency.records) == 1
    assert efficiency.table.notes[0].startswith(
        "ITT×3 (itt_x3_162m) diverged: its last loss is not a"
    )


def invoke(*arguments):
    return CliRunner().invoke(app, ["tables", *map(str, arguments)])


def test_the_readmes_own_glob_counts_every_figure_once(run, tmp_path, monkeypatch):
    """`itt tables results/eleven_tasks/*/ results/*.json runs/*_162m/`."""
    monkeypatch.chdir(tmp_path)
    saved = description("itt_x4_162m", router_selection="threshold")
    for name in ("itt_x4_162m", "itt_x4_162m-latest"):  # the run and its last checkpoint
        folder = tmp_path / "results/eleven_tasks" / name
        folder.mkdir(parents=True)
        tasks = task_results({**saved, "path": name, "sha256": name}, {"piqa": 60.0})
        (folder / "results.json").write_text(json.dumps(tasks))
    own = {(HALF, "threshold"): 20.6}
    files = {
        "elastic": perplexity_results(
            saved, {**own, (HALF, "top_k"): 20.0, ((0,) * 3, None): 30.0}
        ),
        "perplexity": perplexity_results(saved, own),
        "perplexity_train": perplexity_results(saved, own, split="train"),
    }
    for name, content in files.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "runs").mkdir()
    for recipe in ("llama_162m", "itt_x4_162m"):
        run(recipe, DENSE).rename(tmp_path / "runs" / recipe)
    given = [*tmp_path.glob("results/eleven_tasks/*/"), *tmp_path.glob("results/*.json")]
    result = invoke(*given, *tmp_path.glob("runs/*_162m/"), "--out", "tables")
    assert result.exit_code == 0, result.output
    assert "±" not in result.output
    document = json.loads((tmp_path / "tables/tables.json").read_text())
    (piqa,) = [r for r in document["table_1"] if r["task"] == "piqa"]
    (whole,) = [r for r in document["table_3"] if r["ablation"] == "ITT×4"]
    assert (piqa["runs"], piqa["ours"], whole["runs"], whole["ours"]) == (1, 60.0, 1, 20.0)
    assert [r["perplexity"] for r in document["perplexity"]] == [20.6, 20.0]
    assert [r["split"] for r in document["perplexity_2"]] == ["train"]


def test_the_command_prints_and_writes_every_table(run, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "results.json").write_text(json.dumps(task_results(description("itt_x4_162m"), TEN)))
    sweep = tmp_path / "elastic.json"
    sweep.write_text(json.dumps(perplexity_results(description("itt_x4_162m"), ELASTIC)))
    runs = [run("llama_162m", DENSE), run("itt_x4_162m", DENSE)]
    out = tmp_path / "out"
    out.mkdir()
    (out / "table_9.csv").write_text("of an earlier call")
    result = invoke(results, sweep, *runs, "--out", out)
    assert result.exit_code == 0, result.output
    titles = ("Table 1", "Table 2", "Table 3", "Perplexity", "Data efficiency")
    assert all(title in result.output for title in titles)
    names = [f"{name}.csv" for name in ("data_efficiency", "perplexity")]
    names += [f"table_{number}.csv" for number in (1, 2, 3)]
    assert sorted(file.name for file in out.iterdir()) == [*names, "tables.json", "tables.md"]
    assert (out / "tables.md").read_text().count("## ") == 5
    document = json.loads((out / "tables.json").read_text())
    lines = list(csv.DictReader((out / "table_2.csv").open()))
    assert [float(line["paper"]) for line in lines if line["paper"]] == [
        record["paper"] for record in document["table_2"] if record["paper"]
    ]


def test_results_that_were_just_measured_are_read(small_recipe, shards, tmp_path):
    from eval.perplexity import measure_settings
    from eval.suite import PerplexitySuite
    from itt_composer.models.building import model_of_recipe
    from itt_composer.results.perplexity_report import write_results

    model_of_recipe(small_recipe()).save_pretrained(tmp_path / "model")
    suite = PerplexitySuite(
        model={"path": str(tmp_path / "model")}, data=str(shards), select_ratios=[None, [1, 0]]
    )
    results = measure_settings(suite, lambda done, total: None)
    write_results(results, tmp_path / "elastic.json")
    sweep, listed = every_table(read_results([tmp_path / "elastic.json"]), None)
    assert len(listed.records) == 1
    assert len(results.text_sha256) == len(results.model.weights_sha256) == 64
    measured = [r["ours"] for r in sweep.records if r["ours"] is not None]
    assert measured == [setting.perplexity for setting in results.settings]


def test_bad_input_is_one_sentence_each(run, tmp_path):
    files = {
        "text.json": "no json",
        "list.json": "[]",
        "summary.json": '{"validation_loss": 3.0}',
        "old.json": '{"suite": {}, "seq_len": 32, "settings": []}',
        "newer.json": '{"kind": "tasks", "format": 99}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    dense, itt = run("llama_162m", DENSE), run("itt_x4_162m", DENSE)
    young, other = run("itt_x4_162m", {}), run("itt_x4_466m", DENSE)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text("")
    mistakes = [
        (["nowhere"], "nowhere does not exist; give results of a task suite"),
        ([tmp_path / "empty"], "holds neither results.json nor metrics.jsonl; give results"),
        ([tmp_path / "text.json"], "text.json is not JSON"),
        (
            [tmp_path / "list.json"],
            "list.json is not a result of a task suite or a perplexity suite; give",
        ),
        ([tmp_path / "summary.json"], "summary.json is not a result of a task suite or a"),
        ([tmp_path / "old.json"], "is of another version of this program; measure it again"),
        ([tmp_path / "newer.json"], "is of another version of this program; measure it again"),
        ([itt], "there is no dense run among the run folders"),
        ([dense, dense], "there are only dense runs among the run folders"),
        ([dense, other], f"no dense run among the run folders has the geometry of {other}"),
        ([dense, young], "the run has not come to its first validation"),
        ([bare], "bare is not a run folder (it has no recipe.yaml)"),
        ([dense, itt, "--compare-with", "ITT×5"], "has no row 'ITT×5'"),
        ([dense, itt, "--out", tmp_path / "old.json"], "old.json is a file; name a folder"),
    ]
    for arguments, sentence in mistakes:
        assert_refused(invoke(*arguments), sentence)
