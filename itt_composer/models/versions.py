"""Bridges what differs between the releases of transformers that the model runs on.

Most differences are found by the names of arguments and fields, so that a release in between is met
as it is. Three stand where they are met: which class loads a folder (`own_class.py`), tied weights
of 5.3 (`modeling.py`), and the tokenizers that version 5 has saved (`tokenizer.py`).
"""

import inspect
import os
from typing import Any

import transformers
from torch import Tensor

# The releases that the tests have been run with. Those of 5.0 to 5.2 initialise loaded weights
# afresh or fail, and a configuration can make them run foreign code (CVE-2026-4372).
OLDEST, NEWEST = (4, 57), (5, 24)
BROKEN = ((5, 0), (5, 1), (5, 2))
ANYWAY = "ITT_ANY_TRANSFORMERS"


def check_version(version: str) -> None:
    """Refuse a release of transformers under which nobody has tested the model.

    Raises:
        ImportError: says which releases are supported.
    """
    release = tuple(int(part) for part in version.split(".")[:2])
    is_known = OLDEST <= release <= NEWEST and release not in BROKEN
    if not is_known and not os.environ.get(ANYWAY):
        raise ImportError(
            f"ITT models run on transformers 4.57 and 5.3 to 5.24, not on {version}: install one "
            f"of those, or set {ANYWAY}=1 to try this one at your own risk"
        )


check_version(transformers.__version__)  # before imports that another release may not have

from transformers.cache_utils import DynamicLayer  # noqa: E402
from transformers.masking_utils import create_causal_mask  # noqa: E402
from transformers.modeling_outputs import CausalLMOutputWithPast  # noqa: E402

try:
    from transformers.initialization import no_init_weights
except ImportError:  # 4.57
    from transformers.modeling_utils import no_init_weights  # type: ignore[attr-defined, no-redef]

# Builds a model without initial values, as its weights come from elsewhere.
without_initial_values = no_init_weights

# The argument and the field of an output that hold the key/value cache.
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"
_MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters
_CROP_REMOVES = "tokens_to_remove" in inspect.signature(DynamicLayer.crop).parameters


def causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache: Any,
    position_ids: Tensor | None,
    cache_position: Tensor,
) -> Any:
    """Return what the attention implementation takes as a causal mask; None needs no mask.

    Args:
        config: names the attention implementation.
        inputs_embeds: of the tokens at hand, (B, S, D).
        attention_mask: (B, C + S) with 0 for padding, or a whole mask, which is returned.
        cache: of the tokens before, or None.
        position_ids: (B, S) where the caller gave some: those that start again separate documents.
        cache_position: the column of each token at hand, (S,).
    """
    arguments = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "input_embeds": inputs_embeds,  # 4.57
        "attention_mask": attention_mask,
        "cache_position": cache_position,  # 5.3 and older
        "past_key_values": cache,
        "cache": cache,  # 5.24
        "position_ids": position_ids,
    }
    known = {name: value for name, value in arguments.items() if name in _MASK_ARGUMENTS}
    return create_causal_mask(**known)


def tokens_left(crop: int, seen: int) -> int:
    """Return how many of the tokens seen a cache keeps after `crop(crop)`.

    A negative number says how many to remove. One that is not says how many to keep in 5.10 and
    older releases; in 5.24, 0 removes none, and others are refused.
    """
    if crop < 0 or (_CROP_REMOVES and crop == 0):
        return max(seen + crop, 0)
    if _CROP_REMOVES:
        raise ValueError(f"crop takes a negative number, the tokens to remove, not {crop}")
    return min(seen, crop)


def is_initialized(weight: Tensor) -> bool:
    """Return whether a weight was read from a file, so that initial values must not replace it."""
    return getattr(weight, "_is_hf_initialized", False)
