"""Shards → batches: every row in its place, as often and in the order it should."""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import flip_a_bit
from streaming import LocalDataset
from streaming.base.batching import generate_work
from streaming.base.world import World

from itt_composer.basics.errors import LoaderError, UserError
from itt_composer.data.prepare import prepare_shards
from itt_composer.data.streams import build_dataloader, collate_rows
from itt_composer.data.token_rows import interleave, sample_order


@pytest.fixture
def loader(small_recipe):
    def build(split, *overrides, batch_size=16):
        return build_dataloader(small_recipe(*overrides).data, split, batch_size).dataloader

    return build


def stored_rows(shards, split, domain):
    """Read the rows of a stream as tuples, without the code under test."""
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


def test_validation_gives_every_row_once_and_its_beginning_is_a_sample(loader, shards):
    code, prose = (stored_rows(shards, "validation", domain) for domain in ("code", "prose"))
    count = len(code) + len(prose)
    batch_size = next(size for size in (16, 15, 14) if count % size)
    validation = loader("validation", batch_size=batch_size)
    batches = list(validation)
    rows = rows_of(batches)
    assert len(batches[-1]["input_ids"]) == count % batch_size
    assert Counter(rows) == Counter(code + prose)
    assert not any(batch["labels"].eq(-100).any() for batch in batches)
    share = len(code) / count
    for batches_taken in range(1, len(batches)):
        taken = rows[: batches_taken * batch_size]
        assert abs(sum(row in code for row in taken) - share * len(taken)) <= 2
    # Of each domain not the first rows in their stored order, and from everywhere.
    half = rows[: count // 2]
    for domain in (code, prose):
        places = [domain.index(row) for row in half if row in domain]
        assert places != sorted(places)
        assert max(places) > 0.8 * len(domain)
        assert np.mean(places) == pytest.approx(len(domain) / 2, rel=0.3)
    assert rows_of(validation) == rows  # in the next evaluation as well


@pytest.mark.parametrize(
    ("nodes", "ranks", "workers"), [(1, 1, 1), (1, 3, 1), (1, 7, 2), (2, 2, 3), (4, 2, 1)]
)
def test_validation_counts_every_row_once_on_any_number_of_ranks(loader, nodes, ranks, workers):
    dataset = loader("validation", batch_size=4).dataset
    counted, given_out = [], 0
    for number in range(nodes * ranks * workers):
        world = World(nodes, ranks, workers, number)
        work = generate_work("random", dataset, world, 0, 0)
        own = work[world.node, world.rank_of_node, world.worker_of_rank].flatten()
        given_out += (own != -1).sum()
        counted += own[(own != -1) & ~dataset._repeats_of(world, 0, 0)].tolist()
    assert sorted(counted) == list(range(dataset.num_samples))
    assert given_out % (nodes * ranks) == 0


def test_the_labels_of_a_repeated_row_are_not_counted(loader, monkeypatch):
    validation = loader("validation", batch_size=4)
    whole = next(iter(validation))
    repeats_of = validation.dataset._repeats_of
    monkeypatch.setattr(
        validation.dataset,
        "_repeats_of",
        lambda *place: np.arange(len(repeats_of(*place))) % 4 == 1,
    )
    batch = next(iter(validation))
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    assert batch["labels"][1].eq(-100).all()
    assert torch.equal(batch["labels"][[0, 2, 3]], whole["labels"][[0, 2, 3]])


def test_any_beginning_of_the_order_of_a_sample_is_one_of_every_domain():
    counts = [3000, 0, 1000, 2]
    order = sample_order(counts)
    assert np.array_equal(np.sort(order), np.arange(4002))
    assert np.array_equal(order, sample_order(counts))
    for taken in (200, 1000):
        first, third = order[:taken][order[:taken] < 3000], order[:taken][order[:taken] >= 3000]
        assert len(first) / taken == pytest.approx(0.75, abs=0.02)
        # A uniform sample's mean lies within three standard errors of the middle.
        assert abs(first.mean() - 1500) < 3 * 3000 / np.sqrt(12 * len(first))
        assert abs(third.mean() - 3500) < 3 * 1000 / np.sqrt(12 * len(third))


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


def test_the_training_order_does_not_depend_on_the_workers(loader):
    shares = "data.domains={code: 1, prose: 1}"
    alone = rows_of(loader("train", shares))
    for workers in (1, 3):
        assert rows_of(loader("train", shares, f"data.num_workers={workers}")) == alone


def test_another_epoch_has_another_order(loader):
    training = loader("train")
    first, second = rows_of(training), rows_of(training)
    assert first != second
    # But for the rows that fill no last batch, which are others.
    assert (Counter(first) - Counter(second)).total() < 16


@pytest.mark.parametrize("algorithm", ["py1e", "py1br", "naive"])
def test_every_stretch_of_training_holds_the_shares(loader, algorithm):
    batches = list(
        loader("train", "data.domains={code: 7, prose: 13}", f"data.shuffle_algo={algorithm}")
    )
    drawn = torch.cat([batch["domain"] for batch in batches])
    assert (drawn == 0).float().mean().item() == pytest.approx(0.35, abs=0.01)
    for stretch in drawn.split(40):
        assert abs((stretch == 0).sum().item() - 0.35 * len(stretch)) < 2


def test_interleaved_positions_are_every_position_once():
    positions = interleave([5, 0, 1000, 37], seed=3)
    assert [len(domain) for domain in positions] == [5, 0, 1000, 37]
    assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(1042))
    assert all((np.diff(domain) > 0).all() for domain in positions)
    assert not np.array_equal(positions[3], interleave([5, 0, 1000, 37], seed=4)[3])


