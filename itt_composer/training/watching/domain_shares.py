"""The shares in which training has really drawn its domains."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist


def shares_of(rows: Mapping[str, int]) -> dict[str, float]:
    """Return the shares of the rows of each domain, which add up to 1."""
    total = sum(rows.values())
    return {domain: count / total for domain, count in rows.items()}


class DomainShares(Callback):
    """Logs `data/share/<domain>`: the share of all rows trained on since the run began.

    Counts go over all ranks and into checkpoints, so that a resumed run goes on counting.

    Args:
        interval: time between logs ("50ba"); the last batch is logged too.
    """

    def __init__(self, interval: str = "50ba"):
        self.rows: dict[str, int] = {}
        self._is_due = create_interval_scheduler(
            interval, checkpoint_events=False, final_events={Event.BATCH_END}
        )

    def batch_start(self, state: State, logger: Logger) -> None:
        # Here the batch is still whole; it is split into microbatches afterwards.
        domains: list[str] = state.dataloader.dataset.domains  # type: ignore[union-attr]
        counts = torch.bincount(state.batch["domain"].cpu(), minlength=len(domains))
        counts = state.device.tensor_to_device(counts)
        dist.all_reduce(counts)
        for domain, count in zip(domains, counts.tolist(), strict=True):
            self.rows[domain] = self.rows.get(domain, 0) + count

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._is_due(state, Event.BATCH_END):
            shares = shares_of(self.rows)
            logger.log_metrics({f"data/share/{name}": share for name, share in shares.items()})

    def state_dict(self) -> dict[str, Any]:
        # One value, there from the start: a sharded checkpoint gives back what is asked for only.
        return {"rows": json.dumps(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = json.loads(state["rows"])
