"""Decoding with a cache is the full forward pass: at any ratios, batch shape and split."""

import pytest
import torch
from causal_models import KINDS, build, closest_call, left_padded
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

TOO_CLOSE = 1e-4  # to a threshold, to be distinguished in float32


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)  # fmt: skip
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 3),
    ratios=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), min_size=3, max_size=3),
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    splits=st.sets(st.integers(1, 13), max_size=13),
    early_exit=st.sampled_from([0.0, 0.9]),
)
@torch.no_grad()
def test_prefill_and_decode_give_the_logits_of_one_pass(
    kind, seed, ratios, lengths, splits, early_exit
):
    model = build(kind, seed)
    ratios = ratios[: model.config.thinking_steps - 1]
    if not model.config.adaptive_routing:
        ratios = [round(ratio) for ratio in ratios]
    ids, mask = left_padded(lengths)
    model.set_early_exit(early_exit if model.config.thinking != "dense" else 0)
    full, distance = closest_call(model, ids, mask, ratios)
    assume(distance > TOO_CLOSE)
    cache, pieces = None, []
    ends = sorted({split for split in splits if split < ids.shape[1]} | {ids.shape[1]})
    for start, end in zip([0, *ends], ends, strict=False):
        output = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            past_key_values=cache,
            use_cache=True,
            select_ratios=ratios,
        )
        cache = output.past_key_values
        pieces.append(output.logits)
    difference = (torch.cat(pieces, dim=1) - full)[mask.bool()].abs().max()
    assert difference < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "sampling", "beams", "two of two beams"],
)
def test_generation_with_and_without_cache_is_the_same(kind, how):
    model = build(kind)
    ids, mask = left_padded([5, 9, 2])
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        options = {"max_new_tokens": 8, "use_cache": use_cache, **how}
        texts.append(model.generate(ids, attention_mask=mask, **options))
    assert torch.equal(*texts)
    assert texts[0].shape[1] > ids.shape[1]


def test_rows_of_a_batch_are_generated_as_each_alone():
    model = build()
    ids, mask = left_padded([5, 9, 2])
    together = model.generate(ids, attention_mask=mask, max_new_tokens=6)
    for row, length in enumerate([5, 9, 2]):
        alone = model.generate(ids[row : row + 1, -length:], max_new_tokens=6)
        continued = together[row, ids.shape[1] :]
        assert torch.equal(alone[0, length:], continued[: alone.shape[1] - length])


def test_a_call_may_think_at_other_ratios_than_the_model_was_saved_with():
    model = build()
    ids, mask = left_padded([9])
    elastic = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, select_ratios=[0.9, 0.9, 0.9]
    )
    own = model.generate(ids, attention_mask=mask, max_new_tokens=12)
    model.set_select_ratios([0.9, 0.9, 0.9])
    assert torch.equal(elastic, model.generate(ids, attention_mask=mask, max_new_tokens=12))
    assert not torch.equal(elastic, own)


def test_a_step_caches_only_the_tokens_that_took_it():
    model = build()
    ids, _ = left_padded([12])
    taken = {}
    cache = model(
        ids,
        use_cache=True,
        on_step=lambda done: taken.update({done.step: done.is_selected_BS.sum().item()}),
    ).past_key_values
    steps = cache.layers[model.config.num_hidden_layers :]
    assert [len(step.columns_BK[0]) for step in steps] == [taken[1], taken[2], taken[3]]
    assert all(0 < count < 12 for count in taken.values())


def test_an_unselected_token_costs_nothing_in_a_step():
    model = build()
    applied = []
    layer = model.thinking_layers[0]
    layer.mlp.register_forward_hook(lambda module, args, out: applied.append(args[0].shape[1]))
    ids, _ = left_padded([12])
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    applied.clear()
    taken = []
    model(
        ids[:, -1:],
        past_key_values=cache,
        on_step=lambda done: taken.append(bool(done.is_selected_BS.item())),
    )
    assert applied == [1] * (1 + sum(taken))


