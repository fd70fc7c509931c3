"""A recipe, trained: everything it names is built, run to its end, and its results are written."""

import logging
import os
import warnings
from pathlib import Path

import torch
from composer import Trainer
from composer.core import Callback, Evaluator
from composer.utils import dist, reproducibility

from itt_composer.basics.errors import UserError
from itt_composer.basics.processes import StopSignals, exit_code, say
from itt_composer.data.manifest import Manifest
from itt_composer.data.prepare import prepare_shards
from itt_composer.data.streams import build_dataloader
from itt_composer.models import IttForCausalLM
from itt_composer.models.building import model_of_recipe
from itt_composer.models.composer_model import ComposerItt
from itt_composer.models.flops import dense_parameters, paper_tflops, thinking_parameters
from itt_composer.models.folder import Training, as_published, set_document_ends, write_model_folder
from itt_composer.models.wrapping import checkpoint_activations, compile_layers
from itt_composer.recipe.checks import of_the_device
from itt_composer.recipe.components import amount_and_unit
from itt_composer.recipe.schema import Recipe, recipe_as_yaml, recipe_values
from itt_composer.recipe.sections import TrainRecipe
from itt_composer.runs.folder import RunFolder
from itt_composer.runs.summary import RunSummary
from itt_composer.training.before_start import check_same_shards, digests_of
from itt_composer.training.checkpoint_saving import RunCheckpoints
from itt_composer.training.heartbeat import Heartbeat, Progress
from itt_composer.training.initial_weights import load_initial_weights
from itt_composer.training.preemption import Preempted, Preemption, going_on_after
from itt_composer.training.resume import (
    ExactRandomState,
    Start,
    find_start,
    fitting_checkpoint,
    use_own_settings,
)
from itt_composer.training.sharding import (
    extend_timeouts,
    finish_sharding,
    name_units,
    parallelism,
    whole_model,
)
from itt_composer.training.threshold_estimate import BY_OWN_RULE, BY_THRESHOLD, ThresholdEstimate
from itt_composer.training.training_run import TrainingRun
from itt_composer.training.watching.progress_bar import ProgressBar
from itt_composer.training.watching.wandb_metrics import go_on_in_wandb

# Added to what a rank may take: a hanging one is named before the others give up waiting.
COLLECTIVE_MARGIN = 120.0


def train(
    recipe: Recipe,
    run: TrainingRun,
    signals: StopSignals,
    has_new_end: bool = False,
    allow_changes: bool = False,
) -> None:
    """Run a recipe to its end.

    Args:
        recipe: what to do.
        run: where.
        signals: by which the run may be asked to end.
        has_new_end: whether the run so far had another `train.max_duration`.
        allow_changes: go on with other shards than the run so far.

    Raises:
        UserError: the device the recipe asks for is not there, or cannot do what it asks; shards
            that cannot be had, do not fit or are damaged; an end that the run is past.
    """
    _silence_composer()
    device = device_of(recipe)
    # Composer asks for the node by this name, torchrun gives it by the other.
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    signals.take()
    dist.initialize_dist(device, timeout=recipe.train.rank_timeout + COLLECTIVE_MARGIN)
    start = find_start(run)
    signals.at_once = going_on_after(start.batch)
    _say_start(start)
    prepare_shards(recipe.data, recipe.model.vocab_size, recipe.train.global_batch_size)
    if recipe.data.remote is not None:  # known by now
        check_same_shards(recipe, run, allow_changes)
    reproducibility.seed_all(recipe.seed)
    model = model_of_recipe(recipe)
    if recipe.init_from is not None and start.checkpoint is None:
        load_initial_weights(model, Path(recipe.init_from))
    trainer = build_trainer(recipe, run, model, device, start, signals)
    share_done = trainer.state.get_elapsed_duration() or 0.0
    if has_new_end and share_done > 1:
        raise UserError(
            f"train.max_duration={recipe.train.max_duration} is over after fewer batches than the "
            f"{start.batch:,} that {run.path} has gone through; give a longer one"
        )
    if dist.get_global_rank() == 0:
        run.write_recipe(start.batch)
        run.write_shards(digests_of(recipe), start.batch)
        _announce(recipe, run, model, start)
    if share_done >= 1:
        trainer.eval()  # was killed between its last checkpoint and its summary
    else:
        _fit(trainer)
    losses = validation_losses(trainer)
    trained = whole_model(trainer.state.model)
    if trained is not None:
        save_results(recipe, run, trainer, trained, losses)
    trainer.close()


