"""Checks, without torch, that the model a recipe's `init_from` names is the recipe's."""

import json
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.recipe.llama_config import LLAMA_TYPES, llama_config, read_config
from itt_composer.recipe.schema import Recipe
from itt_composer.recipe.thinking import ELASTIC_FIELDS, ThinkingSettings

NOT_IN_A_CONFIG = ("attn_implementation",)
# What a configuration that leaves a key out means, by transformers' LlamaConfig.
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
}
# Values of a LLaMA's configuration that no recipe sets.
FIXED = {"hidden_act": "silu", "attention_dropout": 0.0}


def check_initial_weights(recipe: Recipe) -> None:
    """Refuse an `init_from` whose model is another than the recipe's.

    Raises:
        UserError: it does not hold one of our models, or a sentence for each key that differs.
    """
    assert recipe.init_from is not None
    folder = Path(recipe.init_from)
    config = _config_of(folder)
    model = recipe.model.model_dump(exclude=set(NOT_IN_A_CONFIG))
    model["head_dim"] = model["head_dim"] or model["hidden_size"] // model["num_attention_heads"]
    thinking = vars(recipe.resolved_thinking())
    wanted = {f"model.{key}": value for key, value in model.items()}
    wanted |= {
        f"thinking.{key}": value for key, value in thinking.items() if key not in ELASTIC_FIELDS
    }
    sentences = []
    for key, value in (wanted | FIXED).items():
        name = key.rpartition(".")[2]
        found = config.get(name)
        if found != value:
            fix = f"set {key} to the folder's" if "." in key else "no recipe trains such a model"
            if key == "thinking.thinking" and found == "dense":
                fix = "`itt from-llama` makes it think"
            sentences.append(
                f"init_from={folder} has {name}={json.dumps(found)}, but the recipe "
                f"{key}={json.dumps(value)}; {fix}"
            )
    if sentences:
        raise UserError("\n".join(sentences))


def _config_of(folder: Path) -> dict[str, Any]:
    """Read the configuration; a LLaMA's as that of our dense model, defaults included."""
    config = read_config(folder, f"init_from={folder}")
    kind = config.get("model_type")
    if kind not in LLAMA_TYPES:
        raise UserError(f"init_from={folder} holds a model of type {kind!r}, not an ITT or a LLaMA")
    config = llama_config(config, f"init_from={folder}")
    if config.get("quantization_config") is not None:
        raise UserError(f"init_from={folder} is quantized; name the weights it was made from")
    if kind == "llama":
        config |= vars(ThinkingSettings("dense").resolve(1))
    config = LLAMA_DEFAULTS | {key: value for key, value in config.items() if value is not None}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return config
