"""Recomputed and compiled layers compute what the plain ones do."""

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.wrapping import checkpoint_activations, compile_layers

KINDS = {
    "dense": {"thinking": "dense"},
    "loop": {"thinking": "loop", "thinking_steps": 3},
    "itt": {"thinking_steps": 4},
}


def build(kind, **settings):
    torch.manual_seed(0)
    config = IttConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=101,
        **KINDS[kind],
        **settings,
    )
    return IttForCausalLM(config).train()


def ids():
    return torch.randint(101, (2, 24), generator=torch.Generator().manual_seed(3))


def step(model):
    """Loss, and the gradient of every parameter."""
    model.zero_grad()
    loss = model(ids(), torch.ones_like(ids()), labels=ids(), use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


def saved_values(model):
    """Values that the forward pass keeps for the backward pass, parameters apart."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model.model(ids(), torch.ones_like(ids()), use_cache=False)
    assert outputs.last_hidden_state.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("which", ["thinking_steps", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_layers_give_bitwise_the_same_loss_and_gradients(kind, which):
    plain, recomputed = build(kind), build(kind)
    checkpoint_activations(recomputed, which)
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    expected, got = step(plain), step(recomputed)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_each_choice_keeps_less_than_the_one_before():
    kept = []
    for which in ("none", "thinking_steps", "all"):
        model = build("itt")
        checkpoint_activations(model, which)
        kept.append(saved_values(model))
    assert kept == sorted(kept, reverse=True)
    dense = saved_values(build("dense"))
    assert kept[2] < dense < kept[1] < kept[0]
    assert kept[1] < 1.15 * dense


def test_watchers_see_each_step_once():
    for which in ("none", "thinking_steps", "all"):
        model, seen = build("itt"), []
        checkpoint_activations(model, which)
        with model.watching(lambda done, seen=seen: seen.append((done.layer_idx, done.step))):
            loss = model(ids(), labels=ids(), use_cache=False).loss
        loss.backward()
        assert seen == [(layer, step) for layer in (1, 3) for step in (1, 2, 3)]


@pytest.mark.parametrize("which", ["none", "thinking_steps", "all"])
def test_layers_compile_whole_once_for_each_level_of_the_ratios(which):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    plain, compiled = build("itt"), build("itt")
    checkpoint_activations(compiled, which)
    compile_layers(compiled, backend)  # a graph break would be an error
    counts = []
    for ratio in (0.25, 0.5, 0.25):
        for model in (plain, compiled):
            model.set_select_ratios([ratio] * 3)
        expected, got = step(plain), step(compiled)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
        counts.append(backend.frame_count)
    # One for the plain layers, and for the thinking ones one for each of two levels.
    assert counts == [2, 3, 3]


def test_recomputed_steps_compile_whole_under_ddp():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    model = build("itt")
    checkpoint_activations(model, "thinking_steps")
    compile_layers(model, backend)
    is_own_group = not dist.is_initialized()
    if is_own_group:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel = DistributedDataParallel(model, bucket_cap_mb=0.001)  # smaller than a layer
    parallel(ids(), labels=ids(), use_cache=False).loss.backward()
    if is_own_group:
        dist.destroy_process_group()
    assert backend.frame_count == 2


def test_what_is_evaluated_or_watched_is_not_compiled():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")
    model, seen = build("itt"), []
    compile_layers(model, backend)
    model.eval()
    model(ids())
    model.train()
    with model.watching(seen.append):
        model(ids(), use_cache=False)
    assert backend.frame_count == 0
    assert len(seen) == 6


@pytest.mark.parametrize("settings", [{"router_selection": "top_p"}, {"early_exit": 0.1}])
def test_thinking_layers_whose_shapes_follow_from_the_data_run_as_they_are(settings):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")
    model = build("itt", **settings)
    compile_layers(model, backend)
    step(model)
    assert backend.frame_count == 1  # the layers that do not think
