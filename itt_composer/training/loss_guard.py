"""Guards the weights from a loss that is not finite or jumps: stops, or skips the step."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from itt_composer.basics.errors import UserError

Act = Literal["stop", "skip"]
DrawnRow = tuple[int, int]  # (number of the domain, number of the row in its stream)
ROWS_SHOWN = 16


@dataclass
class RunningLoss:
    """The mean and variance of the loss, mainly of the newest batches.

    Attributes:
        mean: nats per token.
        variance: nats².
        count: batches so far.
    """

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, loss: float, window: int) -> None:
        """Take a batch in: a plain mean of the first `window`, exponential from there on."""
        self.count += 1
        share = 1 / min(self.count, window)
        difference = loss - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)

    def limit(self, nats: float, deviations: float) -> float:
        """Return the loss above which a batch is a spike: far, and unusually far, over the mean."""
        return self.mean + max(nats, deviations * math.sqrt(self.variance))


def all_finite(gradients: Iterable[Tensor | None]) -> bool:
    """Whether this rank's part of every gradient is finite."""
    own = [
        gradient.to_local() if isinstance(gradient, DTensor) else gradient
        for gradient in gradients
        if gradient is not None
    ]
    own = [gradient for gradient in own if gradient.numel()]
    if not own:
        return True
    return bool(torch.nn.utils.get_total_norm(own).isfinite())


def name_rows(rows: Iterable[DrawnRow], domains: list[str]) -> str:
    """Name at most 16 rows: `code: rows 3, 17; prose: row 5`.

    Args:
        rows: numbers of domain and row.
        domains: names, by number.
    """
    ordered = sorted(set(rows))
    by_domain = defaultdict(list)
    for domain, row in ordered[:ROWS_SHOWN]:
        by_domain[domain].append(str(row))
    named = [
        f"{domains[domain]}: row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for domain, numbers in by_domain.items()
    ]
    left_out = len(ordered) - ROWS_SHOWN
    return "; ".join(named) + (f"; and {left_out} more" if left_out > 0 else "")


class LossGuard(Algorithm):
    """Looks at loss and gradients of every batch before the optimizer's step, on all ranks alike.

    "stop" ends training with the batch, the streams and the row numbers; nothing is saved.
    "skip" leaves weights and optimizer as they are, counts, and goes on with the next batch.
    The counts and the running loss are in the checkpoints.

    Args:
        on_nan: what to do when the loss or a gradient is not finite.
        on_spike: what to do when the loss is far above its running mean; None does not look.
        spike_nats: how far above, at the least, in nats per token.
        spike_deviations: how far above in standard deviations of the running loss.
        window: batches that the running loss covers; spikes are looked for from that batch on.
        max_skips: skips in a row after which training stops.
    """

    def __init__(
        self,
        on_nan: Act = "stop",
        on_spike: Act | None = None,
        spike_nats: float = 0.5,
        spike_deviations: float = 6.0,
        window: int = 100,
        max_skips: int = 10,
    ):
        self.on_nan = on_nan
        self.on_spike = on_spike
        self.spike_nats = spike_nats
        self.spike_deviations = spike_deviations
        self.window = window
        self.max_skips = max_skips
        self.running = RunningLoss()
        self.skipped = 0
        self.in_a_row = 0
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_TRAIN_BATCH, Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BEFORE_TRAIN_BATCH:
            self._parts.clear()  # a batch that ran out of memory starts anew
        elif event == Event.AFTER_LOSS:
            assert isinstance(state.loss, Tensor)
            rows = {name: state.batch[name] for name in ("domain", "row")}
            self._parts.append((state.loss.detach(), rows))
        else:
            self._judge(state, logger)

    def state_dict(self) -> dict[str, Any]:
        own = {"skipped": self.skipped, "in_a_row": self.in_a_row, **asdict(self.running)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self.running = RunningLoss(
            float(state["mean"]), float(state["variance"]), int(state["count"])
        )

    def _judge(self, state: State, logger: Logger) -> None:
        losses = torch.stack([loss.float() for loss, _ in self._parts])
        sizes = torch.tensor([len(rows["row"]) for _, rows in self._parts], device=losses.device)
        gradients = [parameter.grad for parameter in state.model.parameters()]
        broken = torch.tensor(float(not all_finite(gradients)), device=losses.device)
        sums = torch.stack([(losses * sizes).sum(), sizes.sum().float(), broken])
        dist.all_reduce(sums)
        total, count, broken_on = sums.tolist()
        loss = total / count
        limit = self.running.limit(self.spike_nats, self.spike_deviations)
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
            self._act("on_nan", what, ~losses.isfinite(), state, logger)
        elif broken_on:
            every = torch.ones_like(losses, dtype=torch.bool)
            self._act("on_nan", "a gradient is not finite", every, state, logger)
        elif self.on_spike and self.running.count >= self.window and loss > limit:
            what = f"the loss is {loss:.3f}, its running mean {self.running.mean:.3f}"
            self._act("on_spike", what, losses > limit, state, logger)
        else:
            self.in_a_row = 0
            self.running.add(loss, self.window)
        self._parts.clear()

    def _act(self, key: str, what: str, suspects: Tensor, state: State, logger: Logger) -> None:
        """Stop or skip, as `key` says; `suspects` marks the microbatches that made it happen."""
        batch = state.timestamp.batch.value + 1
        domains: list[str] = state.dataloader.dataset.domains  # type: ignore[union-attr]
        event = f"batch {batch:,}: {what} ({name_rows(self._rows(suspects), domains)})"
        if getattr(self, key) == "stop":
            raise UserError(
                f"{event}; stopped before the weights changed. To go on without such batches, add "
                f"algorithms.loss_guard.{key}=skip --allow-changes"
            )
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_skips:
            raise UserError(
                f"{event}; stopped after {self.in_a_row} skipped batches in a row "
                "(algorithms.loss_guard.max_skips); lower the learning rate, or look at the data"
            )
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)  # without gradients a step changes nothing
        logger.log_metrics({"loss_guard/skipped": self.skipped})
        if dist.get_global_rank() == 0:
            print(f"{event}: skipped, {self.skipped} in all", flush=True)

    def _rows(self, suspects: Tensor) -> list[DrawnRow]:
        """Return the rows of the suspicious microbatches of all ranks; of all if none is."""
        own = [
            (bool(suspect), list(zip(rows["domain"].tolist(), rows["row"].tolist(), strict=True)))
            for suspect, (_, rows) in zip(suspects.tolist(), self._parts, strict=True)
        ]
        parts = [part for rank in dist.all_gather_object(own) for part in rank]
        is_known = any(suspect for suspect, _ in parts)
        return [row for suspect, rows in parts if suspect or not is_known for row in rows]
