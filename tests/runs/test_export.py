"""Checkpoints and LLaMAs to transformers folders, and training that starts from one."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import itt_composer.train
import itt_composer.training.train
from itt_composer.basics.errors import UserError
from itt_composer.basics.processes import StopSignals
from itt_composer.cli.app import app
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models import folder as model_folder
from itt_composer.models.building import model_of_recipe
from itt_composer.models.flops import dense_parameters
from itt_composer.models.upcycling import convert_llama
from itt_composer.recipe.schema import load_recipe
from itt_composer.runs.checkpoints.places import find_checkpoint
from itt_composer.runs.checkpoints.reading import load_checkpoint
from itt_composer.runs.export import export_checkpoint
from itt_composer.runs.folder import LOSSES
from itt_composer.training.initial_config import check_initial_weights
from itt_composer.training.initial_weights import load_initial_weights
from itt_composer.training.train import build_trainer, train
from itt_composer.training.training_run import TrainingRun

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "yamls/pretrain/quickstart.yaml"
TINY = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.vocab_size=512",
    "data.seq_len=32",
    "data.num_workers=0",
    "train.max_duration=4ba",
    "train.eval_interval=2ba",
    "train.eval_batches=1",
    "train.save_interval=2ba",
    "train.device=cpu",
]
GEOMETRY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMAS = {
    "plain": {},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "scaled": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 5e5},
    "tied": {"tie_word_embeddings": True},
    "wide_heads": {"head_dim": 16},
    "bfloat16": {"dtype": torch.bfloat16},
}
RATIOS = [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0.9, 0.0, 0.3], [0.0, 0.0, 0.0]]


@pytest.fixture(scope="module")
def overrides(shards) -> list[str]:
    return [*TINY, f"data.local={shards}"]


@pytest.fixture(scope="module")
def run(overrides, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("export") / "run"
    recipe = load_recipe(RECIPE, [*overrides, f"run_folder={folder}"])
    train(recipe, TrainingRun(recipe), StopSignals("it goes on"))
    return folder


@pytest.fixture(scope="module")
def sharded(overrides, tmp_path_factory, fork_server) -> Path:
    """The run folder of two ranks with FSDP2; see `two_ranks.py`."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    script = Path(__file__).with_name("two_ranks.py")
    keys = [*overrides, f"run_folder={folder}"]
    result = fork_server.run(script, RECIPE, *keys, ranks=2)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    export_checkpoint(run, out)
    return out


def write_llama(folder: Path, **settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    dtype = settings.pop("dtype", torch.float32)
    llama = LlamaForCausalLM(LlamaConfig(**GEOMETRY, **settings)).to(dtype)
    for name, parameter in llama.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    llama.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype="auto").eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(1))


