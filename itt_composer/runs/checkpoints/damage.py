"""Whether a checkpoint is whole."""

import zipfile
import zlib
from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints.reading import stored_sizes


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint; None if it is whole.

    Every byte of a file is read and compared with its checksum. Of a sharded checkpoint, whose
    metadata is written after everything else, the sizes of the files are compared.
    """
    try:
        if checkpoint.is_dir():
            return _damage_of_folder(checkpoint)
        with zipfile.ZipFile(checkpoint) as archive:
            entry = archive.testzip()
        return None if entry is None else f"wrong checksum of {entry}"
    except zipfile.BadZipFile:
        return "cut short, or not a checkpoint"
    except UserError as error:
        return str(error)
    except (OSError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return " ".join(str(error).split())


def _damage_of_folder(folder: Path) -> str | None:
    for name, size in stored_sizes(folder).items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size < size:
            return f"{name} is cut short"
    return None
