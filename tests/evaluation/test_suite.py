"""Evaluation suites: what is refused before torch is loaded, and the command line."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eval.__main__ import app
from eval.suite import load_suite
from itt_composer.basics.errors import UserError
from itt_composer.results.perplexity import Setting
from itt_composer.results.perplexity_report import cost_of_exit
from itt_composer.runs.model_place import model_name

SUITES = Path(__file__).parents[2] / "eval/suites"


@pytest.fixture
def model(tmp_path):
    """A folder that passes for a transformers folder until its model is loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "itt", "num_hidden_layers": 4, "thinking_steps": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def load(model, shards):
    def load(*overrides, file="perplexity.yaml"):
        data = [] if file == "eleven_tasks.yaml" else [f"data={shards}"]
        return load_suite(SUITES / file, [f"model={model}", *data, *overrides])

    return load


@pytest.mark.parametrize("file", sorted(SUITES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_suite_loads(model, shards, file):
    places = [f"model={model}"] + ([] if "tasks" in file.name else [f"data={shards}"])
    suite = load_suite(file, [*places, "batch_size=3"])
    assert (suite.model.path, suite.batch_size) == ([str(model)], 3)


MISTAKES = {
    "batchsize=3": "command line: unknown key batchsize; did you mean batch_size?",
    "batch_size=0": "command line: batch_size=0: input should be greater than or equal to 1",
    "select_ratios=[[0.5,1.5]]": "command line: select_ratios=1.5: input should be less than or",
    "select_ratios=[]": "command line: select_ratios=[]: ",
    "split=test": "has no rows in its split 'test'",
    "data=nowhere": "data folder nowhere is not there; make shards with",
    "model=no/such/folder": "model=no/such/folder is not there; name a run folder, a checkpoint, a",
    "model=[gpt2,gpt2-large]": "model.path: perplexity is measured of one model at a time; name",
    "output=results/elastic": "output=results/elastic is not a JSON file; name one, like",
    "model": "command line: 'model' is not of the form key=value",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_reported_in_one_sentence(load, override):
    with pytest.raises(UserError) as caught:
        load(override)
    assert len(str(caught.value).splitlines()) == 1
    assert MISTAKES[override] in str(caught.value)


def test_each_model_has_results_of_its_own(load):
    suite = SUITES / "eleven_tasks.yaml"
    paths = {
        "runs/a/model": "a",
        "runs/a/checkpoints/ep0-ba5-rank0.pt": "a-ep0-ba5-rank0",
        "runs/a/checkpoints/ep0-ba5": "a-ep0-ba5",
        "runs/a/checkpoints/latest": "a",
        "EleutherAI/pythia-160m": "pythia-160m",
    }
    for path, name in paths.items():
        assert model_name(path) == name
    names = load_suite(suite, ["model=[EleutherAI/pythia-160m,gpt2]"]).output
    assert names == "results/eleven_tasks/pythia-160m+gpt2"
    names = load_suite(suite, ["model=gpt2", "model.revision=refs/pr/1"]).output
    assert names == "results/eleven_tasks/gpt2@refs_pr_1"
    assert load("output=here", file="eleven_tasks.yaml").output == "here"


def test_a_model_in_the_folder_at_hand_or_above_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    (tmp_path / "a/checkpoints/ep0-ba5-rank0.pt").touch()
    monkeypatch.chdir(tmp_path / "a/checkpoints")
    assert [model_name(path) for path in ("..", ".", "../..")] == ["a", "a", tmp_path.name]
    assert model_name("ep0-ba5-rank0.pt") == "a-ep0-ba5-rank0"


def test_what_must_be_given_is_asked_for(model):
    suite = SUITES / "perplexity.yaml"
    with pytest.raises(UserError) as caught:
        load_suite(suite, [f"model={model}"])
    assert (
        str(caught.value)
        == f"{suite}: data is missing; set it there, or give data=… on the command line"
    )


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_and_prints_what_it_measured(small_recipe, shards, tmp_path):
    from itt_composer.models.building import model_of_recipe

    model_of_recipe(small_recipe()).save_pretrained(tmp_path / "model")
    output = tmp_path / "results/perplexity.json"
    places = (f"model={tmp_path / 'model'}", f"data={shards}", f"output={output}")
    result = invoke(SUITES / "perplexity.yaml", *places, "select_ratios=[null,[1,0]]")
    assert result.exit_code == 0, result.output
    results = json.loads(output.read_text())
    assert [setting["select_ratios"] for setting in results["settings"]] == [[0.5, 0.8], [1, 0]]
    assert {file.name for file in output.parent.iterdir()} == {
        f"perplexity.{kind}" for kind in ("json", "md", "csv")
    }
    for setting, label in zip(results["settings"], ("50/80", "100/0"), strict=True):
        row, by_domain, _ = [line for line in result.output.splitlines() if label in line]
        assert f"{setting['perplexity']:.2f}" in row
        assert f"{setting['domains']['code']['perplexity']:.2f}" in by_domain


@pytest.mark.parametrize("key", ["select_ratios=[null,[0.5]]", "model.select_ratios=[0.5]"])
def test_ratios_of_another_count_are_refused_before_the_model_is_loaded(model, load, key):
    with pytest.raises(UserError) as caught:
        load(key)
    assert str(caught.value).startswith(
        f"model={model} cannot think as the suite asks: {key.partition('=')[0]}=[0.5]: "
        "select_ratios has 1 value, but thinking_steps=4 needs 3"
    )


def test_the_command_reports_a_mistake_and_fails(shards):
    result = invoke(SUITES / "perplexity.yaml", "model=no/where/here", f"data={shards}")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: model=no/where/here is not there; name a run folder")
    assert "Traceback" not in result.output


def test_the_cost_of_early_exit_is_against_the_same_setting_without_it():
    def setting(rule, early_exit, shares, perplexity):
        return Setting(
            select_ratios=[0.5, 0.5],
            router_selection=rule,
            early_exit=early_exit,
            tokens=100,
            bytes=None,
            loss=math.log(perplexity),
            perplexity=perplexity,
            bits_per_byte=None,
            domains={},
            realised_shares=shares,
        )

    settings = [
        setting("top_k", 0.0, [[0.5, 0.5], [0.5, 0.5]], 40.0),
        setting("threshold", 0.3, [[0.4, 0.4], [0.2, 0.2]], 51.0),
        setting("threshold", 0.0, [[0.5, 0.5], [0.5, 0.5]], 50.0),
    ]
    assert cost_of_exit(settings[1], settings) == ("40.0 %", "+2.00 %")
    assert cost_of_exit(settings[2], settings) == ("0.0 %", "+0.00 %")
    assert cost_of_exit(settings[1], settings[:2]) == ("–", "–")
