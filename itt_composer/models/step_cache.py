"""Key/value caches of thinking steps: each (layer, step) keeps the tokens that took that step.

They stand in transformers' own `DynamicCache` after the caches of the first passes, so that
`generate()` reorders, repeats and crops them with the others.

Shapes: B batch, K cached tokens, Q new tokens, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from itt_composer.models.versions import tokens_left

NO_TOKEN = -1  # the column of a slot that holds no token of its row


class ThinkingStepCache(DynamicLayer):
    """Keys and values of the tokens that took one thinking step of one layer.

    Where the rows of a batch differ, a slot holds a token in some rows only.

    Attributes:
        columns_BK: each cached token's column in the sequence (padding counts), or NO_TOKEN.
        has_gaps: whether some slot holds no token in some row.
        tokens_seen: columns that have gone by, with those that took no step.
    """

    columns_BK: Tensor | None
    has_gaps: bool
    tokens_seen: int

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def add_columns(self, columns_BQ: Tensor, has_gaps: bool) -> Tensor:
        """Announce the tokens whose keys come next; return the columns of all, (B, K + Q)."""
        if self.columns_BK is not None:
            columns_BQ = torch.cat([self.columns_BK, columns_BQ], dim=1)
        self.columns_BK = columns_BQ
        self.has_gaps |= has_gaps
        return columns_BQ

    def crop(self, tokens: int) -> None:
        """Forget the last columns: as many as `tokens` removes or keeps, see `tokens_left`."""
        left = tokens_left(tokens, self.tokens_seen)
        self.tokens_seen = left
        if self.columns_BK is None or self.keys is None or self.values is None:
            return
        columns_BK = self.columns_BK.masked_fill(self.columns_BK >= left, NO_TOKEN)
        slots_K = (columns_BK != NO_TOKEN).any(dim=0).nonzero().squeeze(-1)
        if not len(slots_K):  # nothing is left that could follow the batch
            self.reset()
            self.tokens_seen = left
            return
        self.columns_BK = columns_BK[:, slots_K]
        self.has_gaps = bool((self.columns_BK == NO_TOKEN).any())
        self.keys, self.values = self.keys[:, :, slots_K], self.values[:, :, slots_K]

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized = False
        self.columns_BK = None
        self.has_gaps = False
        self.tokens_seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.columns_BK is not None:
            super().batch_repeat_interleave(repeats)
            self.columns_BK = self.columns_BK.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.columns_BK is not None:
            rows = indices.to(self.columns_BK.device)
            super().batch_select_indices(rows)
            self.columns_BK = self.columns_BK[rows]


class StepSlot:
    """Stands for the cache of an attention layer while it works for one thinking step."""

    def __init__(self, cache: ThinkingStepCache):
        self.cache = cache

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, place: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Add new keys and values, (B, H, Q, D) each; return all of them, (B, H, K + Q, D)."""
        return self.cache.update(keys, values)


def step_caches(cache: Any, num_layers: int, num_steps: int) -> list[ThinkingStepCache]:
    """Return the caches of all thinking steps in a model's cache; add them if they are missing.

    Args:
        cache: a `DynamicCache`, empty or of this model.
        num_layers: decoder layers of the model; their first passes come first in the cache.
        num_steps: steps after the first pass, over all thinking layers.

    Raises:
        ValueError: a cache that cannot hold thinking steps, or one filled by another model.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        raise ValueError(
            "thinking steps are cached in a DynamicCache (not offloaded, not static), not in a "
            f"{type(cache).__name__}; leave cache_implementation and past_key_values at their "
            "defaults"
        )
    while len(cache.layers) < num_layers:
        cache.layers.append(DynamicLayer())
    steps: list[Any] = cache.layers[num_layers:]
    if not steps and not cache.get_seq_length():
        steps = [ThinkingStepCache() for _ in range(num_steps)]
        cache.layers.extend(steps)
    if len(steps) != num_steps or not all(isinstance(step, ThinkingStepCache) for step in steps):
        raise ValueError("past_key_values was filled by another model; start with an empty cache")
    return steps
