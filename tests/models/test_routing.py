"""Routing as pure functions, beside plain Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itt_composer.models import routing


@pytest.mark.parametrize(
    ("ratio", "seq_len", "expected"),
    [(0.7, 10, 7), (0.1, 30, 3), (0.5, 5, 3), (0.01, 10, 1), (1.0, 7, 7), (0.7, 4096, 2868)],
)
def test_capacity_is_the_ceiling_without_rounding_noise(ratio, seq_len, expected):
    assert routing.capacity(ratio, seq_len) == expected


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), seq_len=st.integers(1, 12), data=st.data())
def test_top_k_takes_the_largest_in_rising_order(seed, seq_len, data):
    k = data.draw(st.integers(1, seq_len))
    scores = torch.randn(3, seq_len, generator=torch.Generator().manual_seed(seed))
    selection = routing.select_top_k(scores, k)
    assert selection.is_selected_BK is None
    for row, indices in zip(scores.tolist(), selection.indices_BK.tolist(), strict=True):
        largest = sorted(range(seq_len), key=lambda position: -row[position])[:k]
        assert indices == sorted(largest)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), seq_len=st.integers(1, 12), p=st.floats(0.01, 1.0))
def test_top_p_takes_the_fewest_that_hold_the_share(seed, seq_len, p):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, seq_len, generator=generator, dtype=torch.float64) + 1e-3
    mask_BS = routing.mask_of(routing.select_top_p(weights, p), weights)
    for row, is_selected in zip(weights, mask_BS, strict=True):
        chosen = is_selected.nonzero().squeeze(-1)
        share = row[chosen].sum() / row.sum()
        assert share >= p - 1e-12
        assert share - row[chosen].min() / row.sum() < p
        unchosen = set(range(seq_len)) - set(chosen.tolist())
        assert all(row[position] <= row[chosen].min() for position in unchosen)


def test_top_p_selects_a_token_even_if_every_weight_is_zero():
    selection = routing.select_top_p(torch.zeros(2, 4), 0.5)
    assert selection.indices_BK.shape == (2, 1)
    assert selection.is_selected_BK is None


def rows_of_marks(seq_len):
    row = st.lists(st.booleans(), min_size=seq_len, max_size=seq_len)
    return st.lists(row, min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6).flatmap(rows_of_marks))
def test_marked_tokens_are_selected_in_order_and_fillers_come_last(rows):
    mask_BS = torch.tensor(rows)
    selection = routing.select_where(mask_BS)
    assert torch.equal(routing.mask_of(selection, mask_BS), mask_BS)
    if selection is None:
        assert mask_BS.all()
        return
    counts = mask_BS.sum(dim=-1)
    assert selection.indices_BK.shape[1] == counts.max()
    assert (selection.is_selected_BK is None) == (counts == counts.max()).all()
    for row, indices in zip(rows, selection.indices_BK.tolist(), strict=True):
        marked = [position for position, is_marked in enumerate(row) if is_marked]
        assert indices[: len(marked)] == marked
        assert len(set(indices)) == len(indices)


def test_put_tokens_undoes_take_tokens_and_changes_nothing_else():
    states = torch.randn(2, 6, 3)
    indices = torch.tensor([[0, 3], [2, 5]])
    taken = routing.take_tokens(states, indices)
    assert torch.equal(taken[1, 0], states[1, 2])
    assert torch.equal(routing.put_tokens(states, indices, taken), states)
    changed = (routing.put_tokens(states, indices, taken + 1) != states).any(-1).nonzero().tolist()
    assert changed == [[0, 0], [0, 3], [1, 2], [1, 5]]


def test_a_higher_temperature_flattens_the_weights():
    scores = torch.tensor([[-2.0, 0.0, 2.0]])
    cold, warm = (routing.router_weights(scores, "sigmoid", t) for t in (1.0, 4.0))
    assert (cold - 0.5).abs().max() > (warm - 0.5).abs().max()
    assert torch.equal(routing.router_weights(scores, "tanh", 2.0), torch.tanh(scores / 2))
