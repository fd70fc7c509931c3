"""What differs between the recipe of a run and the one it is to go on with."""

from fnmatch import fnmatchcase
from typing import Any

# Keys that change nothing that is computed, or (the last line) its rounding only, as the number
# of ranks does.
FREE = (
    "run_folder",  # a run may be moved
    *("train.autoresume", "train.keep_checkpoints", "train.progress_bar", "train.save_interval"),
    *("train.rank_timeout", "train.device"),
    *("data.num_workers", "data.predownload", "data.cache_limit", "data.validate_hash"),
    *("data.download_retry", "data.download_timeout", "data.worker_timeout"),
    *("callbacks.*", "loggers.*"),
    *("train.microbatch_size", "train.sharding", "train.activation_checkpointing"),
    *("train.compile", "train.loss_chunk_tokens"),
)
UNSET = "unset"


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys ("train.max_duration") whose values differ, with the old and the new one.

    Args:
        old, new: recipes as nested mappings; a key that only one has is "unset" in the other.
    """
    before, after = _flat(old), _flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, UNSET), after.get(key, UNSET)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def is_free(key: str) -> bool:
    """Whether a run may go on with another value of this key."""
    return any(fnmatchcase(key, pattern) for pattern in FREE)


def describe(differences: dict[str, tuple[Any, Any]]) -> str:
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
