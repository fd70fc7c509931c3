"""Composer's checkpoints, read without running anything that lies in them.

In a sharded checkpoint `.metadata` says where in the `.distcp` files each part of each tensor
lies. Both forms are pickles, which can name any function to be called: all are read through lists
of what Composer's own checkpoints hold.
"""

import datetime
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.torch_version import TorchVersion

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints.places import METADATA
from itt_composer.runs.folder import RunFolder

# What a checkpoint holds beside tensors and plain values: times, random states, a version.
RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
SAFE_GLOBALS: list[Callable | tuple[Callable, str]] = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    (RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # numpy 1
]
SAFE_IN_METADATA = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
if "strides" not in TensorProperties.__annotations__:  # torch 2.7
    _set_what_2_7_knows = TensorProperties.__setstate__

    def _set_without_strides(properties: TensorProperties, state: tuple) -> None:
        """Let torch read metadata of later releases, whose last entry nothing needs."""
        _set_what_2_7_knows(properties, state[:5])

    TensorProperties.__setstate__ = _set_without_strides  # type: ignore[method-assign]
NAMED_GLOBAL = re.compile(r"GLOBAL (\S+)")
WEIGHTS = ("state", "model")
CONFIG = ("state", "integrations", "huggingface", "model", "config", "content")
TIMESTAMP = ("state", "timestamp", "Timestamp")
RUN_NAME = ("state", "run_name")
NEEDED = (WEIGHTS, CONFIG, TIMESTAMP, RUN_NAME)


class CodeInCheckpointError(UserError):
    """A checkpoint holds more than data, so that reading it could run any code."""

    def __init__(self, file: Path, wanted: str):
        super().__init__(
            f"{file} holds more than data ({wanted}) and reading it could run any code"
        )


@dataclass
class Checkpoint:
    """The part of a training checkpoint that makes up the model.

    Attributes:
        path: the file or folder, links followed.
        weights: the model's state dict, on the CPU; may be backed by the file.
        config: the model's configuration as `config.json` has it.
        run_name: of the recipe.
        batches: trained on.
        tokens: trained on.
    """

    path: Path
    weights: dict[str, Tensor]
    config: dict[str, Any]
    run_name: str
    batches: int
    tokens: int

    @property
    def run(self) -> RunFolder:
        """The folder of the run that wrote it, unless it was moved."""
        return RunFolder(self.path.parent.parent)


def load_checkpoint(path: Path, allow_code: bool = False) -> Checkpoint:
    """Read the model of a checkpoint.

    Args:
        path: a file, or the folder of a sharded checkpoint; see `find_checkpoint`.
        allow_code: run whatever the file asks for, should it ask for more than data.

    Raises:
        CodeInCheckpointError: it would run code.
        UserError: it is damaged, or not a checkpoint of a model.
    """
    state = _sharded(path, allow_code) if path.is_dir() else _monolithic(path, allow_code)
    try:
        weights, config = _at(state, WEIGHTS), dict(_at(state, CONFIG))
        timestamp, run_name = _at(state, TIMESTAMP), _at(state, RUN_NAME)
        return Checkpoint(
            path=path,
            weights={_own_name(name): tensor for name, tensor in weights.items()},
            config=config,
            run_name=str(run_name),
            batches=int(timestamp["batch"]),
            tokens=int(timestamp["token"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not a training checkpoint of a model ({type(error).__name__}: {error}); "
            "name one that itt_composer.train wrote"
        ) from None


def stored_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes that each file of a sharded checkpoint must have, at the least, by name.

    Raises:
        UserError: its metadata is missing or damaged.
    """
    sizes: dict[str, int] = {}
    with _in_a_sentence(folder / METADATA):
        for place in _read_metadata(folder / METADATA, allow_code=False).storage_data.values():
            name = Path(place.relative_path).name
            sizes[name] = max(sizes.get(name, 0), place.offset + place.length)
    return sizes


def _at(state: Any, location: tuple[str, ...]) -> Any:
    for step in location:
        state = state[step]
    return state


def _own_name(name: str) -> str:
    """Return the transformers model's name of a weight: Composer's wrapper adds `model.`."""
    if not name.startswith("model."):
        raise ValueError(f"unexpected weight {name}")
    return name.removeprefix("model.")


def _monolithic(path: Path, allow_code: bool) -> dict[str, Any]:
    """Read the whole file; tensors stay on disk until they are used."""
    with _in_a_sentence(path), torch.serialization.safe_globals(SAFE_GLOBALS):
        path.open("rb").close()
        if not zipfile.is_zipfile(path):
            raise ValueError("not an archive such as torch.save writes")
        return torch.load(path, map_location="cpu", mmap=True, weights_only=not allow_code)


def _sharded(folder: Path, allow_code: bool) -> dict[str, Any]:
    """Read the model's part of a sharded checkpoint, nested as in a monolithic one."""
    state: dict[str, Any] = {}
    with _in_a_sentence(folder / METADATA):
        metadata = _read_metadata(folder / METADATA, allow_code)
        for name, location in metadata.planner_data.items():
            if any(location[: len(part)] == part for part in NEEDED):
                node = state
                for step in location[:-1]:
                    node = node.setdefault(step, {})
                node[location[-1]] = _read_entry(folder, metadata, name, allow_code)
    return state


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in SAFE_IN_METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _read_metadata(path: Path, allow_code: bool) -> Metadata:
    unpickler = pickle.Unpickler if allow_code else _MetadataUnpickler
    metadata = unpickler(io.BytesIO(path.read_bytes())).load()
    if not isinstance(metadata, Metadata):
        raise TypeError("it does not describe a sharded checkpoint")
    return metadata


def _read_entry(folder: Path, metadata: Metadata, name: str, allow_code: bool) -> Any:
    """Read a tensor, put together from its chunks, or a plain value."""
    described = metadata.state_dict_metadata[name]
    if not isinstance(described, TensorStorageMetadata):
        return _read_chunk(folder, metadata, MetadataIndex(name), allow_code)
    whole = torch.empty(described.size, dtype=described.properties.dtype)
    filled = 0
    for chunk in described.chunks:
        if chunk.sizes.numel() == 0:  # of a rank that has no part of it
            continue
        part = _read_chunk(folder, metadata, MetadataIndex(name, chunk.offsets), allow_code)
        where = tuple(
            slice(start, start + size)
            for start, size in zip(chunk.offsets, chunk.sizes, strict=True)
        )
        whole[where] = part.view(chunk.sizes)
        filled += part.numel()
    if filled != whole.numel():
        raise ValueError(f"{filled} of the {whole.numel()} values of {name}")
    return whole


def _read_chunk(folder: Path, metadata: Metadata, index: MetadataIndex, allow_code: bool) -> Any:
    place = metadata.storage_data[index]
    file = folder / Path(place.relative_path).name  # no path out of the folder
    with _in_a_sentence(file), torch.serialization.safe_globals(SAFE_GLOBALS):
        with file.open("rb") as stream:
            stream.seek(place.offset)
            content = io.BytesIO(stream.read(place.length))
        return torch.load(content, map_location="cpu", weights_only=not allow_code)


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into one sentence.

    Raises:
        CodeInCheckpointError: it would run code.
        UserError: it is missing or damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; take another checkpoint") from None
    except (OSError, UserError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        wanted = NAMED_GLOBAL.search(str(error))
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise CodeInCheckpointError(path, wanted[1]) from None
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{path} is damaged, cut short or not a checkpoint ({reason}); take another"
        ) from None
