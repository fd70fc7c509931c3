"""Reads single weights of a model, and their types, from the files that transformers reads."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

# The files that may hold the weights, as transformers looks for them; an index names others.
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def stored_weight(source: str, name: str, revision: str | None = None) -> torch.Tensor | None:
    """Read a weight; None where the files lack it.

    Args:
        source: folder, or a model on the hub that has been fetched.
        name: of the weight.
        revision: of a model on the hub.
    """
    for file in _files(source, revision, name):
        if not file.endswith(".safetensors"):
            return torch.load(file, map_location="cpu", weights_only=True).get(name)
        with safe_open(file, framework="pt") as stored:
            if name in stored.keys():  # noqa: SIM118
                return stored.get_tensor(name)
    return None


def stored_dtypes(source: str, revision: str | None = None) -> Iterator[tuple[str, torch.dtype]]:
    """Yield the name and the type of every weight; see `stored_weight`."""
    for file in _files(source, revision):
        if not file.endswith(".safetensors"):
            weights = torch.load(file, map_location="meta", weights_only=True)
            yield from ((name, weight.dtype) for name, weight in weights.items())
            continue
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                part = stored.get_slice(name)
                # A slice of no rows has the type and costs nothing; scalars have no rows.
                yield name, (part[:0] if part.get_shape() else stored.get_tensor(name)).dtype


def _files(source: str, revision: str | None, name: str | None = None) -> list[str]:
    """Return the files of the weights, or the one that an index says holds a weight."""

    def find(file: str) -> str | None:
        return cached_file(
            source,
            file,
            revision=revision or "main",
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )

    file = next(filter(None, map(find, WEIGHT_FILES)), None)
    if file is None:
        return []
    if not file.endswith(".json"):
        return [file]
    places = json.loads(Path(file).read_bytes())["weight_map"]
    wanted = sorted(set(places.values())) if name is None else [places.get(name)]
    return list(filter(None, (find(place) for place in wanted if place is not None)))
