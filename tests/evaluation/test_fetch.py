"""`itt eval fetch`: whole files of what tasks need, from the real client of the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from lm_eval.tasks import TaskManager
from small_hub import small_hub
from small_task_data import arc, mmlu, own_datasets_cache, piqa, write
from typer.testing import CliRunner

from eval.__main__ import app
from eval.fetch import fetch as fetch_leaf
from eval.leaf_tasks import leaf_tasks, task_manager
from eval.suite import TaskSettings
from eval.task_data import open_tasks

REPOSITORY = Path(__file__).parents[2]
SUBJECTS = ("anatomy", "virology")
TASK = """\
task: {name}
dataset_path: {dataset}
output_type: multiple_choice
training_split: train
validation_split: validation
doc_to_text: "{{{{goal}}}}"
doc_to_target: label
doc_to_choice: "{{{{[sol1, sol2]}}}}"
"""
FEATURES = Features(
    {
        "goal": Value("string"),
        "sol1": Value("string"),
        "sol2": Value("string"),
        "label": ClassLabel(names=["first", "second"]),
    }
)


@pytest.fixture
def repository(tmp_path):
    """A dataset as the hub has it, in a folder, with splits that no task needs."""
    folder = tmp_path / "repository"
    for split, count in (("train", 6), ("validation", 5), ("test", 4)):
        rows = [piqa(number) for number in range(count)]
        file = folder / f"data/{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=FEATURES).to_parquet(file)
    return folder


@pytest.fixture
def add_task(tmp_path, monkeypatch):
    """Make a task known whose dataset is a folder."""
    own_datasets_cache(monkeypatch, tmp_path / "cache")

    def add(name, dataset):
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        (folder / "task.yaml").write_text(TASK.format(name=name, dataset=dataset))
        added = TaskManager(include_path=str(folder), include_defaults=False).task_index
        monkeypatch.setitem(task_manager().task_index, name, added[name])

    return add


@pytest.fixture
def suite(tmp_path):
    """A suite's file with the tasks given."""

    def write(**tasks):
        file = tmp_path / "suite.yaml"
        file.write_text(json.dumps({"tasks": tasks, "batch_size": 4}))
        return file

    return write


def fetch(*arguments):
    return CliRunner().invoke(app, ["fetch", *map(str, arguments)])


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_what_is_fetched_gives_the_documents_of_the_hub(repository, add_task, suite, tmp_path):
    add_task("small", repository)
    out = tmp_path / "new/data"
    result = fetch(out, "--suite", suite(small={"shots": 2}))
    assert result.exit_code == 0, result.output
    assert result.stdout == "small: files fetched: 2, kept: 0\n"
    assert files_in(out) == ["small/train.parquet", "small/validation.parquet"]
    settings = {"small": TaskSettings(shots=2)}
    datasets = []
    for data_dir in (None, str(out)):
        with open_tasks(settings, data_dir) as tasks:
            datasets.append(tasks.manager.load("small")["tasks"]["small"].dataset)
    hub, ours = datasets
    for split in ("train", "validation"):
        assert ours[split].features == hub[split].features == FEATURES
        assert ours[split].to_list() == hub[split].to_list()


def test_only_what_is_needed_is_fetched(repository, add_task, suite, tmp_path):
    add_task("small", repository)
    assert fetch(tmp_path / "a", "--suite", suite(small={"shots": 0}, gone=None)).exit_code == 0
    assert files_in(tmp_path / "a") == ["small/validation.parquet"]
    # Who names a task may mean to use shots.
    assert fetch(tmp_path / "b", "small").exit_code == 0
    assert files_in(tmp_path / "b") == ["small/train.parquet", "small/validation.parquet"]


def test_whole_files_are_kept_and_others_fetched_again(repository, add_task, tmp_path):
    add_task("small", repository)
    out = tmp_path / "data"
    fetch(out, "small")
    whole, broken = out / "small/train.parquet", out / "small/validation.parquet"
    content = broken.read_bytes()
    broken.write_bytes(content[:-20])
    before = whole.stat().st_mtime_ns
    result = fetch(out, "small")
    assert result.stdout == "small: files fetched: 1, kept: 1\n"
    assert whole.stat().st_mtime_ns == before
    assert broken.read_bytes() == content


def test_a_failure_is_reported_and_the_rest_is_kept(repository, add_task, suite, tmp_path):
    add_task("absent", tmp_path / "no/such/dataset")
    add_task("small", repository)
    out = tmp_path / "data"
    result = fetch(out, "--suite", suite(absent={}, small={}))
    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    assert first.startswith(f"error: absent: {tmp_path}/no/such/dataset could not be fetched: ")
    assert last == "files that were fetched stay; run this again for the rest"
    assert files_in(out) == ["small/validation.parquet"]


