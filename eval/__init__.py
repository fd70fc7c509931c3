"""Evaluation of trained models: suites in YAML, results as JSON and tables."""