def same_bits(ours: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    def bits(weights):
        return {
            name: (weight.dtype, weight.shape, weight.flatten().view(torch.uint8).tolist())
            for name, weight in weights.items()
        }

    return bits(ours) == bits(others)


def in_composer(folder: Path) -> dict[str, torch.Tensor]:
    """A folder's weights under the names of Composer's state."""
    return {f"model.{name}": x for name, x in load_file(folder / "model.safetensors").items()}


def outputs(model):
    ids = tokens()
    return model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def mistakes(arguments: list) -> list[str]:
    """The sentences of a command that ends with exit code 1."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, words if words[:1] == ["from-llama"] else ["export", *words])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr.splitlines()


def refusal(arguments: list) -> str:
    """The one sentence of such a command."""
    (sentence,) = mistakes(arguments)
    return sentence


# Checkpoints


def test_export_of_the_last_checkpoint_is_the_folder_that_training_wrote(run, exported):
    names = {file.name for file in exported.iterdir()}
    assert names == {file.name for file in (run / "model").iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "tokenizer.model"} <= names
    for name in names:
        assert (exported / name).read_bytes() == (run / "model" / name).read_bytes(), name


def test_the_command_takes_a_file_and_no_command_word(run, tmp_path):
    checkpoint = run / "checkpoints" / "ep0-ba2-rank0.pt"
    result = CliRunner().invoke(app, ["export", str(checkpoint), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    stored = torch.load(checkpoint, weights_only=False)["state"]["model"]
    assert same_bits(in_composer(tmp_path / "out"), stored)


def test_the_folder_holds_the_models_code_unless_it_is_not_wanted(run, exported, tmp_path):
    code = {"configuration_itt.py", "modeling_itt.py"}
    assert {file.name for file in exported.glob("*.py")} == code
    assert "trust_remote_code=True" in (exported / "README.md").read_text()
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), "--no-code"])
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert {file.name for file in exported.iterdir()} - {
        file.name for file in out.iterdir()
    } == code
    assert "auto_map" not in json.loads((out / "config.json").read_bytes())
    assert "trust_remote_code" not in (out / "README.md").read_text()


def test_generation_begins_and_ends_as_the_documents_of_the_shards(run, shards, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "some.pt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(find_checkpoint(run), checkpoint)
    recipe = (run / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace(str(shards), str(tmp_path)))
    shutil.copytree(shards / "tokenizer", tmp_path / "tokenizer")
    manifest = json.loads((shards / "manifest.json").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"bos_id": None, "eos_id": 7}))
    export_checkpoint(checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for settings in (model.config, model.generation_config):
        assert settings.eos_token_id == 7
        assert settings.bos_token_id is None


def test_transformers_loads_what_was_exported(exported):
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    text = tokenizer("the same", return_tensors="pt")
    generated = model.generate(**text, max_new_tokens=2, do_sample=False, use_cache=False)
    assert generated.shape[1] >= text["input_ids"].shape[1] + 1


def test_the_card_holds_tokens_perplexity_and_recipe_of_its_checkpoint(run, tmp_path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for batches in (2, 4):
        out = tmp_path / str(batches)
        export_checkpoint(run / "checkpoints" / f"ep0-ba{batches}-rank0.pt", out)
        own, causal = (
            f"{math.exp(line[name]):.2f}"
            for name in LOSSES
            for line in lines
            if line["batch"] == batches and name in line
        )
        card = (out / "README.md").read_text()
        assert f"| {batches * 16 * 32:,} tokens, {batches} batches |" in card
        assert f"| {causal} by thresholds, {own} by the rule of training |" in card
        assert (run / "recipe.yaml").read_text() in card


def test_a_sharded_checkpoint_becomes_the_weights_that_torch_gathers(sharded, tmp_path):
    gathered = torch.load(sharded / "full.pt")
    export_checkpoint(sharded, tmp_path / "out")
    assert same_bits(in_composer(tmp_path / "out"), gathered)
    assert "1,024 tokens, 2 batches" in (tmp_path / "out" / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_checkpoint_that_would_run_code_is_refused_unless_asked_for(run, tmp_path):
    state = torch.load(find_checkpoint(run), weights_only=False)
    state["rng"] = Payload(tmp_path / "ran")
    folder = tmp_path / "other" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(run / "recipe.yaml", folder.parent)
    torch.save(state, folder / "bad.pt")
    sentence = refusal([folder / "bad.pt", tmp_path / "out"])
    assert "bad.pt holds more than data" in sentence
    assert "mkdir" in sentence
    assert "--allow-code-execution" in sentence
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    arguments = ["export", str(folder / "bad.pt"), str(tmp_path / "out"), "--allow-code-execution"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "ran").is_dir()


def test_metadata_of_shards_that_would_run_code_is_refused(sharded, tmp_path):
    folder = shutil.copytree(find_checkpoint(sharded), tmp_path / "checkpoint")
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    sentence = refusal([folder, tmp_path / "out"])
    assert f"{folder / '.metadata'} holds more than data" in sentence
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_one_sentence(run, tmp_path, share):
    content = find_checkpoint(run).read_bytes()
    file = tmp_path / "cut.pt"
    file.write_bytes(content[: int(share * len(content))])
    assert f"{file} is damaged, cut short or not a checkpoint" in refusal([file, tmp_path / "out"])
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pt"]


@pytest.mark.parametrize("damage", ["no metadata", "cut metadata", "no shard", "cut shard"])
def test_a_damaged_sharded_checkpoint_is_one_sentence(sharded, tmp_path, damage):
    folder = shutil.copytree(find_checkpoint(sharded), tmp_path / "checkpoint")
    file = folder / (".metadata" if "metadata" in damage else "__1_0.distcp")
    if damage.startswith("no"):
        file.unlink()
        expected = "is half-written" if "metadata" in damage else f"{file} is missing"
    else:
        file.write_bytes(file.read_bytes()[:5000])
        expected = f"{file} is damaged, cut short"
    assert expected in refusal([folder, tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_one_sentence(run, tmp_path):
    out = tmp_path / "out"
    assert "missing" in refusal([tmp_path / "none.pt", out])
    assert "nor a run folder" in refusal([tmp_path, out])
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    assert "is not a training checkpoint of a model" in refusal([tmp_path / "other.pt", out])
    state = torch.load(find_checkpoint(run), weights_only=False)
    lost = state["state"]["model"].pop("model.model.norm.weight")
    state["state"]["model"]["model.extra"] = lost
    torch.save(state, tmp_path / "other.pt")
    sentence = refusal([tmp_path / "other.pt", out])
    assert "model.norm.weight" in sentence
    assert "extra" in sentence
    content = state["state"]["integrations"]["huggingface"]["model"]["config"]["content"]
    content["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    torch.save(state, tmp_path / "other.pt")
    assert "its configuration has auto_map" in refusal([tmp_path / "other.pt", out])
    assert not out.exists()


def test_without_its_shards_the_tokenizer_has_to_be_named(run, shards, tmp_path):
    lone = tmp_path / "lone.pt"
    shutil.copy(find_checkpoint(run), lone)
    assert "name the tokenizer's folder with --tokenizer" in refusal([lone, tmp_path / "out"])
    export_checkpoint(lone, tmp_path / "out", tokenizer=shards / "tokenizer")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not known." in card
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config == json.loads((run / "model" / "config.json").read_bytes())
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "tokenizer.model").write_bytes(b"another")
    assert "is another than that of the shards" in refusal(
        [run, tmp_path / "more", "--tokenizer", other]
    )
    for wrong, words in (
        (tmp_path / "nosuch", "is not there; name the tokenizer's folder"),
        (other / "tokenizer.model", "is a file; name the tokenizer's folder"),
        (run, "holds neither a tokenizer.model nor a tokenizer.json"),
    ):
        sentence = refusal([run, tmp_path / "more", "--tokenizer", wrong])
        assert f"--tokenizer {wrong} {words}" in sentence


@pytest.mark.parametrize(
    ("rule", "saved"), [("top_k", "threshold"), ("top_p", "top_p"), ("threshold", "threshold")]
)
def test_top_k_gives_way_to_thresholds_and_top_p_does_not(tmp_path, rule, saved):
    model = IttForCausalLM(IttConfig(**GEOMETRY))
    model_folder.write_model_folder(tmp_path / "before", model, "", None)
    assert IttConfig.from_pretrained(tmp_path / "before").router_selection == "top_k"
    for layer in model.thinking_layers:
        layer.score_quantiles.copy_(torch.linspace(-1, 1, layer.score_quantiles.shape[-1]))
    model.set_router_selection(rule)
    model_folder.write_model_folder(tmp_path / "after", model, "", None)
    assert IttConfig.from_pretrained(tmp_path / "after").router_selection == saved


def test_a_folder_in_use_is_refused_and_half_a_folder_never_appears(run, tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert "is there and not empty" in refusal([run, tmp_path / "used"])

    def fail_halfway(model, folder):
        (folder / "config.json").touch()
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(IttForCausalLM, "save_pretrained", fail_halfway)
    assert "No space left" in refusal([run, tmp_path / "out"])
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_commands_need_no_torch_to_be_read():
    modules = ", ".join(
        f"itt_composer.cli.{name}" for name in ("calibrate", "export", "from_llama", "generate")
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "False"


# LLaMAs


@pytest.mark.parametrize("kind", LLAMAS)
def test_an_itt_from_a_llama_computes_the_llama_at_every_ratio(kind, tmp_path):
    llama = write_llama(tmp_path / "llama", **LLAMAS[kind])
    convert_llama(str(tmp_path / "llama"), tmp_path / "itt", thinking_steps=4)
    itt = AutoModelForCausalLM.from_pretrained(tmp_path / "itt", dtype="auto").eval()
    assert itt.config.thinking_layers == [1, 3]
    assert itt.dtype == llama.dtype
    expected = outputs(llama)
    for ratios in RATIOS:
        itt.set_select_ratios(ratios)
        found = outputs(itt)
        assert torch.equal(found.logits, expected.logits), ratios
        assert found.loss == expected.loss


def test_the_steps_of_an_itt_from_a_llama_learn_from_the_first_batch(tmp_path):
    write_llama(tmp_path / "llama")
    convert_llama(str(tmp_path / "llama"), tmp_path / "itt", 3, [0.4, 0.6], [0, 2], seed=3)
    itt = AutoModelForCausalLM.from_pretrained(tmp_path / "itt")
    outputs(itt).loss.backward()
    assert itt.config.thinking_layers == [0, 2]
    assert itt.config.select_ratios == [0.4, 0.6]
    for layer in itt.thinking_layers:
        assert all(row.any() for row in layer.step_encoding.grad)
        assert all(0.01 < router.weight.std() < 0.03 for router in layer.routers)
    convert_llama(str(tmp_path / "llama"), tmp_path / "again", 3, [0.4, 0.6], [0, 2], seed=3)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("itt", "again")]
    assert weights[0] == weights[1]


def test_a_dense_model_of_ours_can_be_made_to_think_and_keeps_its_tokenizer(exported, tmp_path):
    config = IttConfig(**GEOMETRY, thinking="dense")
    dense = IttForCausalLM(config).eval()
    model_folder.write_model_folder(tmp_path / "dense", dense, "", exported)
    template = tmp_path / "dense" / "additional_chat_templates" / "tools.jinja"
    template.parent.mkdir()
    template.write_text("{{ messages }}")
    arguments = ["from-llama", str(tmp_path / "dense"), str(tmp_path / "itt")]
    options = ["--thinking-layers", "3", "--select-ratios", "0.5,0.2,0.7"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    itt = AutoModelForCausalLM.from_pretrained(tmp_path / "itt").eval()
    assert itt.config.thinking_layers == [3]
    assert torch.equal(outputs(itt).logits, outputs(dense).logits)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "itt" / name).read_bytes() == (exported / name).read_bytes()
    copied = tmp_path / "itt" / "additional_chat_templates" / "tools.jinja"
    assert copied.read_text() == "{{ messages }}"


@pytest.mark.parametrize("temperature", [{}, {"do_sample": False, "temperature": 0.6}])
def test_an_itt_from_a_llama_ends_where_the_llama_ends(temperature, tmp_path):
    write_llama(tmp_path / "llama")
    settings = {"eos_token_id": [5, 6], **temperature}
    (tmp_path / "llama" / "generation_config.json").write_text(json.dumps(settings))
    convert_llama(str(tmp_path / "llama"), tmp_path / "itt", 4)
    itt = AutoModelForCausalLM.from_pretrained(tmp_path / "itt")
    assert itt.generation_config.eos_token_id == [5, 6]
    itt.generate(tokens(), max_new_tokens=2, use_cache=False)


def test_what_is_no_whole_llama_is_one_sentence(tmp_path, exported):
    out = tmp_path / "out"
    assert "there is no folder" in refusal(["from-llama", tmp_path / "none", out])
    assert "thinks already" in refusal(["from-llama", exported, out])
    write_llama(tmp_path / "llama")
    assert "no such ITT: thinking_layers names layer 4" in refusal(
        ["from-llama", tmp_path / "llama", out, "--thinking-layers", "4"]
    )
    assert "--select-ratios" in refusal(
        ["from-llama", tmp_path / "llama", out, "--select-ratios", "half"]
    )
    file = tmp_path / "llama" / "model.safetensors"
    weights = load_file(file)
    norm = weights.pop("model.norm.weight")
    save_file(weights, file, {"format": "pt"})
    assert "lacks model.norm.weight" in refusal(["from-llama", tmp_path / "llama", out])
    save_file({**weights, "model.norm.weight": norm, "odd": norm.clone()}, file, {"format": "pt"})
    assert "has besides odd" in refusal(["from-llama", tmp_path / "llama", out])
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be loaded" in refusal(["from-llama", tmp_path / "llama", out])
    quantized = {"model_type": "llama", "quantization_config": {"bits": 4, "quant_method": "gptq"}}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(quantized))
    assert "is quantized" in refusal(["from-llama", tmp_path / "llama", out])
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "is a 'gpt2'" in refusal(["from-llama", tmp_path / "llama", out])
    assert not out.exists()


def test_all_mistakes_come_at_once_and_before_torch_is_loaded(tmp_path, monkeypatch):
    for module in ("exporting", "upcycling"):  # they import torch
        monkeypatch.setitem(sys.modules, f"itt_composer.{module}", None)
    out, llama = tmp_path / "out", tmp_path / "llama"
    for folder in (out, llama):
        folder.mkdir()
    (out / "used").touch()
    config = {"model_type": "llama", **GEOMETRY, "rms_norm_eps": "1e-5", "num_hidden_layers": "4"}
    (llama / "config.json").write_text(json.dumps(config))
    nowhere = tmp_path / "nowhere"
    sentences = mistakes([nowhere, out, "--tokenizer", nowhere])
    for sentence, words in zip(sentences, (str(out), str(nowhere), "--tokenizer"), strict=True):
        assert words in sentence
    sentences = mistakes(
        ["from-llama", llama, out, "--select-ratios", "half", "--thinking-layers", "x"]
    )
    names = (str(out), "rms_norm_eps must be", "--select-ratios", "--thinking-layers")
    for sentence, words in zip(sentences, names, strict=True):
        assert words in sentence
    assert "num_hidden_layers must be a positive integer" in sentences[1]


# Training that starts from a folder


def test_checkpoint_to_folder_to_checkpoint_is_exact(run, exported, overrides, tmp_path):
    start = [f"init_from={exported}", f"run_folder={tmp_path / 'run'}", "seed=5"]
    recipe = load_recipe(RECIPE, [*overrides, *start])
    check_initial_weights(recipe)
    model = model_of_recipe(recipe)
    load_initial_weights(model, exported)
    trainer = build_trainer(recipe, TrainingRun(recipe), model, "cpu")
    trainer.save_checkpoint(str(tmp_path / "again.pt"))
    trainer.close()
    before = load_checkpoint(find_checkpoint(run)).weights
    after = load_checkpoint(tmp_path / "again.pt").weights
    assert same_bits(before, after)


def test_training_starts_from_the_folder_and_goes_on_without_it(
    exported, overrides, tmp_path, monkeypatch
):
    folder = shutil.copytree(exported, tmp_path / "start")
    start = [f"init_from={folder}", f"run_folder={tmp_path / 'run'}", "train.max_duration=2ba"]
    started = []
    monkeypatch.setattr(
        itt_composer.training.train,
        "load_initial_weights",
        lambda model, source: started.append(source) or load_initial_weights(model, source),
    )
    arguments = [str(RECIPE), *overrides, *start]
    result = CliRunner().invoke(itt_composer.train.app, arguments)
    assert result.exit_code == 0, result.output
    assert started == [folder]
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(folder)
    result = CliRunner().invoke(itt_composer.train.app, arguments)
    assert result.exit_code == 0, result.output
    assert started == [folder]
    shutil.rmtree(tmp_path / "run")
    result = CliRunner().invoke(itt_composer.train.app, arguments)
    assert result.exit_code == 1
    assert f"init_from={folder} is not a transformers folder" in result.stderr


def test_weights_in_several_files_are_read_by_their_index(exported, overrides, tmp_path):
    folder = tmp_path / "model"
    expected = AutoModelForCausalLM.from_pretrained(exported)
    expected.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = model_of_recipe(load_recipe(RECIPE, [*overrides, "seed=5"]))
    load_initial_weights(model, folder)
    assert same_bits(model.state_dict(), expected.state_dict())
    index = folder / "model.safetensors.index.json"
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"model-\S+ is missing or damaged"):
        load_initial_weights(model, folder)
    for broken in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(
            UserError, match=f"^{index} is not an index of weights; make the folder"
        ):
            load_initial_weights(model, folder)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.intermediate_size=48", "intermediate_size=64, but the recipe model.inter"),
        ("model.tie_word_embeddings=true", "tie_word_embeddings=false, but the recipe"),
        ("model.attention_bias=true", "attention_bias=false, but the recipe model.attention_bias"),
        ("thinking.thinking_layers=[0]", "thinking_layers=[1], but the recipe thinking.thinking_"),
        ("thinking.router_norm=tanh", 'router_norm="sigmoid", but the recipe'),
    ],
)
def test_another_model_than_the_recipes_is_refused_by_key(exported, overrides, override, sentence):
    recipe = load_recipe(RECIPE, [*overrides, f"init_from={exported}", override])
    with pytest.raises(UserError) as caught:
        check_initial_weights(recipe)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_configuration_that_is_none_is_reported_with_its_file(overrides, tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    recipe = load_recipe(RECIPE, [*overrides, f"init_from={tmp_path}"])
    with pytest.raises(
        UserError, match=f"^{file} is not a configuration.*; make the folder again$"
    ):
        check_initial_weights(recipe)


def test_how_much_to_think_may_differ(exported, overrides):
    elastic = [
        "thinking.select_ratios=[0.9,0.7,0.1]",
        "thinking.router_selection=top_p",
        "thinking.early_exit=0.1",
    ]
    recipe = load_recipe(RECIPE, [*overrides, f"init_from={exported}", *elastic])
    check_initial_weights(recipe)
    model = model_of_recipe(recipe)
    load_initial_weights(model, exported)
    assert model.config.select_ratios == [0.9, 0.7, 0.1]


@pytest.mark.parametrize("kind", ["biased", "scaled", "tied", "wide_heads"])
def test_a_recipe_can_go_on_from_any_llama_made_to_think(kind, overrides, tmp_path):
    llama = write_llama(tmp_path / "llama", **LLAMAS[kind])
    convert_llama(str(tmp_path / "llama"), tmp_path / "itt", 4)
    config = json.loads((tmp_path / "itt" / "config.json").read_bytes())
    fields = [
        name
        for name in itt_composer.recipe.schema.ModelRecipe.model_fields
        if config.get(name) is not None
    ]
    same = [f"model.{name}={json.dumps(config[name])}" for name in fields]
    recipe = load_recipe(RECIPE, [*overrides, f"init_from={tmp_path / 'itt'}", *same])
    check_initial_weights(recipe)
    model = model_of_recipe(recipe)
    load_initial_weights(model, tmp_path / "itt")
    assert torch.equal(outputs(model.eval()).logits, outputs(llama).logits)
    assert dense_parameters(model.config) == sum(weight.numel() for weight in llama.parameters())


def test_weights_that_do_not_fit_are_named(exported, overrides, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    model = model_of_recipe(load_recipe(RECIPE, overrides))
    file = folder / "model.safetensors"
    weights = load_file(file)
    for changed, sentence in (
        ({k: v for k, v in weights.items() if k != "model.norm.weight"}, "lacks model.norm.weight"),
        ({**weights, "odd": torch.zeros(1)}, "holds odd, which the recipe's model does not have"),
        ({**weights, "model.norm.weight": torch.zeros(3)}, "model.norm.weight of shape (3,)"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(UserError) as caught:
            load_initial_weights(model, folder)
        assert sentence in str(caught.value)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="damaged"):
        load_initial_weights(model, folder)