def _silence_composer() -> None:
    # The tokenizer travels with the shards and with `model/`, not with each checkpoint.
    logging.getLogger("composer.models.huggingface").setLevel(logging.ERROR)
    # It is about the last batch of an evaluation, which may be a small one.
    warnings.filterwarnings("ignore", "Cannot split tensor of length", UserWarning)


def _fit(trainer: "Trainer") -> None:
    """Train to the end.

    Raises:
        SystemExit: a signal has ended it early, with a checkpoint.
    """
    try:
        trainer.fit()
    except Preempted as end:
        trainer.close()
        dist.barrier()  # a launcher kills the ranks that are left when the first one ends
        say(str(end))
        raise SystemExit(exit_code(end.by)) from None


def device_of(recipe: Recipe) -> str:
    """Return the device ("cpu" or "gpu") that the recipe asks for, or that there is.

    Raises:
        UserError: there is no GPU, or a CPU cannot do what the recipe asks for.
    """

    if recipe.train.device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "train.device=gpu, but torch finds no GPU here; use train.device=cpu "
            "train.precision=fp32 for a trial on a CPU"
        )
    device = recipe.train.device or ("gpu" if torch.cuda.is_available() else "cpu")
    mistakes = [str(error) for error in of_the_device(recipe)] if device == "cpu" else []
    if mistakes:
        raise UserError("\n".join(mistakes))
    return device


def build_trainer(
    recipe: Recipe,
    run: RunFolder,
    model: "IttForCausalLM",
    device: str,
    start: "Start | None" = None,
    signals: StopSignals | None = None,
) -> "Trainer":
    """Put together everything that the recipe names, at the place where the run starts."""
    # No warm-up, and a component that the checkpoint does not know: both as the recipe wants it.
    warnings.filterwarnings("ignore", r"The warmup duration is 0", UserWarning)
    warnings.filterwarnings("ignore", r".* is not in the state_dict\. Its state", UserWarning)
    settings = recipe.train
    rows_per_rank = settings.global_batch_size // dist.get_world_size()
    microbatch_size = settings.microbatch_size
    if microbatch_size != "auto":
        microbatch_size = min(microbatch_size, rows_per_rank)
    _wrap(model, settings)
    sharding = parallelism(settings)
    composer_model = ComposerItt(model, settings.loss_chunk_tokens)
    algorithms = recipe.algorithms.build()
    if model.config.adaptive_routing:
        algorithms.append(ThresholdEstimate(calibration_rows=settings.calibration_rows))
    start = start or find_start(run)
    checkpoint = fitting_checkpoint(start, is_sharded=sharding is not None)
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
        callbacks=_callbacks(recipe, run, start, signals or StopSignals()),
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
        progress_bar=False,  # Composer's dumps its configuration, and tears lines
        parallelism_config=sharding,
    )
    if checkpoint is not None:
        use_own_settings(trainer.state)
    finish_sharding(model, device)
    extend_timeouts(trainer.state.device_mesh, settings.rank_timeout + COLLECTIVE_MARGIN)
    # Composer allows it: the routers' scores, and "fp32", would be rounded to ten bits.
    torch.backends.cuda.matmul.allow_tf32 = False
    trainer.state.callbacks.append(ExactRandomState(trainer))
    trainer.logger.log_hyperparameters(recipe_values(recipe))
    return trainer


