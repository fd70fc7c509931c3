"""Checkpoints that are either whole or not there, and how many of them are kept."""

import warnings
from pathlib import Path

from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import checkpoint as composer_checkpoint
from composer.utils import create_interval_scheduler, dist, reproducibility
from torch.distributed.checkpoint.api import CheckpointException

from itt_composer.basics.errors import UserError
from itt_composer.runs.checkpoints.places import batch_of, point_latest_to, remove
from itt_composer.runs.checkpoints.writing import write_file
from itt_composer.runs.folder import RunFolder
from itt_composer.training.heartbeat import Progress
from itt_composer.training.preemption import Preempted, Preemption
from itt_composer.training.resume import Start
from itt_composer.training.watching.json_lines import JsonLinesLogger


class RunCheckpoints(CheckpointSaver):
    """Saves as Composer does, but a checkpoint gets its name when all of it is on the disk.

    Old ones are deleted after that, those of an earlier start of the run too. If it cannot be
    saved, nothing is deleted and all ranks end.

    Args:
        run: where the checkpoints go.
        interval: time between them ("1000ba"); the last batch is always saved.
        keep: how many are kept; -1 keeps all.
        start: where the run has started.
        preemption: knows when to save and end.
        progress: notes the saving.
    """

    def __init__(
        self,
        run: RunFolder,
        interval: str,
        keep: int,
        start: Start,
        preemption: Preemption,
        progress: Progress,
    ):
        is_due = create_interval_scheduler(interval)

        def is_due_or_last(state: State, event: Event) -> bool:
            return preemption.due_by is not None or is_due(state, event)

        super().__init__(
            str(run.checkpoints),
            remote_file_name=None,
            save_interval=is_due_or_last,
            overwrite=True,
        )
        self._run = run
        self._keep = keep
        self._damaged = list(start.damaged)
        self._preemption = preemption
        self._progress = progress

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self.last_checkpoint_batch = state.timestamp.batch
        for destination in logger.destinations:
            if isinstance(destination, JsonLinesLogger):
                destination.flush()  # or a run that is killed after this has a gap there
        with self._progress.phase("saving a checkpoint"):
            path = self._write_sharded(state) if _is_sharded(state) else self._write_file(state)
            if dist.get_global_rank() == 0:
                point_latest_to(path)
                self._remove_old(path)
        self._preemption.saved(state)
        if self._preemption.due_by is not None:
            place = f"batch {state.timestamp.batch.value:,} is saved in {path}"
            raise Preempted(self._preemption.due_by, place)

    def _write_file(self, state: State) -> Path:
        path = Path(self.filename.format(state).replace(f"rank{dist.get_global_rank()}", "rank0"))
        content = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}
        failure = None
        if dist.get_global_rank() == 0:
            try:
                write_file(content, path)
            except (OSError, RuntimeError) as error:
                failure = error
        self._check(dist.all_gather_object(_reason(failure)), path)
        return path

    def _write_sharded(self, state: State) -> Path:
        name = self.filename.format(state, keep_placeholders=True)
        path = Path(composer_checkpoint.get_save_filename(state, name)).parent
        if dist.get_global_rank() == 0:
            remove(path)  # its metadata would vouch for the new parts, too
        dist.barrier()
        reasons: list[str | None] = []
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch's own
                composer_checkpoint.save_checkpoint(state, name)
        except CheckpointException as error:
            reasons = [_reason(failure) for failure, _ in error.failures.values()]
            dist.barrier()  # the one after the saving, at which other replicas wait
        self._check([each for of_rank in dist.all_gather_object(reasons) for each in of_rank], path)
        return path

    def _check(self, reasons: list[str | None], path: Path) -> None:
        found = [reason for reason in reasons if reason is not None]
        if not found:
            return
        if dist.get_global_rank() == 0:
            remove(path) if path.is_dir() else None
        older = self._run.list_checkpoints()
        kept = f"{older[0].name} is whole" if older else "there is none before it"
        raise UserError(
            f"{path} cannot be saved: {found[0]}; {kept}; make room and start the same command "
            "again"
        )

    def _remove_old(self, saved: Path) -> None:
        for path in self._damaged:
            if path != saved:
                remove(path)
        self._damaged = []
        older = [path for path in self._run.list_checkpoints() if batch_of(path) < batch_of(saved)]
        for path in older[self._keep - 1 :] if self._keep > 0 else []:
            remove(path)


def _is_sharded(state: State) -> bool:
    return bool(state.fsdp_sharded_state_dict_enabled)


def _reason(failure: BaseException | None) -> str | None:
    if failure is None:
        return None
    cause = failure
    while cause.__context__ is not None and not isinstance(cause, OSError):
        cause = cause.__context__  # torch says that a write failed, but not why
    text = getattr(cause, "strerror", None) or str(failure) or type(failure).__name__
    return " ".join(text.split())[:200]
