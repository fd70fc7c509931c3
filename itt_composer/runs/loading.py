"""Any model that can be evaluated, with its tokenizer: from training, a folder, or the hub."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from itt_composer.basics.errors import UserError
from itt_composer.models import IttForCausalLM
from itt_composer.models.configuration import THINKING_FIELDS
from itt_composer.models.flops import dense_parameters, thinking_parameters
from itt_composer.models.folder import tokenizer_files
from itt_composer.models.loading import broken_weights, load_model
from itt_composer.models.tokenizer import load_tokenizer as load
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.recipe.thinking import ELASTIC_FIELDS
from itt_composer.runs.checkpoints import ALLOW_CODE, Checkpoint
from itt_composer.runs.export import load_model_of
from itt_composer.runs.folder import find_checkpoint
from itt_composer.runs.model_settings import HUB_NAME, NO_MODEL, ModelSettings, model_name
from itt_composer.runs.repeats import experiment_sha256

# Of a configuration: what is no part of the model itself.
INCIDENTAL = ("_name_or_path", "transformers_version", "use_cache", "architectures", "dtype")


@dataclass
class EvaluatedModel:
    """A model on its device, ready to be asked.

    Attributes:
        path: as the user named it.
        model: in evaluation mode.
        tokenizer_source: folder or hub name of its tokenizer.
        run: folder of the run that trained it, where it still lies in one.
        trained_batches: of a run, after how many its weights were taken.
        revision: of a model on the hub, if one was asked for.
    """

    path: str
    model: PreTrainedModel
    tokenizer_source: str
    run: Path | None = None
    trained_batches: int | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """Short, for tables."""
        return model_name(self.path, self.revision)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            UserError: there is none.
        """
        return load_tokenizer(self.tokenizer_source)

    def description(self) -> dict[str, Any]:
        """What results say of the model: parameters, geometry, and how it thinks.

        `experiment_sha256` is equal for runs of other seeds; None where no run folder has it.

        Raises:
            UserError: a recipe that cannot be read.
        """
        config: Any = self.model.config
        described = {"path": self.path, "name": self.name, "model_type": config.model_type}
        if isinstance(self.model, IttForCausalLM):
            parameters = dense_parameters(config) + thinking_parameters(config)
        else:
            parameters = sum(parameter.numel() for parameter in self.model.parameters())
        fields = (*GEOMETRY_FIELDS, *THINKING_FIELDS)
        values = {name: getattr(config, name) for name in fields if hasattr(config, name)}
        measured = {
            "parameters": parameters,
            "trained_batches": self.trained_batches,
            "experiment_sha256": self.run and experiment_sha256(self.run),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
        return {**described, **measured, **values}

    @cached_property
    def weights_sha256(self) -> str:
        """Of the parameters alone: equal for a checkpoint and what was exported of it."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            _add_tensor(digest, name, parameter)
        return digest.hexdigest()

    def sha256(self) -> str:
        """Of weights, configuration (thinking settings included) and tokenizer: a few seconds."""
        digest = hashlib.sha256(_identity(self.tokenizer()).encode())
        generation = getattr(self.model, "generation_config", None)
        digest.update(generation.to_json_string().encode() if generation else b"")
        config = self.model.config.to_dict()
        known = {name: value for name, value in config.items() if name not in INCIDENTAL}
        digest.update(json.dumps(known, sort_keys=True, default=str).encode())
        digest.update(self.weights_sha256.encode())
        for name, buffer in sorted(self.model.named_buffers()):
            _add_tensor(digest, name, buffer)
        return digest.hexdigest()


def load_evaluated(settings: ModelSettings, path: str, device: torch.device) -> EvaluatedModel:
    """Load one of the suite's models and let it think as asked.

    Raises:
        UserError: no model, a damaged one, or one that cannot think that way.
    """
    place, source, trained = Path(path), path, None
    finished, run = place / "model", None
    is_here = place.exists() or place.is_symlink()
    if is_here and settings.revision is not None:
        raise UserError(
            f"model.revision={settings.revision} is of a model on the hub, but model={path} is a "
            "place here; leave it out"
        )
    if not is_here and HUB_NAME.fullmatch(path):
        model = _load_from_hub(path, settings.revision)
    elif (place / "config.json").is_file():
        model, above = load_model(place), place.resolve().parent
        if place.resolve().name == "model" and (above / "summary.json").is_file():
            run, trained = above, _batches_of(above / "summary.json")
    elif (place / "summary.json").is_file() and (finished / "config.json").is_file():
        model, source = load_model(finished), str(finished)
        run, trained = place, _batches_of(place / "summary.json")
    elif place.suffix == ".pt" or place.is_dir() or place.is_symlink():
        model, checkpoint, source = _load_from_training(place, settings.tokenizer)
        run, trained = checkpoint.run_folder, checkpoint.batches
    else:
        raise UserError(f"model={path} is no model; {NO_MODEL}")
    if settings.dtype != "auto":
        model.to(getattr(torch, settings.dtype))
        if broken := broken_weights(model):
            raise UserError(
                f"model.dtype={settings.dtype} is too narrow for {path}: {broken[0]} becomes "
                "infinite; set model.dtype=float32"
            )
    model.to(device)  # type: ignore[arg-type]
    model.eval()
    think_as(model, {name: getattr(settings, name) for name in ELASTIC_FIELDS})
    tokenizer = settings.tokenizer or source
    return EvaluatedModel(path, model, tokenizer, run, trained, settings.revision)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a model on the hub.

    Raises:
        UserError: there is none.
    """
    advice = "; name the folder of one with model.tokenizer"
    if Path(source).is_dir() and not tokenizer_files(Path(source)):
        raise UserError(
            f"the tokenizer in {source} cannot be loaded (it has no tokenizer's files){advice}"
        )
    return load(source, advice)


def _add_tensor(digest: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides which ids a text becomes."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        rules = tokenizer.backend_tokenizer.to_str()
    else:
        rules = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    settings = [tokenizer.special_tokens_map, tokenizer.split_special_tokens]
    return rules + json.dumps(settings, sort_keys=True, default=str)


def why_no_numbers(model: PreTrainedModel) -> str:
    """What to do about a model that computes NaN: names the first weight that is not finite."""
    if broken := broken_weights(model):
        return (
            f"its weight {broken[0]} holds NaN or infinity: evaluate a checkpoint from before that"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    if model.dtype == torch.float32:
        return "its weights are finite, but too large to compute with: evaluate another checkpoint"
    return f"its weights are finite, so {dtype} overflows: set model.dtype=float32"


def think_as(model: PreTrainedModel, asked: Mapping[str, Any]) -> None:
    """Put thinking settings in force; None leaves one as it is.

    Raises:
        UserError: the model cannot think that way; names the key.
    """
    for name, value in asked.items():
        if value is None:
            continue
        if not isinstance(model, IttForCausalLM):
            raise UserError(f"{name}={value} needs an ITT model, not {type(model).__name__}")
        if value == getattr(model.config, name):
            continue
        if model.config.thinking == "dense":
            raise UserError(f"{name}={value} needs an ITT model, not a LLaMA")
        try:
            getattr(model, f"set_{name}")(value)
        except ValueError as error:
            raise UserError(f"{name}={value}: {error}") from None


def think_causally(model: PreTrainedModel) -> None:
    """Have an ITT that looks ahead pick its tokens by thresholds.

    Raises:
        UserError: it has none.
    """
    if isinstance(model, IttForCausalLM) and not model.config.is_causal(model.config.select_ratios):
        if not model.has_thresholds:
            raise UserError(
                "the model has no thresholds, and under "
                f"router_selection={model.config.router_selection} a likelihood would depend on "
                "later tokens; estimate them with `itt calibrate`, or ask for "
                f"model.router_selection={model.config.router_selection} all the same"
            )
        model.set_router_selection("threshold")


def _batches_of(summary: Path) -> int:
    try:
        return int(json.loads(summary.read_bytes())["batches"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{summary} cannot be read; delete it and start the run again, which writes it anew"
        ) from None


def _load_from_hub(name: str, revision: str | None) -> PreTrainedModel:
    try:
        return load_model(name, revision)
    except UserError as error:
        if not str(error).startswith(why := f"{name} cannot be loaded: "):
            raise
        reason = str(error).removeprefix(why).partition(". ")[0]
        raise UserError(
            f"model={name} is neither a folder or checkpoint here nor a model that the hub gives: "
            f"{reason}"
        ) from None


def _load_from_training(
    path: Path, tokenizer: str | None
) -> tuple[PreTrainedModel, Checkpoint, str]:
    try:
        model, checkpoint, folder = load_model_of(
            find_checkpoint(path), Path(tokenizer) if tokenizer else None
        )
    except UserError as error:
        if ALLOW_CODE in str(error):
            raise UserError(
                f"{error} to `itt_composer.cli.export` and evaluate what it writes"
            ) from None
        raise UserError(f"model={path}: {error}") from None
    return model, checkpoint, str(folder)
