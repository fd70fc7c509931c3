"""A run of version 0.1.0, before the package had rooms: resumed, evaluated, exported, reported.

`old_run.tar.gz` holds what that version wrote on a CPU: 302 rows of 32 tokens from this
repository's own text in `shards`, and in `run` an ITT of 10,656 parameters after 8 batches, with
its results and its checkpoint after batch 4, in the middle of capacity annealing. Names in its
files are relative to the folder that it is unpacked in.
"""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from itt_composer.cli.app import app
from itt_composer.runs.metrics import read_metrics

ARCHIVE = Path(__file__).with_name("old_run.tar.gz")
SUITE = Path(__file__).parents[2] / "eval/suites/perplexity.yaml"
# Of the model as it is loaded: the same under every release of transformers.
MEASURED = "d125e90388a267c416306c6c8f4dd0324ddf4bd78182166e83ff727af57fb5ca"
# Of the weights that version 0.1.0 exported of the checkpoint.
EXPORTED = "da072fdb3f2026582497537488cf2dd2737c01a5264614e2fad31ee5318e9e4f"
LOSS = "metrics/eval/LanguageCrossEntropy"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """The run folder, as `run` in the current folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def itt(*words: object) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_is_resumed_in_the_middle_and_ends_with_the_same_weights(old, fork_server):
    ended = shutil.copytree(old, old.with_name("ended"))
    shutil.rmtree(old / "model")
    (old / "summary.json").unlink()
    recipe = shutil.copy(old / "recipe.yaml", old.with_name("old.yaml"))
    result = fork_server.run("itt_composer.train", recipe, cwd=old.parent)
    assert result.returncode == 0, result.stderr
    assert "goes on after batch 4 of 8ba" in result.stdout
    before = load_file(ended / "model/model.safetensors")
    after = load_file(old / "model/model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():  # the same bits on the processor that trained it
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-5, msg=name)
    summaries = [json.loads((run / "summary.json").read_bytes()) for run in (ended, old)]
    for key, value in summaries[0].items():
        if isinstance(value, float) and key != "train_seconds":
            value = pytest.approx(value, rel=1e-5)
        assert key == "train_seconds" or summaries[1][key] == value, key
    logged = [
        {line["batch"]: line[LOSS] for line in read_metrics(run) if LOSS in line}
        for run in (ended, old)
    ]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_its_command_again_does_nothing(old, fork_server):
    recipe = shutil.copy(old / "recipe.yaml", old.with_name("old.yaml"))
    result = fork_server.run("itt_composer.train", recipe, cwd=old.parent)
    assert (result.returncode, result.stderr) == (0, "")
    assert "run holds the finished run: nothing to do" in result.stdout


def test_its_perplexities_and_thinking_are_measured_again(old):
    measured = ("perplexity.json", "analysis/thinking.json")
    before = {name: json.loads((old / name).read_bytes()) for name in measured}
    keys = ["model=run", "data=shards", "router_selection=[top_k,threshold]"]
    itt("eval", SUITE, *keys, f"output={old / 'perplexity.json'}")
    itt("analyse", "tokens", "run", "--rows", "16")
    after = {name: json.loads((old / name).read_bytes()) for name in measured}
    own, again = (one["perplexity.json"] for one in (before, after))
    assert own["model"] == again["model"]
    for setting, new in zip(own["settings"], again["settings"], strict=True):
        assert new["perplexity"] == pytest.approx(setting["perplexity"], rel=1e-5)
    own, again = (one["analysis/thinking.json"] for one in (before, after))
    assert again["model_sha256"] == MEASURED
    assert again["data"] == own["data"]
    for step, new in zip(own["steps"], again["steps"], strict=True):
        assert new["share"] == pytest.approx(step["share"])


def test_its_checkpoint_is_exported(old):
    itt("export", "run/checkpoints/ep0-ba4-rank0.pt", "out")
    weights = (old.with_name("out") / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == EXPORTED
    itt("export", "run", "newest")  # that of its end is not in the archive, and no link
    assert (old.with_name("newest") / "model.safetensors").read_bytes() == weights


def test_it_is_reported_from_its_files_alone(old):
    printed = itt("report", "run", "--out", "page.html")
    assert all(words in printed for words in ("159.10", "159.05", "ITT×3", "50/80", "160.43"))
    assert "159.10" in old.with_name("page.html").read_text(encoding="utf-8")
    assert "160.43" in itt("tables", "run/perplexity.json")


def test_it_generates_by_its_folder_its_model_and_its_checkpoint(old):
    words = ("--prompt", "the", "--max-new-tokens", "3")
    of_run = itt("generate", "run", *words)
    assert "3 tokens after" in of_run
    assert itt("generate", "run/model", *words).splitlines()[0] == of_run.splitlines()[0]
    result = CliRunner().invoke(app, ["generate", "run/checkpoints/ep0-ba4-rank0.pt", *words])
    assert result.exit_code == 0 or "has no thresholds yet" in result.stderr
