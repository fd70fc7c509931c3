"""The dense baseline as a plain LLaMA: any tool loads the folder, and ours take it as before."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_recipe import RECIPE
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

import itt_composer.cli.calibrate
import itt_composer.cli.export
import itt_composer.cli.from_llama
import itt_composer.cli.generate
from itt_composer.basics.errors import UserError
from itt_composer.basics.processes import StopSignals
from itt_composer.models import IttForCausalLM
from itt_composer.models.building import build_model
from itt_composer.models.loading import load_model
from itt_composer.recipe.description import kind_label
from itt_composer.recipe.schema import load_recipe
from itt_composer.runs.export import export_checkpoint
from itt_composer.runs.loading import load_named_model
from itt_composer.training.initial_config import check_initial_weights
from itt_composer.training.initial_weights import load_initial_weights
from itt_composer.training.train import train
from itt_composer.training.training_run import TrainingRun

DENSE = [
    "thinking.thinking=dense",
    "thinking.thinking_steps=null",
    "thinking.select_ratios=null",
    "train.max_duration=2ba",
]
ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
text = AutoTokenizer.from_pretrained(sys.argv[1])("the same text", return_tensors="pt")
with torch.no_grad():
    logits = model(**text).logits
model.generate(**text, max_new_tokens=2, do_sample=False)
assert not any(name.startswith("itt_composer") for name in sys.modules)
torch.save((type(model).__name__, text.input_ids, logits), sys.argv[2])
"""


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """The folder of a finished dense run."""
    folder = tmp_path_factory.mktemp("dense")
    (folder / "small.yaml").write_text(RECIPE)
    places = [f"data.local={shards}", f"run_folder={folder / 'run'}"]
    recipe = load_recipe(folder / "small.yaml", [*places, *DENSE])
    train(recipe, TrainingRun(recipe), StopSignals("it goes on"))
    return folder / "run"


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def refusal(app, *arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def test_a_dense_run_leaves_a_llama_that_transformers_loads_alone(run, tmp_path):
    model = run / "model"
    config = json.loads((model / "config.json").read_bytes())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not any("think" in key or "select" in key or key == "auto_map" for key in config)
    card = (model / "README.md").read_text()
    assert "tags: [llama]" in card
    assert "import itt_composer" not in card
    command = [sys.executable, "-c", ALONE, model, tmp_path / "found.pt"]
    subprocess.run(command, cwd=tmp_path, check=True, env={"HF_HUB_OFFLINE": "1"})
    name, ids, found = torch.load(tmp_path / "found.pt")
    assert name == "LlamaForCausalLM"
    export_checkpoint(run, tmp_path / "itt", model_type="itt")
    ours = IttForCausalLM.from_pretrained(tmp_path / "itt").eval()
    assert json.loads((tmp_path / "itt" / "config.json").read_bytes())["model_type"] == "itt"
    assert torch.allclose(found, logits(ours, ids), atol=1e-5)  # of a process with other threads
    plain = LlamaForCausalLM.from_pretrained(model).eval()
    assert torch.equal(logits(plain, ids), logits(ours, ids))


def test_its_checkpoint_exports_the_same_folder_and_evaluates_as_one_model(run, tmp_path):
    export_checkpoint(run, tmp_path / "out")
    for file in (run / "model").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    export_checkpoint(run, tmp_path / "itt", model_type="itt")
    checkpoint = next((run / "checkpoints").glob("ep*.pt"))
    models = [
        load_named_model(str(path), torch.device("cpu"))
        for path in (run, run / "model", tmp_path / "itt", checkpoint)
    ]
    assert len({model.sha256() for model in models}) == 1
    descriptions = [model.description() for model in models]
    assert {kind_label(description) for description in descriptions} == {"LLaMA"}
    assert len({description["parameters"] for description in descriptions}) == 1


def test_our_commands_take_the_folder(run, shards, tmp_path):
    model = run / "model"
    arguments = [str(model), "--prompt", "def", "--max-new-tokens", "3"]
    result = CliRunner().invoke(itt_composer.cli.generate.app, arguments)
    assert result.exit_code == 0, result.output
    assert "takes no thinking steps" in refusal(
        itt_composer.cli.generate.app, model, "--select-ratios", "0.5"
    )
    assert "without routers" in refusal(itt_composer.cli.calibrate.app, model, "--data", shards)
    arguments = [str(model), str(tmp_path / "itt"), "--thinking-steps", "3"]
    assert CliRunner().invoke(itt_composer.cli.from_llama.app, arguments).exit_code == 0
    ids = torch.randint(3, 512, (2, 20))
    itt, llama = load_model(tmp_path / "itt"), LlamaForCausalLM.from_pretrained(model).eval()
    assert torch.equal(logits(itt, ids), logits(llama, ids))
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "itt", model))
    assert ours("a few words").input_ids == theirs("a few words").input_ids


def test_training_goes_on_from_the_folder(run, small_recipe):
    start = f"init_from={run / 'model'}"
    recipe = small_recipe(*DENSE, start, "seed=5")
    check_initial_weights(recipe)
    model = build_model(recipe)
    load_initial_weights(model, run / "model")
    ids = torch.randint(3, 512, (2, 20))
    assert torch.equal(logits(model.eval(), ids), logits(load_model(run / "model"), ids))
    with pytest.raises(UserError, match=r"thinking=\"dense\", but .* from-llama` makes it think"):
        check_initial_weights(small_recipe(start))
    with pytest.raises(UserError, match=r"rope_theta=10000\.0, but the recipe model\.rope_theta"):
        check_initial_weights(small_recipe(*DENSE, start, "model.rope_theta=5e5"))


def test_a_model_that_thinks_is_no_llama(tmp_path, shards, small_recipe):
    recipe = small_recipe("train.max_duration=1ba")
    train(recipe, TrainingRun(recipe), StopSignals("it goes on"))
    sentence = refusal(
        itt_composer.cli.export.app, tmp_path / "run", tmp_path / "out", "--model-type", "llama"
    )
    assert "is for dense models, and this one thinks" in sentence
    assert not (tmp_path / "out").exists()


def test_nan_is_said_by_every_command_that_meets_it(run, shards, tmp_path, small_recipe):
    broken = tmp_path / "broken"
    export_checkpoint(run, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    said = "broken is of no use: model.norm.weight holds NaN or infinity, as in a model"
    assert said in refusal(itt_composer.cli.generate.app, broken, "--prompt", "def")
    assert said in refusal(itt_composer.cli.from_llama.app, broken, tmp_path / "out")
    with pytest.raises(UserError, match=said):
        load_named_model(str(broken), torch.device("cpu"))
    recipe = small_recipe(*DENSE, f"init_from={broken}")
    check_initial_weights(recipe)
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN"):
        load_initial_weights(build_model(recipe), broken)
    assert not (tmp_path / "out").exists()
