"""What the files of a model may say, key by key; all values here are harmless and mean nothing."""

import json

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.recipe import model_is_data
from itt_composer.recipe.model_is_data import check_model_folder

NOTHING = "no-owner/no-name"  # of the form of a name on the hub
REFUSED = [
    ("config.json", {"_attn_implementation": NOTHING}, "_attn_implementation"),
    ("config.json", {"_attn_implementation_internal": NOTHING}, "_attn_implementation_internal"),
    ("config.json", {"attn_implementation": f"{NOTHING}@main:none"}, "attn_implementation"),
    ("config.json", {"attention_implementation": "sdpa2"}, "attention_implementation"),
    ("config.json", {"_experts_implementation": "fastest"}, "_experts_implementation"),
    ("config.json", {"Attn_Implementation": 3}, "Attn_Implementation"),
    ("config.json", {"_attn_implementation": ["sdpa"]}, "_attn_implementation"),
    ("config.json", {"_attn_implementation": "SDPA"}, "_attn_implementation"),
    ("config.json", {"_attn_implementation": " sdpa"}, "_attn_implementation"),
    ("config.json", {"_attn_implementation": f"paged|{NOTHING}"}, "_attn_implementation"),
    (
        "config.json",
        {"attn_implementation": {"": "sdpa", "text_config": NOTHING}},
        "attn_implementation.text_config",
    ),
    (
        "config.json",
        {"text_config": {"vision": {"_attn_implementation_internal": NOTHING}}},
        "text_config.vision._attn_implementation_internal",
    ),
    ("config.json", {"parts": [{"attn_implementation": NOTHING}]}, "parts.0.attn_implementation"),
    ("config.json", {"use_kernels": True}, "use_kernels"),
    ("config.json", {"kernel_config": {"none": NOTHING}}, "kernel_config"),
    ("config.json", {"allow_all_kernels": 1}, "allow_all_kernels"),
    ("config.json", {"trust_remote_code": True}, "trust_remote_code"),
    ("config.json", {"configuration_files": ["config.4.json"]}, "configuration_files"),
    ("config.json", {"transformers_weights": "../model.safetensors"}, "transformers_weights"),
    ("config.json", {"use_pretrained_backbone": True}, "use_pretrained_backbone"),
    ("config.json", {"num_beam_groups": 2}, "num_beam_groups"),
    ("config.json", {"quantization_config": {"quant_method": "none"}}, "quantization_config."),
    ("config.json", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config."),
    ("generation_config.json", {"custom_generate": NOTHING}, "custom_generate"),
    ("generation_config.json", {"penalty_alpha": 0.6}, "penalty_alpha"),
    ("generation_config.json", {"dola_layers": "low"}, "dola_layers"),
    ("generation_config.json", {"trust_remote_code": "yes"}, "trust_remote_code"),
    ("tokenizer_config.json", {"gguf_file": "none.gguf"}, "gguf_file"),
    ("tokenizer_config.json", {"vocab_file": "/nowhere/vocab.json"}, "vocab_file"),
    ("tokenizer_config.json", {"tokenizer_file": "../tokenizer.json"}, "tokenizer_file"),
    ("tokenizer_config.json", {"spm_file": "http://localhost/none"}, "spm_file"),
    ("tokenizer_config.json", {"trust_remote_code": True}, "trust_remote_code"),
    ("model.safetensors.index.json", {"weight_map": {"a": "../a.safetensors"}}, "weight_map.a"),
    ("pytorch_model.bin.index.json", {"weight_map": {"a": "/nowhere/a.bin"}}, "weight_map.a"),
]
ACCEPTED = [
    ("config.json", {"_attn_implementation": "sdpa", "attn_implementation": None}),
    ("config.json", {"_attn_implementation_autoset": True}),
    ("config.json", {"attn_implementation": {"": "eager", "text_config": "flex_attention"}}),
    ("config.json", {"experts_implementation": "grouped_mm"}),
    ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}, "conv_kernel_size": 3}),
    ("config.json", {"use_kernels": False, "num_beam_groups": 1, "penalty_alpha": None}),
    ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    (
        "tokenizer_config.json",
        {"special_tokens_map_file": "/elsewhere/map.json", "vocab_file": None},
    ),
    ("tokenizer_config.json", {"tokenizer_file": "tokenizer.json"}),
    ("model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}}),
    ("config.json", [{"use_kernels": True}]),  # its reader says that this is none
]


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("name", "content", "key"), REFUSED)
def test_a_file_that_asks_for_anything_unknown_is_refused(name, content, key, tmp_path):
    with pytest.raises(UserError) as refused:
        check_model_folder(write(tmp_path, name, content))
    sentence = str(refused.value)
    assert sentence.startswith(f"{tmp_path / name} has {key}")
    assert "\n" not in sentence
    assert "=" in sentence.partition(key)[2]


@pytest.mark.parametrize(("name", "content"), ACCEPTED)
def test_what_is_known_is_accepted(name, content, tmp_path):
    check_model_folder(write(tmp_path, name, content))


def test_no_kernel_takes_the_place_of_a_package_that_is_missing(tmp_path, monkeypatch):
    write(tmp_path, "config.json", {"_attn_implementation": "flash_attention_2"})
    monkeypatch.setattr(model_is_data, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r'"flash_attention_2", which needs the package flash_attn'):
        check_model_folder(tmp_path)
    monkeypatch.setattr(model_is_data, "find_spec", lambda package: package)
    check_model_folder(tmp_path)


def test_neither_an_adapter_nor_code_that_generates_may_lie_in_a_folder(tmp_path):
    check_model_folder(tmp_path)
    write(tmp_path, "adapter_config.json", {"base_model_name_or_path": NOTHING})
    with pytest.raises(UserError, match=r"holds adapter_config\.json: an adapter loads another"):
        check_model_folder(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "custom_generate").mkdir()
    with pytest.raises(UserError, match="holds custom_generate: code that comes with a model"):
        check_model_folder(tmp_path)
