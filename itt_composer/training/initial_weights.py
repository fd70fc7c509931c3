"""Training that starts from the weights of a model: the recipe's `init_from`."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from itt_composer.basics.errors import UserError
from itt_composer.models import IttForCausalLM
from itt_composer.models.loading import refuse_broken
from itt_composer.models.stored_weights import stored_weight

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def load_initial_weights(model: "IttForCausalLM", folder: Path) -> None:
    """Copy the weights of a transformers folder into the model, every one of them.

    Raises:
        UserError: a file is missing or damaged, or weights are missing, left over or of another
            shape; the sentence names them.
    """
    own = model.state_dict()
    loaded = set()
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                for name in stored.keys():  # noqa: SIM118 (not a mapping)
                    tensor = stored.get_tensor(name)
                    _check_tensor(name, tensor, own, file)
                    if name == OUTPUT and model.config.tie_word_embeddings:
                        _check_tied(tensor, stored_weight(str(folder), INPUT), folder)
                    own[name].copy_(tensor)
                    loaded.add(name)
        except (FileNotFoundError, SafetensorError) as error:
            raise UserError(f"{file} is missing or damaged ({error}); write it again") from None
    if model.config.tie_word_embeddings:
        loaded.add(OUTPUT)
    missing = sorted(own.keys() - loaded)
    if missing:
        raise UserError(f"init_from={folder} lacks {', '.join(missing)}; make the folder again")
    refuse_broken(model, f"init_from={folder}")


def _check_tensor(
    name: str, tensor: "torch.Tensor", own: "dict[str, torch.Tensor]", file: Path
) -> None:
    if name not in own:
        raise UserError(f"{file} holds {name}, which the recipe's model does not have")
    if tensor.shape != own[name].shape:
        raise UserError(
            f"{file} holds {name} of shape {tuple(tensor.shape)}, but the recipe's "
            f"model has {tuple(own[name].shape)}"
        )
    if not tensor.is_floating_point():
        raise UserError(f"{file} holds {name} as {tensor.dtype}, which cannot be trained")


def _check_tied(output: "torch.Tensor", stored: "torch.Tensor | None", folder: Path) -> None:
    """Refuse an output embedding beside another input embedding, to which the model ties it."""

    if stored is not None and not torch.equal(stored, output):
        raise UserError(f"init_from={folder} says tie_word_embeddings, but {OUTPUT} is not {INPUT}")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
        return [folder / Path(place).name for place in sorted(set(places))]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is not an index of weights; make the folder again") from None
