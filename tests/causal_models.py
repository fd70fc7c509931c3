"""Small random models that route by thresholds, and padded rows for them."""

import copy
import functools

import torch

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate, watched_scores

GEOMETRY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

KINDS = {
    "dense": {"thinking": "dense"},
    "loop": {"thinking": "loop", "thinking_steps": 3},
    "itt": {"thinking_steps": 4, "select_ratios": [0.7, 0.5, 0.3]},
    "itt in every layer": {"thinking_steps": 3, "thinking_layers": [0, 1, 2]},
    "symmetric": {"thinking_steps": 3, "reweighting": "symmetric"},
    "without accumulation": {"thinking_steps": 3, "residual_thinking": False},
    "increments": {"thinking_steps": 3, "thinking_update": "increment"},
    "without a router": {"thinking_steps": 3, "adaptive_routing": False},
    "eager": {"thinking_steps": 4, "attn_implementation": "eager"},
}


def build(kind="itt", seed=0):
    """A random model, calibrated on random tokens."""
    return copy.deepcopy(_built(kind, seed))


@functools.cache
def _built(kind, seed):
    torch.manual_seed(seed)
    model = IttForCausalLM(IttConfig(**GEOMETRY, **KINDS[kind])).eval()
    if model.config.adaptive_routing:
        calibrate(model, [random_batch(8, 32)])
        model.set_router_selection("threshold")
    return model


def random_batch(rows, length):
    ids = torch.randint(3, 96, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def left_padded(lengths, seed=1):
    """Rows of random tokens that end together, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 96, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 0), mask.long()


def closest_call(model, ids, mask, ratios):
    """The logits of one pass, and how near some token's score comes to its threshold."""
    nearest = [float("inf")]

    def watch(layer, step, scores):
        distance = (scores - layer.thresholds(ratios)[step]).abs()
        nearest.append(distance[mask.bool()].min().item())

    with watched_scores(model, watch):
        logits = model(ids, attention_mask=mask, use_cache=False, select_ratios=ratios).logits
    return logits, min(nearest)
