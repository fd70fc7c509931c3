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
        is_selected_BK: False marks a slot that only fills the row (top-p and thresholds select
            another number of tokens in each row); None when every slot is selected.
    """

    indices_BK: Tensor
    is_selected_BK: Tensor | None = None


def router_weights(scores_BS: Tensor, norm: str, temperature: Tensor | float = 1.0) -> Tensor:
    """Return w = norm(score / temperature), the weight of each token's update."""
    scaled_BS = scores_BS / temperature
    return torch.tanh(scaled_BS) if norm == "tanh" else torch.sigmoid(scaled_BS)


def capacity(select_ratio: float, seq_len: int) -> int:
    """Return k = ⌈ρ·seq⌉ tokens; rounded first, so that 0.7 of 10 tokens is 7 and not 8."""
    return math.ceil(round(select_ratio * seq_len, 6))


def select_top_k(scores_BS: Tensor, k: int) -> Selection:
    """Select the k tokens of largest score in each sequence. The shape depends on k alone."""
    indices_BK = scores_BS.topk(k, dim=-1, sorted=False).indices
    return Selection(indices_BK.sort(dim=-1).values)


def select_top_p(weights_BS: Tensor, p: float, is_out_BS: Tensor | None = None) -> Selection | None:
    """Select the fewest tokens of each sequence that hold the share p of its total weight.

    Args:
        weights_BS: must not be negative.
        p: in 0..1.
        is_out_BS: tokens that do not count and are not selected.
    """
    if is_out_BS is not None:
        weights_BS = weights_BS.masked_fill(is_out_BS, 0.0)
    sorted_BS, order_BS = weights_BS.sort(dim=-1, descending=True)
    share_before_BS = (sorted_BS.cumsum(dim=-1) - sorted_BS) / sorted_BS.sum(dim=-1, keepdim=True)
    is_needed_BS = share_before_BS < p
    is_needed_BS[:, 0] = True  # weights may round to 0
    is_selected_BS = torch.zeros_like(is_needed_BS).scatter(1, order_BS, is_needed_BS)
    return select_where(is_selected_BS if is_out_BS is None else is_selected_BS & ~is_out_BS)


@torch.compiler.disable  # shapes follow from the data
def select_where(is_selected_BS: Tensor) -> Selection | None:
    """Select the marked tokens; None if all are. K is the largest count of the batch and may be 0.

    Under this kind of selection shapes depend on the data.
    """
    seq_len = is_selected_BS.shape[1]
    counts = is_selected_BS.sum(dim=-1).tolist()  # the one wait for the device
    least, k = min(counts), max(counts)
    if least == seq_len:
        return None
    if k == 0:
        return Selection(
            torch.empty(len(counts), 0, dtype=torch.long, device=is_selected_BS.device)
        )
    # Fillers sort after every position, so no selected token attends to them.
    positions_S = torch.arange(seq_len, device=is_selected_BS.device)
    sort_keys_BS = torch.where(is_selected_BS, positions_S, positions_S + seq_len)
    keys_BK = sort_keys_BS.sort(dim=-1).values[:, :k]
    return Selection(keys_BK % seq_len, None if least == k else keys_BK < seq_len)


def select_all(tokens_BSD: Tensor) -> Selection:
    """Select every token, with all indices written out."""
    batch, seq_len = tokens_BSD.shape[:2]
    return Selection(torch.arange(seq_len, device=tokens_BSD.device).expand(batch, -1))


def mask_of(selection: Selection | None, tokens_BSD: Tensor) -> Tensor:
    """Return which tokens a selection (None: all) takes, (B, S) booleans."""
    mask_BS = torch.zeros(tokens_BSD.shape[:2], dtype=torch.bool, device=tokens_BSD.device)
    if selection is None:
        return ~mask_BS
    indices_BK, is_selected_BK = selection
    if is_selected_BK is None:
        is_selected_BK = torch.ones_like(indices_BK, dtype=torch.bool)
    return mask_BS.scatter(1, indices_BK, is_selected_BK)


def take_tokens(tokens_BSD: Tensor, indices_BK: Tensor) -> Tensor:
    """Return the states at the given positions, (B, K, D)."""
    batch, seq_len, width = tokens_BSD.shape
    flat = tokens_BSD.reshape(batch * seq_len, width)
    return flat.index_select(0, _flat_indices(indices_BK, seq_len)).view(batch, -1, width)


def put_tokens(tokens_BSD: Tensor, indices_BK: Tensor, new_BKD: Tensor) -> Tensor:
    """Return a copy of the states with new ones at the given positions (none of them twice)."""
    batch, seq_len, width = tokens_BSD.shape
    flat = tokens_BSD.reshape(batch * seq_len, width)
    new_flat = new_BKD.reshape(-1, width).to(flat.dtype)
    return flat.index_copy(0, _flat_indices(indices_BK, seq_len), new_flat).view_as(tokens_BSD)


def _flat_indices(indices_BK: Tensor, seq_len: int) -> Tensor:
    first_B1 = torch.arange(indices_BK.shape[0], device=indices_BK.device)[:, None] * seq_len
    return (indices_BK + first_B1).view(-1)
