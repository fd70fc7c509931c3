"""The manifest and the index of shards: read, checked and written by one class each."""

import json
import shutil
from pathlib import Path

import pytest

from itt_composer.basics.errors import UserError
from itt_composer.data.index import ShardIndex
from itt_composer.data.manifest import Manifest
from itt_composer.data.shards import check_shards

NEWER_KEYS = (
    *("special_tokens", "domain_field", "validation_tokens", "train_tokens", "shares", "encoder"),
    *("why_reference", "part_size", "shard_size", "compression", "hashes", "engine"),
    *("validation_threshold", "rejects", "special_token_names", "cut_files", "not_read"),
)


@pytest.fixture
def copy(shards, tmp_path):
    """A copy of the shards that a test may change."""
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def edit(folder, change):
    file = folder / "manifest.json"
    values = json.loads(file.read_bytes())
    change(values)
    file.write_text(json.dumps(values))


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_what_is_read_and_written_again_is_the_same_file(many_shards, kind):
    folder = many_shards[kind]
    assert Manifest.read(folder).to_json() == (folder / "manifest.json").read_text()
    indexes = list(folder.rglob("index.json"))
    assert len(indexes) > 4
    for index in indexes:
        assert ShardIndex.read(index).to_json() == index.read_text()


def test_a_manifest_of_the_first_format_is_read(copy, shards):
    def as_first(values):
        values["format_version"] = 1
        for key in NEWER_KEYS:
            del values[key]
        del values["tokenizer"]["source_sha256"]
        for counts in (*values["splits"]["train"].values(), values["totals"]["train"]):
            del counts["unused_tokens"]
        for file in values["inputs"].values():
            file["sha256"] = "00"

    edit(copy, as_first)
    manifest = Manifest.read(copy)
    assert manifest.rows("train") == Manifest.read(shards).rows("train")
    check_shards(copy, seq_len=32, vocab_size=512, domains=None, batch_size=4)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "train//code/index.json"])
def test_a_file_outside_its_folder_is_refused_wherever_a_manifest_is_read(copy, name):
    entry = {"bytes": 1, "sha256": "00"}
    edit(copy, lambda values: values["files"].update({name: entry}))
    sentence = f"{copy / 'manifest.json'} names {name!r}, which lies outside its folder"
    assert refusal(Manifest.read, copy) == sentence
    edit(copy, lambda values: values["files"].pop(name))
    edit(copy, lambda values: values["splits"]["train"].update({"..": values["totals"]["train"]}))
    assert "names 'train/..', which lies outside" in refusal(Manifest.read, copy)


def test_a_broken_count_is_named_by_its_key(copy):
    edit(copy, lambda values: values["splits"]["train"]["code"].update(rows="7"))
    assert "is broken at splits.train.code.rows (" in refusal(Manifest.read, copy)


def test_shards_compressed_otherwise_than_their_manifest_says_are_refused_for_training(copy):
    edit(copy, lambda values: values.update(compression="zstd"))
    sentence = refusal(check_shards, copy, 32, 512, None, 4)
    assert sentence.startswith(f"{copy / 'train' / 'code' / 'index.json'} describes ")
    assert "compression None, but the manifest means zstd; make shards with" in sentence


def test_an_index_that_names_a_shard_outside_its_folder_is_refused_for_training(copy):
    file = copy / "train" / "code" / "index.json"
    index = json.loads(file.read_bytes())
    index["shards"][0]["raw_data"]["basename"] = "../prose/00000/shard.00000.mds"
    file.write_text(json.dumps(index))
    assert "which lies outside its folder" in refusal(check_shards, copy, 32, 512, None, 4)
