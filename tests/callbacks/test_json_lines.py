"""The metrics file: one object per batch, appended to."""

import json
import math

import pytest

FILE = "loggers.json_lines.path=${run_folder}/logs/metrics.jsonl"


@pytest.fixture
def train(small_recipe, make_trainer, tmp_path):
    """Train from the beginning and give every line of the metrics file."""

    def run(*overrides):
        recipe = small_recipe(FILE, "train.autoresume=false", *overrides)
        trainer, _ = make_trainer(recipe)
        trainer.fit()
        trainer.close()
        lines = (tmp_path / "run/logs/metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def test_there_is_a_line_per_batch_with_its_loss_and_tokens(train):
    lines = train()
    assert [line["batch"] for line in lines] == list(range(11))
    assert [line["tokens"] for line in lines] == [batch * 4 * 32 for batch in range(11)]
    losses = [line["loss/train/total"] for line in lines[:10]]
    assert all(math.isfinite(loss) for loss in losses)
    # Random weights know nothing about 512 ids.
    assert losses[0] == pytest.approx(math.log(512), abs=0.5)
    evaluated = [line["batch"] for line in lines if "metrics/eval/LanguageCrossEntropy" in line]
    assert evaluated == [5, 10]


def test_a_second_run_appends(train):
    first = train("train.max_duration=3ba")
    both = train("train.max_duration=3ba", "train.save_interval=2ba", "seed=3")
    assert both[: len(first)] == first
    assert [line["batch"] for line in both] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert both[0]["loss/train/total"] != both[4]["loss/train/total"]
