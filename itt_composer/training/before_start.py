"""Checks between reading a recipe and training: files, ranks and shards."""

import os
from pathlib import Path
from pkgutil import resolve_name

from itt_composer.basics.errors import Mistakes, UserError
from itt_composer.basics.processes import is_first_rank
from itt_composer.data.manifest import Manifest
from itt_composer.data.shards import check_shards_of
from itt_composer.recipe.changes import describe
from itt_composer.recipe.schema import Recipe, TrainRecipe
from itt_composer.training.initial_config import check_initial_weights
from itt_composer.training.training_run import ALLOW_CHANGES, TrainingRun


def check_before_start(recipe: Recipe, run: TrainingRun) -> None:
    """Refuse what can be seen to be wrong without torch: local files, batches and ranks.

    Raises:
        UserError: one sentence per mistake.
    """
    mistakes = Mistakes()
    with mistakes:
        if recipe.init_from is not None and not run.has_checkpoint():
            check_initial_weights(recipe)
    with mistakes:
        if recipe.data.remote is None:
            check_shards_of(recipe.data, recipe.model.vocab_size, recipe.train.global_batch_size)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with mistakes:
        check_sharding(recipe.train, ranks, ranks_per_node)
    nodes = ranks // ranks_per_node
    parts, size = recipe.data.num_canonical_nodes, recipe.train.global_batch_size
    with mistakes:
        if size % parts or (parts % nodes and nodes % parts):
            raise UserError(
                f"data.num_canonical_nodes={parts} does not fit train.global_batch_size={size} on "
                f"{nodes} nodes; it must divide the first, and divide or be divided by the second"
            )
    for key in ("global_batch_size", "eval_batch_size"):
        size = getattr(recipe.train, key)
        with mistakes:
            if size % ranks:
                raise UserError(
                    f"train.{key}={size} does not split over {ranks} ranks; change one (of a run "
                    f"that has begun, with {ALLOW_CHANGES})"
                )
    with mistakes:
        _check_log(recipe, run)
    for callback in recipe.callbacks.named().values():
        if callback.check is not None and is_first_rank():  # one for all, as it may take seconds
            with mistakes:
                resolve_name(callback.check)(callback)
    mistakes.report()


def check_sharding(settings: TrainRecipe, ranks: int, ranks_per_node: int) -> None:
    """Refuse what a number of ranks cannot do, before anything heavy starts.

    Raises:
        UserError: names the key and what to set instead.
    """
    if ranks == 1:
        return
    if settings.sharding == "none":
        raise UserError(
            f"train.sharding=none is for one rank, but there are {ranks}; set it to fsdp (or "
            "hybrid, ddp)"
        )
    if settings.sharding == "hybrid" and (ranks_per_node == 1 or ranks % ranks_per_node):
        raise UserError(
            f"train.sharding=hybrid shards within each node, but {ranks} ranks at "
            f"{ranks_per_node} per node leave nothing to shard or do not split evenly; set it to "
            "fsdp, or start as many ranks, at least 2, on every node"
        )
    if settings.sharding != "ddp" and settings.microbatch_size == "auto":
        raise UserError(
            f"train.microbatch_size=auto does not work with train.sharding={settings.sharding} on "
            f"{ranks} ranks; set a number, or train.sharding=ddp"
        )


def _check_log(recipe: Recipe, run: TrainingRun) -> None:
    path = getattr(recipe.loggers.named().get("json_lines"), "path", None)
    if path is not None and Path(path).exists() and not run.recipe_file.exists():
        raise UserError(
            f"loggers.json_lines.path={path} holds the metrics of another run than the one "
            f"that begins in {run.path}; give loggers.json_lines.path="
            "'${run_folder}/metrics.jsonl', or remove the file"
        )


def check_same_shards(recipe: Recipe, run: TrainingRun, allow_changes: bool) -> None:
    """Refuse other shards than the run was trained on, or print what differs where it is allowed.

    Raises:
        UserError: naming what differs.
    """
    changed = run.check_same_shards(digests_of(recipe), allow_changes)
    if changed and is_first_rank():
        shown = describe(changed)
        print(f"{run.path} goes on with other shards (by their SHA-256): {shown}", flush=True)


def digests_of(recipe: Recipe) -> dict[str, str]:
    """Return the digests of what the recipe's rows are made of; see `Manifest.digests`."""
    manifest = Manifest.read(recipe.data.local)
    return manifest.digests(manifest.streams(recipe.data.domains))