def test_a_dataset_that_is_out_of_reach_is_asked_for_once(tmp_path, monkeypatch):
    """MMLU has 57 tasks, and the hub's client tries each for half a minute."""
    own_datasets_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    anatomy, virology = (leaf_tasks(task_manager(), f"mmlu_{name}")[0] for name in SUBJECTS)
    for split in ("test", "dev"):
        write(tmp_path / f"data/mmlu_virology/{split}.jsonl", [mmlu(number) for number in range(5)])
    unreachable = {}
    first = fetch_leaf(anatomy, 5, tmp_path / "data", unreachable)
    assert first.failure.startswith("ConnectionError: Couldn't reach 'cais/mmlu' on the Hub")
    assert unreachable == {"cais/mmlu": first.failure}
    unreachable["cais/mmlu"] = "not again"
    assert fetch_leaf(anatomy, 5, tmp_path / "data", unreachable).failure == "not again"
    assert fetch_leaf(virology, 5, tmp_path / "data", unreachable).failure is None


def test_data_in_other_columns_is_not_stored(repository, add_task, tmp_path):
    for file in repository.rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns("sol2"), file)
    add_task("piqa", repository)
    result = fetch(tmp_path / "data", "piqa")
    assert result.exit_code == 1
    assert "column sol2 is missing; expected are the columns goal (string), " in result.stderr
    assert files_in(tmp_path / "data") == []


def test_mistakes_are_reported_in_one_sentence(suite, tmp_path):
    for arguments, sentence in {
        (tmp_path / "data", "picqa"): "picqa: lm-eval has no such task; did you mean piqa",
        (tmp_path / "data", "--suite", "no.yaml"): "no.yaml: there is no such file",
        (suite(), "piqa"): "cannot use ",
    }.items():
        result = fetch(*arguments)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: {sentence}")


README = """\
---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: test, path: ARC-Easy/test-*}
- config_name: ARC-Challenge
  data_files:
  - {split: train, path: ARC-Challenge/train-*}
  - {split: test, path: ARC-Challenge/test-*}
---
"""


def test_the_client_of_the_hub_fetches_over_http(tmp_path):
    """As users run it: a process of its own whose hub is another address."""
    hub, out = tmp_path / "hub", tmp_path / "data"
    stored = {
        "baber/piqa/data/validation": [piqa(number) for number in range(5)],
        "baber/piqa/data/train": [piqa(number) for number in range(6)],
        "allenai/ai2_arc/ARC-Easy/test": [arc(number) for number in range(3)],
        "allenai/ai2_arc/ARC-Challenge/test": [arc(number) for number in range(7)],
        "allenai/ai2_arc/ARC-Challenge/train": [arc(number) for number in range(9)],
        "cais/mmlu/anatomy/test": [mmlu(number) for number in range(4)],
        "cais/mmlu/anatomy/dev": [mmlu(number) for number in range(5)],
    }
    for path, rows in stored.items():
        file = hub / f"{path}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    (hub / "allenai/ai2_arc/README.md").write_text(README)
    (hub / "cais/mmlu/README.md").write_text(
        "---\nconfigs:\n- config_name: anatomy\n  data_files:\n"
        "  - {split: test, path: anatomy/test-*}\n  - {split: dev, path: anatomy/dev-*}\n---\n"
    )
    names = ["piqa", "arc_challenge", "mmlu_anatomy", "sciq"]
    with small_hub(hub) as endpoint:
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        result = subprocess.run(
            [sys.executable, "-m", "eval", "fetch", str(out), *names],
            cwd=REPOSITORY,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert result.returncode == 1, result.stderr
    first, last = result.stderr.splitlines()
    sentence = "error: sciq: allenai/sciq could not be fetched: RepositoryNotFoundError: 404 "
    assert first.startswith(sentence)
    assert f"{endpoint}/api/datasets/allenai/sciq" in first
    assert last == "files that were fetched stay; run this again for the rest"
    assert {path: pq.read_table(out / path).to_pylist() for path in files_in(out)} == {
        "piqa/train.parquet": stored["baber/piqa/data/train"],
        "piqa/validation.parquet": stored["baber/piqa/data/validation"],
        "arc_challenge/train.parquet": stored["allenai/ai2_arc/ARC-Challenge/train"],
        "arc_challenge/test.parquet": stored["allenai/ai2_arc/ARC-Challenge/test"],
        "mmlu_anatomy/test.parquet": stored["cais/mmlu/anatomy/test"],
        "mmlu_anatomy/dev.parquet": stored["cais/mmlu/anatomy/dev"],
    }
