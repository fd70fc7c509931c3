"""Console lines: readable, at the interval, and one per evaluation."""

import re
import time

import pytest
import torch

from itt_composer.models.composer_model import unwrap
from itt_composer.models.flops import executed_flops
from itt_composer.recipe.schedules import ratios_at
from itt_composer.training import threshold_estimate
from itt_composer.training.watching.console_lines import ConsoleLines, format_progress
from itt_composer.training.watching.progress_bar import format_time

PROGRESS = re.compile(
    r"batch (\d+) · (\d+) % · loss \d\.\d{3} · lr \d\.\de-\d\d · [\d,]+ tokens/s · \d+ s left"
)
EVALUATION = re.compile(
    r"batch (\d+) · validation loss \d\.\d{4} · perplexity [\d.]+( by thresholds)?"
)


def test_a_line_shows_where_training_is():
    line = format_progress(
        batch=1300, share_done=0.204, loss=5.2431, lr=1e-3, tokens_per_second=8120, seconds=175
    )
    assert line == "batch 1,300 · 20 % · loss 5.243 · lr 1.0e-03 · 8,120 tokens/s · 3 min left"


def test_a_line_on_a_gpu_shows_its_use_and_memory():
    line = format_progress(
        batch=5, share_done=0.5, loss=5.0, lr=1e-3, tokens_per_second=812_000, seconds=60,
        mfu=0.384, peak_bytes=61_250_000_000,
    )  # fmt: skip
    assert line.endswith(" · 812,000 tokens/s · 38 % MFU · 61.2 GB · 1 min left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (59 * 60, "59 min"),
        (60 * 60, "1 h 00 min"),
        (3600 * 25 + 299, "25 h 05 min"),
    ],
)
def test_time_left_is_in_the_unit_that_says_enough(seconds, text):
    assert format_time(seconds) == text


def test_training_prints_at_the_interval_at_the_end_and_after_each_evaluation(
    small_recipe, make_trainer, capsys
):
    trainer, _ = make_trainer(small_recipe("callbacks.console_lines.interval=4ba"))
    trainer.fit()
    lines = capsys.readouterr().out.splitlines()
    progress = [match.groups() for match in map(PROGRESS.fullmatch, lines) if match]
    assert progress == [("4", "40"), ("8", "80"), ("10", "100")]
    evaluations = [match.groups() for match in map(EVALUATION.fullmatch, lines) if match]
    by = " by thresholds"
    assert evaluations == [("5", None), ("5", by), ("10", None), ("10", by)]
    said = [line for line in lines if "calibrat" in line]
    assert re.fullmatch(r"calibrating the thresholds on \d+ validation rows", said[0])
    assert re.fullmatch(r"calibrated in \d+ s", said[1])
    assert len(lines) == 9


def test_mfu_is_that_of_the_flops_at_the_ratios_in_force(small_recipe, make_trainer, capsys):
    peak = 1e5
    recipe = small_recipe(
        "callbacks={console_lines: {interval: 5ba}}",
        f"callbacks.speed_monitor={{gpu_flops_available: {peak}}}",
        "algorithms.capacity_annealing={duration: 5ba, levels: 5}",
    )
    trainer, _ = make_trainer(recipe)
    trainer.fit()
    lines = [line for line in capsys.readouterr().out.splitlines() if "MFU" in line]
    config = unwrap(trainer.state.model).config
    annealed = [ratios_at(batch / 5, 0.1, [0.5, 0.8], levels=5) for batch in range(5)]
    flops_per_token = []
    # The first batch of a start is left out: loaders are started and layers compiled for it.
    for line, ratios in zip(lines, (annealed[1:], [[0.5, 0.8]] * 5), strict=True):
        flops = sum(3 * executed_flops(config, 1, 32, in_force) for in_force in ratios)
        flops_per_token.append(flops / (len(ratios) * 32))
        tokens_per_second, mfu = re.search(r"([\d,]+) tokens/s · (\d+) % MFU", line).groups()
        expected = float(tokens_per_second.replace(",", "")) * flops_per_token[-1] / peak
        assert float(mfu) == pytest.approx(100 * expected, rel=0.01)
    assert flops_per_token[1] > 1.05 * flops_per_token[0]


def test_a_loss_beyond_all_perplexities_does_not_end_the_run(small_recipe, make_trainer, capsys):
    trainer, _ = make_trainer(small_recipe("callbacks.console_lines={}"))
    (lines,) = [one for one in trainer.state.callbacks if isinstance(one, ConsoleLines)]
    trainer.state.eval_metric_values = {"LanguageCrossEntropy": torch.tensor(800.0)}
    lines.eval_end(trainer.state, trainer.logger)
    assert "validation loss 800.0000 · perplexity 1014232" in capsys.readouterr().out


def test_the_perplexity_is_that_of_the_validation_loss(small_recipe, make_trainer, capsys):
    trainer, log = make_trainer(small_recipe("callbacks.console_lines={}"))
    trainer.fit()
    *_, by_top_k, by_threshold = capsys.readouterr().out.splitlines()
    for label, line in (("eval", by_top_k), ("eval_threshold", by_threshold)):
        name = f"metrics/{label}/LanguagePerplexity"
        perplexity = float(log.get_timeseries(name)[name][-1])
        printed = re.search(r"perplexity ([\d.]+)", line)[1]
        assert float(printed) == pytest.approx(perplexity, rel=1e-3)


def test_calibration_and_evaluation_do_not_count_for_the_speed(
    small_recipe, make_trainer, monkeypatch, capsys
):
    calibrate = threshold_estimate.calibrate

    def calibrate_slowly(*arguments):
        time.sleep(4)
        calibrate(*arguments)

    monkeypatch.setattr(threshold_estimate, "calibrate", calibrate_slowly)
    trainer, _ = make_trainer(small_recipe("callbacks.console_lines.interval=5ba"))
    trainer.fit()
    printed = capsys.readouterr().out
    assert int(re.search(r"^calibrated in (\d+) s$", printed, re.MULTILINE)[1]) >= 4
    *_, speed = re.findall(r"([\d,]+) tokens/s", printed)
    assert 5 * 4 * 32 / float(speed.replace(",", "")) < 3  # seconds for five batches
