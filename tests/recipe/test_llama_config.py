"""What a model's config.json may say: all of it is read, translated or refused by name."""

import json
import math

import pytest
from transformers import LlamaConfig, PretrainedConfig

from itt_composer.basics.errors import UserError
from itt_composer.recipe.llama_config import (
    COMMON_KEYS,
    LLAMA_KEYS,
    check_rope_scaling,
    llama_config,
    read_config,
    rope_of_version_4,
)
from itt_composer.training.initial_config import LLAMA_DEFAULTS

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def refusal(**keys) -> str:
    with pytest.raises(UserError) as caught:
        llama_config(LLAMA | keys, "model")
    assert str(caught.value).startswith("model has ")
    return str(caught.value)


def test_the_keys_and_defaults_are_those_of_transformers():
    common, llama = (
        rope_of_version_4(kind().to_dict()) for kind in (PretrainedConfig, LlamaConfig)
    )
    assert common.keys() <= COMMON_KEYS | {"rope_theta", "rope_scaling"}
    assert llama.keys() - COMMON_KEYS == LLAMA_KEYS - COMMON_KEYS
    assert {name: llama[name] for name in LLAMA_DEFAULTS} == LLAMA_DEFAULTS


def test_the_words_of_transformers_5_become_those_of_4():
    plain = llama_config(LLAMA | {"rope_parameters": {"rope_theta": 5e5}}, "model")
    assert plain == LLAMA | {"rope_theta": 5e5}
    rope = {"rope_theta": 5e5, "partial_rotary_factor": 1.0, "mscale": None, **LLAMA3}
    scaled = llama_config(LLAMA | {"rope_parameters": rope}, "model")
    assert scaled == LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3}
    same = {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": {"rope_theta": 5e5}}
    assert llama_config(LLAMA | same, "model")["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("rope", "sentence"),
    [
        ([1.0], "has rope_parameters=[1.0]"),
        ({"full_attention": {"rope_theta": 1e4}}, "one rotary embedding for the whole model"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_theta": 1e4, "factor": 2.0}, "of type 'default' with factor, which nothing reads"),
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type='longrope'; LLaMAs can have default"),
        ({"rope_type": "linear"}, "of type 'linear' lacks factor"),
        ({**LLAMA3, "beta_fast": 3.0}, "of type 'llama3' has beta_fast, which nothing reads"),
        ({"rope_type": "linear", "factor": "2"}, "rope_scaling.factor must be a positive number"),
    ],
)
def test_a_rotary_embedding_that_would_not_be_computed_is_refused(rope, sentence):
    assert sentence in refusal(rope_parameters=rope)


def test_a_rotary_embedding_that_is_said_twice_is_refused():
    assert "remove the one that is not true" in refusal(
        rope_theta=1e4, rope_parameters={"rope_theta": 5e5}
    )
    assert "remove the one that is not true" in refusal(
        rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_parameters={"rope_theta": 5e5}
    )


def test_a_key_that_nothing_reads_is_refused_by_name_unless_it_switches_nothing_on():
    sentence = refusal(sliding_window=4096, logits_scaling=8.0, auto_map={"AutoModel": "m.M"})
    for words in ("auto_map={", "logits_scaling=8.0", "sliding_window=4096", "remove it there"):
        assert words in sentence
    off = {"sliding_window": None, "use_mrope": False, "unsloth_version": "2025.1"}
    assert llama_config(LLAMA | off, "model") == LLAMA | off
    assert "select_ratios" in refusal(select_ratios=[0.5])
    itt = {**LLAMA, "model_type": "itt", "select_ratios": [0.5], "early_exit": 0.1}
    assert llama_config(itt, "model") == itt


def test_impossible_heads_are_refused():
    assert "head_dim=15 must be even" in refusal(head_dim=15)
    assert "does not split into 3 heads" in refusal(num_attention_heads=3)
    assert "is not a multiple of num_key_value_heads=3" in refusal(num_key_value_heads=3)


WRONG = {
    "rms_norm_eps": ("1e-5", 0, -1e-5, math.nan, None),
    "rope_theta": ("10000", -1, 0, math.inf, True),
    "initializer_range": ("0.02", -1),
    "max_position_embeddings": (0, "2048", 2048.0, None),
    "num_hidden_layers": ("4", 0, True),
    "vocab_size": (0, "61"),
    "hidden_size": ("64", 0, None),
    "intermediate_size": (0, 1.5),
    "num_attention_heads": (0, "4"),
    "num_key_value_heads": (0, "4"),
    "head_dim": (0, "16"),
    "attention_dropout": ("0", 1, -0.1),
    "attention_bias": ("false", 1),
    "mlp_bias": ("no",),
    "tie_word_embeddings": ("true", None),
    "hidden_act": (1, None),
}


@pytest.mark.parametrize("key", WRONG)
def test_values_of_another_type_or_out_of_range_are_refused_by_name(key):
    for value in WRONG[key]:
        assert f"impossible configuration: {key} must be " in refusal(**{key: value})


def test_all_wrong_values_are_named_at_once_and_those_of_a_llama_pass():
    sentence = refusal(rms_norm_eps="1e-5", rope_theta=-1, num_hidden_layers="4")
    assert sentence == (
        'model has an impossible configuration: rms_norm_eps must be a positive number, not "1e-5"'
        "; rope_theta must be a positive number, not -1"
        '; num_hidden_layers must be a positive integer, not "4"'
    )
    llama = {**LlamaConfig().to_dict(), "num_key_value_heads": None, "head_dim": None}
    read = llama_config(llama, "model")
    assert rope_of_version_4(read) == read
    assert {"rope_scaling": None} | read == rope_of_version_4(llama)
    unbound = {"rope_type": "linear", "factor": math.nan}
    assert "rope_scaling.factor must be a positive number" in refusal(rope_scaling=unbound)


def test_a_recipes_scaling_is_held_to_the_same():
    check_rope_scaling(LLAMA3)
    with pytest.raises(ValueError, match="of type 'linear' lacks factor"):
        check_rope_scaling({"rope_type": "linear"})


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_file_that_is_no_configuration_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"no config\.json|config\.json is not a configuration"):
        read_config(tmp_path, f"init_from={tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path, "model") == LLAMA
