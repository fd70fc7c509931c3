"""Under thresholds a token's logits depend on what comes before it, and on nothing else."""

import pytest
import torch
from causal_models import KINDS, build, left_padded


def logits(model, ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        return model(ids, attention_mask=mask, use_cache=False).logits


def followed_by_other_text(model, ids):
    other, _ = left_padded([40], seed=7)
    return logits(model, torch.cat([ids, other], dim=1))[0, : ids.shape[1]]


def in_a_batch(model, ids):
    others = torch.stack([ids[0].flip(0), ids[0].roll(3)])
    return logits(model, torch.cat([others[:1], ids, others[1:]]))[1]


def left_padding(model, ids):
    padded, mask = left_padded([ids.shape[1], 17])
    padded[0, -ids.shape[1] :] = ids[0]
    return logits(model, padded, mask)[0, -ids.shape[1] :]


def right_padding(model, ids):
    padding = torch.zeros(1, 6, dtype=torch.long)
    mask = torch.cat([torch.ones_like(ids), padding], dim=1)
    return logits(model, torch.cat([ids, padding], dim=1), mask)[0, : ids.shape[1]]


AROUND = [followed_by_other_text, in_a_batch, left_padding, right_padding]


def largest_change(model, around):
    ids, _ = left_padded([12])
    return (around(model, ids) - logits(model, ids)[0]).abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", AROUND, ids=lambda function: function.__name__)
def test_logits_do_not_change_with_what_is_around(kind, around):
    assert largest_change(build(kind), around) < 1e-5


@pytest.mark.parametrize(
    "around", [followed_by_other_text, left_padding, right_padding], ids=lambda f: f.__name__
)
def test_top_k_sees_the_future_and_the_padding(around):
    model = build("itt")
    model.set_router_selection("top_k")
    assert largest_change(model, around) > 1e-2


def test_early_exit_is_causal_too():
    model = build("itt")
    model.set_early_exit(0.9)
    for around in AROUND:
        assert largest_change(model, around) < 1e-5
