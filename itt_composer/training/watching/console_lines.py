"""One readable line per interval of training, and one per evaluation."""

import sys

import torch
from composer.callbacks import SpeedMonitor
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import create_interval_scheduler, dist
from torch.nn.parallel import DistributedDataParallel

from itt_composer.basics.losses import perplexity
from itt_composer.models.composer_model import ComposerItt
from itt_composer.training.threshold_estimate import BY_THRESHOLD
from itt_composer.training.watching.progress_bar import format_time


def format_progress(
    batch: int,
    share_done: float,
    loss: float,
    lr: float,
    tokens_per_second: float,
    seconds: float,
    mfu: float | None = None,
    peak_bytes: int | None = None,
) -> str:
    """Return `batch 300 · 20 % · loss 5.243 · lr 1.0e-03 · 8,120 tokens/s · 3 min left`.

    On a GPU it says `812,000 tokens/s · 38 % MFU · 61.3 GB`.

    Args:
        batch: batches done.
        share_done: share of training done, 0..1.
        loss: training loss of the last batch, nats per token.
        lr: learning rate.
        tokens_per_second: over all ranks, since the last line.
        seconds: estimated time left.
        mfu: share of the GPU's peak FLOP/s that the model's FLOPs were done at, 0..1.
        peak_bytes: most memory that tensors took on the GPU so far.
    """
    parts = [
        f"batch {batch:,}",
        f"{100 * share_done:.0f} %",
        f"loss {loss:.3f}",
        f"lr {lr:.1e}",
        f"{tokens_per_second:,.0f} tokens/s",
    ]
    if mfu is not None:
        parts.append(f"{100 * mfu:.0f} % MFU")
    if peak_bytes is not None:
        parts.append(f"{peak_bytes / 1e9:.1f} GB")
    return " · ".join([*parts, f"{format_time(seconds)} left"])


class ConsoleLines(Callback):
    """Prints a line per interval and per evaluation, on rank 0.

    The speed is that of training: evaluation, calibration and the first batch of a start, for
    which loaders are started and layers compiled, do not count.

    MFU and memory are those of rank 0's GPU; MFU needs the peak that `speed_monitor` knows.

    Args:
        interval: time between lines ("50ba").
    """

    def __init__(self, interval: str = "50ba"):
        self._is_due = create_interval_scheduler(
            interval, checkpoint_events=False, final_events={Event.BATCH_END}
        )
        self._since: tuple[float, int] | None = None
        self._flops = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        elapsed = state.get_elapsed_duration()
        is_due = elapsed is not None and self._is_due(state, Event.BATCH_END)
        # Composer's clock: it stands still in evaluations, and has not yet seen this event.
        now = state.timestamp.total_wct.total_seconds(), state.timestamp.token.value
        if self._since is None and not is_due:
            self._since = now
            return
        self._flops += _flops_of_batch(state)
        if elapsed is None or not is_due:
            return
        before = state.previous_timestamp
        assert before is not None
        started, tokens = self._since or (before.total_wct.total_seconds(), before.token.value)
        seconds = now[0] - started
        tokens_per_second = (now[1] - tokens) / seconds
        flops_per_second = self._flops / seconds
        self._since, self._flops = now, 0
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
                mfu=_share_of_peak(flops_per_second, state),
                peak_bytes=torch.cuda.max_memory_allocated() if _is_on_gpu(state) else None,
            )
        )

    def eval_end(self, state: State, logger: Logger) -> None:
        loss = float(state.eval_metric_values["LanguageCrossEntropy"])
        by = " by thresholds" if state.dataloader_label == BY_THRESHOLD else ""
        self._print(
            f"batch {state.timestamp.batch.value:,} · validation loss {loss:.4f} · "
            f"perplexity {perplexity(loss):.2f}{by}"
        )

    def _print(self, line: str) -> None:
        if dist.get_global_rank() == 0:
            print(line, file=sys.stdout, flush=True)


def _flops_of_batch(state: State) -> int:
    """Return the FLOPs of this rank, forward and backward, at the ratios in force."""
    model = state.model
    model = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(model, ComposerItt), f"expected a ComposerItt, not {type(model)}"
    return model.flops_per_batch(state.batch)


def _share_of_peak(flops_per_second: float, state: State) -> float | None:
    """Return the MFU, if the peak of the device is known."""
    monitors = [callback for callback in state.callbacks if isinstance(callback, SpeedMonitor)]
    peak = next((monitor.gpu_flops_available for monitor in monitors), None)
    return flops_per_second / peak if peak else None


def _is_on_gpu(state: State) -> bool:
    return state.device.name == "gpu"
