"""Shards that fit the recipe, and the sentences for those that do not."""

import json
import shutil
from pathlib import Path

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.data.manifest import Manifest, tokenizer_sha256
from itt_composer.data.shards import (
    check_shards,
    check_vocabulary,
)

FITTING = {"seq_len": 32, "vocab_size": 512, "domains": None, "batch_size": 4}


def refusal(folder, **changed):
    with pytest.raises(UserError) as caught:
        check_shards(folder, **{**FITTING, **changed})
    return str(caught.value)


@pytest.fixture
def copy(shards, tmp_path):
    """A copy of the shards that a test may change."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def content(folder):
    return json.loads((folder / "manifest.json").read_bytes())


def change(folder, **values):
    (folder / "manifest.json").write_text(json.dumps(content(folder) | values))


def test_fitting_shards_pass(shards):
    check_shards(shards, **FITTING)
    check_shards(shards, **{**FITTING, "vocab_size": 600, "domains": {"code": 1.0}})


def test_domains_without_rows_are_left_out(shards):
    assert set(Manifest.read(shards).rows("train")) == {"code", "prose"}
    values = content(shards)
    values["splits"]["train"]["code"]["rows"] = 0
    manifest = Manifest.model_validate(values)
    assert set(manifest.rows("train")) == {"prose"}
    assert manifest.rows("test") == {}


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


def test_a_missing_domain_is_named_with_those_that_are_there(shards):
    assert refusal(shards, domains={"wiki": 1}).endswith("it has code, prose")


def test_a_folder_without_shards_says_how_to_make_them(copy, tmp_path):
    how = "make shards with `itt convert`"
    assert refusal(tmp_path / "no") == f"data folder {tmp_path / 'no'} is not there; {how}"
    assert refusal(tmp_path) == f"data folder {tmp_path} has no manifest.json; {how}"
    (copy / "manifest.json").write_text('{"command": "train-tokenizer"}')
    assert refusal(copy) == f"{copy / 'manifest.json'} does not describe shards; {how}"


@pytest.mark.parametrize("content", [b"", b'{"command": "conv', b"\xff\xfe", b"[1]"])
def test_a_damaged_manifest_is_named(copy, content):
    (copy / "manifest.json").write_bytes(content)
    assert refusal(copy).startswith(f"{copy / 'manifest.json'} ")


def test_shards_without_training_rows_are_refused(copy):
    splits = content(copy)["splits"]
    for counts in splits["train"].values():
        counts["rows"] = 0
    change(copy, splits=splits)
    assert "has 0 training rows, fewer than one batch" in refusal(copy)


def test_a_manifest_without_its_streams_is_refused(copy):
    (copy / "train/code/index.json").unlink()
    assert refusal(copy).startswith(f"{copy / 'train' / 'code' / 'index.json'} is missing")


def test_shards_without_validation_rows_are_refused(copy):
    splits = content(copy)["splits"]
    splits["validation"] = {}
    change(copy, splits=splits)
    assert "has no validation rows; convert again" in refusal(copy)


def test_an_unfinished_conversion_is_refused(copy):
    manifest = content(copy)
    del manifest["splits"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "is of shards that are not finished" in refusal(copy)


@pytest.mark.parametrize("content", ["", "{}", '{"shards": [{"samples": 1}]}'])
def test_a_file_that_is_not_an_index_is_named(copy, content):
    (copy / "train/prose/index.json").write_text(content)
    assert refusal(copy).startswith(f"{copy / 'train/prose/index.json'} is not an index of shards")


def test_an_index_without_the_promised_rows_is_refused(copy):
    (copy / "validation/code/index.json").write_text('{"version": 2, "shards": []}')
    assert "has 0 rows, but the manifest" in refusal(copy)


def test_shards_of_another_row_length_than_their_manifest_are_refused(copy):
    change(copy, seq_len=16)
    assert "column_encodings ['ndarray:uint16:32'], but the manifest means" in refusal(
        copy, seq_len=16
    )


def test_only_the_tokenizer_of_the_shards_is_taken(shards, tmp_path):
    for tokenizer in (shards / "tokenizer", shards / "tokenizer/tokenizer.model"):
        check_shards(shards, **FITTING, tokenizer=str(tokenizer))
    (tmp_path / "tokenizer.json").write_text("{}")
    other = "was made with another tokenizer than data.tokenizer="
    assert other in refusal(shards, tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    assert f"data.tokenizer={tmp_path}: there is no such" in refusal(
        shards, tokenizer=str(tmp_path)
    )


def test_a_model_of_another_tokenizer_is_refused(shards, tmp_path):
    manifest = Manifest.read(shards)

    def check(vocab_size=512):
        check_vocabulary(shards, manifest, "runs/itt", vocab_size, str(tmp_path))

    check()  # nothing to compare with
    shutil.copy(shards / "tokenizer" / "tokenizer.model", tmp_path)
    check()
    with pytest.raises(UserError, match=r"tokenizer of 512 ids, but the model runs/itt has 500"):
        check(500)
    (tmp_path / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(UserError, match=r"another tokenizer than \S+, which is the model's"):
        check()


def test_a_tokenizer_folder_is_known_by_its_model_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    by_json = tokenizer_sha256(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"model")
    assert tokenizer_sha256(tmp_path) == tokenizer_sha256(tmp_path / "tokenizer.model") != by_json


def test_a_run_reads_its_domains_and_all_of_validation(shards):
    manifest = Manifest.read(shards)
    validation = [("validation", "code"), ("validation", "prose")]
    assert manifest.streams({"prose": 1.0}) == [("train", "prose"), *validation]
    assert len(manifest.streams(None)) == 4


def test_a_copy_has_the_content_of_its_origin_and_other_text_or_tokenizers_have_not(copy, shards):
    def digests(manifest, domains=None):
        return manifest.digests(manifest.streams(domains))

    own = digests(Manifest.read(shards))
    assert set(own) == {
        *("tokenizer", "train/code", "train/prose", "validation/code", "validation/prose")
    }
    change(copy, started="another day")
    assert digests(Manifest.read(copy)) == own
    values = content(copy)
    values["files"]["train/code/index.json"]["sha256"] = "0" * 64
    values["tokenizer"]["sha256"] = "1" * 64
    manifest = Manifest.model_validate(values)
    other = digests(manifest)
    assert {key for key in own if own[key] != other[key]} == {"tokenizer", "train/code"}
    only_prose = digests(manifest, {"prose": 1.0})
    assert "train/code" not in only_prose
