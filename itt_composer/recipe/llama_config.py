"""The `config.json` of a LLaMA, an ITT or another model: every key of it is understood or refused.

transformers keeps a key that it does not know as an attribute that nothing reads, so that
`rope_parameters`, in which transformers 5 writes the rotary embedding, would leave a model with the
default one. Pure Python, so that a folder is checked before torch is imported.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import FieldError, UserError
from itt_composer.recipe.model_is_data import check_model_folder
from itt_composer.recipe.thinking import THINKING_FIELDS


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


LLAMA_TYPES = ("llama", "itt")
# The keys of transformers' LlamaConfig beside those of every model.
LLAMA_KEYS = _words(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads hidden_act max_position_embeddings initializer_range rms_norm_eps
    use_cache pretraining_tp rope_theta rope_scaling attention_bias attention_dropout mlp_bias
    head_dim
    """
)
# The kinds of values that our model reads; only NULLABLE ones may be null.
COUNTS = _words(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings
    """
)
POSITIVE = _words("rms_norm_eps rope_theta initializer_range")
FLAG_KEYS = _words("attention_bias mlp_bias tie_word_embeddings")
NULLABLE = _words("num_key_value_heads head_dim")
THINKING_KEYS = frozenset(THINKING_FIELDS)
# The keys of transformers' PretrainedConfig, for every model.
COMMON_KEYS = _words(
    """
    _attn_implementation _commit_hash _name_or_path add_cross_attention architectures
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id id2label is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    pruned_heads quantization_config remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16
    """
)
# Names code in the folder, which is never run: the class that is installed is taken instead.
CODE_KEYS = frozenset({"auto_map"})
# Further keys of models on the hub, which do not change the logits: notes of the tools that wrote
# them, lengths of training, ways to compute the same, dropout.
HARMLESS_KEYS = _words(
    """
    activation_dropout attention_softmax_in_fp32 bias_dropout_fusion gradient_checkpointing
    inference_runner is_llama_config masked_softmax_fusion max_batch_size max_sequence_length
    n_ctx offset_alibi pre_allocate_kv_cache predict_special_tokens seq_length skip_bias_add
    skip_bias_add_qkv transformers.js_config unk_token_id unsloth_fixed unsloth_version
    validate_runner_input
    """
)
# The keys that each kind of rotary embedding needs, and the others that it reads.
ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor",),
        (
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "truncate",
        ),
    ),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
}


def llama_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that a LLaMA of the same geometry has."""
    return {
        name: value
        for name, value in rope_of_version_4(config).items()
        if name in LLAMA_KEYS | COMMON_KEYS and name not in ("model_type", "architectures")
    }


def rope_of_version_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Put the rotary embedding of a configuration under `rope_theta` and `rope_scaling`.

    transformers 5 reads these and writes `rope_parameters`, which 4.57 ignores without a word.
    """
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    scaling = dict(rope)
    if "rope_theta" in scaling:
        config["rope_theta"] = scaling.pop("rope_theta")
    is_plain = scaling.get("rope_type", scaling.get("type", "default")) == "default"
    config["rope_scaling"] = None if is_plain else scaling
    return config


def read_config(folder: Path, named: str) -> dict[str, Any]:
    """Read the `config.json` of a transformers folder as it is.

    Args:
        folder: that should hold one.
        named: the folder as the user named it, for the message, such as "init_from=model".

    Raises:
        UserError: there is none, it is not a JSON object, or it or a file beside it asks for
            something unknown; see `model_is_data`.
    """
    check_model_folder(folder)
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{named} is not a transformers folder (it has no config.json); a finished training "
            "run has one in its folder model/"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not a configuration ({error}); make the folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a configuration; make the folder again")
    return config


def llama_config(config: Mapping[str, Any], named: str) -> dict[str, Any]:
    """Check the configuration of a LLaMA or an ITT; return it in the words of transformers 4.

    Args:
        config: as its file has it.
        named: the model, for the messages.

    Raises:
        UserError: a key that our model does not read, values of another type or out of range, all
            of them named, or a geometry or rotary embedding that it cannot compute.
    """
    config = in_version_4(config, named)
    known = LLAMA_KEYS | COMMON_KEYS | HARMLESS_KEYS
    if config["model_type"] == "itt":
        known |= THINKING_KEYS
        config = {name: value for name, value in config.items() if name not in CODE_KEYS}
    refuse_unread(config, known, named)
    if wrong := list(_wrong_values(config)):
        raise UserError(f"{named} has an impossible configuration: {'; '.join(wrong)}")
    try:
        check_rope_scaling(config.get("rope_scaling"))
        heads = config.get("num_attention_heads", 32)
        check_heads(
            config.get("hidden_size", 4096),
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim"),
        )
    except ValueError as error:
        raise UserError(f"{named} has an impossible configuration: {error}") from None
    return config


def check_llama_folder(model: str) -> dict[str, Any] | None:
    """Read the configuration of a LLaMA in a folder; None where MODEL is a name on the hub.

    Raises:
        UserError: there is no LLaMA at that place, or one that cannot be made to think.
    """
    folder = Path(model)
    if not folder.is_dir():
        is_path = model.startswith(("/", ".", "~")) or model.count("/") > 1
        is_in_folder_here = folder.parent != Path() and folder.parent.exists()
        if folder.exists() or is_path or is_in_folder_here:
            raise UserError(
                f"there is no folder {model}; name a transformers folder, a dense run or a model "
                "on the hub"
            )
        return None
    config = read_config(folder, model)
    kind = config.get("model_type")
    if kind == "itt" and config.get("thinking") != "dense":
        raise UserError(f"{model} thinks already; from-llama takes a LLaMA")
    if kind not in LLAMA_TYPES:
        raise UserError(f"{model} is a {kind!r}; from-llama takes a LLaMA")
    if config.get("quantization_config") is not None:
        raise UserError(f"{model} is quantized; from-llama takes the weights it was made from")
    return llama_config(config, model)


def in_version_4(
    config: Mapping[str, Any],
    named: str,
    theta: str = "rope_theta",
    partial: str | None = None,
) -> dict[str, Any]:
    """Put the rotary embedding under the names that transformers 4 reads.

    Args:
        config: as its file has it.
        named: the model, for the messages.
        theta: the name of the rotary base in its kind of configuration.
        partial: that of the share of a head's dimensions that rotate; None is all of them.

    Raises:
        UserError: a rotary embedding that cannot be written that way, or is given twice.
    """
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    if not isinstance(rope, Mapping) or any(isinstance(part, Mapping) for part in rope.values()):
        raise UserError(
            f"{named} has rope_parameters={json.dumps(rope)}, which transformers 4 cannot say: "
            "one rotary embedding for the whole model"
        )
    scaling = {name: value for name, value in rope.items() if value is not None}
    said = {}
    if "rope_theta" in scaling:
        said[theta] = scaling.pop("rope_theta")
    share = scaling.pop("partial_rotary_factor", 1.0)
    if partial is not None and "partial_rotary_factor" in rope:
        said[partial] = share
    elif share != 1:
        raise UserError(
            f"{named} has rope_parameters.partial_rotary_factor={share}, which its kind of model "
            "does not have in transformers 4"
        )
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        said["rope_scaling"] = scaling
    elif set(scaling) - {"rope_type", "type"}:
        odd = ", ".join(sorted(set(scaling) - {"rope_type", "type"}))
        raise UserError(
            f"{named} has rope_parameters of type 'default' with {odd}, which nothing reads"
        )
    for name in (theta, "rope_scaling"):
        if config.get(name) is not None and config[name] != said.get(name):
            raise UserError(
                f"{named} has {name}={json.dumps(config[name])} and "
                f"rope_parameters={json.dumps(rope)}: remove the one that is not true"
            )
    return config | said


def refuse_unread(config: Mapping[str, Any], known: Collection[str], named: str) -> None:
    """Refuse a configuration with keys that nothing would read; null and false switch nothing on.

    Raises:
        UserError: names them.
    """
    unread = {
        name: value
        for name, value in config.items()
        if name not in known and value is not None and value is not False
    }
    if unread:
        listed = ", ".join(f"{name}={json.dumps(unread[name])[:60]}" for name in sorted(unread))
        raise UserError(
            f"{named} has {listed} in its config.json, which the {config.get('model_type')!r} of "
            "transformers 4 does not read: the model would be another; if it changes nothing, "
            "remove it there"
        )


def _wrong_values(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values that our model reads, each with its key."""
    for name, value in config.items():
        if value is None and name in NULLABLE:
            continue
        if name in COUNTS and (type(value) is not int or value < 1):
            yield f"{name} must be a positive integer, not {json.dumps(value)}"
        elif name in POSITIVE and not (_is_number(value) and 0 < value < math.inf):
            yield f"{name} must be a positive number, not {json.dumps(value)}"
        elif name == "attention_dropout" and not (_is_number(value) and 0 <= value < 1):
            yield f"{name} must be a number from 0 to below 1, not {json.dumps(value)}"
        elif name in FLAG_KEYS and not isinstance(value, bool):
            yield f"{name} must be true or false, not {json.dumps(value)}"
        elif name == "hidden_act" and not isinstance(value, str):
            yield f"{name} must be the name of a function, not {json.dumps(value)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_rope_scaling(scaling: Any) -> None:
    """Refuse a scaled rotary embedding that our model does not compute as it is described.

    Args:
        scaling: the configuration's `rope_scaling`.

    Raises:
        FieldError: an unknown kind, or a kind with other keys or values than it takes.
    """
    if scaling is None:
        return
    if wrong := _wrong_in_rope_scaling(scaling):
        raise FieldError(f"rope_scaling{wrong}", "rope_scaling")


def _wrong_in_rope_scaling(scaling: Any) -> str | None:
    if not isinstance(scaling, Mapping):
        return f" must be a mapping or null, not {scaling!r}"
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KEYS:
        return f" has rope_type={kind!r}; LLaMAs can have {', '.join(ROPE_KEYS)}"
    needed, others = ROPE_KEYS[kind]
    given = {name for name, value in scaling.items() if value is not None} - {"rope_type", "type"}
    for what, names in (("lacks", set(needed) - given), ("has", given - {*needed, *others})):
        if names:
            why = "" if what == "lacks" else ", which nothing reads"
            return f" of type {kind!r} {what} {', '.join(sorted(names))}{why}"
    for name in given - {"truncate"}:
        value = scaling[name]
        if not (_is_number(value) and 0 < value < math.inf):
            return f".{name} must be a positive number, not {value!r}"
    return None


def check_heads(
    hidden_size: int, num_attention_heads: int, num_key_value_heads: int, head_dim: int | None
) -> None:
    """Refuse heads that are impossible; all counts are positive integers.

    Raises:
        FieldError: heads of odd size, or ones that do not divide.
    """
    if head_dim is None and hidden_size % (2 * num_attention_heads):
        raise FieldError(
            f"hidden_size={hidden_size} does not split into "
            f"{num_attention_heads} heads of even size",
            *("hidden_size", "num_attention_heads"),
        )
    if head_dim is not None and head_dim % 2:
        raise FieldError(f"head_dim={head_dim} must be even: positions rotate pairs", "head_dim")
    if num_attention_heads % num_key_value_heads:
        raise FieldError(
            f"num_attention_heads={num_attention_heads} is not a multiple of "
            f"num_key_value_heads={num_key_value_heads}",
            *("num_attention_heads", "num_key_value_heads"),
        )
