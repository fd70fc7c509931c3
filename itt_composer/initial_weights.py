"""Training that starts from a model: the recipe's `init_from`.

What can be told from the folder's `config.json` is told before torch is imported.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itt_composer.config import Recipe
from itt_composer.errors import UserError
from itt_composer.thinking import ELASTIC_FIELDS

if TYPE_CHECKING:
    from itt_composer.models import IttForCausalLM

NOT_IN_A_CONFIG = ("attn_implementation",)
# Of LLaMA's configuration, what no recipe sets.
FIXED = {"hidden_act": "silu", "attention_dropout": 0.0}


def check_initial_weights(recipe: Recipe) -> None:
    """Refuse an `init_from` whose model is another than the recipe's.

    Raises:
        UserError: no folder of our models, or the first key that differs.
    """
    assert recipe.init_from is not None
    folder = Path(recipe.init_from)
    config = _read_config(folder)
    if config.get("model_type") != "itt":
        raise UserError(
            f"init_from={folder} holds a model of type {config.get('model_type')!r}, not 'itt'; "
            f"`python -m itt_composer.export from-llama` makes one from a LLaMA"
        )
    model = recipe.model.model_dump(exclude=set(NOT_IN_A_CONFIG))
    model["head_dim"] = model["head_dim"] or model["hidden_size"] // model["num_attention_heads"]
    thinking = vars(recipe.resolved_thinking())
    wanted = {f"model.{key}": value for key, value in model.items()}
    wanted |= {
        f"thinking.{key}": value for key, value in thinking.items() if key not in ELASTIC_FIELDS
    }
    for key, value in (wanted | FIXED).items():
        name = key.rpartition(".")[2]
        # transformers leaves out what is its default, of these keys one only.
        found = config.get(name, False if name == "tie_word_embeddings" else None)
        if found != value:
            fix = f"set {key} to the folder's" if "." in key else "no recipe trains such a model"
            raise UserError(
                f"init_from={folder} has {name}={json.dumps(found)}, but the recipe "
                f"{key}={json.dumps(value)}; {fix}"
            )


def load_initial_weights(model: "IttForCausalLM", folder: Path) -> None:
    """Copy the weights of a transformers folder into the model, every one of them.

    Raises:
        UserError: a file is missing or damaged, or weights are missing, left over or of another
            shape; the sentence names them.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    own = model.state_dict()
    loaded = set()
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                for name in stored.keys():  # noqa: SIM118 (not a mapping)
                    if name not in own:
                        raise UserError(f"{file} holds {name}, which the recipe's model has not")
                    tensor = stored.get_tensor(name)
                    if tensor.shape != own[name].shape:
                        raise UserError(
                            f"{file} holds {name} of shape {tuple(tensor.shape)}, but the recipe's "
                            f"model has {tuple(own[name].shape)}"
                        )
                    own[name].copy_(tensor)
                    loaded.add(name)
        except (FileNotFoundError, SafetensorError) as error:
            raise UserError(f"{file} is missing or damaged ({error}); write it again") from None
    if model.config.tie_word_embeddings:
        loaded.add("lm_head.weight")
    missing = sorted(own.keys() - loaded)
    if missing:
        raise UserError(f"init_from={folder} lacks {', '.join(missing)}; make the folder again")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
        return [folder / Path(place).name for place in sorted(set(places))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is no index of weights; make the folder again") from None


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"init_from={folder} is not a transformers folder (it has no config.json)"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is no configuration ({error}); make the folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no configuration; make the folder again")
    return config
