"""`metrics.jsonl` of a run, read back: what the weights at its end have gone through."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from itt_composer.errors import UserError


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """One mapping per batch, ascending: `{"batch": n, "tokens": …, metric: value, …}`.

    Where a run was interrupted and repeated batches, the later lines count; batches after the
    point it went back to are left out until they are repeated. A line that was cut is skipped.

    Args:
        path: the file, or the folder of the run.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    by_batch: dict[int, dict[str, Any]] = {}
    for line in _lines(path):
        batch = line["batch"]
        for later in [known for known in by_batch if known > batch]:
            del by_batch[later]
        by_batch.setdefault(batch, {}).update(line)
    return list(by_batch.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a run folder") from None
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue  # the run was killed, or the disk full, while it was written
        if isinstance(content, dict) and isinstance(content.get("batch"), int):
            yield content
