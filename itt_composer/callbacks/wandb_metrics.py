"""Weights & Biases for metrics alone."""

from typing import Any

from composer.loggers import WandBLogger


class WandBMetricsLogger(WandBLogger):
    """Composer's logger, kept out of checkpointing: checkpoints live in the run folder.

    As it comes, it is asked for a checkpoint to resume from at every start, which fails without
    an account (`WANDB_MODE=offline`).
    """

    def can_upload_files(self) -> bool:
        return False

    def download_file(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("checkpoints are not kept in Weights & Biases")
