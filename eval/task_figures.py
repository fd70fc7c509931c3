"""A task's figure in what lm-eval returns, and over several runs."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.harness import Measurement
    from eval.suite import TaskSettings


def figure_of(harness: dict[str, Any], name: str, metric: str | None) -> tuple[str, float]:
    """A task's metric (None: its first) and the value of it."""
    key = _metric_key(harness, name, metric)
    return key.partition(",")[0], harness["results"][name][key]


def summary_of(
    name: str,
    settings: "TaskSettings",
    finished: "Sequence[tuple[Measurement, dict[str, Any]]]",
) -> dict[str, Any]:
    """A task over all runs, see `harness.run`."""
    runs, own = [], [(of, result) for of, result in finished if of.task == name]
    for measurement, result in own:
        metric, value = figure_of(result["harness"], name, settings.metric)
        runs.append(
            {
                "model": measurement.model,
                "fewshot_seed": measurement.fewshot_seed,
                "value": value,
                "stderr": _error_of(result["harness"], name, metric),
                "requests": result["requests"],
                "requests_cut": result["requests_cut"],
                "seconds": result["seconds"],
                "file": measurement.file.name,
            }
        )
        harness, questions = result["harness"], result["questions_sha256"]
    values = [run["value"] for run in runs]
    errors = [run["stderr"] for run in runs if run["stderr"] is not None]
    return {
        "shots": max(shots for shots in harness["n-shot"].values() if shots is not None),
        "metric": metric,
        "documents": sum(counts["effective"] for counts in harness["n-samples"].values()),
        "questions_sha256": questions,
        "value": statistics.fmean(values),
        "stderr": statistics.fmean(errors) if errors else None,
        "standard_error": (
            statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        ),
        "notes": list(dict.fromkeys(note for _, result in own for note in result["notes"])),
        "warnings": list(dict.fromkeys(text for _, result in own for text in result["warnings"])),
        "runs": runs,
    }


def _error_of(harness: dict[str, Any], name: str, metric: str) -> float | None:
    """lm-eval's standard error of a metric; None where it gives none."""
    key = _metric_key(harness, name, metric).replace(",", "_stderr,", 1)
    error = harness["results"][name].get(key)
    return error if isinstance(error, float) and math.isfinite(error) else None


def _metric_key(harness: dict[str, Any], name: str, metric: str | None) -> str:
    """Where the results have a metric, like `acc,none`; the first one where none is named."""
    figures = harness["results"][name]
    keys = [key for key in figures if "," in key and "_stderr," not in key]
    return next(key for key in keys if metric is None or key.partition(",")[0] == metric)
