"""Train a model from a recipe.

    composer -n 8 -m itt_composer.train yamls/pretrain/itt_x4_162m.yaml [key=value …]
    python -m itt_composer.train yamls/pretrain/quickstart.yaml --print-config

Writes into the recipe's `run_folder`: `recipe.yaml` (resolved), `checkpoints/`, the loggers'
files and, at the end, `model/` (a transformers folder) and `summary.json`. The same command
goes on where an interrupted run was, and does nothing where one has finished.

Exit codes: 0 finished, 1 a mistake or a failure that was told, 75 preempted by SIGTERM and saved.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itt_composer.config import (
    Recipe,
    load_recipe,
    model_config,
    recipe_as_yaml,
    recipe_values,
)
from itt_composer.data.shards import check_shards, read_manifest
from itt_composer.errors import UserError
from itt_composer.initial_weights import check_initial_weights, load_initial_weights
from itt_composer.launched import end_with_launcher, failures_told_once, is_first_rank
from itt_composer.recipe_changes import describe
from itt_composer.registry import amount_and_unit
from itt_composer.run_folder import ALLOW_CHANGES, RunFolder
from itt_composer.sharding import (
    check_sharding,
    extend_timeouts,
    gather_for_loss,
    name_units,
    parallelism,
    whole_model,
)

if TYPE_CHECKING:
    from composer import Trainer
    from composer.core import Evaluator

    from itt_composer.models import IttForCausalLM
    from itt_composer.resume import Start


# Added to what a rank may take: a hanging one is named before the others give up waiting.
COLLECTIVE_MARGIN = 120.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the resolved recipe and stop.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option(ALLOW_CHANGES, help="Go on with a run whose recipe was another.")
    ] = False,
) -> None:
    """Train a model from a recipe."""
    end_with_launcher()
    with failures_told_once():
        recipe = load_recipe(recipe_file, overrides or ())
        if print_config:
            print(recipe_as_yaml(recipe), end="")
            return
        run = RunFolder(recipe)
        if run.is_finished():
            _say(f"{run.path} holds the finished run: nothing to do (delete it to train anew)")
            return
        _check_before_start(recipe, run)
        changed = run.check_resumable(allow_changes)
        run.check_writable()
        if is_first_rank():
            run.lock()
        if changed:
            _say(f"{run.path} goes on with changed settings: {describe(changed)}")
        train(recipe, run, has_new_end="train.max_duration" in changed)


def train(recipe: Recipe, run: RunFolder, has_new_end: bool = False) -> None:
    """Run a recipe to its end.

    Args:
        recipe: what to do.
        run: where.
        has_new_end: whether the run so far had another `train.max_duration`.

    Raises:
        UserError: the device the recipe asks for is not there, or cannot do what it asks; shards
            that cannot be had, do not fit or are damaged; an end that the run is past.
    """
    from composer.utils import dist, reproducibility

    from itt_composer.callbacks.preemption import EXIT_CODE, Preempted
    from itt_composer.data.prepare import prepare_shards
    from itt_composer.resume import find_start

    # The tokenizer travels with the shards and with `model/`, not with each checkpoint.
    logging.getLogger("composer.models.huggingface").setLevel(logging.ERROR)
    device = _device(recipe)
    # Composer asks for the node by this name, torchrun gives it by the other.
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    # Until there is something to save, at once: Composer's handler waits for Python's turn.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dist.initialize_dist(device, timeout=recipe.train.rank_timeout + COLLECTIVE_MARGIN)
    start = find_start(run)
    _tell_start(start)
    prepare_shards(recipe.data, recipe.model.vocab_size, recipe.train.global_batch_size)
    reproducibility.seed_all(recipe.seed)
    model = build_model(recipe)
    if recipe.init_from is not None and start.checkpoint is None:
        load_initial_weights(model, Path(recipe.init_from))
    trainer = build_trainer(recipe, run, model, device, start)
    elapsed = trainer.state.get_elapsed_duration()
    if has_new_end and elapsed is not None and elapsed > 1:
        raise UserError(
            f"train.max_duration={recipe.train.max_duration} is over after fewer batches than the "
            f"{start.batch:,} that {run.path} has gone through; give a longer one"
        )
    if dist.get_global_rank() == 0:
        run.write_recipe(start.batch)
        _announce(recipe, run, model, dist.get_world_size())
    if start.checkpoint is not None:
        _say(
            f"goes on after batch {start.batch:,} of {recipe.train.max_duration}, from "
            f"{start.checkpoint}"
        )
    if elapsed is not None and elapsed >= 1:
        trainer.eval()  # was killed between its last checkpoint and its summary
    else:
        try:
            trainer.fit()
        except Preempted as end:
            trainer.close()
            dist.barrier()  # a launcher kills the ranks that are left when the first one ends
            _say(f"ended by SIGTERM: {end}; the same command goes on from there")
            raise SystemExit(EXIT_CODE) from None
    losses = validation_losses(trainer)
    trained = whole_model(trainer.state.model)
    if trained is not None:
        save_results(recipe, run, trainer, trained, losses)
    trainer.close()


def build_model(recipe: Recipe) -> "IttForCausalLM":
    """The recipe's model with random weights."""
    from itt_composer.models import IttForCausalLM

    return IttForCausalLM(model_config(recipe))


