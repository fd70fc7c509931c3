"""What differs between the recipe of a run and the one it is to go on with, and what may."""

from fnmatch import fnmatchcase
from typing import Any

# Keys that change nothing that is computed, or (the last two lines) its rounding only, as the
# number of ranks does. Shards and tokenizer are compared by their content instead.
FREE = (
    "run_folder",  # a run may be moved
    *("data.local", "data.remote", "data.tokenizer"),
    *("train.autoresume", "train.keep_checkpoints", "train.progress_bar", "train.save_interval"),
    *("train.rank_timeout", "train.device"),
    *("data.num_workers", "data.predownload", "data.cache_limit", "data.validate_hash"),
    *("data.download_retry", "data.download_timeout", "data.worker_timeout"),
    *("callbacks.*", "loggers.*"),
    *("train.microbatch_size", "train.sharding", "train.activation_checkpointing"),
    *("train.compile", "train.loss_chunk_tokens"),
)
# Keys whose new value takes effect from the next batch on, where the user allows it.
CHANGEABLE = (
    "run_name",
    *("model.max_position_embeddings", "model.rope_theta", "model.rope_scaling*"),
    *("model.rms_norm_eps", "model.attn_implementation"),
    *("thinking.select_ratios", "thinking.router_norm", "thinking.router_selection"),
    *("thinking.reweighting", "thinking.residual_thinking", "thinking.thinking_update"),
    "thinking.early_exit",
    *("data.seq_len", "data.domains*", "data.num_canonical_nodes"),
    *("data.shuffle_seed", "data.shuffle_algo", "data.shuffle_block_size"),
    *("train.max_duration", "train.global_batch_size", "train.precision"),
    *("train.eval_interval", "train.eval_batches", "train.eval_batch_size"),
    "train.calibration_rows",
    *("optimizer.*", "scheduler.*", "algorithms.*"),
)
# The others, and why a checkpoint cannot follow them.
SHAPE = "the checkpoint's weights are of that geometry"
START = "it has an effect at the very beginning only"
FIXED = {
    **dict.fromkeys(("seed", "init_from", "model.initializer_range"), START),
    "thinking.step_encoding_init": START,
    **dict.fromkeys(
        (
            *("model.hidden_size", "model.intermediate_size", "model.num_hidden_layers"),
            *("model.num_attention_heads", "model.num_key_value_heads", "model.head_dim"),
            *("model.vocab_size", "model.tie_word_embeddings"),
            *("model.attention_bias", "model.mlp_bias"),
            *("thinking.thinking", "thinking.thinking_steps", "thinking.thinking_layers"),
            *("thinking.adaptive_routing", "thinking.step_encoding"),
        ),
        SHAPE,
    ),
}
UNSET = "unset"
# Components that a run cannot go on without, by a setting that each of them has.
KEPT = {
    "algorithms.capacity_annealing.start_temperature": (
        "the routers' temperature would stay as it is; end annealing by a shorter duration"
    ),
}

Differences = dict[str, tuple[Any, Any]]


def changes(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    """Keys ("train.max_duration") whose values differ, with the old and the new one.

    Args:
        old, new: recipes as nested mappings; a key that only one has is "unset" in the other.
    """
    before, after = _flat(old), _flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, UNSET), after.get(key, UNSET)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def is_free(key: str) -> bool:
    """Whether a run may go on with another value of this key without being asked."""
    return any(fnmatchcase(key, pattern) for pattern in FREE)


def is_changeable(key: str) -> bool:
    """Whether a run follows another value of this key where the user allows it."""
    return any(fnmatchcase(key, pattern) for pattern in CHANGEABLE)


def impossible(differences: Differences) -> dict[str, Differences]:
    """The differences that a run which has begun cannot follow, by the reason."""
    reasons: dict[str, Differences] = {}
    for key, (old, new) in differences.items():
        reason = KEPT.get(key) if new == UNSET else None
        if reason is None and not is_free(key) and not is_changeable(key):
            reason = FIXED.get(key)  # None: of a version that had another key
        if reason is not None:
            reasons.setdefault(reason, {})[key] = (old, new)
    return reasons


def describe(differences: Differences) -> str:
    """`seed 17 → 3, train.max_duration 10ba → 20ba`."""
    return ", ".join(f"{key} {old} → {new}" for key, (old, new) in differences.items())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and (value or not prefix):  # a section may be empty
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
