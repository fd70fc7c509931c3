"""Rows of a stream by their place, whatever the shards, and places that stand for all."""

import json
import shutil

import numpy as np
import pytest
from streaming import LocalDataset

from itt_composer.data.stored_rows import StoredRows, spread_indices


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


def test_places_are_spread_over_all_rows_in_random_order():
    places = spread_indices(1000, 50)
    assert sorted(place // 20 for place in places) == list(range(50))
    assert places != sorted(places)
    assert places == spread_indices(1000, 50)


def test_of_fewer_rows_than_asked_for_each_is_taken_once():
    assert sorted(spread_indices(7, 50)) == list(range(7))
