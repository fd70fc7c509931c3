"""The model of a checkpoint, around its weights, and the tokenizer of the run that wrote it."""

from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.data.manifest import Manifest
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.folder import set_document_ends
from itt_composer.models.loading import refuse_broken
from itt_composer.models.tokenizer import check_tokenizer_folder, load_tokenizer
from itt_composer.models.versions import without_initial_values
from itt_composer.runs.checkpoints.reading import Checkpoint, load_checkpoint
from itt_composer.runs.folder import RunFolder

CONFIG_FIELDS = IttConfig().to_dict().keys() | {"torch_dtype"}


def load_model_of(
    path: Path,
    tokenizer: Path | None,
    allow_code: bool = False,
    option: str = "--tokenizer",
) -> tuple[IttForCausalLM, Checkpoint, Path]:
    """Return the model of a checkpoint, the checkpoint, and the folder of its tokenizer.

    Args:
        path: of the checkpoint; see `find_checkpoint`.
        tokenizer: its folder, or None for that of the shards the recipe names.
        allow_code: run code that the checkpoint may hold.
        option: by which a user names a tokenizer, for messages.

    Raises:
        CodeInCheckpointError: the checkpoint would run code.
        UserError: a damaged checkpoint, or one with weights that are NaN or infinite; no
            tokenizer.
    """
    checkpoint = load_checkpoint(path, allow_code)
    model = build_model(checkpoint)
    refuse_broken(model, str(checkpoint.path))
    manifest, tokenizer = _documents(checkpoint.run, tokenizer, option)
    if manifest is not None:
        set_document_ends(model, manifest.bos_id, manifest.eos_id)
    else:  # the shards cannot be asked
        loaded = load_tokenizer(tokenizer)
        set_document_ends(model, loaded.bos_token_id, loaded.eos_token_id)
    return model, checkpoint, tokenizer


def build_model(checkpoint: Checkpoint) -> IttForCausalLM:
    """Build the checkpoint's model around its weights, without a copy of them.

    Raises:
        UserError: config and weights are not those of one model.
    """
    config = checkpoint.config
    unknown = sorted(config.keys() - CONFIG_FIELDS)
    if config.get("model_type") != IttConfig.model_type or unknown:
        what = f"has {', '.join(unknown)}" if unknown else f"is {config.get('model_type')!r}"
        raise UserError(f"{checkpoint.path} is of another kind of model: its configuration {what}")
    try:
        with without_initial_values():
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


def _documents(run: RunFolder, tokenizer: Path | None, option: str) -> tuple[Manifest | None, Path]:
    """Return the manifest of the run's shards, if they are there, and the tokenizer's folder.

    Raises:
        UserError: no tokenizer, or another than that of the shards.
    """
    shards = run.shards() if run.is_run() else None
    manifest = Manifest.read(shards) if shards is not None and shards.is_dir() else None
    if tokenizer is None:
        if shards is None or not (shards / "tokenizer").is_dir():
            where = "no recipe.yaml of the run" if shards is None else f"no {shards / 'tokenizer'}"
            raise UserError(f"there is {where}; name the tokenizer's folder with {option}")
        return manifest, shards / "tokenizer"
    check_tokenizer_folder(tokenizer)
    if not any((tokenizer / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise UserError(
            f"{option} {tokenizer} holds neither a tokenizer.model nor a tokenizer.json"
        )
    if manifest is not None and not manifest.is_made_with(tokenizer):
        raise UserError(f"{option} {tokenizer} is another than that of the shards in {shards}")
    return manifest, tokenizer
