"""Thresholds at any ratio from tables at a few settings."""

import pytest
import torch
from causal_models import build, left_padded, random_batch
from hypothesis import given
from hypothesis import strategies as st

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate
from itt_composer.models.thresholds import (
    anchor_settings,
    anchor_weights,
    quantiles_of,
    thresholds_at,
)

RATIOS = st.lists(st.floats(0, 1), min_size=1, max_size=5)


@given(steps=st.integers(1, 7))
def test_an_anchor_is_its_own_table(steps):
    settings = anchor_settings(steps)
    assert len(settings) == 1 + 2 * steps + 2 * steps * (steps - 1)
    for anchor, ratios in enumerate(settings):
        expected = [float(other == anchor) for other in range(len(settings))]
        assert anchor_weights(ratios) == pytest.approx(expected, abs=1e-12)


@given(ratios=RATIOS, seed=st.integers(0, 99))
def test_what_single_steps_and_pairs_do_is_met_exactly(ratios, seed):
    steps = len(ratios)
    alone = torch.randn(steps, 3, generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = torch.randn(steps, steps, generator=torch.Generator().manual_seed(seed)).tolist()

    def change(at):
        parabolas = sum(a + b * x + c * x * x for (a, b, c), x in zip(alone, at, strict=True))
        products = sum(
            pairs[one][other] * at[one] ** 2 * at[other]
            for one in range(steps)
            for other in range(one)
        )
        return parabolas + products

    weights = anchor_weights(ratios)
    assert sum(weights) == pytest.approx(1)
    interpolated = sum(
        w * change(at) for w, at in zip(weights, anchor_settings(steps), strict=True)
    )
    assert interpolated == pytest.approx(change(ratios), abs=1e-9)


@given(ratios=RATIOS, seed=st.integers(0, 99))
def test_a_share_of_the_scores_lies_above_the_threshold(ratios, seed):
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(seed))
    tables = quantiles_of(scores).expand(len(anchor_settings(len(ratios))), len(ratios), -1)
    for ratio, threshold in zip(ratios, thresholds_at(tables, ratios), strict=True):
        assert (scores > threshold).float().mean() == pytest.approx(ratio, abs=1 / 128)


def test_quantiles_survive_few_and_equal_scores():
    assert torch.equal(quantiles_of(torch.tensor([[2.0]])), torch.full((129,), 2.0))
    assert quantiles_of(torch.tensor([0.0, 1.0]))[64] == 0.5


def test_a_model_without_thresholds_says_what_to_run():
    model = IttForCausalLM(IttConfig(vocab_size=8, hidden_size=8, intermediate_size=8,
                                     num_hidden_layers=2, num_attention_heads=2))  # fmt: skip
    with pytest.raises(ValueError, match=r"run itt calibrate"):
        model.set_router_selection("threshold")
    assert model.config.router_selection == "top_k"
    model.config.router_selection = "threshold"
    with pytest.raises(ValueError, match=r"run itt calibrate"):
        model(torch.tensor([[1, 2, 3]]))


def test_only_rules_that_exist_and_models_with_routers_are_taken():
    model = build("itt")
    with pytest.raises(ValueError, match="router_selection must be one of"):
        model.set_router_selection("top-k")
    assert model.config.router_selection == "threshold"
    with pytest.raises(ValueError, match="router_selection must be one of"):
        model.set_router_selection(None)
    assert model.config.router_selection == "threshold"
    with pytest.raises(ValueError, match="needs a router"):
        build("loop").set_router_selection("threshold")


def test_thresholds_follow_the_tables_when_they_change():
    model = build("itt")
    ids, _ = left_padded([12])
    shares = []

    def count(done):
        shares.append(done.is_selected_BS.float().mean().item())

    model(ids, on_step=count)
    for layer in model.thinking_layers:
        layer.score_quantiles += 1e6
    model(ids, on_step=count)
    assert sum(shares[:3]) > 0
    assert sum(shares[3:]) == 0


def test_a_model_made_in_inference_mode_is_calibrated_as_any_other(tmp_path):
    build("itt").save_pretrained(tmp_path)
    torch.manual_seed(0)
    batches = [random_batch(8, 32)]
    with torch.inference_mode():
        inside = IttForCausalLM.from_pretrained(tmp_path)
        calibrate(inside, batches)
    outside = IttForCausalLM.from_pretrained(tmp_path)
    calibrate(outside, batches)
    for one, other in zip(inside.thinking_layers, outside.thinking_layers, strict=True):
        assert torch.equal(one.score_quantiles, other.score_quantiles)


def test_thresholds_are_saved_and_loaded(tmp_path):
    model = build("itt")
    model.save_pretrained(tmp_path)
    loaded = IttForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.router_selection == "threshold"
    ids, _ = left_padded([12])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_thresholds_stay_exact_in_bfloat16(tmp_path):
    model = build("itt")
    tables = model.thinking_layers[0].score_quantiles.clone()
    model.save_pretrained(tmp_path)
    for low in (
        IttForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16),
        model.to(torch.bfloat16),
    ):
        layer = low.thinking_layers[0]
        assert layer.mlp.up_proj.weight.dtype == torch.bfloat16
        assert torch.equal(layer.score_quantiles, tables)
        ids, mask = left_padded([5, 9])
        assert low.generate(ids, attention_mask=mask, max_new_tokens=3).shape == (2, 12)


def test_early_exit_stops_a_token_that_a_step_hardly_changed():
    model = build("itt")
    model.set_select_ratios([1, 1, 1])
    ids, _ = left_padded([12])
    masks = {}

    def keep(epsilon):
        return lambda done: masks.setdefault(epsilon, []).append(done.is_selected_BS)

    for epsilon in (0.0, 0.7, 1e9):
        model(ids, early_exit=epsilon, on_step=keep(epsilon))
    assert all(mask.all() for mask in masks[0.0])
    assert not any(mask.any() for mask in masks[1e9])
    counts = [int(mask.sum()) for mask in masks[0.7]]
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[-1] < counts[0] or 0 < counts[0] < 12
    for before, after in zip(masks[0.7], masks[0.7][1:], strict=False):
        assert not (after & ~before).any()


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), "0.5", True])
def test_early_exit_must_be_a_relative_change(epsilon):
    with pytest.raises(ValueError, match="early_exit must be a relative change"):
        build("itt").set_early_exit(epsilon)
