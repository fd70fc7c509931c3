"""Reads `metrics.jsonl` of a run back, as the weights at its end have gone through it."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError


def read_metrics(
    path: str | Path, wanted: Callable[[str], bool] | None = None
) -> list[dict[str, Any]]:
    """Return one mapping per batch, ascending: `{"batch": n, "tokens": …, metric: value, …}`.

    Where a run was interrupted and repeated batches, the later lines count; batches after the
    point it went back to are left out until they are repeated. A line that was cut is skipped.
    What is null in the file was NaN or infinite, and is NaN here.

    Args:
        path: the file, or the folder of the run.
        wanted: whether a metric of that name is kept; None keeps all, which a long run has
            gigabytes of.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    by_batch: dict[int, dict[str, Any]] = {}
    for line in _lines(path):
        batch = line["batch"]
        while by_batch and next(reversed(by_batch)) > batch:
            by_batch.popitem()
        kept = {
            name: math.nan if value is None else value
            for name, value in line.items()
            if wanted is None or wanted(name)
        }
        by_batch.setdefault(batch, {}).update(kept)
    return list(by_batch.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a run folder") from None
    with file:
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                continue  # the run was killed, or the disk full, while it was written
            if isinstance(content, dict) and isinstance(content.get("batch"), int):
                yield content