def build_trainer(
    recipe: Recipe,
    run: RunFolder,
    model: "IttForCausalLM",
    device: str,
    start: "Start | None" = None,
) -> "Trainer":
    """Everything the recipe names, put together, at the place where the run starts."""
    import torch
    from composer import Trainer
    from composer.utils import dist

    from itt_composer.algorithms.threshold_estimate import ThresholdEstimate
    from itt_composer.callbacks.heartbeat import Heartbeat, Progress
    from itt_composer.callbacks.preemption import Preemption
    from itt_composer.callbacks.run_checkpoints import RunCheckpoints
    from itt_composer.callbacks.wandb_metrics import go_on_in_wandb
    from itt_composer.data.streams import build_dataloader
    from itt_composer.models.composer_model import ComposerItt
    from itt_composer.models.wrapping import checkpoint_activations, compile_layers
    from itt_composer.resume import ExactRandomState, find_start, fitting_checkpoint

    settings = recipe.train
    rows_per_rank = settings.global_batch_size // dist.get_world_size()
    microbatch_size = settings.microbatch_size
    if microbatch_size != "auto":
        microbatch_size = min(microbatch_size, rows_per_rank)
    checkpoint_activations(model, settings.activation_checkpointing)
    if settings.compile:
        compile_layers(model)
    name_units(model)
    sharding = parallelism(settings, device)
    composer_model = ComposerItt(model, settings.loss_chunk_tokens)
    algorithms = recipe.algorithms.build()
    if model.config.adaptive_routing:
        algorithms.append(ThresholdEstimate(calibration_rows=settings.calibration_rows))
    start = start or find_start(run)
    checkpoint = fitting_checkpoint(start, is_sharded=sharding is not None)
    preemption, progress = Preemption(), Progress()
    checkpoints = RunCheckpoints(
        run, settings.save_interval, settings.keep_checkpoints, start, preemption, progress
    )
    heartbeat = Heartbeat(settings.rank_timeout, progress)
    if "wandb" in recipe.loggers.named() and dist.get_global_rank() == 0:
        go_on_in_wandb(run.path)
    loader = build_dataloader(recipe.data, "train", settings.global_batch_size)
    trainer = Trainer(
        model=composer_model,
        train_dataloader=loader,
        eval_dataloader=build_evaluators(recipe),
        optimizers=recipe.optimizer.build(composer_model.parameters())[0],
        schedulers=recipe.scheduler.build()[0],
        algorithms=algorithms,
        callbacks=[*recipe.callbacks.build(), heartbeat, preemption, checkpoints],
        loggers=recipe.loggers.build(),
        run_name=recipe.run_name,
        seed=recipe.seed,
        device=device,
        precision=settings.precision,
        max_duration=epochs_as_batches(settings.max_duration, len(loader.dataloader)),  # type: ignore[arg-type]
        device_train_microbatch_size=microbatch_size,
        eval_interval=settings.eval_interval,
        eval_subset_num_batches=settings.eval_batches,
        load_path=str(checkpoint) if checkpoint else None,
        progress_bar=settings.progress_bar and sys.stderr.isatty(),
        parallelism_config=sharding,
    )
    gather_for_loss(model)
    extend_timeouts(trainer.state.device_mesh, settings.rank_timeout + COLLECTIVE_MARGIN)
    # Composer allows it: the routers' scores, and "fp32", would be rounded to ten bits.
    torch.backends.cuda.matmul.allow_tf32 = False
    trainer.state.callbacks.append(ExactRandomState(trainer))
    trainer.logger.log_hyperparameters(recipe_values(recipe))
    return trainer


def epochs_as_batches(duration: str, batches_per_epoch: int) -> str:
    """A length of training of which every batch is a share.

    Composer counts epochs when they are over, so that within one nothing seems to be done.
    """
    amount, unit = amount_and_unit(duration)
    return f"{int(amount) * batches_per_epoch}ba" if unit == "ep" else duration


def build_evaluators(recipe: Recipe) -> "list[Evaluator]":
    """Validation by the rule of training and, where there are routers, by their thresholds."""
    from composer.core import Evaluator

    from itt_composer.algorithms.threshold_estimate import BY_OWN_RULE, BY_THRESHOLD
    from itt_composer.data.streams import build_dataloader

    labels = [BY_OWN_RULE]
    if recipe.resolved_thinking().adaptive_routing:
        labels.append(BY_THRESHOLD)
    loader = build_dataloader(recipe.data, "validation", recipe.train.eval_batch_size)
    return [Evaluator(label=label, dataloader=loader) for label in labels]


def validation_losses(trainer: "Trainer") -> dict[str, float]:
    """Nats per token under each evaluator, as last measured; every rank must ask."""
    return {
        label: float(metrics["LanguageCrossEntropy"].compute())
        for label, metrics in trainer.state.eval_metrics.items()
    }


