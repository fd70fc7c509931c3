"""Finds a task's figure in what lm-eval returns."""

import math

from itt_composer.results.tasks import HarnessResults


def figure_of(harness: HarnessResults, name: str, metric: str | None) -> tuple[str, float]:
    """Return a task's metric (its first one for None) and the value of it."""
    key = _metric_key(harness, name, metric)
    assert key is not None, f"lm-eval gave no {metric or 'metric'} for {name}"
    return key.partition(",")[0], harness["results"][name][key]


def has_figure(harness: HarnessResults, name: str, metric: str | None) -> bool:
    """Say whether results hold a task's metric, or any for None."""
    return _metric_key(harness, name, metric) is not None


def error_of(harness: HarnessResults, name: str, metric: str) -> float | None:
    """Return lm-eval's standard error of a metric; None where it gives none."""
    key = _metric_key(harness, name, metric)
    error = harness["results"][name].get(key and key.replace(",", "_stderr,", 1))
    return error if isinstance(error, float) and math.isfinite(error) else None


def _metric_key(harness: HarnessResults, name: str, metric: str | None) -> str | None:
    """Return where the results have a metric, like `acc,none`: the first one if none is named."""
    figures = harness["results"].get(name, {})
    keys = [key for key in figures if "," in key and "_stderr," not in key]
    return next((key for key in keys if metric is None or key.partition(",")[0] == metric), None)
