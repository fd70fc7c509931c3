"""Where a run starts: at its newest checkpoint that is whole, or from the beginning."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, reproducibility
from torch.optim.lr_scheduler import LambdaLR

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints.damage import damage
from itt_composer.runs.checkpoints.places import (
    batch_of,
    is_checkpoint,
    point_latest_to,
    remove,
)
from itt_composer.runs.checkpoints.writing import convert, in_form
from itt_composer.runs.folder import RunFolder

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
        """The number of batches that are done."""
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
    """Return the checkpoint to go on from, in the form that this run reads; every rank must ask.

    Rank 0 converts it where it has the other form, as after a change of the number of ranks or of
    `train.sharding`; the other ranks wait.

    Args:
        start: as `find_start` chose it.
        is_sharded: whether ranks of this run keep parts of the weights.
    """
    checkpoint = start.checkpoint
    if checkpoint is None:
        return None
    if dist.get_global_rank() == 0:
        for path in checkpoint.parent.iterdir():
            is_other = is_checkpoint(path) and path.name != checkpoint.name
            if is_other and batch_of(path) == batch_of(checkpoint) and damage(path):
                remove(path)  # or it would be taken for the converted one
        point_latest_to(convert(checkpoint, is_sharded))
    dist.barrier()
    return in_form(checkpoint, is_sharded)


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
