"""`scripts/experiment.sh`: the commands that each stage runs, with stubs in their place."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/experiment.sh"
ECHO = "#!/bin/sh\necho ${0##*/} $@\n"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the script alone, and programs that print how they were called."""
    for name in ("itt", "composer"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(ECHO)
        program.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


@pytest.fixture
def call(checkout):
    """Run the script; gives exit code, printed lines and errors."""

    def run(*arguments):
        environment = {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "JOBS": "1"}
        script = checkout / "scripts/experiment.sh"
        done = subprocess.run([script, *arguments], capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def make_run(checkout, name, *files, size="2m"):
    """A run folder with its recipe and other files, each newer than the one before."""
    folder = checkout / "runs/experiments" / size / name
    folder.mkdir(parents=True)
    for age, file in enumerate(("recipe.yaml", *files)):
        (folder / file).touch()
        os.utime(folder / file, (age, age))
    return f"runs/experiments/{size}/{name}"


def test_the_text_becomes_a_tokenizer_and_shards(call, checkout):
    shards = "runs/experiments/shards --tokenizer runs/experiments/tokenizer --seq-len 256"
    code, printed, _ = call("data", str(checkout))
    assert (code, printed) == (
        0,
        [
            f"itt train-tokenizer {checkout} --out runs/experiments/tokenizer --vocab-size 4096",
            f"itt convert {checkout} --out {shards}",
        ],
    )


def test_the_runs_that_are_named_are_trained_in_their_order(call):
    _, listed, _ = call("list", "2m")
    names = ["itt_x4-seed18", "llama-seed17-lr4.0e-3"]
    code, printed, _ = call("train", "2m", *names)
    expected = [line.rstrip() for name in names for line in listed if f"run_name={name} " in line]
    assert code == 0
    assert printed == [f"composer -n 1 -m itt_composer.train {line}" for line in expected]
    assert len(printed) == 2
    assert "optimizer.decoupled_adamw.lr=4.0e-3" in printed[1]


def test_every_run_of_a_size_is_trained_if_none_is_named(call):
    _, listed, _ = call("list", "6m")
    code, printed, _ = call("train", "6m")
    assert code == 0
    assert printed == [f"composer -n 1 -m itt_composer.train {line.rstrip()}" for line in listed]


def test_each_finished_run_is_measured_once_by_the_rules_it_has(call, checkout):
    by_both = "router_selection=[top_k,threshold]"
    suites = {
        "itt_x4-seed17": "elastic.yaml",
        "itt_x4-seed18": f"perplexity.yaml {by_both}",
        "itt_x4_elastic-seed17": "elastic.yaml",
        "itt_x4_no_routing-seed17": "perplexity.yaml",
        "itt_x4_top_p-seed17": "perplexity.yaml router_selection=[top_p,threshold]",
        "llama-seed17": "perplexity.yaml",
    }
    expected = []
    for name, suite in suites.items():
        run = make_run(checkout, name, "summary.json")
        suite, _, options = suite.partition(" ")
        files = f"model={run} data=runs/experiments/shards output={run}/perplexity.json"
        expected.append(f"itt eval eval/suites/{suite} {files} {options}".rstrip())
    make_run(checkout, "itt_x2-seed17")
    make_run(checkout, "itt_x3-seed17", "summary.json", "perplexity.json")
    again = make_run(checkout, "loop_x4-seed17", "perplexity.json", "summary.json")
    code, printed, _ = call("measure", "2m")
    assert code == 0
    assert printed[:-1] == expected
    assert f"model={again} " in printed[-1]


def test_the_report_is_of_all_runs_and_of_the_main_rows(call, checkout):
    names = ("itt_x4-seed17", "itt_x4-seed18", "itt_x4_tanh-seed17", "llama-seed17")
    itt, itt_again, tanh, llama = (make_run(checkout, name) for name in names)
    code, (every, main), _ = call("report", "2m")
    assert code == 0
    report = "itt report"
    assert every.startswith(f"{report} {itt}/ {itt_again}/ {tanh}/ {llama}/ --title ")
    assert every.endswith(
        " --out runs/experiments/report_2m.html --markdown runs/experiments/summary_2m.md"
    )
    assert main.startswith(f"{report} {llama} {itt} {itt_again} --title ")
    assert main.endswith(
        " --out runs/experiments/report_2m_main.html --figures runs/experiments/figures_2m"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data", "no/such"], "data takes the folder of the text, and 'no/such' is not one"),
        (["train"], "train takes a size, 2m or 6m, not ''"),
        (["list", "3m"], "list takes a size, 2m or 6m, not '3m'"),
        (["list", "2m", "llama-seed17"], "list takes no 'llama-seed17'"),
        (["train", "2m", "llama"], "llama is not a run of 2m; 'scripts/experiment.sh list 2m'"),
        (["measure", "2m"], "nothing is trained in runs/experiments/2m; 'scripts/experiment.sh tr"),
        (["report", "6m"], "nothing is trained in runs/experiments/6m; 'scripts/experiment.sh tr"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_nothing_is_run(call, arguments, sentence):
    code, printed, errors = call(*arguments)
    assert (code, printed) == (1, [])
    assert errors.startswith(f"scripts/experiment.sh: {sentence}")
    assert errors.count("\n") == 1


def test_without_a_stage_the_stages_are_listed(call):
    code, printed, _ = call()
    assert code == 1
    assert sum(line.lstrip().startswith("scripts/experiment.sh ") for line in printed) >= 6
