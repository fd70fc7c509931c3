"""The metrics file: one object per batch, appended to."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from itt_composer.runs.metrics import read_metrics
from itt_composer.training.watching.json_lines import JsonLinesLogger


@pytest.fixture
def train(small_recipe, make_trainer, tmp_path):
    """Train in a folder of its own and give every line of the metrics file, which all share."""
    file = tmp_path / "logs/metrics.jsonl"

    def run(name, *overrides):
        places = (f"run_folder={tmp_path / name}", f"loggers.json_lines.path={file}")
        trainer, _ = make_trainer(small_recipe(*places, *overrides))
        trainer.fit()
        trainer.close()
        return [json.loads(line) for line in file.read_text().splitlines()]

    return run


def test_there_is_a_line_per_batch_with_its_loss_and_tokens(train):
    lines = train("run")
    # A line is closed by an evaluation, so that a kill after it cannot take it back.
    assert [line["batch"] for line in lines] == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert all(line["tokens"] == line["batch"] * 4 * 32 for line in lines)
    losses = [line["loss/train/total"] for line in lines if "loss/train/total" in line]
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    # Random weights know nothing about 512 ids.
    assert losses[0] == pytest.approx(math.log(512), abs=0.5)
    for label in ("eval", "eval_threshold"):
        name = f"metrics/{label}/LanguageCrossEntropy"
        assert [line["batch"] for line in lines if name in line] == [5, 10]


@pytest.mark.parametrize("before", ['{"batch": 3, "lo', '{"batch": 3}\n', ""])
def test_a_line_that_a_kill_has_cut_spoils_no_other(tmp_path, before):
    file = tmp_path / "metrics.jsonl"
    file.write_text(before)
    logger = JsonLinesLogger(str(file))
    logger.init(SimpleNamespace(timestamp=SimpleNamespace(token=SimpleNamespace(value=7))), None)
    for step in (4, 5):
        logger.log_metrics({"loss": 1.5}, step)
        logger.flush()
    lines = file.read_text().splitlines()[len(before.splitlines()) :]
    assert [json.loads(line) for line in lines] == [
        {"batch": step, "tokens": 7, "loss": 1.5} for step in (4, 5)
    ]


def test_a_second_run_appends(train):
    first = train("first", "train.max_duration=3ba")
    both = train("second", "train.max_duration=3ba", "seed=3")
    assert both[: len(first)] == first
    assert [line["batch"] for line in both] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert both[0]["loss/train/total"] != both[4]["loss/train/total"]


def test_what_is_no_number_is_null_in_the_file_and_nan_when_it_is_read(tmp_path):
    file = tmp_path / "metrics.jsonl"
    logger = JsonLinesLogger(str(file))
    logger.init(SimpleNamespace(timestamp=SimpleNamespace(token=SimpleNamespace(value=7))), None)
    logger.log_metrics({"loss": math.nan, "norm": torch.tensor(math.inf), "lr": 0.5}, 1)
    logger.flush()
    assert file.read_text() == (
        '{"batch": 1, "tokens": 7, "loss": null, "norm": null, "lr": 0.5}\n'
    )
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["loss"])