def test_a_row_carries_the_number_of_its_domain(loader, shards):
    training = loader("train", "data.domains={prose: 1, code: 1}")
    assert training.dataset.domains == ["prose", "code"]
    code = set(stored_rows(shards, "train", "code"))
    for batch in islice(training, 3):
        expected = [int(tuple(row) in code) for row in batch["input_ids"].tolist()]
        assert batch["domain"].tolist() == expected


@pytest.mark.parametrize("form", ["raw", "zstd"])
def test_domain_and_row_lead_to_the_stored_row_among_many_shards(loader, many_shards, form):
    training = loader("train", f"data.local={many_shards[form]}")
    domains = training.dataset.domains
    stored = {domain: stored_rows(many_shards["raw"], "train", domain) for domain in domains}
    drawn = set()
    for batch in training:
        numbers = list(zip(batch["domain"].tolist(), batch["row"].tolist(), strict=True))
        assert rows_of([batch]) == [stored[domains[domain]][row] for domain, row in numbers]
        drawn |= set(numbers)
    assert len(drawn) == sum(map(len, stored.values())) // 16 * 16


def test_a_domain_too_small_for_a_row_is_left_out(loader):
    drawn = [batch["domain"] for batch in loader("train", "data.domains={code: 1e-9, prose: 1}")]
    assert torch.cat(drawn).eq(1).float().mean() > 0.99


@pytest.fixture
def remote(shards, small_recipe, tmp_path):
    """A copy of the shards, and the overrides that stream them through a prepared cache."""
    folder = Path(shutil.copytree(shards, tmp_path / "remote"))
    places = (f"data.remote={folder}", f"data.local={tmp_path / 'cache'}")
    prepare_shards(small_recipe(*places).data, vocab_size=512, batch_size=4)
    return folder, places


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_fetched_from_a_remote_folder(loader, remote, tmp_path, workers):
    _, places = remote
    assert not (tmp_path / "cache/train/code/00000/shard.00000.mds").exists()
    rows = rows_of(loader("train", *places, f"data.num_workers={workers}"))
    assert rows == rows_of(loader("train"))
    assert (tmp_path / "cache/train/code/00000/shard.00000.mds").exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["flipped byte", "missing"])
def test_a_shard_that_cannot_be_had_is_one_sentence(loader, remote, tmp_path, damage, workers):
    folder, places = remote
    shard = folder / "train/prose/00000/shard.00000.mds"
    if damage == "missing":
        shard.unlink()
    else:
        flip_a_bit(shard)
    with pytest.raises(LoaderError) as caught:
        list(loader("train", *places, f"data.num_workers={workers}"))
    sentence = str(caught.value)
    reason = (
        "is damaged"
        if damage == "flipped byte"
        else "cannot be read or downloaded (FileNotFoundError"
    )
    assert sentence.startswith(f"shard {shard} {reason}")
    assert "\n" not in sentence
    # Or the next run would take it for whole.
    assert not (tmp_path / "cache/train/prose/00000/shard.00000.mds").exists()


def test_a_cache_limit_below_four_shards_is_one_sentence(loader, remote):
    with pytest.raises(UserError, match=r"data\.local=.*Cache limit \(20480 bytes\) is too low"):
        loader("train", *remote[1], "data.cache_limit=20kb")