def save_results(
    recipe: Recipe,
    run: RunFolder,
    trainer: "Trainer",
    model: "IttForCausalLM",
    losses: dict[str, float],
) -> None:
    """Write `model/` and, as the mark of a finished run, `summary.json`."""
    from itt_composer.algorithms.threshold_estimate import BY_OWN_RULE, BY_THRESHOLD
    from itt_composer.flops import dense_parameters, thinking_parameters
    from itt_composer.model_folder import (
        Training,
        as_published,
        set_document_ends,
        write_model_folder,
    )

    timestamp = trainer.state.timestamp
    seconds = timestamp.total_wct.total_seconds()
    tokenizer = Path(recipe.data.local) / "tokenizer"
    manifest = read_manifest(recipe.data.local)
    set_document_ends(model, manifest["bos_id"], manifest["eos_id"])
    training = Training(
        run_name=recipe.run_name,
        batches=timestamp.batch.value,
        tokens=timestamp.token.value,
        validation_loss=losses[BY_OWN_RULE],
        loss_by_threshold=losses.get(BY_THRESHOLD),
        recipe=recipe_as_yaml(recipe),
    )
    published = as_published(model)
    card = training.card(published)
    write_model_folder(run.model, published, card, tokenizer if tokenizer.is_dir() else None)
    summary = {
        "run_name": recipe.run_name,
        "thinking": model.config.thinking,
        "thinking_steps": model.config.thinking_steps,
        "parameters": dense_parameters(model.config) + thinking_parameters(model.config),
        "thinking_parameters": thinking_parameters(model.config),
        "batches": training.batches,
        "tokens": training.tokens,
        "train_seconds": seconds,
        "tokens_per_second": timestamp.token.value / seconds,
        "validation_loss": training.validation_loss,
        "validation_loss_by_threshold": training.loss_by_threshold,
    }
    run.write_summary(summary)
    _say(f"finished: model in {run.model}, summary in {run.summary}")


def _check_before_start(recipe: Recipe, run: RunFolder) -> None:
    """What can be told without torch: local files, and batches that split over the ranks."""
    if recipe.init_from is not None and not run.has_checkpoint():
        check_initial_weights(recipe)
    if recipe.data.remote is None:
        try:
            check_shards(
                recipe.data.local,
                seq_len=recipe.data.seq_len,
                vocab_size=recipe.model.vocab_size,
                domains=recipe.data.domains,
                batch_size=recipe.train.global_batch_size,
                tokenizer=recipe.data.tokenizer,
            )
        except UserError as error:
            raise UserError(f"data.local={recipe.data.local}: {error}") from None
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    check_sharding(recipe.train, ranks, ranks_per_node)
    nodes = ranks // ranks_per_node
    parts, size = recipe.data.num_canonical_nodes, recipe.train.global_batch_size
    if size % parts or (parts % nodes and nodes % parts):
        raise UserError(
            f"data.num_canonical_nodes={parts} does not fit train.global_batch_size={size} on "
            f"{nodes} nodes; it must divide the first, and divide or be divided by the second"
        )
    for key in ("global_batch_size", "eval_batch_size"):
        size = getattr(recipe.train, key)
        if size % ranks:
            raise UserError(
                f"train.{key}={size} does not split over {ranks} ranks; change one (of a run that "
                f"has begun, with {ALLOW_CHANGES})"
            )


def _device(recipe: Recipe) -> str:
    import torch

    if recipe.train.device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "train.device=gpu, but torch finds no GPU here; use train.device=cpu "
            "train.precision=fp32 for a trial on a CPU"
        )
    device = recipe.train.device or ("gpu" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        for key, value in (("precision", "amp_bf16"), ("microbatch_size", "auto")):
            if getattr(recipe.train, key) == value:
                raise UserError(
                    f"train.{key}={value} needs a GPU; on a CPU set train.precision=fp32 and "
                    "train.microbatch_size to a number"
                )
    return device


def _announce(recipe: Recipe, run: RunFolder, model: "IttForCausalLM", ranks: int) -> None:
    from itt_composer.flops import dense_parameters, paper_tflops, thinking_parameters

    config = model.config
    kind = {"dense": "LLaMA", "loop": f"Loop×{config.thinking_steps}"}.get(
        config.thinking, f"ITT×{config.thinking_steps}"
    )
    flops_per_token = paper_tflops(config, recipe.data.seq_len) * 1e6 / recipe.data.seq_len
    if recipe.train.compile:
        _say("layers are compiled at their first batch, and at each level of annealing: minutes")
    _say(
        f"{recipe.run_name}: {kind}, {dense_parameters(config):,} parameters "
        f"+ {thinking_parameters(config):,} for thinking, {flops_per_token:.2f} MFLOPs per token "
        f"(the paper's count), {ranks} rank{'s' if ranks > 1 else ''}, run folder {run.path}"
    )


def _tell_start(start: "Start") -> None:
    for path in start.removed:
        _say(f"removed {path}: the run ended while it was saved")
    for path, reason in start.damaged.items():
        _say(f"warning: {path} is damaged ({reason}); taking the one before it")


def _say(text: str) -> None:
    if is_first_rank():
        print(text, flush=True)


if __name__ == "__main__":
    app()
