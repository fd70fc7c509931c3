"""One folder, trained under transformers 4.57, computes the same under every release.

These files need torch, transformers, peft, accelerate and pytest alone: `make test-versions` runs
them in environments of several releases.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from golden_cases import GENERATIONS, IDS, MASK, generate, gradient_norms, logits_in
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import itt_composer
from itt_composer.models import IttForCausalLM
from itt_composer.models.versions import check_version

FOLDER = Path(__file__).parent / "golden"
EXPECTED = load_file(FOLDER / "expected.safetensors")
# A first import of each kind; the Auto classes must know the model after any of them.
FIRST_IMPORTS = (
    "from transformers import AutoTokenizer",
    "from transformers import LlamaForCausalLM",
    "import transformers.configuration_utils",
    "import transformers.generation.utils",
)


@pytest.fixture
def model() -> IttForCausalLM:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def test_a_folder_is_loaded_whole():
    loaded, report = AutoModelForCausalLM.from_pretrained(FOLDER, output_loading_info=True)
    assert type(loaded) is IttForCausalLM
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    stored = load_file(FOLDER / "model.safetensors")
    weights = loaded.state_dict()
    assert {name for name in weights if torch.equal(weights[name], stored[name])} == set(stored)
    assert loaded.config.to_dict()["rope_theta"] == 5e4


@pytest.mark.parametrize("rule", ["top_k", "threshold"])
def test_logits_are_equal(model, rule):
    assert (logits_in(model, rule) - EXPECTED[f"logits.{rule}"]).abs().max() < 1e-5


def test_gradients_are_equal(model):
    norms = gradient_norms(model)
    for name, norm in norms.items():
        assert torch.isclose(norm, EXPECTED[f"gradients.{name}"], rtol=1e-4, atol=1e-7), name
    assert {f"gradients.{name}" for name in norms} == {n for n in EXPECTED if n[:9] == "gradients"}


@pytest.mark.parametrize("name", GENERATIONS)
def test_generation_gives_the_same_tokens(model, name):
    assert torch.equal(generate(model, name), EXPECTED[f"tokens.{name}"])


def test_what_goes_on_from_a_cache_gives_the_same_logits(model):
    whole = model(IDS, attention_mask=MASK, use_cache=False).logits
    first = model(IDS[:, :10], attention_mask=MASK[:, :10], use_cache=True)
    cache = getattr(first, "cache", None) or first.past_key_values
    for name in ("past_key_values", "cache"):
        cache.crop(-3)
        rest = model(IDS[:, 7:10], attention_mask=MASK[:, :10], **{name: cache})
        assert (rest.logits - whole[:, 7:10])[MASK[:, 7:10].bool()].abs().max() < 1e-5
    with pytest.raises(ValueError, match="two names of the same"):
        model(IDS, past_key_values=cache, cache=cache)


def test_an_assistant_changes_no_token(model):
    row, mask = IDS[:1], MASK[:1]
    assistant = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    assistant.set_select_ratios([0.0, 0.0])
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    helped = model.generate(row, assistant_model=assistant, **options)
    assert torch.equal(helped, model.generate(row, **options))


def test_saving_and_loading_changes_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert config["rope_theta"] == 5e4
    assert "rope_parameters" not in config
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(logits_in(again.eval(), "threshold"), logits_in(model, "threshold"))


def test_what_a_folder_has_is_not_initialised_again(model, tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    weights = load_file(FOLDER / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "score_quantiles" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for name, weight in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(weight, kept[name]), name
        else:
            assert weight.isnan().all()
    assert not loaded.has_thresholds


def test_tied_embeddings_stay_tied(model, tmp_path):
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(logits_in(again, "threshold"), logits_in(model, "threshold"))


def test_a_resized_vocabulary_keeps_what_was_there(model, tmp_path):
    before = logits_in(model, "threshold")
    model.resize_token_embeddings(70)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (logits_in(again, "threshold")[:, :64] - before).abs().max() < 1e-5
    assert again.config.vocab_size == 70


def test_a_device_map_changes_nothing(model):
    pytest.importorskip("accelerate")
    mapped = AutoModelForCausalLM.from_pretrained(FOLDER, device_map={"": "cpu"}).eval()
    assert torch.equal(logits_in(mapped, "threshold"), logits_in(model, "threshold"))


def test_lora_trains_adapters_and_merges_them(model):
    peft = pytest.importorskip("peft")
    before = logits_in(model, "threshold")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    adapted(input_ids=IDS, attention_mask=MASK, labels=IDS, use_cache=False).loss.backward()
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert len(trained) == 4 * 2 * 2
    assert any(weight.grad.abs().max() > 0 for weight in trained)
    with torch.no_grad():
        for weight in trained:
            weight -= 10 * weight.grad
    changed = adapted(input_ids=IDS, attention_mask=MASK, use_cache=False).logits[MASK.bool()]
    assert (changed - before).abs().max() > 1e-4
    merged = adapted.merge_and_unload()
    assert (logits_in(merged, "threshold") - changed).abs().max() < 1e-5


def test_float64_and_bfloat16_are_followed(model):
    for dtype in (torch.float64, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype)
        logits = loaded(IDS, attention_mask=MASK).logits
        assert logits.dtype == dtype
        tables = [layer.score_quantiles.dtype for layer in loaded.thinking_layers]
        assert tables == [torch.float32] * 2


def test_an_unknown_argument_is_refused(model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'past_keys'"):
        model(IDS, past_keys=None)


def test_outputs_are_those_of_the_layers(model):
    outputs = model(IDS, attention_mask=MASK, output_hidden_states=True, use_cache=False)
    assert len(outputs.hidden_states) == 5
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    as_tuple = model(IDS, attention_mask=MASK, use_cache=False, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.logits)


@pytest.mark.parametrize("first", FIRST_IMPORTS)
def test_auto_classes_know_the_model_whatever_is_imported_first(first):
    code = (
        f"import itt_composer\n{first}\nfrom transformers import AutoConfig, AutoModelForCausalLM\n"
    )
    code += f"config = AutoConfig.from_pretrained({str(FOLDER)!r})\n"
    code += "print(type(config).__name__, type(AutoModelForCausalLM.from_config(config)).__name__)"
    root = Path(itt_composer.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root
    )
    assert result.stdout.split() == ["IttConfig", "IttForCausalLM"], result.stderr


def test_releases_outside_of_the_tested_ones_are_refused(monkeypatch):
    monkeypatch.delenv("ITT_ANY_TRANSFORMERS", raising=False)
    for version in ("4.56.2", "5.0.0", "5.2.1", "5.25.0", "6.0.0.dev0"):
        with pytest.raises(ImportError, match=rf"^ITT models run on .*, not on {version}"):
            check_version(version)
    for version in ("4.57.0", "5.3.0", "5.24.9", transformers.__version__):
        check_version(version)
    monkeypatch.setenv("ITT_ANY_TRANSFORMERS", "1")
    check_version("6.0.0")
