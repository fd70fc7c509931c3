"""Any model by name, with its tokenizer: of a run, a checkpoint, a folder, or the hub."""

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
from itt_composer.models.loading import NoConfigError, broken_weights, load_model
from itt_composer.models.tokenizer import load_tokenizer as load
from itt_composer.models.tokenizer_folder import tokenizer_files
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.recipe.llama_config import LLAMA_KEYS, THINKING_KEYS
from itt_composer.recipe.thinking import ELASTIC_FIELDS
from itt_composer.runs.checkpoints.model import load_model_of
from itt_composer.runs.checkpoints.reading import CodeInCheckpointError
from itt_composer.runs.folder import RunFolder
from itt_composer.runs.model_place import ModelPlace, find_model, model_name
from itt_composer.runs.model_settings import ModelOptions
from itt_composer.runs.repeats import experiment_sha256

# Keys of a configuration that are not part of the model itself.
INCIDENTAL = ("_name_or_path", "transformers_version", "use_cache", "architectures", "dtype")


@dataclass
class LoadedModel:
    """A model on its device, ready to be asked.

    Attributes:
        place: where it was found.
        model: in evaluation mode.
        tokenizer_source: folder or hub name of its tokenizer.
        trained_batches: of a run, after how many its weights were taken.
        revision: of a model on the hub, if one was asked for.
        advice: what a message on a missing tokenizer says to do.
    """

    place: ModelPlace
    model: PreTrainedModel
    tokenizer_source: str
    trained_batches: int | None = None
    revision: str | None = None
    advice: str = ""

    @property
    def path(self) -> str:
        """The model as the user named it."""
        return self.place.named

    @property
    def run(self) -> RunFolder | None:
        """The run that trained it, where it still lies in its folder."""
        return self.place.run

    @property
    def name(self) -> str:
        """A short name, for tables."""
        return model_name(self.path, self.revision)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            UserError: there is none.
        """
        return load_folder_tokenizer(self.tokenizer_source, self.advice)

    def description(self) -> dict[str, Any]:
        """Return what results say of the model: parameters, geometry, and how it thinks.

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

    def identity(self) -> dict[str, Any]:
        """Return what the result of an analysis says of the model, as it is now."""
        return {"model_sha256": self.sha256(), "trained_batches": self.trained_batches}

    @cached_property
    def weights_sha256(self) -> str:
        """The digest of the parameters alone: equal for a checkpoint and its export."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            _add_tensor(digest, name, parameter)
        return digest.hexdigest()

    def sha256(self) -> str:
        """Return the digest of weights, configuration and tokenizer; takes a few seconds.

        It is the same under every release of transformers.
        """
        digest = hashlib.sha256(_identity(self.tokenizer()).encode())
        generation = getattr(self.model, "generation_config", None)
        for settings in (generation.to_diff_dict() if generation else {}, self._config_fields()):
            known = {name: value for name, value in settings.items() if name not in INCIDENTAL}
            digest.update(json.dumps(known, sort_keys=True, default=str).encode())
        digest.update(self.weights_sha256.encode())
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, buffer in sorted(self.model.state_dict().items()):
            if name not in parameters:
                _add_tensor(digest, name, buffer)
        return digest.hexdigest()

    def _config_fields(self) -> dict[str, Any]:
        """The configuration; of our models, what they read, as releases add fields of their own."""
        fields = self.model.config.to_dict()
        if isinstance(self.model, IttForCausalLM):
            return {name: fields.get(name) for name in sorted(LLAMA_KEYS | THINKING_KEYS)}
        return fields


def load_named_model(
    named: str,
    device: torch.device | None = None,
    options: ModelOptions | None = None,
    key: str = "",
) -> LoadedModel:
    """Load the model of a MODEL and let it think as asked.

    Args:
        named: see `find_model`.
        device: to put it on; None is the GPU if there is one, else the CPU.
        options: None loads it as it is.
        key: of a suite that names the model, for messages.

    Raises:
        UserError: no model, a damaged one, or one that cannot think that way.
    """
    place, options = find_model(named, key), options or ModelOptions()
    if place.kind != "hub" and options.revision is not None:
        raise UserError(
            f"{key}.revision={options.revision} is of a model on the hub, but {place.label} is a "
            "place here; leave it out"
        )
    if place.kind == "checkpoint":
        model, batches, source = _load_from_training(place, options.tokenizer, key)
    else:
        model, batches, source = _load_from_folder(place, options.revision)
    if options.dtype != "auto":
        model.to(getattr(torch, options.dtype))
        if broken := broken_weights(model):
            raise UserError(
                f"{key}.dtype={options.dtype} is too narrow for {named}: {broken[0]} becomes "
                f"infinite; set {key}.dtype=float32"
            )
    model.to(device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    model.eval()
    think_as(model, {name: getattr(options, name) for name in ELASTIC_FIELDS})
    advice = f"; name the folder of one with {key}.tokenizer" if key else ""
    return LoadedModel(place, model, options.tokenizer or source, batches, options.revision, advice)


def load_folder_tokenizer(source: str, advice: str = "") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or of a model on the hub.

    Args:
        source: the folder or name.
        advice: added to the message: what to do.

    Raises:
        UserError: there is none.
    """
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
    """Return all that decides which ids a text becomes."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        rules = tokenizer.backend_tokenizer.to_str()
    else:
        rules = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    settings = [tokenizer.special_tokens_map, tokenizer.split_special_tokens]
    return rules + json.dumps(settings, sort_keys=True, default=str)


def why_no_numbers(model: PreTrainedModel) -> str:
    """Say what to do about a model that computes NaN; names the first weight that is not finite."""
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
    if isinstance(model, IttForCausalLM) and not model.config.is_causal_at(
        model.config.select_ratios
    ):
        if not model.has_thresholds:
            raise UserError(
                "the model has no thresholds, and under "
                f"router_selection={model.config.router_selection} a likelihood would depend on "
                "later tokens; estimate them with `itt calibrate`, or ask for "
                f"model.router_selection={model.config.router_selection} all the same"
            )
        model.set_router_selection("threshold")


def decide_token_by_token(model: Any, place: ModelPlace) -> None:
    """Have routers decide token by token, as a cache needs it.

    Raises:
        UserError: the model has no thresholds for that.
    """
    if not any(0 < ratio < 1 for ratio in getattr(model.config, "select_ratios", [])):
        return
    try:
        model.set_router_selection("threshold")
    except ValueError:
        how = "run itt calibrate on it"
        if place.kind == "checkpoint":
            how = "write it as a folder with `itt export`, and run itt calibrate on that"
        raise UserError(
            f"{place.named} has no thresholds yet, which pick tokens without looking ahead: {how}"
        ) from None


def _load_from_folder(
    place: ModelPlace, revision: str | None
) -> tuple[PreTrainedModel, int | None, str]:
    """Load a transformers folder or a model on the hub."""
    try:
        model = load_model(place.source, revision)
    except NoConfigError as error:
        if place.kind != "hub":
            raise
        reason = error.reason.partition(". ")[0]
        raise UserError(
            f"{place.label} is not a folder or a checkpoint here, and the hub does not give a "
            f"model of that name ({reason}): check the name, or the network and HF_TOKEN"
        ) from None
    summary = place.run.summary() if place.run is not None else None
    return model, summary.batches if summary is not None else None, place.source


def _load_from_training(
    place: ModelPlace, tokenizer: str | None, key: str
) -> tuple[PreTrainedModel, int | None, str]:
    """Load a checkpoint."""
    option = f"{key}.tokenizer" if key else "`itt export --tokenizer`, and then what that writes"
    try:
        model, checkpoint, folder = load_model_of(
            Path(place.source), Path(tokenizer) if tokenizer else None, option=option
        )
    except CodeInCheckpointError as error:
        raise UserError(
            f"{error}; if you trust whoever wrote it, name what `itt export {place.named} OUT "
            "--allow-code-execution` writes"
        ) from None
    except UserError as error:
        is_named = place.label == place.named
        raise UserError(str(error) if is_named else f"{place.label}: {error}") from None
    return model, checkpoint.batches, str(folder)
