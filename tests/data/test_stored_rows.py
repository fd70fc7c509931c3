"""Rows of a stream by their number, whatever the shards, and a sample that stands for all."""

import json
import shutil

import numpy as np
import pytest
from streaming import LocalDataset

from itt_composer.data.stored_rows import StoredRows, sample_of_split


@pytest.mark.parametrize("form", ["raw", "zstd"])
def test_rows_of_many_shards_are_found_by_their_place(many_shards, tmp_path, form):
    stream = "train/prose"
    expected = LocalDataset(str(many_shards["raw"] / stream))
    folder = shutil.copytree(many_shards[form] / stream, tmp_path / "stream")
    assert len(json.loads((folder / "index.json").read_bytes())["shards"]) > 5
    rows = StoredRows(folder)
    assert len(rows) == expected.num_samples
    for place in (*range(len(rows)), 0):
        assert np.array_equal(rows[place]["input_ids"], expected[place]["input_ids"]), place


def test_a_sample_of_a_split_is_random_rows_of_every_domain_in_proportion(shards):
    folder = shards / "train"
    every, all_rows = sample_of_split(folder, 10**9)
    assert sorted(all_rows) == list(range(len(every)))
    code = len(StoredRows(folder / "code"))
    _, sample = sample_of_split(folder, 60)
    assert sample == all_rows[:60] != sorted(sample)
    assert sum(number < code for number in sample) == pytest.approx(60 * code / len(every), abs=2)
    stored = LocalDataset(str(folder / "prose"))
    assert np.array_equal(every[code]["input_ids"], stored[0]["input_ids"])
