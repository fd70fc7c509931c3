"""Evaluation of trained models: suites in YAML, results as JSON and tables."""

import itt_composer  # noqa: F401 - first: it prepares what `python -m` runs here
