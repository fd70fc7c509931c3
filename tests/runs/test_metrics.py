"""Reading `metrics.jsonl` of a run that was interrupted."""

import json

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.runs.metrics import read_metrics


def test_later_lines_count_and_a_cut_line_is_skipped(tmp_path):
    lines = [
        {"batch": 0, "loss": 3.0},
        {"batch": 1, "metrics/eval": 2.5},
        {"batch": 1, "loss": 2.0},
        {"batch": 2, "loss": 1.5},
        {"batch": 3, "loss": 1.4},
        {"batch": 1, "loss": 2.1},
        {"batch": 2, "loss": 1.6},
    ]
    text = "\n".join(map(json.dumps, lines))
    text = text.replace('{"batch": 3, "loss": 1.4}', '{"batch": 3, "loss": 1.4}\n{"batch": 4, "lo')
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    expected = [
        {"batch": 0, "loss": 3.0},
        {"batch": 1, "metrics/eval": 2.5, "loss": 2.1},
        {"batch": 2, "loss": 1.6},
    ]
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl") == expected


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read"):
        read_metrics(tmp_path)
