"""Weights & Biases for metrics and the recipe alone; a resumed run goes on in the run it began."""

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from composer.core import State
from composer.loggers import Logger, WandBLogger

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import write_whole


def go_on_in_wandb(folder: Path) -> None:
    """Have Weights & Biases take all starts of a run folder for one run, by an id kept there.

    What the environment says goes first: `WANDB_RUN_ID`, `WANDB_RESUME`.
    """
    file = folder / "wandb_id"
    if not file.is_file():
        write_whole(file, f"{uuid4().hex[:8]}\n")
    os.environ.setdefault("WANDB_RUN_ID", file.read_text(encoding="utf-8").strip())
    os.environ.setdefault("WANDB_RESUME", "allow")


class WandBMetricsLogger(WandBLogger):
    """Composer's logger, kept out of checkpointing: checkpoints live in the run folder.

    As it comes, it is asked for a checkpoint to resume from at every start, which fails without
    an account (`WANDB_MODE=offline`).
    """

    def init(self, state: State, logger: Logger) -> None:
        """Begin, or go on with, the run there.

        Raises:
            UserError: nobody is logged in, or the service refuses.
        """
        from wandb.errors import Error

        try:
            super().init(state, logger)
        except Error as error:
            raise UserError(
                f"loggers.wandb: {error}; log in (`wandb login`), set WANDB_MODE=offline to sync "
                "later, or leave the logger out"
            ) from None

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        """Leave out Composer's own, the numbers of ranks and nodes, which a resume may change."""
        if self._enabled:
            import wandb

            wandb.config.update(hyperparameters, allow_val_change=True)

    def can_upload_files(self) -> bool:
        return False

    def download_file(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("checkpoints are not kept in Weights & Biases")
