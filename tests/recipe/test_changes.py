"""Every key of a recipe: a resumed run follows its new value, or refuses it by name."""

import inspect
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import yaml
from composer.core import Event, Time
from small_recipe import RECIPE

from itt_composer.basics.errors import UserError
from itt_composer.models.composer_model import unwrap
from itt_composer.recipe.changes import UNSET, impossible, is_free, when_resumed, why_fixed
from itt_composer.recipe.fields import ON_REQUEST
from itt_composer.recipe.reference import Key, recipe_keys
from itt_composer.recipe.schema import Recipe, load_recipe, recipe_values
from itt_composer.training.training_run import TrainingRun

BATCHES = 3


def names_of(keys: Iterable[Key]) -> Iterator[str]:
    """Every key but the parts; of a component without settings its name."""
    for key in keys:
        if key.name != "parts":
            yield from names_of(key.keys) if key.keys else [key.name]


KEYS = list(names_of(recipe_keys()))
FIXED = [key for key in KEYS if why_fixed(key)]

# Settings that no resumed trainer shows: no checkpoint holds them, and each start reads them anew.
READ_AT_EACH_START = {
    "data.seq_len": "the shards must have it: test_shards.py",
    "data.tokenizer": "the shards must have it: test_shards.py",
    "train.autoresume": "test_run_folder.py",
    "train.progress_bar": "on a terminal",
    "train.device": "test_train.py",
    "train.sharding": "of several ranks: test_sharding.py",
    **{f"callbacks.lm_eval.{name}": "test_task_evaluation.py" for name in (
        "suite", "eval_interval", "only", "limit", "data_dir", "tokenizer"
    )},
    **{f"loggers.wandb.{name}": "test_wandb_metrics.py" for name in (
        "project", "group", "entity", "tags"
    )},
}  # fmt: skip


def component(trainer: Any, name: str) -> Any:
    """An algorithm, a callback or a logger by the name of its class."""
    state = trainer.state
    parts = [*state.algorithms, *state.callbacks, *trainer.logger.destinations]
    return next(part for part in parts if type(part).__name__ == name)


def interval_of(is_due: Any, trainer: Any, event: Event) -> str:
    """The first batch at which something is due, as a time string."""
    state = trainer.state
    now, before = state.timestamp, state.previous_timestamp
    try:
        for batch in range(1, 20):
            state.previous_timestamp = now.copy(batch=batch - 1)
            state.timestamp = now.copy(batch=batch)
            if is_due(state, event):
                return f"{batch}ba"
        return "never"
    finally:
        state.timestamp, state.previous_timestamp = now, before


def config(trainer: Any) -> Any:
    return unwrap(trainer.state.model).config


def dataset(trainer: Any) -> Any:
    return trainer.state.train_dataloader.dataset


def group(trainer: Any) -> dict[str, Any]:
    return trainer.state.optimizers[0].param_groups[0]


def schedule(trainer: Any) -> Any:
    (factor,) = trainer.state.schedulers[0].lr_lambdas
    return inspect.getclosurevars(factor).nonlocals["scheduler"]


def evaluator(trainer: Any) -> Any:
    return trainer.state.evaluators[0]


def shares(trainer: Any) -> dict[str, float]:
    streams = dataset(trainer).streams
    return {
        name: round(stream.proportion * 4, 9)
        for name, stream in zip(dataset(trainer).domains, streams, strict=True)
    }


def from_config(*names: str) -> dict[str, Any]:
    def field(key: str) -> Any:
        return lambda t: config(t).to_dict()[key.rpartition(".")[2]]

    return {name: field(name) for name in names}


def from_component(prefix: str, cls: str, *names: str) -> dict[str, Any]:
    return {
        f"{prefix}.{name}": lambda t, name=name: getattr(component(t, cls), name) for name in names
    }


