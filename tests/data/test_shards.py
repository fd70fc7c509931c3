"""Shards that fit the recipe, and the sentences for those that do not."""

import json
import shutil

import pytest

from itt_composer.data.shards import check_shards, domains_with_rows, read_manifest
from itt_composer.errors import UserError

FITTING = {"seq_len": 32, "vocab_size": 512, "domains": None, "batch_size": 4}


def refusal(folder, **changed):
    with pytest.raises(UserError) as caught:
        check_shards(folder, **{**FITTING, **changed})
    return str(caught.value)


@pytest.fixture
def copy(shards, tmp_path):
    """A copy of the shards' manifest that a test may change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(shards / "manifest.json", folder)
    return folder


def change(folder, **values):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | values))


def test_fitting_shards_pass(shards):
    check_shards(shards, **FITTING)
    check_shards(shards, **{**FITTING, "vocab_size": 600, "domains": {"code": 1.0}})


def test_domains_without_rows_are_left_out(shards):
    manifest = read_manifest(shards)
    assert set(domains_with_rows(manifest, "train")) == {"code", "prose"}
    manifest["splits"]["train"]["code"]["rows"] = 0
    assert set(domains_with_rows(manifest, "train")) == {"prose"}
    assert domains_with_rows(manifest, "test") == {}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seq_len": 64}, "holds rows of 32 tokens, but the recipe has data.seq_len=64; set it"),
        ({"vocab_size": 511}, "a tokenizer of 512 ids, but the recipe has model.vocab_size=511"),
        ({"domains": {"code": 1, "wiki": 1}}, "rows of the domain 'wiki' that data.domains names"),
        ({"batch_size": 10**6}, "fewer than one batch of train.global_batch_size=1000000"),
    ],
    ids=["seq_len", "vocab_size", "domains", "batch_size"],
)
def test_shards_that_do_not_fit_are_refused(shards, changed, words):
    sentence = refusal(shards, **changed)
    assert sentence.startswith(f"data folder {shards} ")
    assert words in sentence


def test_a_domain_that_lacks_is_told_with_those_that_are_there(shards):
    assert refusal(shards, domains={"wiki": 1}).endswith("it has code, prose")


def test_a_folder_without_shards_is_told_how_to_make_them(copy, tmp_path):
    how = "make shards with `python -m data_prep convert`"
    assert refusal(tmp_path / "no") == f"data folder {tmp_path / 'no'} is not there; {how}"
    assert refusal(tmp_path) == f"data folder {tmp_path} has no manifest.json; {how}"
    (copy / "manifest.json").write_text('{"command": "train-tokenizer"}')
    assert refusal(copy) == f"{copy / 'manifest.json'} does not describe shards; {how}"


@pytest.mark.parametrize("content", [b"", b'{"command": "conv', b"\xff\xfe", b"[1]"])
def test_a_damaged_manifest_is_named(copy, content):
    (copy / "manifest.json").write_bytes(content)
    assert refusal(copy).startswith(f"{copy / 'manifest.json'} ")


def test_shards_without_training_rows_are_refused(copy):
    splits = read_manifest(copy)["splits"]
    for counts in splits["train"].values():
        counts["rows"] = 0
    change(copy, splits=splits)
    assert "has 0 training rows, fewer than one batch" in refusal(copy)


def test_a_manifest_without_its_streams_is_refused(copy):
    assert refusal(copy).startswith(f"{copy / 'train' / 'code' / 'index.json'} is missing")


def test_shards_without_validation_rows_are_refused(copy):
    splits = read_manifest(copy)["splits"]
    splits["validation"] = {}
    change(copy, splits=splits)
    assert "has no validation rows; convert again" in refusal(copy)
