"""What the tokens selected for a thinking step attend to: their keys, mask and positions.

Shapes: B batch, S sequence, K selected tokens, C cached tokens and the selected ones, H head size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from itt_composer.models import routing
from itt_composer.models.step_cache import NO_TOKEN, StepSlot


class Keys(NamedTuple):
    """The tokens that the selected ones attend to: those of the step's cache and themselves.

    Attributes:
        columns_BC: each key's column in the sequence, or NO_TOKEN for a slot without a token.
        has_gaps: whether some slot holds no token in some row.
    """

    columns_BC: Tensor
    has_gaps: bool


def keys_for(selection: routing.Selection, first_column: int, slot: StepSlot | None) -> Keys:
    """Enter the selected tokens in the step's cache, if there is one; return all of its keys."""
    columns_BK, has_gaps = first_column + selection.indices_BK, False
    if selection.is_selected_BK is not None:
        columns_BK, has_gaps = columns_BK.masked_fill(~selection.is_selected_BK, NO_TOKEN), True
    if slot is None:
        return Keys(columns_BK, has_gaps)
    columns_BC = slot.cache.add_columns(columns_BK, has_gaps)
    return Keys(columns_BC, slot.cache.has_gaps)


def mask_among(
    selection: routing.Selection,
    attention_mask: Tensor | None,
    first_column: int,
    keys: Keys,
    is_flash: bool,
) -> Tensor | None:
    """Return the attention mask from the selected tokens to the keys.

    None means: causal by the order of the tokens. A slot that holds no token in its row is not a
    key to the others, and a query whose result nobody reads.

    Args:
        selection: the tokens that take the step.
        attention_mask: from all tokens at hand to all columns, see `IttDecoderLayer.forward`.
        first_column: column of the first token at hand.
        keys: of the selected tokens, see `keys_for`.
        is_flash: whether the attention implementation is one of flash attention, which takes a mask
            of (B, C) alone.

    Raises:
        TypeError: an attention implementation with masks of another kind.
    """
    indices_BK = selection.indices_BK
    columns_BK = first_column + indices_BK
    key_columns_BC, has_gaps = keys
    queries, num_keys = columns_BK.shape[1], key_columns_BC.shape[1]
    if attention_mask is None and not has_gaps and queries in (1, num_keys):
        return None
    is_token_BC = key_columns_BC != NO_TOKEN
    if attention_mask is None:
        if is_flash:
            return is_token_BC if has_gaps else None
        mask_BKC = is_token_BC[:, None] & (key_columns_BC[:, None] <= columns_BK[:, :, None])
    elif not isinstance(attention_mask, Tensor):
        raise TypeError(
            f"thinking layers do not take a {type(attention_mask).__name__} as attention mask: "
            "choose attn_implementation 'sdpa', 'eager' or 'flash_attention_2'"
        )
    elif attention_mask.dim() == 2:
        return attention_mask.gather(1, key_columns_BC.clamp(min=0)) * is_token_BC
    else:
        mask_BSC = attention_mask[:, 0].expand(len(indices_BK), -1, -1)
        rows = indices_BK[:, :, None].expand(-1, -1, mask_BSC.shape[-1])
        columns = key_columns_BC.clamp(min=0)[:, None].expand(-1, queries, -1)
        mask_BKC = mask_BSC.gather(1, rows).gather(2, columns)
        if not has_gaps:
            return mask_BKC[:, None]
        if mask_BKC.dtype != torch.bool:
            lowest = torch.finfo(mask_BKC.dtype).min
            return mask_BKC.masked_fill(~is_token_BC[:, None], lowest)[:, None]
        mask_BKC = mask_BKC & is_token_BC[:, None]
    # A query without any key would give NaN: each may attend to its own slot.
    own_KC = torch.ones(queries, num_keys, dtype=torch.bool, device=mask_BKC.device)
    return (mask_BKC | own_KC.triu(num_keys - queries).tril(num_keys - queries))[:, None]


def positions_of(
    position_embeddings: tuple[Tensor, Tensor] | None, indices_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the selected tokens' original positions, each (B, K, H)."""
    assert position_embeddings is not None
    batch = indices_BK.shape[0]
    cos, sin = (part.expand(batch, -1, -1) for part in position_embeddings)
    return routing.take_tokens(cos, indices_BK), routing.take_tokens(sin, indices_BK)