# What a resumed trainer goes on with, by key, in the recipe's own form.
FOLLOWED: dict[str, Any] = {
    "run_name": lambda t: t.state.run_name,
    "run_folder": lambda t: t.state.load_path.partition("/checkpoints")[0],
    **from_config("model.max_position_embeddings", "model.rope_theta"),
    "model.rope_scaling": lambda t: {
        name: config(t).rope_scaling[name] for name in ("rope_type", "factor")
    },
    "model.rms_norm_eps": lambda t: unwrap(t.state.model).model.norm.variance_epsilon,
    "model.attn_implementation": lambda t: config(t)._attn_implementation,
    **from_config(*(key for key in KEYS if key.startswith("thinking.") and key not in FIXED)),
    "data.local": lambda t: dataset(t).streams[0].local.partition("/train/")[0],
    "data.remote": lambda t: dataset(t).streams[0].remote.partition("/train/")[0],
    "data.domains": shares,
    "data.validate_hash": lambda t: dataset(t).streams[0].validate_hash is not None,
    "data.shuffle_seed": lambda t: dataset(t).shuffle_seed,
    "data.shuffle_algo": lambda t: dataset(t).shuffle_algo,
    "data.shuffle_block_size": lambda t: dataset(t).shuffle_block_size,
    "data.num_canonical_nodes": lambda t: dataset(t).num_canonical_nodes,
    "data.num_workers": lambda t: t.state.train_dataloader.num_workers,
    "data.predownload": lambda t: dataset(t).predownload,
    "data.cache_limit": lambda t: f"{dataset(t).cache_limit >> 20}mb",
    "data.download_retry": lambda t: dataset(t).streams[0].download_retry,
    "data.download_timeout": lambda t: dataset(t).streams[0].download_timeout,
    "data.worker_timeout": lambda t: t.state.train_dataloader._patience,
    "train.max_duration": lambda t: t.state.max_duration.to_timestring(),
    "train.global_batch_size": lambda t: t.state.train_dataloader.batch_size,
    "train.microbatch_size": lambda t: t.state.device_train_microbatch_size,
    "train.precision": lambda t: t.state.precision.value,
    "train.eval_interval": lambda t: interval_of(evaluator(t).eval_interval, t, Event.BATCH_END),
    "train.eval_batches": lambda t: evaluator(t).subset_num_batches,
    "train.eval_batch_size": lambda t: evaluator(t).dataloader.dataloader.batch_size,
    "train.calibration_rows": lambda t: component(t, "ThresholdEstimate").calibration_rows,
    "train.save_interval": lambda t: interval_of(
        component(t, "RunCheckpoints").save_interval, t, Event.BATCH_CHECKPOINT
    ),
    "train.keep_checkpoints": lambda t: component(t, "RunCheckpoints")._keep,
    "train.rank_timeout": lambda t: component(t, "Heartbeat")._timeout,
    "train.activation_checkpointing": lambda t: {"RecomputedSteps": "thinking_steps"}.get(
        type(unwrap(t.state.model).model.layers[1]).__name__
    ),
    "train.compile": lambda t: hasattr(
        unwrap(t.state.model).chunk_loss, "_torchdynamo_orig_callable"
    ),
    "train.loss_chunk_tokens": lambda t: t.state.model.loss_chunk_tokens,
    "optimizer.decoupled_adamw.lr": lambda t: group(t)["initial_lr"],
    **{
        f"optimizer.decoupled_adamw.{name}": lambda t, name=name: group(t)[name]
        for name in ("eps", "weight_decay")
    },
    "optimizer.decoupled_adamw.betas": lambda t: list(group(t)["betas"]),
    "scheduler.cosine_with_warmup.t_warmup": lambda t: schedule(t).t_warmup,
    "scheduler.cosine_with_warmup.alpha_f": lambda t: schedule(t).alpha_f,
    **from_component(
        "algorithms.gradient_clipping", "GradientClipping", "clipping_type", "clipping_threshold"
    ),
    **from_component(
        *("algorithms.capacity_annealing", "CapacityAnnealing", "start_ratio", "target_ratio"),
        *("start_temperature", "end_temperature", "shape", "levels"),
    ),
    "algorithms.capacity_annealing.duration": lambda t: component(
        t, "CapacityAnnealing"
    ).duration.to_timestring(),
    **from_component(
        *("algorithms.loss_guard", "LossGuard", "on_nan", "on_spike", "spike_nats"),
        *("spike_deviations", "window", "max_skips"),
    ),
    "callbacks.console_lines.interval": lambda t: interval_of(
        component(t, "ConsoleLines")._is_due, t, Event.BATCH_END
    ),
    "callbacks.domain_shares.interval": lambda t: interval_of(
        component(t, "DomainShares")._is_due, t, Event.BATCH_END
    ),
    **{
        f"callbacks.{name}.interval": lambda t, cls=cls: f"{component(t, cls)._interval.batches}ba"
        for name, cls in (
            ("thinking_stats", "ThinkingStats"),
            ("gradient_norms", "GradientNorms"),
            ("gradient_nuclear_norm", "GradientNuclearNorm"),
        )
    },
    "callbacks.speed_monitor.window_size": lambda t: (
        component(t, "SpeedMonitor").history_wct.maxlen - 1
    ),
    **from_component("callbacks.speed_monitor", "SpeedMonitor", "gpu_flops_available"),
    **{
        f"callbacks.{name}": lambda t, cls=cls: {} if component(t, cls) else None
        for name, cls in (
            ("runtime_estimator", "RuntimeEstimator"),
            ("lr_monitor", "LRMonitor"),
            ("memory_monitor", "MemoryMonitor"),
        )
    },
    "loggers.json_lines.path": lambda t: str(component(t, "JsonLinesLogger").path),
    **from_component("loggers.tensorboard", "TensorboardLogger", "log_dir", "flush_interval"),
}

