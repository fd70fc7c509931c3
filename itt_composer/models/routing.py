"""Adaptive Token Routing as pure functions: scores → selected tokens and their weights.

Shapes: B batch, S sequence, K selected tokens, D hidden size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """The tokens that take a thinking step.

    Attributes:
        indices_BK: positions in the sequence. The selected ones come first, in rising order, so
            that causal attention over the K slots is causal in the sequence.
        is_selected_BK: False marks a slot that only fills the row (top-p selects another number
            of tokens in each row); None when every slot is selected.
    """

    indices_BK: Tensor
    is_selected_BK: Tensor | None = None


def router_weights(scores_BS: Tensor, norm: str, temperature: Tensor | float = 1.0) -> Tensor:
    """w = norm(score / temperature), the weight of each token's update."""
    scaled_BS = scores_BS / temperature
    return torch.tanh(scaled_BS) if norm == "tanh" else torch.sigmoid(scaled_BS)


def capacity(select_ratio: float, seq_len: int) -> int:
    """k = ⌈ρ·seq⌉ tokens; rounded first, so that 0.7 of 10 tokens is 7 and not 8."""
    return math.ceil(round(select_ratio * seq_len, 6))


def select_top_k(scores_BS: Tensor, k: int) -> Selection:
    """The k tokens of largest score in each sequence. The shape depends on k alone."""
    indices_BK = scores_BS.topk(k, dim=-1, sorted=False).indices
    return Selection(indices_BK.sort(dim=-1).values)


def select_top_p(weights_BS: Tensor, p: float) -> Selection:
    """The fewest tokens of each sequence that hold the share p of its total weight.

    Weights must not be negative. K is the largest count of the batch, so this is the one
    selection whose shape depends on the data.
    """
    sorted_BS, order_BS = weights_BS.sort(dim=-1, descending=True)
    share_before_BS = (sorted_BS.cumsum(dim=-1) - sorted_BS) / sorted_BS.sum(dim=-1, keepdim=True)
    count_B = (share_before_BS < p).sum(dim=-1).clamp(min=1)  # weights may round to 0
    k = int(count_B.max())
    slot_K = torch.arange(k, device=weights_BS.device)
    is_selected_BK = slot_K < count_B[:, None]
    # Fillers sort behind every position, so no selected token attends to them.
    seq_len = weights_BS.shape[-1]
    order_BK = order_BS[:, :k]
    sort_keys_BK = torch.where(is_selected_BK, order_BK, order_BK + seq_len)
    indices_BK = sort_keys_BK.sort(dim=-1).values % seq_len
    return Selection(indices_BK, is_selected_BK)


def take_tokens(tokens_BSD: Tensor, indices_BK: Tensor) -> Tensor:
    """The states at the given positions, (B, K, D)."""
    batch, seq_len, width = tokens_BSD.shape
    flat = tokens_BSD.reshape(batch * seq_len, width)
    return flat.index_select(0, _flat_indices(indices_BK, seq_len)).view(batch, -1, width)


def put_tokens(tokens_BSD: Tensor, indices_BK: Tensor, new_BKD: Tensor) -> Tensor:
    """A copy of the states with new ones at the given positions (none of them twice)."""
    batch, seq_len, width = tokens_BSD.shape
    flat = tokens_BSD.reshape(batch * seq_len, width)
    new_flat = new_BKD.reshape(-1, width).to(flat.dtype)
    return flat.index_copy(0, _flat_indices(indices_BK, seq_len), new_flat).view_as(tokens_BSD)


def _flat_indices(indices_BK: Tensor, seq_len: int) -> Tensor:
    first_B1 = torch.arange(indices_BK.shape[0], device=indices_BK.device)[:, None] * seq_len
    return (indices_BK + first_B1).view(-1)
