"""Models from folders: read whole, in the words of transformers 4 and 5, or refused."""

import json
from pathlib import Path

import pytest
import torch
from causal_models import GEOMETRY
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import WEIGHTS_NAME

from itt_composer.basics.errors import UserError
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.loading import broken_weights, load_model, refuse_broken
from itt_composer.models.modeling import IttModel

SMALL = {**GEOMETRY, "initializer_range": 0.2, "rope_theta": 5e5}
SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
NEOX = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "rotary_emb_base": 2e4,
    "rotary_pct": 0.5,
}
IDS = torch.randint(3, 61, (2, 40), generator=torch.Generator().manual_seed(1))


def edit(folder: Path, *removed: str, **changed) -> Path:
    """Change keys of a folder's config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_bytes()) | changed
    file.write_text(json.dumps({key: x for key, x in config.items() if key not in removed}))
    return folder


def as_version_5(folder: Path, scaling=None, partial=None) -> Path:
    """Write the rotary embedding as transformers 5 does."""
    config = json.loads((folder / "config.json").read_bytes())
    if "rope_parameters" in config:
        return folder
    theta = config.get("rope_theta", config.get("rotary_emb_base"))
    rope = {"rope_theta": theta, "rope_type": "default", **(scaling or {})}
    rope |= {} if partial is None else {"partial_rotary_factor": partial}
    old = ("rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct")
    return edit(folder, *old, rope_parameters=rope, transformers_version="5.0.0")


def saved(folder: Path, model):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def logits(model):
    ids = IDS % model.config.vocab_size
    with torch.no_grad():  # without a mask, transformers' LLaMA takes another kernel
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_llama_in_the_words_of_transformers_5_computes_the_same_bits(kind, tmp_path):
    config = LlamaConfig(**SMALL, rope_scaling=SCALINGS[kind])
    llama = saved(tmp_path, LlamaForCausalLM(config))
    as_version_5(tmp_path, SCALINGS[kind])
    loaded = load_model(tmp_path)
    assert isinstance(loaded, IttForCausalLM)
    assert loaded.config.to_dict()["rope_theta"] == 5e5
    assert torch.equal(logits(loaded), logits(llama))


def test_other_models_in_the_words_of_transformers_5_compute_the_same_bits(tmp_path):
    qwen = saved(tmp_path / "qwen", Qwen2ForCausalLM(Qwen2Config(**SMALL)))
    neox = saved(tmp_path / "neox", GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX)))
    as_version_5(tmp_path / "qwen")
    as_version_5(tmp_path / "neox", partial=0.5)
    for folder, model in (("qwen", qwen), ("neox", neox)):
        loaded = load_model(tmp_path / folder)
        assert type(loaded) is type(model)
        assert torch.equal(logits(loaded), logits(model))


def test_an_itt_in_the_words_of_transformers_5_computes_the_same_bits(tmp_path):
    itt = saved(tmp_path, IttForCausalLM(IttConfig(**SMALL, thinking="loop", thinking_steps=2)))
    as_version_5(tmp_path)
    assert torch.equal(logits(load_model(tmp_path)), logits(itt))


def test_a_key_that_nothing_reads_is_refused_in_any_kind_of_model(tmp_path):
    saved(tmp_path / "llama", LlamaForCausalLM(LlamaConfig(**SMALL)))
    saved(tmp_path / "itt", IttForCausalLM(IttConfig(**SMALL)))
    saved(tmp_path / "neox", GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX)))
    for kind in ("llama", "itt", "neox"):
        load_model(edit(tmp_path / kind, use_novelty=False))
        edit(tmp_path / kind, attention_multiplier=0.5)
        with pytest.raises(UserError, match=r"attention_multiplier=0\.5 in its config\.json"):
            load_model(tmp_path / kind)
    edit(tmp_path / "llama", "attention_multiplier", model_type="llama6")
    with pytest.raises(UserError, match=r"transformers \S+ does not know: model_type='llama6'"):
        load_model(tmp_path / "llama")


def test_no_tensor_is_dropped_and_none_is_made_up(tmp_path):
    saved(tmp_path, GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX)))
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "odd": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(UserError, match="it has besides odd"):
        load_model(tmp_path)
    del weights["embed_out.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"its files lack (embed_out|lm_head)\.weight"):
        load_model(tmp_path)


def test_an_output_embedding_of_its_own_is_not_dropped_for_the_tied_one(tmp_path):
    tied = saved(tmp_path, LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)))
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    embedding = weights["model.embed_tokens.weight"]
    save_file({**weights, "lm_head.weight": embedding.clone()}, file, {"format": "pt"})
    assert torch.equal(logits(load_model(tmp_path)), logits(tied))
    save_file({**weights, "lm_head.weight": 2 * embedding}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"it has besides lm_head\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("size", ["5GB", "10KB"])
@pytest.mark.parametrize("is_safe", [True, False])
def test_nor_is_it_in_any_form_of_the_weights(is_safe, size, tmp_path):
    untied = LlamaForCausalLM(LlamaConfig(**SMALL))
    untied.save_pretrained(tmp_path, safe_serialization=is_safe, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.index.json"))) == 1) == (size == "10KB")
    load_model(tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"it has besides lm_head\.weight"):
        load_model(tmp_path)
    untied.lm_head.weight.data = untied.model.embed_tokens.weight.data.clone()
    untied.save_pretrained(tmp_path, safe_serialization=is_safe, max_shard_size=size)
    tied = load_model(edit(tmp_path, tie_word_embeddings=True))
    assert torch.equal(logits(tied), logits(untied))


def test_weights_of_a_type_that_nothing_computes_with_are_named(tmp_path):
    model = saved(tmp_path, LlamaForCausalLM(LlamaConfig(**SMALL)))
    name, place = "model.norm.weight", tmp_path / "model.safetensors"
    place.unlink()
    for dtype in (torch.float8_e4m3fn, torch.complex64, torch.int8, torch.bool):
        torch.save({**model.state_dict(), name: torch.ones(32).to(dtype)}, tmp_path / WEIGHTS_NAME)
        with pytest.raises(UserError, match=f"^{tmp_path} cannot be loaded: .*weight") as caught:
            load_model(tmp_path)
        if "transformers" not in str(caught.value) and not dtype.is_floating_point:
            continue  # transformers 4 refuses them
        said = f"{name} is stored as {str(dtype)[6:]}, with which the model does not compute"
        assert said in str(caught.value)
    for dtype in (torch.float16, torch.float64):
        torch.save({**model.state_dict(), name: torch.ones(32).to(dtype)}, tmp_path / WEIGHTS_NAME)
        assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_files_of_weights_are_read_without_a_bar(tmp_path, capfd):
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path, max_shard_size="10KB")
    load_model(tmp_path)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: .*model-00002-of"):
        load_model(tmp_path)
    assert "Loading" not in capfd.readouterr().err


def test_the_auto_class_of_bare_models_knows_ours(tmp_path):
    itt = saved(tmp_path, IttForCausalLM(IttConfig(**SMALL, thinking_steps=3)))
    bare = AutoModel.from_pretrained(tmp_path).eval()
    assert type(bare) is IttModel
    with torch.no_grad():
        states, expected = (m(input_ids=IDS, use_cache=False)[0] for m in (bare, itt.model))
    assert torch.equal(states, expected)
    assert type(AutoModel.from_config(itt.config)) is IttModel


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(value, dtype):
    model = IttForCausalLM(IttConfig(**SMALL)).to(dtype)
    assert broken_weights(model) == []
    with torch.no_grad():
        model.model.norm.weight[3] = value
    assert broken_weights(model) == ["model.norm.weight"]
    with pytest.raises(UserError, match=r"norm\.weight holds NaN or infinity, as in a model that"):
        refuse_broken(model, "it")
    with torch.no_grad():
        model.lm_head.weight[5, 3] = -value
    with pytest.raises(UserError, match=r"infinity \(and so does one other\), as in"):
        refuse_broken(model, "it")
