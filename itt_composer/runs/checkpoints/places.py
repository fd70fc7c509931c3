"""Which checkpoints there are, by their names; no torch."""

import functools
import re
import shutil
import sys
from pathlib import Path

from itt_composer.basics.errors import UserError

LATEST = "latest-rank0.pt"
# As Composer names them: `ep0-ba100-rank0.pt` is one file, `ep0-ba100` a sharded checkpoint.
FILE_ENDING = "-rank0.pt"
CHECKPOINT = re.compile(rf"ep(\d+)-ba(\d+)({re.escape(FILE_ENDING)})?")
METADATA = ".metadata"  # of a sharded checkpoint; written last


class NoCheckpointError(UserError):
    """A folder is neither a checkpoint nor that of a run."""


def is_checkpoint(path: Path) -> bool:
    """Whether a path has the name of a checkpoint."""
    return CHECKPOINT.fullmatch(path.name) is not None


def batch_of(checkpoint: Path) -> tuple[int, int]:
    """Return (batch, epoch) of a checkpoint, from its name."""
    match = CHECKPOINT.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[2]), int(match[1])


def complete_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder whose last part was written, the newest first."""
    return [path for path in _named_checkpoints(folder) if _is_complete(path)]


def partial_checkpoints(folder: Path) -> list[Path]:
    """List what is left in a folder of checkpoints whose saving was interrupted."""
    if not folder.is_dir():
        return []
    partial = [path for path in folder.iterdir() if path.suffix == ".partial"]
    return partial + [path for path in _named_checkpoints(folder) if not _is_complete(path)]


def _named_checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(filter(is_checkpoint, folder.iterdir()), key=batch_of, reverse=True)


def _is_complete(checkpoint: Path) -> bool:
    return not checkpoint.is_dir() or (checkpoint / METADATA).is_file()


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means: itself, or the latest of a run folder.

    Where the link to the latest is missing, as on a file system without links, that is the newest.

    Raises:
        UserError: there is none.
    """
    latest = path if path.name == LATEST else path / "checkpoints" / LATEST
    newest = complete_checkpoints(latest.parent)
    if latest.exists():
        path = latest
    elif newest:
        path = newest[0]
    elif path.is_dir() and not (path / METADATA).is_file():
        raise _why_none(path)
    found = path.resolve()
    if not found.exists():
        raise UserError(f"{found} is missing; name a checkpoint or a run folder")
    return found


def _why_none(folder: Path) -> UserError:
    if (folder / "recipe.yaml").is_file():
        return UserError(
            f"{folder} is a run folder without a checkpoint (checkpoints/{LATEST}); wait for its "
            "first, or name another"
        )
    if any(folder.glob("*.distcp")):
        return UserError(f"{folder} is half-written (it has no {METADATA}); take another")
    return NoCheckpointError(
        f"{folder} is neither a checkpoint (it has no {METADATA}) nor a run folder (it has no "
        f"checkpoints/{LATEST}); name one of these, or a .pt file"
    )


def point_latest_to(checkpoint: Path) -> None:
    """Let `latest-rank0.pt` name a checkpoint, without a moment in which it names none.

    Where there can be no link (SMB, some FUSE) there is none, and a note says so once.
    """
    link = checkpoint.with_name(LATEST)
    partial = checkpoint.with_name(f"{LATEST}.partial")
    remove(partial)
    if link.is_dir() and not link.is_symlink():
        remove(link)  # a copy through a store has followed the link
    try:
        partial.symlink_to(checkpoint.name)
    except OSError as error:
        remove(link)
        _note_missing_link(link, error.strerror)
    else:
        partial.replace(link)


@functools.cache
def _note_missing_link(link: Path, reason: str) -> None:
    print(
        f"note: {link} cannot be made ({reason}), and is done without: the newest checkpoint is "
        "the one with the highest batch in its name",
        file=sys.stderr,
        flush=True,
    )


def remove(path: Path) -> None:
    """Delete a checkpoint, whether it is a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
