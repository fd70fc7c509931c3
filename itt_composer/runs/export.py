"""A training checkpoint → a transformers folder."""

from pathlib import Path

from itt_composer.basics.files import check_new_folder
from itt_composer.models.folder import Training, as_published, write_model_folder
from itt_composer.runs.checkpoints.model import load_model_of
from itt_composer.runs.checkpoints.places import find_checkpoint


def export_checkpoint(
    path: Path,
    out: Path,
    tokenizer: Path | None = None,
    allow_code: bool = False,
    model_type: str | None = None,
    with_code: bool = True,
) -> None:
    """Write the model of a checkpoint as a transformers folder.

    Args:
        path: a monolithic checkpoint, a sharded one, or a run folder.
        out: folder to make.
        tokenizer: folder of the tokenizer; None takes that of the shards the recipe names.
        allow_code: run code that the checkpoint may hold.
        model_type: see `as_published`.
        with_code: see `write_model_folder`.

    Raises:
        CodeInCheckpointError: the checkpoint would run code.
        UserError: `out` is not empty; no checkpoint, or one that is damaged or holds NaN; no
            tokenizer; a model that cannot be one of `model_type`.
    """
    check_new_folder(out)
    trained, checkpoint, tokenizer = load_model_of(find_checkpoint(path), tokenizer, allow_code)
    model = as_published(trained, model_type)
    losses = checkpoint.run.losses_after(checkpoint.batches)
    training = Training(
        run_name=checkpoint.run_name,
        batches=checkpoint.batches,
        tokens=checkpoint.tokens,
        validation_loss=losses[0],
        loss_by_threshold=losses[1],
        recipe=checkpoint.run.recipe_text(),
    )
    write_model_folder(out, model, training.card(model, with_code), tokenizer, with_code)
