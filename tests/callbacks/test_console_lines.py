"""Console lines: readable, at the interval, and one per evaluation."""

import re

import pytest

from itt_composer.callbacks.console_lines import format_progress, format_time

PROGRESS = re.compile(
    r"batch (\d+) · (\d+) % · loss \d\.\d{3} · lr \d\.\de-\d\d · [\d,]+ tokens/s · \d+ s left"
)
EVALUATION = re.compile(
    r"batch (\d+) · validation loss \d\.\d{4} · perplexity [\d.]+( by thresholds)?"
)


def test_a_line_tells_where_training_is():
    line = format_progress(
        batch=1300, share_done=0.204, loss=5.2431, lr=1e-3, tokens_per_second=8120, seconds=175
    )
    assert line == "batch 1,300 · 20 % · loss 5.243 · lr 1.0e-03 · 8,120 tokens/s · 3 min left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
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
    assert len(lines) == 7


def test_the_perplexity_is_that_of_the_validation_loss(small_recipe, make_trainer, capsys):
    trainer, log = make_trainer(small_recipe("callbacks.console_lines={}"))
    trainer.fit()
    *_, by_top_k, by_threshold = capsys.readouterr().out.splitlines()
    for label, line in (("eval", by_top_k), ("eval_threshold", by_threshold)):
        name = f"metrics/{label}/LanguagePerplexity"
        perplexity = float(log.get_timeseries(name)[name][-1])
        printed = re.search(r"perplexity ([\d.]+)", line)[1]
        assert float(printed) == pytest.approx(perplexity, rel=1e-3)
