"""Estimates of memory against the tensors of a training step, of time against their definition."""

import weakref
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.building import model_config
from itt_composer.models.estimates import TrainingStep, gpu_hours, training_memory
from itt_composer.models.flops import executed_flops
from itt_composer.models.wrapping import checkpoint_activations
from itt_composer.recipe.schema import load_recipe

PRETRAIN = Path(__file__).parents[2] / "yamls/pretrain"


class LiveBytes(TorchDispatchMode):
    """Adds up the tensors that are alive, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class Measured(NamedTuple):
    """Bytes of weights and gradients, and what a training step needs above them at its peak."""

    weights_and_gradients: int
    needed: int


def measure(config: IttConfig, step: TrainingStep) -> Measured:
    """One microbatch after others: the gradients are there."""
    with LiveBytes() as live:
        model = IttForCausalLM(config).train()
        checkpoint_activations(model, step.activation_checkpointing)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        states = live.now
        ids = torch.zeros(step.microbatch_size, step.seq_len, dtype=torch.long)
        batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
        before = live.peak = live.now
        with torch.autocast("cpu", torch.bfloat16, enabled=step.precision == "amp_bf16"):
            chunk = step.loss_chunk_tokens
            loss = model(**batch, use_cache=False, loss_chunk_tokens=chunk).loss
        loss.backward()
        return Measured(states, live.peak - before)


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [("llama_162m", "none"), ("itt_x4_162m", "none"), ("itt_x4_162m", "thinking_steps")],
)
def test_memory_of_the_papers_recipes_is_that_of_their_tensors(name, checkpointing, monkeypatch):
    # What transformers sees in a batch without padding: tensors without values have no answer.
    monkeypatch.setattr(masking_utils, "_ignore_causal_mask_sdpa", lambda *a, **k: True)
    config = model_config(load_recipe(PRETRAIN / f"{name}.yaml"))
    step = TrainingStep(2, 4096, "amp_bf16", activation_checkpointing=checkpointing)
    with FakeTensorMode():
        measured = measure(config, step)
    estimated = training_memory(config, step)
    assert estimated.states == pytest.approx(2 * measured.weights_and_gradients, rel=0.001)
    assert estimated.activations + estimated.working == pytest.approx(measured.needed, rel=0.01)


@pytest.mark.parametrize("checkpointing", ["none", "thinking_steps", "all"])
@pytest.mark.parametrize(
    ("thinking", "precision"),
    [
        ({"thinking": "loop", "thinking_steps": 3}, "fp32"),
        ({"thinking": "loop", "thinking_steps": 3}, "amp_bf16"),
        ({"select_ratios": [0.9, 0.0, 0.3]}, "fp32"),
        ({"select_ratios": [0.9, 0.0, 0.3]}, "amp_bf16"),
        ({"adaptive_routing": False}, "amp_bf16"),
        ({"step_encoding": False}, "amp_bf16"),
        ({"reweighting": "symmetric"}, "amp_bf16"),
        ({"thinking_layers": [3]}, "amp_bf16"),
    ],
    ids=str,
)
def test_memory_follows_every_setting(thinking, precision, checkpointing):
    config = IttConfig(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=300,
        **thinking,
    )
    step = TrainingStep(
        4, 256, precision, activation_checkpointing=checkpointing, loss_chunk_tokens=128
    )
    estimated, measured = training_memory(config, step), measure(config, step)
    tolerance = 0.05 if checkpointing == "all" else 0.02
    needed = estimated.activations + estimated.working
    assert needed == pytest.approx(measured.needed, rel=tolerance)


def test_sharded_states_shrink_with_the_gpus_and_buckets_of_ddp_are_a_copy():
    config = model_config(load_recipe(PRETRAIN / "itt_x4_3b.yaml"))

    def states(sharding, shards):
        step = TrainingStep(1, 4096, "amp_bf16", sharding=sharding, shards=shards)
        return training_memory(config, step).states

    parameters = 3_015_656_448
    assert states("none", 1) == 16 * parameters
    assert states("ddp", 8) == 20 * parameters
    whole = states("fsdp", 8) - 2 * parameters
    assert states("hybrid", 8) == states("fsdp", 8)
    assert states("fsdp", 16) == pytest.approx(parameters + whole)
    assert whole < 0.2 * 16 * parameters


def test_gpu_hours_are_three_forward_passes_over_what_the_gpu_does():
    config = IttConfig()
    flops = 3 * executed_flops(config, batch_size=1, seq_len=4096)
    hours = gpu_hours(config, tokens=4096 * 1000, seq_len=4096, peak_flops=312e12, mfu=0.5)
    assert hours * 3600 * 312e12 * 0.5 == pytest.approx(1000 * flops)
