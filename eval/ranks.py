"""Shares evaluation among ranks: each measures a part, and all receive the results of all.

Only small results travel, on the CPU, so the processes talk over gloo whatever the device.
"""

import datetime
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

# How long a rank may wait for another one's share of a task.
PATIENCE = datetime.timedelta(hours=24)
Answer = TypeVar("Answer")


def rank() -> int:
    """Return this process's number among all."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_of_node() -> bool:
    """Say whether this process does what the ranks of a machine need only once."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def device() -> torch.device:
    """Return the device of this rank's model."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join() -> None:
    """Meet the other ranks, if there are any."""
    # Composer asks for the node by this name, torchrun gives it by the other.
    os.environ.setdefault("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    if world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=PATIENCE)


def leave() -> None:
    """End several ranks, all together; a single one goes on.

    Threads of gloo can keep a process from ending, so it ends here, after all is written.
    """
    if world_size() > 1:
        distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def gather(result: Answer) -> list[Answer]:
    """Return every rank's result, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [result]
    gathered: list[Any] = [None] * world_size()
    distributed.all_gather_object(gathered, result)
    return gathered


def of_first(ask: Callable[..., Answer], *arguments: Any) -> Answer:
    """Return rank 0's answer on every rank; the others are not asked."""
    answers: list[Any] = gather(ask(*arguments) if rank() == 0 else None)
    return answers[0]
