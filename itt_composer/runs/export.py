"""A training checkpoint → a transformers folder."""

import json
from contextlib import suppress
from pathlib import Path

import yaml
from transformers.modeling_utils import no_init_weights

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import check_new_folder
from itt_composer.data.manifest import Manifest
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.folder import (
    Training,
    as_published,
    set_document_ends,
    write_model_folder,
)
from itt_composer.models.loading import refuse_broken
from itt_composer.models.tokenizer import check_tokenizer_folder, load_tokenizer
from itt_composer.recipe.layers import values_of
from itt_composer.runs.checkpoints import Checkpoint, load_checkpoint
from itt_composer.runs.folder import find_checkpoint
from itt_composer.runs.metrics import read_metrics

# By the rule of training, and by thresholds.
LOSSES = ("metrics/eval/LanguageCrossEntropy", "metrics/eval_threshold/LanguageCrossEntropy")
CONFIG_FIELDS = IttConfig().to_dict().keys() | {"torch_dtype"}


def export_checkpoint(
    path: Path,
    out: Path,
    tokenizer: Path | None = None,
    allow_code: bool = False,
    model_type: str | None = None,
) -> None:
    """Write the model of a checkpoint as a transformers folder.

    Args:
        path: a monolithic checkpoint, a sharded one, or a run folder.
        out: folder to make.
        tokenizer: folder of the tokenizer; None takes that of the shards the recipe names.
        allow_code: run code that the checkpoint may hold.
        model_type: see `as_published`.

    Raises:
        UserError: `out` is not empty; no checkpoint, a damaged one, one that would run code or
            holds NaN; no tokenizer; a model that is none of `model_type`.
    """
    check_new_folder(out)
    trained, checkpoint, tokenizer = load_model_of(find_checkpoint(path), tokenizer, allow_code)
    model = as_published(trained, model_type)
    losses = validation_losses(checkpoint.run_folder, checkpoint.batches)
    training = Training(
        run_name=checkpoint.run_name,
        batches=checkpoint.batches,
        tokens=checkpoint.tokens,
        validation_loss=losses[0],
        loss_by_threshold=losses[1],
        recipe=read_recipe(checkpoint.run_folder / "recipe.yaml"),
    )
    write_model_folder(out, model, training.card(model), tokenizer)


def load_model_of(
    path: Path, tokenizer: Path | None, allow_code: bool = False
) -> tuple[IttForCausalLM, Checkpoint, Path]:
    """The model of a checkpoint, the checkpoint, and the folder of its tokenizer.

    Args:
        path: of the checkpoint; see `find_checkpoint`.
        tokenizer: its folder, or None for that of the shards the recipe names.
        allow_code: run code that the checkpoint may hold.

    Raises:
        UserError: a damaged checkpoint, one that would run code, or one with weights that are NaN
            or infinite; no tokenizer.
    """
    checkpoint = load_checkpoint(path, allow_code)
    recipe_text = read_recipe(checkpoint.run_folder / "recipe.yaml")
    model = build_model(checkpoint)
    refuse_broken(model, str(checkpoint.path))
    manifest, tokenizer = _documents(recipe_text, tokenizer)
    if manifest is not None:
        set_document_ends(model, manifest.bos_id, manifest.eos_id)
    else:
        _set_ends_of(model, tokenizer)
    return model, checkpoint, tokenizer


def build_model(checkpoint: Checkpoint) -> IttForCausalLM:
    """The checkpoint's model around its weights, without a copy of them.

    Raises:
        UserError: config and weights are not those of one model.
    """
    config = checkpoint.config
    unknown = sorted(config.keys() - CONFIG_FIELDS)
    if config.get("model_type") != IttConfig.model_type or unknown:
        what = f"has {', '.join(unknown)}" if unknown else f"is {config.get('model_type')!r}"
        raise UserError(f"{checkpoint.path} is of another kind of model: its configuration {what}")
    try:
        with no_init_weights():
            model = IttForCausalLM(IttConfig.from_dict(config))
        weights = checkpoint.weights
        if model.config.tie_word_embeddings:
            weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        model.load_state_dict(weights, strict=True, assign=True)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{checkpoint.path} does not fit its own configuration; was it written by another "
            f"version of itt_composer? ({reason})"
        ) from None
    model.tie_weights()
    return model


def read_recipe(path: Path) -> str | None:
    """The resolved recipe beside a run's checkpoints, or None where it is not."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def validation_losses(run_folder: Path, batches: int) -> tuple[float | None, float | None]:
    """What the run measured after these batches, by its own rule and by thresholds.

    Nats per token; None where it measured nothing.
    """
    with suppress(OSError, ValueError, KeyError):
        summary = json.loads((run_folder / "summary.json").read_bytes())
        if summary["batches"] == batches:
            return summary["validation_loss"], summary.get("validation_loss_by_threshold")
    if not (run_folder / "metrics.jsonl").is_file():
        return None, None
    lines = read_metrics(run_folder, {"batch", *LOSSES}.__contains__)
    line = next((line for line in lines if line["batch"] == batches), {})
    by_own_rule, by_threshold = (line.get(name) for name in LOSSES)
    return by_own_rule, by_threshold


def _documents(recipe_text: str | None, tokenizer: Path | None) -> tuple[Manifest | None, Path]:
    """The manifest of the shards that the recipe names, if they are there, and the tokenizer.

    Raises:
        UserError: no tokenizer, or another than that of the shards.
    """
    try:
        shards = recipe_text and Path(values_of(recipe_text)["data"]["local"])
    except (yaml.YAMLError, KeyError, TypeError):
        raise UserError("the recipe.yaml of the run names no data.local; is it damaged?") from None
    manifest = Manifest.read(shards) if shards and shards.is_dir() else None
    if tokenizer is None:
        if not shards or not (shards / "tokenizer").is_dir():
            where = f"no {shards / 'tokenizer'}" if shards else "no recipe.yaml of the run"
            raise UserError(f"there is {where}; name the tokenizer's folder with --tokenizer")
        return manifest, shards / "tokenizer"
    check_tokenizer_folder(tokenizer)
    if not any((tokenizer / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise UserError(f"--tokenizer {tokenizer} holds no tokenizer.model and no tokenizer.json")
    if manifest is not None and not manifest.is_made_with(tokenizer):
        raise UserError(f"--tokenizer {tokenizer} is another than that of the shards in {shards}")
    return manifest, tokenizer


def _set_ends_of(model: IttForCausalLM, tokenizer: Path) -> None:
    """Document ends as the tokenizer names them, where the shards cannot be asked."""
    loaded = load_tokenizer(tokenizer)
    set_document_ends(model, loaded.bos_token_id, loaded.eos_token_id)
