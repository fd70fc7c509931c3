"""One readable line per interval of training, and one per evaluation."""

import math
import sys
import time

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist

from itt_composer.algorithms.threshold_estimate import BY_THRESHOLD


def format_progress(
    batch: int, share_done: float, loss: float, lr: float, tokens_per_second: float, seconds: float
) -> str:
    """`batch 300 · 20 % · loss 5.243 · lr 1.0e-03 · 8,120 tokens/s · 3 min left`.

    Args:
        batch: batches done.
        share_done: share of training done, 0..1.
        loss: training loss of the last batch, nats per token.
        lr: learning rate.
        tokens_per_second: over all ranks, since the last line.
        seconds: estimated time left.
    """
    return (
        f"batch {batch:,} · {100 * share_done:.0f} % · loss {loss:.3f} · lr {lr:.1e} · "
        f"{tokens_per_second:,.0f} tokens/s · {format_time(seconds)} left"
    )


def format_time(seconds: float) -> str:
    """Seconds as the largest unit that says enough: `42 s`, `3 min`, `7 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class ConsoleLines(Callback):
    """Prints to stdout on rank 0. Time spent in evaluation does not count for the speed.

    Args:
        interval: time between lines ("50ba").
    """

    def __init__(self, interval: str = "50ba"):
        self._is_due = create_interval_scheduler(
            interval, checkpoint_events=False, final_events={Event.BATCH_END}
        )
        self._since: tuple[float, int] | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        if self._since is None:
            self._since = (time.monotonic(), state.timestamp.token.value)

    def batch_end(self, state: State, logger: Logger) -> None:
        elapsed = state.get_elapsed_duration()
        if elapsed is None or self._since is None or not self._is_due(state, Event.BATCH_END):
            return
        started, tokens = self._since
        self._since = None
        seconds = time.monotonic() - started
        tokens_per_second = (state.timestamp.token.value - tokens) / seconds
        share_done = min(elapsed.value, 1.0)
        tokens_left = state.timestamp.token.value * (1 - share_done) / share_done
        self._print(
            format_progress(
                batch=state.timestamp.batch.value,
                share_done=share_done,
                loss=state.total_loss_dict["loss/train/total"],
                lr=state.optimizers[0].param_groups[0]["lr"],
                tokens_per_second=tokens_per_second,
                seconds=tokens_left / tokens_per_second,
            )
        )

    def eval_start(self, state: State, logger: Logger) -> None:
        self._since = None

    def eval_end(self, state: State, logger: Logger) -> None:
        loss = float(state.eval_metric_values["LanguageCrossEntropy"])
        by = " by thresholds" if state.dataloader_label == BY_THRESHOLD else ""
        self._print(
            f"batch {state.timestamp.batch.value:,} · validation loss {loss:.4f} · "
            f"perplexity {math.exp(loss):.2f}{by}"
        )

    def _print(self, line: str) -> None:
        if dist.get_global_rank() == 0:
            print(line, file=sys.stdout, flush=True)
