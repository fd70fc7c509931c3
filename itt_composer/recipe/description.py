"""Reads the description of a model that results and recipes hold: its kind and its geometry.

A description is a mapping with the names of `transformers.LlamaConfig` and `ThinkingSettings`.
"""

from collections.abc import Mapping
from typing import Any

GEOMETRY_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
# The entries of a description in which repeats of a model differ.
OF_ONE_RUN = ("path", "name", "sha256", "weights_sha256")


def description_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the model of a resolved recipe: its geometry and thinking."""
    return {"model_type": "itt", **recipe["model"], **recipe["thinking"]}


def kind_of(description: Mapping[str, Any]) -> str | None:
    """Return "dense", "loop" or "itt"; None for a model that is not a LLaMA."""
    dense = "dense" if description.get("model_type") == "llama" else None
    return description.get("thinking", dense)


def kind_label(description: Mapping[str, Any]) -> str:
    """Name the kind as the paper does: "LLaMA", "Loop×3", "ITT×4"; another model by its type."""
    steps = steps_of(description)
    labels = {"dense": "LLaMA", "loop": f"Loop×{steps}", "itt": f"ITT×{steps}"}
    return labels.get(kind_of(description) or "", str(description.get("model_type")))


def steps_of(description: Mapping[str, Any]) -> int:
    """Return the thinking steps, the first pass included; 1 for a model that does not think."""
    return description.get("thinking_steps") or 1
