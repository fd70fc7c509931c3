"""Files of checkpoints that are whole or not there, and either form made of the other."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp

from itt_composer.basics.files import whole_file
from itt_composer.runs.checkpoints.places import FILE_ENDING


def write_file(content: dict[str, Any], path: Path) -> None:
    """Write a monolithic checkpoint by way of a partial file, which is deleted on an error.

    Raises:
        OSError, RuntimeError: it cannot be written.
    """
    with whole_file(path) as partial, partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def in_form(checkpoint: Path, is_sharded: bool) -> Path:
    """Return where the same checkpoint is, or would be, as a folder (`is_sharded`) or a file."""
    if checkpoint.is_dir() == is_sharded:
        return checkpoint
    name = checkpoint.name.removesuffix(FILE_ENDING)
    return checkpoint.with_name(name if is_sharded else f"{name}{FILE_ENDING}")


def convert_checkpoint(checkpoint: Path, is_sharded: bool) -> Path:
    """Write the same checkpoint beside itself as a folder (`is_sharded`) or a file.

    This takes the memory of the whole state, and the disk for both. One that is there already is
    left as it is.

    Args:
        checkpoint: one that is whole, links followed.
        is_sharded: the wanted form.
    """
    wanted = in_form(checkpoint, is_sharded)
    if not wanted.exists():
        partial = wanted.with_name(f"{wanted.name}.partial")
        write = torch_save_to_dcp if is_sharded else dcp_to_torch_save
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own storages
            write(checkpoint, partial)
        partial.replace(wanted)
    return wanted