def test_a_cropped_cache_is_that_of_the_shorter_text():
    model = build()
    ids, mask = left_padded([10, 7])
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    cache.crop(-4)  # a number that is not negative means something else in each release
    again = model(ids[:, 6:], attention_mask=mask, past_key_values=cache).logits
    full = model(ids, attention_mask=mask, use_cache=False).logits
    assert (again - full[:, 6:]).abs().max() < 1e-4
    cache.crop(-4)
    again = model(ids[:, 6:], attention_mask=mask, past_key_values=cache).logits
    assert (again - full[:, 6:]).abs().max() < 1e-4


@torch.no_grad()
def test_a_cropped_cache_of_rows_that_differ_forgets_in_each_row():
    # Rows that select equally many tokens at other places have no gaps before the crop.
    for seed in range(4):
        model = build(seed=seed)
        for batch_seed in range(6):
            ids, _ = left_padded([6, 6], batch_seed)
            other, _ = left_padded([2, 2], batch_seed + 50)
            cache = model(ids, use_cache=True).past_key_values
            cache.crop(-3)
            again = model(other, past_key_values=cache).logits
            full = model(torch.cat([ids[:, :3], other], dim=1), use_cache=False).logits
            assert (again - full[:, 3:]).abs().max() < 1e-4


@torch.no_grad()
def test_a_cache_cropped_to_nothing_follows_the_batch():
    model = build()
    ids, _ = left_padded([9])
    model.set_select_ratios([0.1, 0.1, 0.1])
    cache = model(ids, use_cache=True).past_key_values
    cache.crop(-8)
    steps = cache.layers[model.config.num_hidden_layers :]
    assert any(step.columns_BK is None for step in steps)
    cache.batch_repeat_interleave(3)
    rest = ids[:, 1:].repeat(3, 1)
    again = model(rest, past_key_values=cache).logits
    full = model(ids.repeat(3, 1), use_cache=False).logits[:, 1:]
    assert (again - full).abs().max() < 1e-4


def test_a_dense_model_takes_the_caches_that_a_llama_takes():
    model = build("dense")
    ids, mask = left_padded([5])
    static = model.generate(
        ids, attention_mask=mask, cache_implementation="static", max_new_tokens=4
    )
    assert torch.equal(static, model.generate(ids, attention_mask=mask, max_new_tokens=4))


@torch.no_grad()
def test_a_compiled_model_computes_the_same_and_sees_its_settings_change():
    model = build()
    ids, _ = left_padded([12])
    compiled = torch.compile(model, backend="eager")
    for change in (
        lambda: model.set_router_selection("top_k"),
        lambda: model.set_router_selection("threshold"),
        lambda: model.set_select_ratios([0.2, 0.9, 0.0]),
        lambda: model.set_early_exit(1e9),
    ):
        before = model(ids, use_cache=False).logits
        change()
        expected = model(ids, use_cache=False).logits
        assert (expected - before).abs().max() > 1e-3
        assert (compiled(ids, use_cache=False).logits - expected).abs().max() < 1e-5


def test_rules_that_look_ahead_take_no_cache():
    model = build()
    ids, mask = left_padded([5])
    model.set_router_selection("top_k")
    assert model(ids, use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match=r"set_router_selection\('threshold'\)"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
    model.generate(ids, attention_mask=mask, max_new_tokens=2, use_cache=False)
    # Nothing is left to look ahead for where every token takes a step, or none.
    model.generate(ids, attention_mask=mask, max_new_tokens=2, select_ratios=[1, 0, 1])


def test_caches_that_cannot_hold_steps_are_refused():
    model = build()
    ids, mask = left_padded([5])
    with pytest.raises(ValueError, match="not in a StaticCache"):
        model(ids, past_key_values=StaticCache(model.config, max_cache_len=16))
    with pytest.raises(ValueError, match="not in a StaticCache"):
        model.generate(ids, attention_mask=mask, cache_implementation="static", max_new_tokens=2)
    other = build("dense")(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="another model"):
        model(ids, past_key_values=other)


def test_an_empty_cache_of_the_user_is_filled():
    model = build()
    ids, _ = left_padded([5])
    cache = DynamicCache()
    first = model(ids[:, :3], past_key_values=cache).logits
    second = model(ids[:, 3:], past_key_values=cache).logits
    full = model(ids, use_cache=False).logits
    assert (torch.cat([first, second], dim=1) - full).abs().max() < 1e-4
