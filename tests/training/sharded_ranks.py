"""What a rank of a sharded run sees, for `test_sharding.py`: rank 0 writes it to OUT as JSON.

fork_server.run("sharded_ranks.py", RECIPE, OUT, KEY=VALUE…, ranks=2)
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from composer.algorithms.gradient_clipping import apply_gradient_clipping
from composer.core import Event
from composer.core.precision import Precision
from composer.distributed.fsdp2 import prepare_fully_shard
from composer.distributed.fsdp2_utils import generate_composer_model_policy
from composer.utils import dist, reproducibility
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile

from itt_composer.models.building import model_of_recipe
from itt_composer.models.composer_model import ComposerItt, unwrap
from itt_composer.models.wrapping import checkpoint_activations
from itt_composer.recipe.schema import Recipe, load_recipe
from itt_composer.training.loss_guard import LossGuard, all_finite
from itt_composer.training.sharding import (
    finish_sharding,
    name_units,
    parallelism,
    whole_model,
)

KINDS = {
    "dense": [
        "thinking={thinking: dense, thinking_steps: 1, select_ratios: null}",
        "algorithms.capacity_annealing=null",
    ],
    "itt": [],
}
THRESHOLD = 0.05


def build(recipe: Recipe) -> ComposerItt:
    reproducibility.seed_all(recipe.seed)
    return ComposerItt(model_of_recipe(recipe))


def shard(recipe: Recipe, precision: Precision) -> ComposerItt:
    """As Composer does it for this recipe."""
    composer_model = build(recipe)
    model = unwrap(composer_model)
    checkpoint_activations(model, recipe.train.activation_checkpointing)
    name_units(model)
    config = parallelism(recipe.train)["fsdp"]
    config.device_mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = generate_composer_model_policy(composer_model)
    prepare_fully_shard(composer_model, config, precision, policy)
    finish_sharding(model, "cpu")
    return composer_model


def batch_of(recipe: Recipe, rows: slice) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(recipe.model.vocab_size, (4, recipe.data.seq_len), generator=generator)
    return {"input_ids": ids[rows], "labels": ids[rows]}


def own_rows() -> slice:
    return slice(2 * dist.get_global_rank(), 2 * dist.get_global_rank() + 2)


def gathers(recipe: Recipe) -> list[int]:
    """Gatherings of weights in a forward and in a backward pass."""
    model = shard(recipe, Precision.FP32)
    rows = batch_of(recipe, own_rows())
    with profile(activities=[ProfilerActivity.CPU]) as forward:
        loss = model(rows).loss
    with profile(activities=[ProfilerActivity.CPU]) as backward:
        loss.backward()
    return [
        sum(event.count for event in seen.key_averages() if event.key == "c10d::_allgather_base_")
        for seen in (forward, backward)
    ]


def clipping(recipe: Recipe) -> dict[str, float]:
    """Norm of the clipped gradients, and largest differences from those of one process."""
    sharded, plain = shard(recipe, Precision.FP32), build(recipe)
    for model, rows in ((sharded, own_rows()), (plain, slice(4))):
        model(batch_of(recipe, rows)).loss.backward()
    before = largest_difference(sharded, plain)
    for model in (sharded, plain):
        apply_gradient_clipping(model, "norm", THRESHOLD, fsdp_enabled=False)
    gradients = [weight.grad.full_tensor().flatten() for weight in sharded.parameters()]
    return {
        "norm": torch.cat(gradients).norm().item(),
        "difference_before": before,
        "difference": largest_difference(sharded, plain),
    }


def largest_difference(sharded: ComposerItt, plain: ComposerItt) -> float:
    """Of any gradient."""
    expected = {name: weight.grad for name, weight in plain.named_parameters()}
    differences = [
        (weight.grad.full_tensor() - expected[name]).abs().max()
        for name, weight in sharded.named_parameters()
    ]
    return torch.stack(differences).max().item()  # NaN stays NaN, which Python's `max` passes over


def tied(recipe: Recipe) -> dict[str, Any]:
    """With one weight at both ends: the gradients, and the weights that are gathered."""
    sharded, plain = shard(recipe, Precision.FP32), build(recipe)
    for model, rows in ((sharded, own_rows()), (plain, slice(4))):
        model(batch_of(recipe, rows)).loss.backward()
    seen = {"gradient": largest_difference(sharded, plain)}
    whole = whole_model(sharded)
    if whole is not None:
        assert whole.lm_head.weight is whole.model.embed_tokens.weight
        weights = unwrap(plain).state_dict()
        seen["is_whole"] = all(
            torch.equal(weight, weights[name])
            for name, weight in whole.state_dict().items()
            if not name.endswith("score_quantiles")  # not measured yet: NaN
        )
    return seen


def skipped(recipe: Recipe) -> dict[str, list]:
    """Of each rank, whether it finds its part of the gradients finite, and what it then skips."""
    model = shard(recipe, Precision.FP32)
    batch = {
        **batch_of(recipe, own_rows()),
        "domain": torch.zeros(2, dtype=torch.int64),
        "row": torch.arange(2),
    }
    loss = model(batch).loss
    loss.backward()
    state = SimpleNamespace(
        model=model,
        loss=loss,
        batch=batch,
        timestamp=SimpleNamespace(batch=SimpleNamespace(value=0)),
        dataloader=SimpleNamespace(dataset=SimpleNamespace(domains=["prose"])),
        optimizers=[],
    )
    counts = {}
    for what in ("whole", "broken on rank 1"):
        if what != "whole" and dist.get_global_rank() == 1:
            next(model.parameters()).grad.to_local()[0] = torch.nan
        guard = LossGuard(on_nan="skip")
        for event in (Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH):
            guard.apply(event, state, mock.Mock())
        own_part = all_finite(weight.grad for weight in model.parameters())
        counts[what] = dist.all_gather_object((own_part, guard.skipped))
    return counts


def mixed_precision(recipe: Recipe) -> dict[str, Any]:
    """Types at work under bfloat16, and the loss beside that of an unsharded model."""
    sharded, plain = shard(recipe, Precision.AMP_BF16), build(recipe)
    layer, seen = unwrap(sharded).thinking_layers[0], {}
    projection = layer.mlp.down_proj
    projection.register_forward_pre_hook(
        lambda module, _: seen.update(gathered=str(module.weight.dtype))
    )
    with unwrap(sharded).watching(lambda done: seen.update(scores=str(done.scores_BS.dtype))):
        losses = []
        for model in (sharded, plain):
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(model(batch_of(recipe, own_rows())).loss)
    losses[0].backward()
    weight = layer.mlp.down_proj.weight
    seen.update(kept=str(weight.dtype), gradient=str(weight.grad.dtype))
    return {**seen, "losses": [loss.item() for loss in losses]}


def main() -> None:
    file, out, *overrides = sys.argv[1:]
    dist.initialize_dist("cpu")
    seen: dict[str, Any] = {"gathers": {}}
    for kind, keys in KINDS.items():
        for which in ("none", "all"):
            keys_of_both = [*overrides, *keys, f"train.activation_checkpointing={which}"]
            seen["gathers"][f"{kind}, {which}"] = gathers(load_recipe(Path(file), keys_of_both))
    recipe = load_recipe(Path(file), overrides)
    seen["clipping"] = clipping(recipe)
    seen["skipped"] = skipped(recipe)
    seen["tied"] = tied(load_recipe(Path(file), [*overrides, "model.tie_word_embeddings=true"]))
    seen["mixed_precision"] = mixed_precision(recipe)
    if dist.get_global_rank() == 0:
        Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