BEFORE = """\
thinking.router_norm=tanh
thinking.thinking_update=increment
thinking.residual_thinking=true
data.domains={code: 1, prose: 1}
data.num_workers=1
optimizer.decoupled_adamw.weight_decay=0.001
train.eval_interval=100ba
train.calibration_rows=4
train.save_interval=100ba
algorithms.gradient_clipping={}
algorithms.capacity_annealing={target_ratio: 1.0}
algorithms.loss_guard={}
callbacks.speed_monitor={}
"""
# Every changeable key at once, but for `run_folder`, `data.local` and the paths of loggers.
AFTER = """\
run_name=other
model.max_position_embeddings=64
model.rope_theta=5000.0
model.rope_scaling={rope_type: linear, factor: 2.0}
model.rms_norm_eps=1.0e-6
model.attn_implementation=eager
thinking.select_ratios=[0.25, 0.75]
thinking.router_norm=sigmoid
thinking.router_selection=top_p
thinking.reweighting=symmetric
thinking.residual_thinking=false
thinking.thinking_update=output
thinking.early_exit=0.125
data.domains={code: 1, prose: 3}
data.validate_hash=false
data.shuffle_seed=3
data.shuffle_algo=naive
data.shuffle_block_size=64
data.num_canonical_nodes=2
data.num_workers=0
data.predownload=5
data.cache_limit=64mb
data.download_retry=3
data.download_timeout=7.0
data.worker_timeout=9.0
train.max_duration=40ba
train.global_batch_size=6
train.microbatch_size=2
train.device=gpu
train.precision=amp_bf16
train.eval_interval=6ba
train.eval_batches=1
train.eval_batch_size=2
train.calibration_rows=6
train.save_interval=7ba
train.keep_checkpoints=1
train.rank_timeout=99.0
train.activation_checkpointing=thinking_steps
train.compile=true
train.loss_chunk_tokens=16
optimizer.decoupled_adamw.lr=1.0e-5
optimizer.decoupled_adamw.betas=[0.8, 0.9]
optimizer.decoupled_adamw.eps=1.0e-6
optimizer.decoupled_adamw.weight_decay=0.0005
scheduler.cosine_with_warmup.t_warmup=0.5dur
scheduler.cosine_with_warmup.alpha_f=0.5
algorithms.gradient_clipping.clipping_type=value
algorithms.gradient_clipping.clipping_threshold=0.5
algorithms.capacity_annealing.start_ratio=0.2
algorithms.capacity_annealing.target_ratio=0.9
algorithms.capacity_annealing.start_temperature=3.0
algorithms.capacity_annealing.end_temperature=1.5
algorithms.capacity_annealing.duration=20ba
algorithms.capacity_annealing.shape=cosine
algorithms.capacity_annealing.levels=4
algorithms.loss_guard.on_nan=skip
algorithms.loss_guard.on_spike=skip
algorithms.loss_guard.spike_nats=0.25
algorithms.loss_guard.spike_deviations=3.0
algorithms.loss_guard.window=50
algorithms.loss_guard.max_skips=3
callbacks.console_lines={interval: 4ba}
callbacks.domain_shares={interval: 8ba}
callbacks.thinking_stats={interval: 9ba}
callbacks.gradient_norms={interval: 9ba}
callbacks.gradient_nuclear_norm={interval: 9ba}
callbacks.speed_monitor={window_size: 7, gpu_flops_available: 5.0}
callbacks.runtime_estimator={}
callbacks.lr_monitor={}
callbacks.memory_monitor={}
"""


