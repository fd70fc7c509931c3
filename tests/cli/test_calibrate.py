"""`itt calibrate`: thresholds for a folder that has none."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from itt_composer.basics.files import whole_folder
from itt_composer.cli.calibrate import _batches, app
from itt_composer.data import stored_rows
from itt_composer.data.manifest import Manifest
from itt_composer.models import IttConfig, IttForCausalLM

GEOMETRY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A transformers folder of each kind, by name."""
    made = {}
    for thinking in ("itt", "loop"):
        torch.manual_seed(0)
        made[thinking] = tmp_path_factory.mktemp(thinking)
        IttForCausalLM(IttConfig(**GEOMETRY, thinking=thinking)).save_pretrained(made[thinking])
    return made


def calibrate(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_folder_gets_thresholds_and_routes_by_them(folders, shards, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["itt"], folder)
    result = calibrate(folder, "--data", shards, "--rows", 64)
    assert result.exit_code == 0, result.output
    assert "which now routes by them" in result.output
    before = IttForCausalLM.from_pretrained(folders["itt"])
    model = IttForCausalLM.from_pretrained(folder)
    assert model.has_thresholds
    assert model.config.router_selection == "threshold"
    assert {file.name for file in folder.iterdir()} == {
        file.name for file in folders["itt"].iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    weights = model.state_dict()
    for name, weight in before.state_dict().items():
        if not name.endswith("score_quantiles"):
            assert torch.equal(weights[name], weight), name
    # What it printed: steps, asked for, realised; close to one another on rows like these.
    rows = [line.split() for line in result.output.splitlines() if re.match(r" *\d", line)]
    for _, asked, realised, *_ in rows:
        assert float(realised) == pytest.approx(float(asked), abs=10)
    assert len(rows) == 3


def test_ratios_that_were_shares_of_the_weight_are_reported(folders, shards, tmp_path):
    model = IttForCausalLM.from_pretrained(folders["itt"])
    model.set_router_selection("top_p")
    model.save_pretrained(tmp_path / "model")
    note = "note: under top-p ratios were shares of the weight; from now on they are shares"
    result = calibrate(tmp_path / "model", "--data", shards, "--rows", 16)
    assert result.exit_code == 0, result.output
    assert note in result.output
    assert IttConfig.from_pretrained(tmp_path / "model").router_selection == "threshold"
    again = calibrate(tmp_path / "model", "--data", shards, "--rows", 16)
    assert (again.exit_code, "note:" in again.output) == (0, False)


def test_thresholds_are_checked_on_other_rows_than_they_were_measured_on(monkeypatch):
    def numbered(folder):
        first = {"code": 0, "prose": 100}[folder.name]
        return [{"input_ids": np.array([first + place])} for place in range(100)]

    monkeypatch.setattr(stored_rows, "StoredRows", numbered)
    domains = {"code": 100, "prose": 100}
    monkeypatch.setattr(Manifest, "read", lambda folder: Manifest)
    monkeypatch.setattr(Manifest, "rows", lambda split: domains)
    halves = _batches(Path("shards/train"), 40, 16, torch.device("cpu"))
    measured, checked = (
        [row for batch in half for (row,) in batch["input_ids"].tolist()] for half in halves
    )
    assert len(measured) == len(checked) == 40
    assert len({*measured, *checked}) == 80
    for half in (measured, checked):
        assert 10 < sum(row < 100 for row in half) < 30  # of both domains


def test_a_folder_keeps_its_dtype_its_other_files_and_who_may_read_it(folders, shards, tmp_path):
    folder = tmp_path / "model"
    IttForCausalLM.from_pretrained(folders["itt"]).to(torch.bfloat16).save_pretrained(folder)
    weights = folder / "model.safetensors"
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of an older model")
    (folder / "README.md").write_text("A card.")
    kept = [folder / name for name in ("adapter_model.safetensors", "step-5/model.safetensors")]
    for file in kept:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"of another model")
    size = weights.stat().st_size
    result = calibrate(folder, "--data", shards, "--rows", 16)
    assert result.exit_code == 0, result.output
    assert IttForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert weights.stat().st_size == pytest.approx(size, rel=0.05)
    assert weights.stat().st_mode == (folder / "config.json").stat().st_mode
    assert (folder / "README.md").read_text() == "A card."
    assert {*folder.rglob("*.safetensors")} == {weights, *kept}


def test_a_folder_is_replaced_only_by_a_complete_one(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "file").write_text("old")
    with suppress(InterruptedError), whole_folder(folder) as partial:
        (partial / "file").write_text("new")
        raise InterruptedError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "file").read_text() == "old"

    def stop(path, ignore_errors):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", stop)
    with suppress(KeyboardInterrupt), whole_folder(folder) as partial:
        (partial / "file").write_text("new")
    assert (folder / "file").read_text() == "new"


