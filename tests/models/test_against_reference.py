"""The ITT against a naive float64 reference: logits and every gradient."""

from types import SimpleNamespace

import pytest
import reference
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from itt_composer.models import IttConfig, IttForCausalLM, layer, routing

TOLERANCE = 1e-10
TEMPERATURE = 0.7
CASES = {
    "paper": {},
    "without_residual_thinking": {"residual_thinking": False},
    "without_routing": {"adaptive_routing": False},
    "without_step_encoding": {"step_encoding": False},
    "top_p": {"router_selection": "top_p"},
    "tanh": {"router_norm": "tanh"},
    "symmetric": {"reweighting": "symmetric"},
    "symmetric_without_residual": {"reweighting": "symmetric", "residual_thinking": False},
    "symmetric_top_p": {"reweighting": "symmetric", "router_selection": "top_p"},
    "a_skipped_and_a_full_step": {"select_ratios": [0.4, 0.0, 1.0]},
    "increment": {"thinking_update": "increment"},
    "increment_without_routing": {"thinking_update": "increment", "adaptive_routing": False},
    "early_exit": {"early_exit": 0.9},
    "early_exit_top_p": {"early_exit": 0.9, "router_selection": "top_p"},
    "early_exit_symmetric": {"early_exit": 0.9, "reweighting": "symmetric"},
    "early_exit_without_routing": {"early_exit": 0.9, "adaptive_routing": False},
    "early_exit_after_a_skipped_step": {"early_exit": 0.9, "select_ratios": [0.4, 0.0, 1.0]},
    "loop": {"thinking": "loop"},
    "dense": {"thinking": "dense"},
}


@pytest.fixture(autouse=True)
def _true_float64(monkeypatch):
    """transformers rounds norms and rotary angles to float32 in any dtype; not here."""

    def norm(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)

    def rotary(self, x, position_ids):
        size = self.config.head_dim
        exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
        angles = position_ids[..., None] * self.config.to_dict()["rope_theta"] ** -exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", rotary)


def build(seed=0, **thinking) -> IttForCausalLM:
    """A small float64 model in which no term is near its neutral value."""
    torch.manual_seed(seed)
    config = IttConfig(
        vocab_size=19,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        **{"thinking_layers": [1, 2], **thinking}
        if thinking.get("thinking") != "dense"
        else thinking,
    )
    model = IttForCausalLM(config).double()
    model.set_router_temperature(TEMPERATURE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "step_encoding" in name or "norm" in name:
                parameter.uniform_(0.5, 1.5)
            if "routers" in name:  # weights that spread, but are not rounded to 0 or 1
                parameter.mul_(0.1)
    return model


def settings_of(config: IttConfig) -> SimpleNamespace:
    return SimpleNamespace(
        num_hidden_layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
        rope_theta=config.to_dict()["rope_theta"],
        temperature=TEMPERATURE,
        thinking_layers=config.thinking_layers,
        thinking_steps=config.thinking_steps,
        select_ratios=config.select_ratios,
        adaptive_routing=config.adaptive_routing,
        router_norm=config.router_norm,
        router_selection=config.router_selection,
        reweighting=config.reweighting,
        residual_thinking=config.residual_thinking,
        thinking_update=config.thinking_update,
        early_exit=config.early_exit,
    )


def largest_error(model: IttForCausalLM, with_mask: bool = True) -> float:
    """Largest absolute difference to the reference over logits and all gradients."""
    input_ids = torch.randint(0, model.config.vocab_size, (2, 9))
    # Given a mask of ones transformers attends causally without one; given none it builds one.
    attention_mask = torch.ones_like(input_ids) if with_mask else None
    direction = torch.randn(2, 9, model.config.vocab_size, dtype=torch.float64)

    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    model.zero_grad()
    (logits * direction).sum().backward()

    copies = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
    }
    settings = settings_of(model.config)
    expected = torch.stack([reference.logits(copies, settings, row) for row in input_ids])
    (expected * direction).sum().backward()

    errors = [(logits - expected).abs().max().item()]
    for name, parameter in model.named_parameters():
        expected_grad = copies[name].grad
        if parameter.grad is not None or expected_grad is not None:
            grads = [torch.zeros(()) if g is None else g for g in (parameter.grad, expected_grad)]
            errors.append((grads[0] - grads[1]).abs().max().item())
    return torch.tensor(errors).max().item()  # Python's max passes over NaN


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_reference(case, with_mask):
    model = build(**CASES[case])
    assert largest_error(model, with_mask) < TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_other_weights_and_tokens_equal_the_reference(seed):
    model = build(seed=seed + 1, select_ratios=[0.7, 0.5, 0.3])
    assert largest_error(model) < TOLERANCE


def _drop_phi(monkeypatch):
    monkeypatch.setattr(layer.IttDecoderLayer, "_encode_step", lambda self, step, update: update)


def _drop_w(monkeypatch):
    route = layer.IttDecoderLayer._route

    def same_tokens_without_weight(*args):
        scores, weights, selection = route(*args)
        return scores, torch.ones_like(weights), selection

    monkeypatch.setattr(layer.IttDecoderLayer, "_route", same_tokens_without_weight)


def _renumber_positions(monkeypatch):
    def first_positions(position_embeddings, indices):
        batch, count = indices.shape
        return tuple(part[:, :count].expand(batch, -1, -1) for part in position_embeddings)

    monkeypatch.setattr(layer, "positions_of", first_positions)


def _replace_accumulation(monkeypatch):
    monkeypatch.setattr(
        layer.IttDecoderLayer,
        "_accumulate",
        lambda self, step, states, update: self._encode_step(step, update),
    )


def _select_the_smallest(monkeypatch):
    select = routing.select_top_k
    monkeypatch.setattr(routing, "select_top_k", lambda scores, k: select(-scores, k))


def _ignore_the_temperature(monkeypatch):
    weigh = routing.router_weights
    monkeypatch.setattr(
        routing, "router_weights", lambda scores, norm, temperature: weigh(scores, norm, 1.0)
    )


@pytest.mark.parametrize(
    "break_it",
    [
        _drop_phi,
        _drop_w,
        _renumber_positions,
        _replace_accumulation,
        _select_the_smallest,
        _ignore_the_temperature,
    ],
)
def test_a_broken_term_does_not_equal_the_reference(break_it, monkeypatch):
    model = build()
    break_it(monkeypatch)
    assert largest_error(model) > 1e-3