@pytest.fixture(scope="module")
def begun(shards, tmp_path_factory):
    """A run that has saved its third batch: its folder, its recipe's file and settings."""
    from itt_composer.models.building import model_of_recipe
    from itt_composer.training.train import build_trainer

    folder = tmp_path_factory.mktemp("begun")
    file = folder / "recipe.yaml"
    file.write_text(RECIPE)
    given = [*BEFORE.splitlines(), f"data.local={shards}", f"run_folder={folder / 'run'}"]
    recipe = load_recipe(file, [*given, f"train.max_duration={BATCHES}ba"])
    run = TrainingRun(recipe)
    trainer = build_trainer(recipe, run, model_of_recipe(recipe), "cpu")
    trainer.fit()
    trainer.close()
    run.write_recipe()
    return folder, file, given


@pytest.fixture(scope="module")
def resumed(begun, shards, tmp_path_factory):
    """The trainer that goes on with another value of every key, that recipe, and the one before."""
    from itt_composer.models.building import model_of_recipe
    from itt_composer.training.train import build_trainer

    folder, file, given = begun
    moved = shutil.copytree(folder / "run", tmp_path_factory.mktemp("moved") / "run")
    copied = shutil.copytree(shards, tmp_path_factory.mktemp("copied") / "shards")
    places = [f"run_folder={moved}", f"data.local={copied}", f"data.remote={shards}"]
    loggers = [f"loggers.json_lines.path={moved / 'other.jsonl'}"]
    loggers += [f"loggers.tensorboard={{log_dir: {moved / 'board'}, flush_interval: 7}}"]
    recipe = load_recipe(file, [*given, *places, *loggers, *AFTER.splitlines()])
    run = TrainingRun(recipe)
    run.check_resumable(allow_changes=True)
    with pytest.MonkeyPatch.context() as patch:
        # Composer would refuse mixed precision on a CPU.
        patch.setattr(
            "composer.trainer.trainer._validate_precision", lambda precision, device: None
        )
        trainer = build_trainer(recipe, run, model_of_recipe(recipe), "cpu")
    assert trainer.state.timestamp.batch == BATCHES
    rows = next(iter(trainer.state.train_dataloader))
    yield trainer, recipe, load_recipe(file, given), rows
    trainer.close()


def value_at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe_values(recipe)
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def test_every_key_of_a_recipe_is_free_or_changeable_or_fixed_and_tested_so():
    for key in KEYS:
        on_request = when_resumed(key) == ON_REQUEST
        assert is_free(key) + on_request + (key in FIXED) == 1, key
        assert (key in FIXED) + (key in FOLLOWED) + (key in READ_AT_EACH_START) == 1, key
    assert set(KEYS) == {*FIXED, *FOLLOWED, *READ_AT_EACH_START}


@pytest.mark.parametrize("key", FOLLOWED)
def test_a_resumed_run_goes_on_with_the_new_value(resumed, key):
    trainer, recipe, before, _ = resumed
    wanted = value_at(recipe, key)
    assert wanted != value_at(before, key)
    assert FOLLOWED[key](trainer) == wanted


