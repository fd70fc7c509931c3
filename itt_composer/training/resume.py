"""Where a run starts: at its newest checkpoint that is whole, or from the beginning."""

import functools
import shutil
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, reproducibility
from torch.optim.lr_scheduler import LambdaLR

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints import stored_sizes
from itt_composer.runs.folder import CHECKPOINT, LATEST, RunFolder, batch_of
from itt_composer.training.sharding import fit_checkpoint

if TYPE_CHECKING:
    from composer import Trainer


@dataclass
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: to go on from; None is the beginning.
        damaged: newer checkpoints that are not whole, with the reason; deleted as soon as the
            next one is saved.
        removed: what was left of a checkpoint whose writing was interrupted.
    """

    checkpoint: Path | None = None
    damaged: dict[Path, str] = field(default_factory=dict)
    removed: list[Path] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """Batches that are done."""
        return batch_of(self.checkpoint)[0] if self.checkpoint else 0


def find_start(run: RunFolder) -> Start:
    """Choose the checkpoint to go on from and tidy up; the same on every rank.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    outcome: list[Start | UserError] = []
    if dist.get_global_rank() == 0:
        try:
            outcome = [_find_start(run)]
        except UserError as error:
            outcome = [error]
    outcome = dist.all_gather_object(outcome)[0]
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


def _find_start(run: RunFolder) -> Start:
    start = Start(removed=run.list_partial())
    for path in start.removed:
        remove(path)
    for checkpoint in run.list_checkpoints():
        reason = damage(checkpoint)
        if reason is None:
            start.checkpoint = checkpoint
            point_latest_to(checkpoint)
            return start
        start.damaged[checkpoint] = reason
    if start.damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in start.damaged.items())
        raise UserError(
            f"{run.checkpoints} holds no whole checkpoint ({reasons}); put one back from a copy, "
            f"or delete {run.path} to train anew"
        )
    return start


def fitting_checkpoint(start: Start, is_sharded: bool) -> Path | None:
    """The checkpoint to go on from, in the form that this run reads; every rank must ask."""
    if start.checkpoint is None:
        return None
    if dist.get_global_rank() == 0:
        for path in start.checkpoint.parent.iterdir():
            is_other = CHECKPOINT.fullmatch(path.name) and path.name != start.checkpoint.name
            if is_other and batch_of(path) == batch_of(start.checkpoint) and damage(path):
                remove(path)  # or it would be taken for the converted one
    dist.barrier()
    fitting = fit_checkpoint(start.checkpoint, is_sharded)
    if dist.get_global_rank() == 0:
        point_latest_to(fitting)
    dist.barrier()
    return fitting


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole.

    Of a file every byte is read and compared with its checksum. Of a sharded checkpoint, whose
    metadata is written after everything else, the sizes of the files are compared.
    """
    try:
        if checkpoint.is_dir():
            return _damage_of_folder(checkpoint)
        with zipfile.ZipFile(checkpoint) as archive:
            entry = archive.testzip()
        return None if entry is None else f"wrong checksum of {entry}"
    except zipfile.BadZipFile:
        return "cut short, or no checkpoint"
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
    """Delete a checkpoint, be it a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def use_own_settings(state: State) -> None:
    """Have a loaded state go on with the settings that its optimizer and schedules were built with.

    torch loads the settings of the checkpoint (learning rate, betas, weight decay, …) with the
    moments. The rate in force is that of the last batch: Composer steps a schedule before it counts
    the batch. With unchanged settings all of it is what the checkpoint holds, to the last bit.
    """
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group.update(optimizer.defaults)
            group["initial_lr"] = optimizer.defaults["lr"]
    now = state.timestamp
    done = now.batch.value
    state.timestamp = now.copy(
        batch=done - 1,
        sample=now.sample.value * (done - 1) // done,
        token=now.token.value * (done - 1) // done,
    )
    for schedule in state.schedulers:
        assert isinstance(schedule, LambdaLR)
        groups = schedule.optimizer.param_groups
        schedule.base_lrs = [group["initial_lr"] for group in groups]
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
    state.timestamp = now


class ExactRandomState(Callback):
    """Gives a resumed run the random state of the moment it was saved in.

    Composer does so for loaders that it winds forward itself; streaming's go to their place alone,
    and the state would stay that of the seed.
    """

    def __init__(self, trainer: "Trainer"):
        self._trainer = trainer

    def after_dataloader(self, state: State, logger: Logger) -> None:
        states = self._trainer._rng_state
        if states is not None:
            self._trainer._rng_state = None
            with warnings.catch_warnings():
                # On another number of ranks; nothing random is left to the ranks.
                warnings.filterwarnings("ignore", "The current world size", UserWarning)
                reproducibility.load_rng_state(states)