def test_a_damaged_index_is_one_sentence(folders, shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    index = copy / "validation" / "code" / "index.json"
    index.write_text("{")
    result = calibrate(folders["itt"], "--data", copy)
    assert result.exit_code == 1
    assert f"error: {index} is not an index of shards" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("loop", [], "holds a model without routers: there is nothing to calibrate"),
        (
            "nothing",
            [],
            "no/such is not there; calibrate takes a run folder or a transformers folder",
        ),
        ("itt", ["--split", "test"], "has no rows in its split 'test'"),
    ],
)
def test_what_cannot_be_calibrated_is_one_sentence(folders, shards, model, options, sentence):
    result = calibrate(folders.get(model, "no/such"), "--data", shards, *options)
    assert result.exit_code == 1
    assert sentence in " ".join(result.output.split())
    assert result.output.count("error:") == 1


def test_a_run_folder_gets_its_model_calibrated_and_a_checkpoint_does_not(
    folders, shards, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(folders["itt"], run / "model")
    (run / "summary.json").touch()
    result = calibrate(run, "--data", shards, "--rows", 8)
    assert result.exit_code == 0, result.output
    assert f"saved the thresholds in {run / 'model'}" in " ".join(result.output.split())
    assert IttForCausalLM.from_pretrained(run / "model").has_thresholds
    checkpoint = run / "checkpoints/ep0-ba5-rank0.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    result = calibrate(checkpoint, "--data", shards)
    assert result.exit_code == 1
    assert f"write one with `itt export {checkpoint} OUT`" in " ".join(result.output.split())


def test_a_text_serves_as_well_as_shards(folders, shards, small_text, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["itt"], folder)
    for file in (shards / "tokenizer").iterdir():
        shutil.copy(file, folder)
    lines = (small_text / "text" / "prose" / "all.jsonl").read_text()
    (tmp_path / "prose.jsonl").write_text(lines)
    (tmp_path / "prose.txt").write_text("".join(json.loads(x)["text"] for x in lines.splitlines()))
    for name in ("prose.jsonl", "prose.txt"):
        result = calibrate(folder, "--text", tmp_path / name, "--rows", 64)
        assert result.exit_code == 0, result.output
        assert re.search(r"^128 rows of 32 tokens, of [\d,]+ in the text$", result.output, re.M)
        assert IttForCausalLM.from_pretrained(folder).has_thresholds


def test_a_text_of_no_use_is_named(folders, shards, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["itt"], folder)
    for file in (shards / "tokenizer").iterdir():
        shutil.copy(file, folder)
    wrong = {
        "empty.txt": (b" \n", "has no text"),
        "latin.txt": (b"caf\xe9", r"is not UTF-8 text \(byte 4\)"),
        "odd.jsonl": (b'{"text": "a"}\n{"content": "b"}\n', "line 2: needs a string `text`"),
        "broken.jsonl": (b"{", "line 1: is not JSON"),
        "short.txt": (b"a few words", "gives 0 rows of 32 tokens; give more text"),
    }
    for name, (content, sentence) in wrong.items():
        (tmp_path / name).write_bytes(content)
        result = calibrate(folder, "--text", tmp_path / name)
        assert result.exit_code == 1, name
        assert re.search(sentence, result.output.replace("\n", " ")), result.output
    for arguments in ((), ("--text", tmp_path / "short.txt", "--data", shards)):
        result = calibrate(folder, *arguments)
        assert result.exit_code == 1
        assert "--data SHARDS or --text FILE" in result.output
    result = calibrate(folder, "--text", tmp_path / "short.txt", "--split", "train")
    assert result.exit_code == 1
    assert "--split is of shards" in result.output
