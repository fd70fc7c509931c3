"""Whatever can be evaluated: run folders, checkpoints, transformers folders, names on the hub."""

import shutil

import pytest
import torch
from small_recipe import RECIPE
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from itt_composer.basics.errors import UserError
from itt_composer.recipe.description import kind_label
from itt_composer.runs.export import export_checkpoint
from itt_composer.runs.loading import load_named_model, think_causally
from itt_composer.runs.model_settings import ModelOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory, fork_server):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "small.yaml").write_text(RECIPE)
    places = [f"data.local={shards}", f"run_folder={folder / 'run'}"]
    result = fork_server.run("itt_composer.train", folder / "small.yaml", *places)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def load(path, **settings):
    return load_named_model(str(path), CPU, ModelOptions(**settings), "model")


def test_a_run_its_checkpoint_and_its_export_are_one_model(run, shards, tmp_path):
    export_checkpoint(run, tmp_path / "export")
    running = tmp_path / "still_running"
    shutil.copytree(run, running)
    shutil.rmtree(running / "model")
    (running / "summary.json").unlink()
    places = [
        run,
        run / "model",
        run / "checkpoints/ep0-ba10-rank0.pt",
        running,
        tmp_path / "export",
    ]
    loaded = [load(place) for place in places]
    for evaluated in loaded:
        think_causally(evaluated.model)
        assert evaluated.model.config.router_selection == "threshold"
        assert evaluated.tokenizer().encode("a few words") == loaded[0].tokenizer().encode(
            "a few words"
        )
    assert len({evaluated.sha256() for evaluated in loaded}) == 1
    assert [evaluated.name for evaluated in loaded] == [
        "run",
        "run",
        "run-ep0-ba10-rank0",
        "still_running",
        "export",
    ]
    assert [evaluated.trained_batches for evaluated in loaded] == [10, 10, 10, 10, None]
    experiments = [evaluated.description()["experiment_sha256"] for evaluated in loaded]
    assert experiments[:3] == [experiments[0]] * 3
    assert (len(experiments[0]), experiments[3:]) == (64, [experiments[0], None])
    shutil.copytree(run / "model", running / "model")
    (running / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json cannot be read; delete it"):
        load(running)


def test_the_hash_depends_on_weights_thinking_precision_and_tokenizer(run, tmp_path):
    own = load(run)
    shutil.copytree(run / "model", tmp_path / "other")
    config = tmp_path / "other/tokenizer_config.json"
    as_text, as_token = (f'"split_special_tokens": {value}' for value in ("true", "false"))
    config.write_text(config.read_text().replace(as_text, as_token))
    hashes = {
        own.sha256(),
        load(run, select_ratios=[0.9, 0.9]).sha256(),
        load(run, dtype="bfloat16").sha256(),
        load(run, tokenizer=str(tmp_path / "other")).sha256(),
    }
    changed = load(run)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight[0, 0] += 1e-3
    hashes.add(changed.sha256())
    assert len(hashes) == 5
    assert load(run).sha256() in hashes


def test_any_transformers_model_is_taken_with_its_own_settings(tmp_path, shards):
    geometry = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 1}
    sizes = {"intermediate_size": 48, "num_attention_heads": 2}
    kinds = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "mistral": (MistralForCausalLM, MistralConfig),
    }
    for kind, (model, config) in kinds.items():
        model(config(**geometry, **sizes)).save_pretrained(tmp_path / kind)
        evaluated = load(tmp_path / kind, tokenizer=str(shards / "tokenizer"))
        assert kind_label(evaluated.description()) == {"llama": "LLaMA"}.get(kind, kind)
        assert evaluated.tokenizer().vocab_size == 512
        think_causally(evaluated.model)
        with pytest.raises(UserError, match=r"select_ratios=\[0\.5\] needs an ITT model"):
            load(tmp_path / kind, select_ratios=[0.5])


def test_what_is_no_model_is_refused(run, tmp_path):
    mistakes = {
        tmp_path: "is not a model: the folder has neither a config.json nor a checkpoint; name",
        run / "recipe.yaml": "recipe.yaml is not a model; name a run folder",
        "no-such-model/anywhere": "is not a folder or a checkpoint here, and the hub does not give",
    }
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes((run / "checkpoints/ep0-ba10-rank0.pt").read_bytes()[:5000])
    mistakes[damaged] = "damaged.pt is damaged, cut short or not a checkpoint"
    lone = shutil.copy(run / "checkpoints/ep0-ba10-rank0.pt", tmp_path / "lone.pt")
    mistakes[lone] = "no recipe.yaml of the run; name the tokenizer's folder with model.tokenizer"
    for path, sentence in mistakes.items():
        with pytest.raises(UserError) as caught:
            load(path)
        assert sentence in str(caught.value)
        assert str(caught.value).startswith("model=")
        assert len(str(caught.value).splitlines()) == 1
