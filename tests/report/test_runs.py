"""Reading runs for a report: their curves, what they cost, and which are one experiment."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from report_runs import write_run

from itt_composer.basics.errors import UserError
from itt_composer.report.axes import Units
from itt_composer.report.build import build
from itt_composer.report.curves import smoothed, thinned, training_records
from itt_composer.report.experiments import differing_settings, group, incomparable
from itt_composer.report.page import render
from itt_composer.report.runs import read_run, read_runs
from itt_composer.report.summary import counted, duration, summarise
from itt_composer.runs.folder import RunFolder
from itt_composer.runs.repeats import common_name, experiment_sha256

DENSE = ("thinking.thinking=dense", "thinking.thinking_steps=null", "thinking.select_ratios=null")


def seed(number: int) -> tuple[str, str]:
    return f"seed={number}", f"data.shuffle_seed={number}"


def test_flops_of_a_real_training_are_the_sum_over_its_batches(small_recipe, make_trainer):
    from composer.core import Callback

    from itt_composer.training.training_run import TrainingRun

    class Sum(Callback):
        total = 0

        def after_train_batch(self, state, logger):
            self.total += state.model.flops_per_batch(state.batch)

    recipe = small_recipe(
        "algorithms.capacity_annealing={start_ratio: 0.1, duration: 0.5dur}",
        "loggers.json_lines.path=${run_folder}/metrics.jsonl",
    )
    summed = Sum()
    trainer, _ = make_trainer(recipe, summed)
    TrainingRun(recipe).write_recipe()
    trainer.fit()
    trainer.close()
    run = read_run(TrainingRun(recipe).path)
    assert run.batches[-1] == 10
    assert run.flops[-1] == pytest.approx(
        summed.total, rel=1e-3
    )  # rotary tables once, not per batch
    steps = np.diff(run.flops)
    assert steps[0] < steps[-1]  # annealing is counted
    assert run.losses[0] is not None
    assert [one.batch for one in run.validations] == [5, 10]
    assert run.validations[1].tokens == 10 * 4 * 32


def test_runs_that_differ_in_seeds_only_are_one_experiment(tmp_path):
    folders = [
        write_run(tmp_path / "itt-17", *seed(17), loss=4.0),
        write_run(tmp_path / "itt-18", *seed(18), loss=4.2),
        write_run(tmp_path / "lr", "optimizer.decoupled_adamw.lr=0.002", *seed(17)),
        write_run(tmp_path / "no-rtc", "thinking.residual_thinking=false", *seed(17)),
        write_run(tmp_path / "ratios", "thinking.select_ratios=[0.7,0.7]", *seed(17)),
        write_run(tmp_path / "dense", *DENSE, *seed(17)),
        write_run(tmp_path / "long", *DENSE, "train.max_duration=1600ba", *seed(17)),
        write_run(tmp_path / "deep", "model.num_hidden_layers=6", *seed(17)),
        write_run(tmp_path / "narrow", "model.intermediate_size=24", *seed(17)),
    ]
    experiments = group(read_runs(folders))
    assert [(one.label, len(one.runs)) for one in experiments] == [
        ("dense", 1),
        ("itt-17/18", 2),
        ("long", 1),
        ("lr", 1),
        ("no-rtc", 1),
        ("ratios", 1),
        ("narrow", 1),
        ("deep", 1),
    ]
    summary = summarise(experiments)
    columns = ["length", "lr", "residual_thinking", "intermediate_size", "layers"]
    assert summary.columns[:4] == ["validation\nperplexity", "by\nthresholds", "model", "ratios, %"]
    assert summary.columns[4:9] == columns == summary.settings
    cells = {line.label: [cell.text for cell in line.cells[2:9]] for line in summary.lines}
    usual = ["ITT×3", "50/80", "40 batches", "0.001", "true", "48", "4"]
    assert cells["itt-17/18"] == usual
    assert cells["no-rtc"] == [*usual[:4], "false", *usual[5:]]
    assert cells["ratios"] == ["ITT×3", "70/70", *usual[2:]]
    assert cells["long"] == ["LLaMA", "–", "1,600 batches", "0.001", "–", "48", "4"]
    assert cells["deep"][-1] == "6"


def test_what_is_usual_is_so_in_most_runs_of_a_size(tmp_path):
    large = ("model.hidden_size=64",)
    folders = [
        write_run(tmp_path / "slow", *DENSE, "optimizer.decoupled_adamw.lr=0.0001"),
        write_run(tmp_path / "dense", *DENSE),
        write_run(tmp_path / "itt"),
        write_run(tmp_path / "large", *DENSE, *large, "optimizer.decoupled_adamw.lr=0.0001"),
        write_run(tmp_path / "large-itt", *large, "optimizer.decoupled_adamw.lr=0.0001"),
    ]
    experiments = group(read_runs(folders))
    assert [one.label for one in experiments] == ["dense", "itt", "slow", "large", "large-itt"]
    assert [bool(one.differences) for one in experiments] == [False, False, True, False, False]
    assert differing_settings(experiments) == {
        "lr": ["0.001", "0.001", "0.0001", "0.0001", "0.0001"],
        "hidden_size": ["32", "32", "32", "64", "64"],
    }


@pytest.mark.parametrize(
    ("names", "together"),
    [
        (["only"], "only"),
        (["llama-seed17", "llama-seed18", "llama-seed9"], "llama-seed17/18/9"),
        (["x4-seed17-lr0.1", "x4-seed18-lr0.1"], "x4-seed17/18-lr0.1"),
        (["first", "second"], "first + 1 more"),
        (["run", "run2"], "run + 1 more"),
        (["run (a/run)", "run (b/run)"], "run (a/run) + 1 more"),
        ([f"a-long-name-{number}" for number in range(100, 130)], "a-long-name-100 + 29 more"),
    ],
)
def test_repeats_have_their_names_with_what_is_common_once(names, together):
    assert common_name(names) == together


def test_a_recipe_from_before_a_setting_came_is_like_one_that_has_its_default(tmp_path):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", "seed=18")
    recipe = (old / "recipe.yaml").read_text()
    (old / "recipe.yaml").write_text(recipe.replace("  step_encoding: true\n", ""))
    assert len(group(read_runs([old, new]))) == 1


def test_runs_of_other_training_rows_are_no_repeats(tmp_path):
    folders = [write_run(tmp_path / name, *seed(at)) for at, name in enumerate("abc")]
    for folder, rows in zip(folders, ("one", "one", "other"), strict=True):
        digests = {"tokenizer": "t", "train/c4": rows, "validation/c4": folder.name}
        (folder / "shards.json").write_text(json.dumps(digests))
    assert [len(one.runs) for one in group(read_runs(folders))] == [2, 1]
    digests = [experiment_sha256(RunFolder(folder)) for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    text = (folders[1] / "recipe.yaml").read_text().replace("40ba", "9ba")
    (folders[1] / "recipe_until_batch_9.yaml").write_text(text)
    assert experiment_sha256(RunFolder(folders[1])) != digests[0]
    (folders[0] / "shards.json").unlink()
    assert experiment_sha256(RunFolder(folders[0])) is None


def test_the_summary_gives_means_spreads_and_what_is_in_progress(tmp_path):
    folders = [
        write_run(tmp_path / "a", *seed(17), loss=4.0),
        write_run(tmp_path / "b", *seed(18), loss=4.2),
        write_run(tmp_path / "c", *seed(19), loss=1.0, batches=20, finished=False),
        write_run(tmp_path / "d", *DENSE, loss=4.1, batches=10, finished=False),
    ]
    summary = summarise(group(read_runs(folders)))
    dense, itt = summary.lines
    assert (dense.state, itt.state) == ("in progress, 25 %", "1 more in progress")
    assert itt.cells[4].text == "2"
    perplexity = itt.cells[0]
    mean = (np.exp(4.0) + np.exp(4.2)) / 2
    assert perplexity.text == f"{mean:.2f}"
    assert perplexity.spread == f"{np.exp(4.0):.2f}–{np.exp(4.2):.2f}"
    assert "| a + 2 more (1 more in progress) | 60.64 (54.60–66.69) |" in summary.table().markdown()
    assert dense.cells[0].text == f"{np.exp(4.1):.2f}"  # of its last evaluation


def test_seeds_that_diverged_are_named_beside_the_mean(tmp_path):
    losses = {"a": 4.0, "b": 4.2, "c": float("nan")}
    folders = [
        write_run(tmp_path / name, *seed(number), loss=loss)
        for number, (name, loss) in enumerate(losses.items())
    ]
    (line,) = summarise(group(read_runs(folders))).lines
    assert line.cells[0].text == f"{(np.exp(4.0) + np.exp(4.2)) / 2:.2f} (2 of 3)"
    assert line.cells[6].text == "5.12 k"


def test_flops_of_a_log_that_ends_before_its_run_are_not_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:20]))
    (line,) = summarise(group(read_runs([folder]))).lines
    assert (line.cells[6].text, line.cells[7].text) == ("5.12 k", "–")


def test_a_run_that_logged_no_time_has_taken_none_that_is_known(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    texts = [json.dumps({**line, "time/train": None}) + "\n" for line in lines]
    (folder / "metrics.jsonl").write_text("".join(texts))
    runs = read_runs([folder, write_run(tmp_path / "other", *DENSE)])
    dense, itt = summarise(group(runs)).lines
    assert (dense.cells[9].text, itt.cells[9].text) == ("10 s", "–")
    assert Units(runs).time.name == "minutes"
    records = training_records(runs[0], "ITT", Units(runs), 10)
    assert len(records) == 10
    assert all(np.isnan(record["time"]) for record in records)


def test_units_fit_what_is_left_after_rounding():
    assert [counted(tokens) for tokens in (999_936, 999.6, 512, 2_048_000)] == [
        *("1 M", "1 k", "512", "2.05 M")
    ]
    assert [duration(seconds) for seconds in (119.4, 119.6, 7199)] == [
        "119 s",
        "2 min",
        "2 h 00 min",
    ]


def test_texts_that_utf_8_cannot_hold_are_replaced_where_they_are_read(tmp_path):
    folders = [write_run(tmp_path / name / "run", analysed=True) for name in "ab"]
    folders[1] = folders[1].parent.rename(tmp_path / "caf\udce9") / "run"
    recipe = folders[0] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("run_name: run", 'run_name: "\\ud83d run"'))
    for file, old in (("analysis/thinking.json", '"The"'), ("perplexity.json", '"run"')):
        text = (folders[0] / file).read_text()
        (folders[0] / file).write_text(text.replace(old, '"\\ud83d"'))
    (folders[1] / "perplexity.json").write_text("{")
    page = build(folders, [], "\ud83d").page
    assert {run.name for run in read_runs(folders)} == {"? run", "run"}
    render(page).encode()
    assert any("caf?/run/perplexity.json" in warning for warning in page.warnings)


def test_the_last_lines_of_a_resumed_run_count(tmp_path):
    folder = write_run(tmp_path / "run", batches=20, finished=False)
    before = read_run(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    again = [line.replace('"loss/train/total": ', '"loss/train/total": 9') for line in lines[10:]]
    (folder / "metrics.jsonl").write_text("".join([*lines, *again]) + '{"batch": 20, "los')
    run = read_run(folder)
    assert run.batches == before.batches
    assert run.flops == before.flops
    assert run.losses[9] == before.losses[9]
    assert all(loss > 90 for loss in run.losses[10:20])


def test_a_batch_that_was_not_logged_counts_like_the_one_before(tmp_path):
    folder = write_run(tmp_path / "run", batches=20)
    whole = read_run(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:15] + lines[17:]))
    assert read_run(folder).flops[-1] == whole.flops[-1]  # ratios were at their end by then


def test_folders_that_are_no_runs_are_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty is not a run folder .it has no recipe.yaml"):
        read_runs([tmp_path / "empty"])
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json cannot be read; delete it"):
        read_runs([folder])
    (folder / "recipe.yaml").write_text("[1]")
    with pytest.raises(UserError, match=r"recipe.yaml does not hold the recipe of a run"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (
            "recipe.yaml",
            "seq_len: 32",
            "seq_len: long",
            "seq_len=long is not a positive",
        ),
        (
            "recipe.yaml",
            "seq_len: 32",
            "seq_len: null",
            "seq_len=None is not a positive",
        ),
        ("recipe.yaml", "max_duration", "other", "does not hold the recipe of a run"),
        ("recipe.yaml", "hidden_size: 32", "hidden_size: big", "model.hidden_size=big is not"),
        ("summary.json", '"tokens": 5120', '"tokens": "5"', "summary.json cannot be read"),
        ("summary.json", '"validation_loss": 4.0', '"validation_loss": ""', "cannot be read"),
        ("summary.json", 'threshold": 4.01', 'threshold": "4"', "summary.json cannot be read"),
    ],
)
def test_a_recipe_or_summary_that_was_changed_is_reported(tmp_path, file, old, new, sentence):
    folder = write_run(tmp_path / "run")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_run(folder)


def test_runs_of_one_name_stay_apart_and_one_named_twice_counts_once(tmp_path):
    first = write_run(tmp_path / "one" / "run")
    second = write_run(tmp_path / "two" / "run", "seed=18")
    runs = read_runs([first, second, first / ".." / "run"])
    assert [run.name for run in runs] == [f"run ({first})", f"run ({second})"]


def test_other_data_or_another_vocabulary_is_warned_of(tmp_path):
    first = read_run(write_run(tmp_path / "a"))
    second = read_run(write_run(tmp_path / "b", "model.vocab_size=1024"))
    assert incomparable([first, first]) == []
    (sentence,) = incomparable([first, second])
    assert sentence.startswith("model.vocab_size is 512 in a and 1024 in b: their perplexities")
    recipe = {**first.recipe, "data": {**first.recipe["data"], "local": "other"}}
    (sentence,) = incomparable([first, replace(first, recipe=recipe)])
    assert sentence.startswith("data.local is shards in a and other in a")


def test_a_long_curve_is_thinned_out_to_means(tmp_path):
    values = np.arange(200_000.0)
    gaps = np.where(values % 2 == 0, np.nan, values)
    thin, thin_gaps = thinned([values, gaps], 1000)
    assert len(thin) == len(thin_gaps) == 1000
    assert thin[0] == values[:200].mean()
    assert thin_gaps[0] == np.nanmean(gaps[:200])
    line = smoothed(values, 100)
    assert np.allclose(line[50:-50], values[50:-50])  # a slope stays where it is
    assert np.isnan(smoothed(np.array([np.nan, np.nan]), 3)).all()


def test_a_run_of_a_hundred_thousand_batches_is_read_to_its_end(tmp_path):
    folder = write_run(tmp_path / "run", batches=20, finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        for batch in range(21, 100_000):
            file.write(
                json.dumps({"batch": batch, "tokens": batch, "loss/train/total": 1.0}) + "\n"
            )
    assert read_run(folder).batches[-1] == 99_999