def test_a_changed_order_of_rows_is_gone_on_with_where_the_old_one_was(resumed):
    from itt_composer.data.streams import build_dataset

    _, recipe, _, rows = resumed
    fresh = [(row["domain"], row["row"]) for row in build_dataset(recipe.data, "train", 6)]
    drawn = list(zip(rows["domain"].tolist(), rows["row"].tolist(), strict=True))
    assert drawn == fresh[4 * BATCHES : 4 * BATCHES + 6]


def test_the_learning_rate_is_the_new_one_from_the_first_batch_on(resumed):
    trainer = resumed[0]
    # Half of 40 batches is warm-up; the rate in force is that after two batches.
    rate = 1e-5 * (BATCHES - 1) / 20
    assert group(trainer)["lr"] == pytest.approx(rate)
    assert trainer.state.schedulers[0].base_lrs == [1e-5]
    assert trainer.state.timestamp.sample == 4 * BATCHES


OTHER_VALUES = {bool: lambda old: not old, int: lambda old: old + 1, float: lambda old: old + 0.5}


def test_a_key_of_another_version_is_a_difference_like_others():
    assert impossible({"train.former_key": (3, UNSET)}) == {}
    assert not is_free("train.former_key")


@pytest.mark.parametrize("key", FIXED)
def test_what_a_begun_run_cannot_follow_is_refused_by_name(begun, key):
    _, file, given = begun
    recipe = load_recipe(file, given)
    run = TrainingRun(recipe)
    saved = run.recipe_file.read_text()
    values = yaml.safe_load(saved)
    *groups, name = key.split(".")
    place = values
    for step in groups:
        place = place[step]
    old = place.get(name)
    place[name] = OTHER_VALUES.get(type(old), lambda old: "other")(old)
    run.recipe_file.write_text(yaml.safe_dump(values))
    try:
        for allow_changes in (True, False):
            with pytest.raises(UserError) as caught:
                run.check_resumable(allow_changes)
            sentence = str(caught.value)
            assert f"cannot follow {key} {place[name]} → " in sentence
            assert sentence.endswith("delete the folder to train anew")
            assert "--allow-changes" not in sentence
    finally:
        run.recipe_file.write_text(saved)


def test_annealing_is_not_taken_out_of_a_begun_run_and_may_be_before_its_first_checkpoint(begun):
    folder, file, given = begun
    without = load_recipe(file, [*given, "algorithms.capacity_annealing=null"])
    with pytest.raises(UserError, match=r"start_temperature 2\.0 → unset \(the routers' temp"):
        TrainingRun(without).check_resumable(allow_changes=True)
    checkpoints = folder / "run" / "checkpoints"
    hidden = checkpoints.rename(folder / "hidden")
    try:
        assert TrainingRun(without).check_resumable(allow_changes=True)
    finally:
        hidden.rename(checkpoints)


def test_rows_past_the_end_of_a_shorter_epoch_are_refused_in_a_sentence(resumed):
    rows = dataset(resumed[0])
    state = {"epoch": 0, "sample_in_epoch": 10**6}
    with pytest.raises(UserError, match=r"has gone through 1,000,000 rows of an epoch, which now"):
        rows.load_state_dict(state)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_any_optimizer_goes_on_with_its_own_settings(cls):
    """As of a package that registers another one."""
    from types import SimpleNamespace

    from composer.core import Timestamp
    from torch.optim.lr_scheduler import LambdaLR

    from itt_composer.training.resume import use_own_settings

    weight = torch.nn.Parameter(torch.ones(2))

    def build(**settings):
        optimizer = cls([weight], **settings)
        return optimizer, LambdaLR(optimizer, lambda epoch: 0.5)

    (old, old_schedule), (new, schedule) = build(lr=1.0, weight_decay=0.1), build(lr=0.5)
    new.load_state_dict(old.state_dict())
    schedule.load_state_dict(old_schedule.state_dict())
    assert new.param_groups[0]["lr"] == 0.5
    timestamp = Timestamp(batch=4, sample=Time.from_input("8sp"))
    state = SimpleNamespace(optimizers=[new], schedulers=[schedule], timestamp=timestamp)
    use_own_settings(state)
    assert new.param_groups[0]["lr"] == 0.25
    assert new.param_groups[0]["weight_decay"] == new.defaults["weight_decay"]
    assert state.timestamp is timestamp
