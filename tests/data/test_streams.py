"""Shards → batches: every row in its place, as often and in the order it should."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from streaming import LocalDataset

from itt_composer.data.streams import build_dataloader, collate_rows


@pytest.fixture
def loader(small_recipe):
    def build(split, *overrides, batch_size=16):
        return build_dataloader(small_recipe(*overrides).data, split, batch_size).dataloader

    return build


def stored_rows(shards, split, domain):
    """Rows of a stream as tuples, read without the code under test."""
    dataset = LocalDataset(str(shards / split / domain))
    return [tuple(dataset[i]["input_ids"].tolist()) for i in range(dataset.num_samples)]


def rows_of(batches):
    return [tuple(row) for batch in batches for row in batch["input_ids"].tolist()]


def test_a_batch_holds_ids_labels_and_a_mask_of_ones():
    rows = [{"input_ids": np.arange(i, i + 5, dtype=np.uint16)} for i in (0, 65530)]
    batch = collate_rows(rows)
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    for tensor in batch.values():
        assert (tensor.shape, tensor.dtype) == ((2, 5), torch.int64)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 4], [65530, 65531, 65532, 65533, 65534]]
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["labels"].data_ptr() != batch["input_ids"].data_ptr()
    assert batch["attention_mask"].eq(1).all()


def test_a_batch_counts_its_tokens(small_recipe):
    spec = build_dataloader(small_recipe().data, "train", 4)
    assert spec.get_num_tokens_in_batch(next(iter(spec.dataloader))) == 4 * 32


def test_validation_gives_every_row_once_and_in_order(loader, shards):
    stored = [
        *stored_rows(shards, "validation", "code"),
        *stored_rows(shards, "validation", "prose"),
    ]
    batch_size = next(size for size in (16, 15, 14) if len(stored) % size)
    batches = list(loader("validation", batch_size=batch_size))
    assert len(batches[-1]["input_ids"]) == len(stored) % batch_size
    assert rows_of(batches) == stored


def test_training_without_shares_gives_every_row_once_but_for_the_last_batch(loader, shards):
    stored = Counter(
        row for domain in ("code", "prose") for row in stored_rows(shards, "train", domain)
    )
    drawn = Counter(rows_of(loader("train")))
    assert drawn <= stored
    assert drawn.total() == stored.total() // 16 * 16


def test_training_order_follows_the_shuffle_seed(loader):
    first, same, other = (
        rows_of(loader("train", f"data.shuffle_seed={seed}")) for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other
    assert first != sorted(first)


def test_domains_are_drawn_by_their_shares(loader, shards):
    code = set(stored_rows(shards, "train", "code"))
    rows = rows_of(loader("train", "data.domains={code: 3, prose: 1}"))
    assert sum(row in code for row in rows) / len(rows) == pytest.approx(0.75, abs=0.03)
    without_shares = rows_of(loader("train"))
    assert sum(row in code for row in without_shares) / len(without_shares) < 0.5


def test_a_loader_goes_on_in_the_middle_of_an_epoch(loader):
    shares = "data.domains={code: 1, prose: 1}"
    whole = rows_of(loader("train", shares))
    interrupted = loader("train", shares)
    seen = rows_of(islice(interrupted, 5))
    resumed = loader("train", shares)
    resumed.load_state_dict(interrupted.state_dict())
    assert seen == whole[: 5 * 16]
    assert rows_of(resumed) == whole[5 * 16 :]


def test_shards_are_fetched_from_a_remote_folder(loader, shards, tmp_path):
    places = (f"data.remote={shards}", f"data.local={tmp_path / 'cache'}")
    assert rows_of(loader("train", *places)) == rows_of(loader("train"))
    assert (tmp_path / "cache/manifest.json").read_bytes() == (
        shards / "manifest.json"
    ).read_bytes()