def _wrap(model: "IttForCausalLM", settings: TrainRecipe) -> None:
    """Put around the layers what the recipe asks for."""
    checkpoint_activations(model, settings.activation_checkpointing)
    if settings.compile:
        compile_layers(model)
    name_units(model)


def _callbacks(
    recipe: Recipe, run: RunFolder, start: Start, signals: StopSignals
) -> list[Callback]:
    """Return the recipe's callbacks, and those that every run has."""
    settings = recipe.train
    preemption, progress = Preemption(signals), Progress()
    checkpoints = RunCheckpoints(
        run, settings.save_interval, settings.keep_checkpoints, start, preemption, progress
    )
    bars = [ProgressBar()] if settings.progress_bar else []
    heartbeat = Heartbeat(settings.rank_timeout, progress)
    return [*bars, *recipe.callbacks.build(), heartbeat, preemption, checkpoints]


def epochs_as_batches(duration: str, batches_per_epoch: int) -> str:
    """Return a length of training of which every batch is a share.

    Composer counts epochs when they are over, so that within one nothing seems to be done.
    """
    amount, unit = amount_and_unit(duration)
    return f"{int(amount) * batches_per_epoch}ba" if unit == "ep" else duration


def build_evaluators(recipe: Recipe) -> "list[Evaluator]":
    """Build validation by the rule of training and, where there are routers, by thresholds."""

    labels = [BY_OWN_RULE]
    if recipe.resolved_thinking().adaptive_routing:
        labels.append(BY_THRESHOLD)
    loader = build_dataloader(recipe.data, "validation", recipe.train.eval_batch_size)
    return [Evaluator(label=label, dataloader=loader) for label in labels]


def validation_losses(trainer: "Trainer") -> dict[str, float]:
    """Return nats per token under each evaluator, as last measured; every rank must ask."""
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
    timestamp = trainer.state.timestamp
    tokenizer = Path(recipe.data.local) / "tokenizer"
    manifest = Manifest.read(recipe.data.local)
    set_document_ends(model, manifest.bos_id, manifest.eos_id)
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
    config = model.config
    summary = RunSummary(
        run_name=recipe.run_name,
        thinking=config.thinking,
        thinking_steps=config.thinking_steps,
        parameters=dense_parameters(config) + thinking_parameters(config),
        thinking_parameters=thinking_parameters(config),
        batches=training.batches,
        tokens=training.tokens,
        train_seconds=timestamp.total_wct.total_seconds(),
        validation_loss=losses[BY_OWN_RULE],
        validation_loss_by_threshold=training.loss_by_threshold,
    )
    summary.write(run.summary_file)
    say(f"finished: model in {run.model}, summary in {run.summary_file}")


def _announce(recipe: Recipe, run: RunFolder, model: "IttForCausalLM", start: "Start") -> None:
    config, ranks = model.config, dist.get_world_size()
    kind = {"dense": "LLaMA", "loop": f"Loop×{config.thinking_steps}"}.get(
        config.thinking, f"ITT×{config.thinking_steps}"
    )
    flops_per_token = paper_tflops(config, recipe.data.seq_len) * 1e6 / recipe.data.seq_len
    if recipe.train.compile:
        say("layers are compiled at their first batch, and at each level of annealing: minutes")
    say(
        f"{recipe.run_name}: {kind}, {dense_parameters(config):,} parameters "
        f"+ {thinking_parameters(config):,} for thinking, {flops_per_token:.2f} MFLOPs per token "
        f"(the paper's count), {ranks} rank{'s' if ranks > 1 else ''}, run folder {run.path}"
    )
    if start.checkpoint is not None:
        say(
            f"goes on after batch {start.batch:,} of {recipe.train.max_duration}, from "
            f"{start.checkpoint}"
        )


def _say_start(start: "Start") -> None:
    for path in start.removed:
        say(f"removed {path}: the run ended while it was saved")
    for path, reason in start.damaged.items():
        say(f"warning: {path} is damaged ({reason}); taking the one before it")
