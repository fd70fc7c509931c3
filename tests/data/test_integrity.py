"""Damage is found by reading, and what was read is not read again."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import flip_a_bit
from streaming import MDSWriter
from streaming.base.util import merge_index

from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.integrity import (
    RECORD_FILE,
    expected_files,
    find_damage,
    read_record,
    unread_bytes,
    write_record,
)
from itt_composer.data.manifest import Manifest, TokenizerOrigin

SHARD = "train/code/00000/shard.00000.mds"


@pytest.fixture
def copy(shards, tmp_path):
    return Path(shutil.copytree(shards, tmp_path / "copy"))


@pytest.fixture
def expected(copy):
    manifest = Manifest.read(copy)
    return expected_files(copy, manifest, manifest.streams(None))


def test_whole_files_have_no_damage(copy, expected):
    assert SHARD in expected
    assert "tokenizer/tokenizer.model" in expected
    damage, whole = find_damage(copy, expected, True, {}, threads=2)
    assert damage == {}
    assert set(whole) == set(expected)


def test_files_of_other_domains_are_not_looked_at(copy):
    manifest = Manifest.read(copy)
    expected = expected_files(copy, manifest, manifest.streams({"prose": 1.0}))
    assert SHARD not in expected
    assert "validation/code/00000/shard.00000.mds" in expected


def test_a_flipped_byte_a_cut_and_a_missing_file_get_a_sentence_each(copy, expected):
    flip_a_bit(copy / SHARD)
    cut = copy / "train/prose/00000/shard.00000.mds"
    cut.write_bytes(cut.read_bytes()[:-1])
    (copy / "validation/code/00000/shard.00000.mds").unlink()
    damage, whole = find_damage(copy, expected, True, {})
    assert damage == {
        SHARD: "does not match its SHA-256",
        "train/prose/00000/shard.00000.mds": (
            f"has {cut.stat().st_size:,} bytes instead of {cut.stat().st_size + 1:,}"
        ),
        "validation/code/00000/shard.00000.mds": "is missing",
    }
    assert set(whole) == set(expected) - set(damage)


def test_without_hashes_sizes_and_existence_are_still_looked_at(copy, expected):
    flip_a_bit(copy / SHARD)
    assert find_damage(copy, expected, False, {}) == ({}, {})
    (copy / SHARD).unlink()
    assert find_damage(copy, expected, False, {})[0] == {SHARD: "is missing"}


def test_a_file_found_whole_is_read_again_only_when_it_has_changed(copy, expected):
    _, whole = find_damage(copy, expected, True, {})
    assert unread_bytes(copy, expected, {}) > 10_000
    assert unread_bytes(copy, expected, whole) == 0
    # Size and time as before: proof that the file is not read.
    before = (copy / SHARD).stat()
    flip_a_bit(copy / SHARD)
    os.utime(copy / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find_damage(copy, expected, True, whole)[0] == {}
    os.utime(copy / SHARD)
    assert set(find_damage(copy, expected, True, whole)[0]) == {SHARD}


def test_the_record_is_read_back_and_a_broken_one_is_none(copy, expected):
    _, whole = find_damage(copy, expected, True, {})
    write_record(copy, whole)
    assert read_record(copy) == whole
    for content in ("", "[1]", "\xff"):
        (copy / RECORD_FILE).write_text(content, encoding="latin-1")
        assert read_record(copy) == {}


def test_a_folder_that_cannot_be_written_to_gets_no_record(tmp_path):
    write_record(tmp_path / "no/such", {"a": [1, 2, "3"]})
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_names_an_unknown_shard_is_refused(copy):
    manifest = Manifest.read(copy)
    del manifest.files[SHARD]
    with pytest.raises(UserError, match=f"manifest.json does not list {SHARD}"):
        expected_files(copy, manifest, [("train", "code")])


def manifest_of(files):
    """Make a manifest of nothing but files."""
    return Manifest(
        seq_len=4,
        dtype="uint16",
        vocab_size=512,
        bos_id=1,
        eos_id=2,
        tokenizer=TokenizerOrigin(file="", sha256=""),
        splits={},
        totals={},
        files=files,
    )


def test_compressed_shards_in_subfolders_are_known_by_what_lies_there(tmp_path):
    for part in ("00000", "00001"):
        folder = tmp_path / "train/code" / part
        columns = {"input_ids": "ndarray:uint16:4"}
        with MDSWriter(
            out=str(folder), columns=columns, compression="zstd", hashes=["sha256"]
        ) as writer:
            writer.write({"input_ids": np.arange(4, dtype=np.uint16)})
    merge_index(str(tmp_path / "train/code"))
    files = {
        path.relative_to(tmp_path).as_posix(): Fingerprint.of(path)
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    expected = expected_files(tmp_path, manifest_of(files), [("train", "code")])
    assert find_damage(tmp_path, expected, True, {})[0] == {}
    # As streaming leaves it after it has decompressed the shard.
    index = json.loads((tmp_path / "train/code/index.json").read_bytes())
    raw = index["shards"][1]["raw_data"]
    assert raw["basename"] == "00001/shard.00000.mds"
    (tmp_path / "train/code" / raw["basename"]).write_bytes(b"x" * raw["bytes"])
    assert find_damage(tmp_path, expected, True, {})[0] == {
        "train/code/00001/shard.00000.mds": "does not match its SHA-256"
    }
