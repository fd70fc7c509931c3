"""Budgets: rows exactly as asked, shortfalls reported, no document on both sides."""

import re
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from small_conversions import (
    REPOSITORY,
    assert_one_line,
    content,
    manifest_of,
    rows_of,
    texts_of,
    write_jsonl,
)

from data_prep.budgets import Budgets, parse_count, read_shares, validation_share_needed
from data_prep.documents import Fields
from data_prep.domains import PAPER_SHARES
from data_prep.part_record import PartRecord, SplitCounts
from data_prep.token_estimate import Estimate, estimate, validation_threshold
from data_prep.tokenizer import load_corpus_tokenizer
from itt_composer.basics.errors import UserError
from itt_composer.data.shards import check_shards
from itt_composer.recipe.schema import load_recipe

SEQ_LEN = 64
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def three(tmp_path_factory, corpus):
    """Three domains of different sizes under RedPajama's names; `c4` holds all of `cc` too."""
    root = tmp_path_factory.mktemp("three") / "root"
    pieces, others = (
        [text[start : start + 800] for start in range(0, len(text) - 800, 800)]
        for text in ("".join(texts_of(corpus / domain)) for domain in ("code", "docstrings"))
    )
    for number in range(5):
        write_jsonl(root / "common_crawl" / f"{number}.jsonl", pieces[number * 100 :][:100])
    # In another order, so that every part of it has some of them.
    write_jsonl(
        root / "c4" / "all.jsonl",
        [pieces[i] for start in range(7) for i in range(start, len(pieces), 7)],
    )
    write_jsonl(root / "books" / "all.jsonl", others[:100])
    return root


@pytest.fixture
def shares(tmp_path):
    file = tmp_path / "shares.yaml"
    file.write_text("cc: 2\nc4: 5\nbooks: 1\n")
    return file


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("300000", 300_000), ("300_000", 300_000), ("300,000", 300_000), ("2M", 2_000_000)),
        *(("2m", 2_000_000), ("1.5k", 1500), ("50B", 50 * 10**9), ("0.001t", 10**9)),
    ],
)
def test_counts_are_read(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "2MB", "many", "1e6", "0.0001k", "M"])
def test_what_is_not_a_count_is_a_usage_error(text, run, tmp_path):
    with pytest.raises(ValueError, match="give one like 300000, 2M or 50B"):
        parse_count(text)
    options = ("--out", tmp_path / "out", "--tokenizer", "x", "--seq-len", 8)
    result = run("convert", tmp_path, *options, f"--train-tokens={text}")
    assert result.exit_code == 2
    assert "is not a number of tokens" in " ".join(result.stderr.split())


def test_shares_come_from_the_paper_a_mapping_or_a_recipe(tmp_path):
    assert read_shares(None, ["cc", "wiki"]) == PAPER_SHARES
    assert sum(PAPER_SHARES.values()) == pytest.approx(1)
    for text in ("common_crawl: 3\nwiki: 1\n", "data:\n  domains:\n    cc: 3\n    wikipedia: 1\n"):
        (tmp_path / "shares.yaml").write_text(text)
        assert read_shares(tmp_path / "shares.yaml", ["cc", "wiki"]) == {"cc": 0.75, "wiki": 0.25}
    assert read_shares(tmp_path / "shares.yaml", ["cc"]) == {"cc": 0.75, "wiki": 0.25}


def test_the_papers_shares_are_those_of_the_recipes():
    recipe = OmegaConf.load(REPOSITORY / "yamls" / "data" / "redpajama.yaml")
    assert dict(recipe.get("data", recipe).domains) == PAPER_SHARES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cc: 1\n", "give no share for the domain wiki: name the shares of cc, wiki"),
        ("cc: 1\nwiki: 0\n", "the share of wiki must be a positive number, not 0"),
        ("cc: 1\nwiki: -1\n", "the share of wiki must be a positive number, not -1"),
        ("cc: 1\nwiki: lots\n", "the share of wiki must be a positive number, not 'lots'"),
        ("cc: 1\nwiki: true\n", "the share of wiki must be a positive number, not True"),
        ("cc: .nan\nwiki: 1\n", "the share of cc must be a positive number, not nan"),
        ("cc: .inf\nwiki: 1\n", "the share of cc must be a positive number, not inf"),
        ("data:\n  local: x\n", "shares.yaml"),
        ("data:\n  domains:\n", "shares.yaml"),
        ("- cc\n", "shares.yaml"),
        ("cc: [", "broken YAML"),
        (None, "there is no such file"),
    ],
)
def test_what_are_no_shares_is_one_sentence(tmp_path, text, message):
    file = tmp_path / "shares.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_shares(file, ["cc", "wiki"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_budgets_are_whole_rows_and_absent_ones_no_limit():
    budgets = Budgets.of(1000, None, {"cc": 0.75, "wiki": 0.25}, 64)
    assert budgets.rows == {"train": {"cc": 12, "wiki": 4}}
    assert budgets.limit("train", "cc") == 12
    assert budgets.limit("validation", "cc") is budgets.limit("train", "other") is None
    assert budgets.is_filled("train", "cc", 12)
    assert not budgets.is_filled("train", "cc", 11)
    assert not budgets.is_filled("validation", "cc", 10**12)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8),
    st.integers(0, 100),
    st.integers(0, 20),
)
def test_parts_keep_their_first_rows_until_the_budget_is_full(rows, train, validation):
    budgets = Budgets({"train": {"d": train}, "validation": {"d": validation}})
    records = [
        PartRecord(
            *("d", index),
            domains={"d": {"train": SplitCounts(rows=a), "validation": SplitCounts(rows=b)}},
        )
        for index, (a, b) in enumerate(rows)
    ]
    used = records[: budgets.parts_needed("d", records)]
    kept = budgets.shared_out(used)
    for split, place, limit in [("train", 0, train), ("validation", 1, validation)]:
        own = [limits["d"][split] for limits in kept]
        there = [counts[place] for counts in rows[: len(used)]]
        assert sum(own) == min(limit, sum(there))
        full = sum(a == b for a, b in zip(own, there, strict=True))
        assert own[full + 1 :] == [0] * len(own[full + 1 :]) or 0 in there
        assert all(0 <= a <= b for a, b in zip(own, there, strict=True))


def converted(convert, three, shares, out, **options):
    given = {"root": three, "out": out, "shares": shares, "part_size": "60kb", "workers": 1}
    return convert(**given | options)


def test_rows_are_exactly_those_asked_for_whatever_the_workers(convert, three, shares, tmp_path):
    asked = {"train_tokens": "128k", "validation_tokens": "16k", "validation_share": 0.5}
    for workers in (1, 2):
        out = tmp_path / f"workers{workers}"
        result = converted(convert, three, shares, out, **asked, workers=workers)
        assert result.exit_code == 0, result.output
        assert "warning" not in result.stderr
    assert content(tmp_path / "workers1") == content(tmp_path / "workers2")
    manifest = manifest_of(tmp_path / "workers1")
    assert manifest["shares"] == {"cc": 0.25, "c4": 0.625, "book": 0.125}
    for split, tokens in [("train", 128_000), ("validation", 16_000)]:
        for domain, share in manifest["shares"].items():
            rows = round(tokens * share / SEQ_LEN)
            counts = manifest["splits"][split][domain]
            assert (counts["rows"], counts["tokens"]) == (rows, rows * SEQ_LEN)
            assert rows_of(tmp_path / "workers1" / split / domain).shape == (rows, SEQ_LEN)
    # Of the large domain only some parts were read, and only these have fingerprints.
    read = manifest["inputs"]["c4/all.jsonl"]["sha256"]
    assert 0 < sum(digest is not None for digest in read) < len(read)
    assert not any((tmp_path / "workers1").rglob(".*"))


def test_train_rows_are_a_spread_of_the_domain(convert, three, shares, tmp_path):
    """Not only its beginning, which in many corpora is of one kind."""
    converted(convert, three, shares, tmp_path / "shards", train_tokens="64k")
    read = manifest_of(tmp_path / "shards")["inputs"]["c4/all.jsonl"]["sha256"]
    used = [number for number, digest in enumerate(read) if digest is not None]
    assert used != list(range(len(used)))


def test_no_more_is_converted_than_the_budget_needs(convert, three, shares, tmp_path):
    result = converted(convert, three, shares, tmp_path / "shards", train_tokens="64k")
    assert result.exit_code == 0, result.output
    estimated = re.search(r"([\d,]+) documents, ", result.stderr)
    documents = sum(
        counts["documents"] for counts in manifest_of(tmp_path / "shards")["totals"].values()
    )
    everything = sum(len(texts_of(folder)) for folder in three.iterdir())
    # A part that is cut to the budget's end is read again.
    assert documents <= int(estimated[1].replace(",", "")) <= 2 * documents < everything


def test_parts_that_were_converted_beyond_the_budget_are_removed(convert, three, shares, tmp_path):
    """One part turns out to be enough, but before that is known the other worker has the next."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "c4").symlink_to(three / "c4")
    shares.write_text("c4: 1\n")
    for workers in (1, 2):
        options = {"root": tmp_path / "root", "train_tokens": "18800", "workers": workers}
        result = converted(convert, three, shares, tmp_path / f"workers{workers}", **options)
        assert result.exit_code == 0, result.output
    assert content(tmp_path / "workers1") == content(tmp_path / "workers2")


def test_domains_that_cannot_fill_their_share_are_reported_with_the_numbers(
    convert, three, shares, tmp_path
):
    asked = {"train_tokens": "400k", "validation_tokens": "40k", "validation_share": 0.05}
    result = converted(convert, three, shares, tmp_path / "shards", **asked)
    assert result.exit_code == 0, result.output
    manifest = manifest_of(tmp_path / "shards")
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    expected = []
    for split, tokens in [("train", 400_000), ("validation", 40_000)]:
        for domain, share in manifest["shares"].items():
            there = manifest["splits"][split][domain]["tokens"]
            wanted = round(tokens * share / SEQ_LEN) * SEQ_LEN
            if there < wanted:
                expected.append(f"warning: {split}/{domain} has {there:,} of {wanted:,} tokens")
    assert sorted(warnings) == sorted(expected)
    assert any("train/book has" in line for line in expected)
    assert any("validation/" in line for line in expected)


def test_a_share_of_less_than_a_row_is_reported_as_a_stream_without_rows(
    convert, three, shares, tmp_path
):
    shares.write_text("cc: 1000\nc4: 1\nbooks: 1000\n")
    asked = {"train_tokens": "20k", "validation_share": 0.5}
    result = converted(convert, three, shares, tmp_path / "shards", **asked)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [f"warning: {split}/c4 has no rows" for split in SPLIT_NAMES]


def test_a_domain_of_the_shares_that_is_not_there_is_reported(convert, three, tmp_path):
    names = {"common_crawl": "cc", "books": "book", "c4": "c4"}
    for folder, name in names.items():
        (tmp_path / "root" / name).mkdir(parents=True)
        for path in (three / folder).iterdir():
            (tmp_path / "root" / name / path.name).write_bytes(path.read_bytes())
    result = convert(root=tmp_path / "root", train_tokens="20k", workers=1)
    assert result.exit_code == 0, result.output
    assert "warning: train/wiki has 0 of 896 tokens" in result.stderr
    assert "train/cc" not in result.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_named_mixed_is_a_domain_like_any_other(convert, three, shares, tmp_path, workers):
    for name, origin in [("mixed", "c4"), ("other", "common_crawl")]:
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / "root" / name).symlink_to(three / origin)
    asked = {"root": tmp_path / "root", "train_tokens": "1280", "workers": workers}
    out = tmp_path / "shards"
    shares.write_text("other: 1\n")
    error = assert_one_line(converted(convert, three, shares, out, **asked))
    assert "give no share for the domain mixed: name the shares of mixed, other" in error
    shares.write_text("mixed: 3\nother: 1\n")
    result = converted(convert, three, shares, out, **asked)
    assert result.exit_code == 0, result.output
    rows = {domain: n["rows"] for domain, n in manifest_of(out)["splits"]["train"].items()}
    assert rows == {"mixed": 15, "other": 5}


@pytest.mark.parametrize("field", ["text_field", "domain_field"])
def test_a_mistyped_field_under_a_validation_budget_is_one_sentence(
    convert, three, shares, tmp_path, field
):
    asked = {"validation_tokens": "1000", field: "nope"}
    error = assert_one_line(converted(convert, three, shares, tmp_path / "shards", **asked))
    assert re.search(r'\.jsonl, line \d+: no field "nope"; name the ', error)
    assert list(tmp_path.iterdir()) == [shares]


def test_all_of_validation_is_kept_without_a_train_budget(convert, three, shares, tmp_path):
    asked = {"validation_tokens": "16k", "validation_share": 0.5}
    result = converted(convert, three, shares, tmp_path / "shards", **asked)
    assert result.exit_code == 0, result.output
    manifest = manifest_of(tmp_path / "shards")
    rows = sum(round(16_000 * share / SEQ_LEN) for share in manifest["shares"].values())
    assert manifest["totals"]["validation"]["rows"] == rows
    train = manifest["totals"]["train"]
    assert train["unused_tokens"] == 0
    every = manifest["totals"]["validation"]
    documents = sum(len(texts_of(three / folder)) for folder in ("common_crawl", "c4", "books"))
    assert train["documents"] + every["documents"] == documents
    assert 0 < manifest["validation_threshold"] < 0.5


def documents_in(out, split):
    """Read the whole documents in the rows of a split, as tuples of ids."""
    found = Counter()
    for stream in sorted((out / split).iterdir()):
        ids = rows_of(stream).flatten().tolist()
        document = None
        for token in ids:
            if token == BOS:
                document = []
            elif token == EOS and document is not None:
                found[tuple(document)] += 1
                document = None
            elif document is not None:
                document.append(token)
    return found


@pytest.mark.parametrize("budget", ["both", "validation", "none"])
def test_no_document_is_on_both_sides_though_it_lies_in_two_domains(
    convert, three, shares, tmp_path, budget
):
    asked = {"validation_share": 0.4}
    asked |= {"shares": shares} if budget != "none" else {}
    asked |= {"validation_tokens": "32k"} if budget != "none" else {}
    asked |= {"train_tokens": "160k"} if budget == "both" else {}
    result = convert(root=three, part_size="60kb", workers=1, **asked)
    assert result.exit_code == 0, result.output
    train, validation = (documents_in(tmp_path / "shards", split) for split in SPLIT_NAMES)
    assert sum(count > 1 for count in train.values()) > 3  # in both domains
    assert len(validation) > 50
    assert train.keys().isdisjoint(validation)


SPLIT_NAMES = ("train", "validation")


def test_the_threshold_is_kept_when_a_bad_line_was_mended(convert, three, shares, tmp_path):
    root = tmp_path / "root"
    for path in three.rglob("*.jsonl"):
        number = 40 if path.parent.name == "books" else 300  # the smallest part comes last
        write_jsonl(root / path.relative_to(three), texts_of(path.parent)[:number])
    bad = root / "books" / "all.jsonl"
    good = bad.read_bytes()
    bad.write_bytes(b"{\n" + good)  # among the lines that the estimate is made of
    asked = {"root": root, "shares": shares, "validation_tokens": "8k", "validation_share": 0.5}
    assert_one_line(convert(**asked, part_size="60kb", workers=1), f"{bad}, line 1: broken JSON")
    threshold = (tmp_path / ".shards.partial" / ".state" / "threshold.json").read_text()
    bad.write_bytes(good)
    assert convert(**asked, part_size="60kb", workers=1).exit_code == 0
    assert manifest_of(tmp_path / "shards")["validation_threshold"] == float(threshold)


def test_budget_of_less_than_a_row_is_refused(convert, three, shares, tmp_path):
    result = converted(convert, three, shares, tmp_path / "shards", train_tokens="40")
    assert result.exit_code == 1
    assert "--train-tokens 40 is less than one row of 64 tokens" in result.stderr
    assert not (tmp_path / "shards").exists()


def test_tokens_of_a_corpus_are_estimated_well(three, tokenizer):
    loaded = load_corpus_tokenizer(str(tokenizer))
    files = sorted((three / "common_crawl").iterdir())
    texts = texts_of(three / "common_crawl")
    tokens = sum(len(loaded.encode(text)) + 2 for text in texts)
    found = estimate(three, "cc", files, Fields(), loaded)["cc"]
    assert found.tokens == pytest.approx(tokens, rel=0.25)
    assert len(found.lengths) == 5 * 8
    first = [len(loaded.encode(text)) + 2 for text in texts[:8]]
    assert found.lengths[:8].tolist() == first


def test_estimate_passes_over_bad_lines_and_bad_files(tmp_path, tokenizer):
    loaded = load_corpus_tokenizer(str(tokenizer))
    good = tmp_path / "d" / "b.jsonl"
    write_jsonl(good, ["some text"] * 5)
    with good.open("ab") as file:
        file.write(b"{\n")
    (tmp_path / "d" / "a.jsonl").touch()
    (tmp_path / "d" / "c.jsonl.gz").write_bytes(b"not gzip")
    files = sorted((tmp_path / "d").iterdir())
    assert len(estimate(tmp_path, "d", files, Fields(), loaded)["d"].lengths) == 5
    nothing = estimate(tmp_path, "d", files[:1], Fields(), loaded)["d"]
    assert (nothing.tokens, len(nothing.lengths)) == (0, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 3000), st.floats(0.3, 1.2), st.integers(0, 10_000))
def test_the_share_needed_very_likely_holds_the_tokens_wanted(typical, spread, seed):
    random = np.random.default_rng(seed)
    lengths = np.maximum(2, random.lognormal(np.log(typical), spread, 20_000)).astype(int)
    wanted = int(lengths.sum() * 0.02)
    share = validation_share_needed(wanted, float(lengths.sum()), lengths[:64])
    held = [lengths[random.random(len(lengths)) < share].sum() for _ in range(20)]
    assert sum(tokens >= wanted for tokens in held) >= 19
    assert share < 0.1  # and does not take much more than is needed


def test_one_threshold_serves_all_domains_and_stays_below_the_largest():
    found = {
        "large": Estimate(1e9, np.array([500, 600])),
        "small": Estimate(1e6, np.array([500, 600])),
    }
    budgets = Budgets({"validation": {"large": 100, "small": 100}})
    alone = {
        domain: validation_threshold({domain: estimated}, budgets, 100, 1.0)
        for domain, estimated in found.items()
    }
    assert validation_threshold(found, budgets, 100, 1.0) == alone["small"] > alone["large"]
    assert validation_threshold(found, budgets, 100, 0.01) == 0.01
    # With a train budget fewer documents are read, so a larger share of them is needed.
    both = Budgets(budgets.rows | {"train": {"large": 1000, "small": 1000}})
    assert validation_threshold(found, both, 100, 1.0) > alone["small"]
    assert validation_share_needed(100, 0.0, np.array([])) == 1.0


def test_rows_beyond_a_validation_budget_are_dropped_without_converting_again(
    convert, three, shares, tmp_path, monkeypatch
):
    from data_prep import local_engine

    converted_parts = []

    def counted(part, *arguments):
        converted_parts.append((part.source, part.index))
        return store_part(part, *arguments)

    store_part = local_engine.store_part
    monkeypatch.setattr(local_engine, "store_part", counted)
    options = {"validation_tokens": "600", "part_size": "20kb"}
    result = converted(convert, three, shares, tmp_path / "shards", **options)
    assert result.exit_code == 0, result.output
    # At most one part of each domain, the one in which its budget ends, is converted once more.
    assert len(converted_parts) - len(set(converted_parts)) <= 3
    assert len(set(converted_parts)) > 12


@pytest.mark.parametrize("part_size", ["20kb", "64mb"])
def test_progress_ends_at_all_of_the_bytes_that_a_budget_needs(
    convert, three, shares, tmp_path, part_size
):
    asked = {"train_tokens": "6k", "part_size": part_size, "workers": 1}
    result = converted(convert, three, shares, tmp_path / "shards", **asked)
    assert result.exit_code == 0, result.output
    done, total = re.findall(r"([\d.]+) of ([\d.]+) MB", result.stderr)[-1]
    assert done == total
    assert float(done) > 0


def test_redpajama_without_its_withdrawn_books_is_converted_and_trained_as_documented(
    convert, corpus, tmp_path
):
    command = "grep -v book: yamls/data/redpajama.yaml > shares.yaml"
    for page in ("data", "recipes"):
        assert command in (REPOSITORY / f"docs/{page}.md").read_text(encoding="utf-8")
    file = tmp_path / "shares.yaml"
    subprocess.run(
        command.replace("shares.yaml", str(file)), shell=True, check=True, cwd=REPOSITORY
    )
    domains = [domain for domain in PAPER_SHARES if domain != "book"]
    texts = [text[:1500] for text in texts_of(corpus / "code")]
    for number, domain in enumerate(domains):
        write_jsonl(tmp_path / "root" / domain / "a.jsonl", texts[number::6])
    asked = {"root": tmp_path / "root", "shares": file, "train_tokens": "6400", "workers": 1}
    result = convert(**asked)
    assert result.exit_code == 0, result.output
    assert "train/book" not in result.stderr
    manifest = manifest_of(tmp_path / "shards")
    assert sum(manifest["shares"].values()) == pytest.approx(1)
    assert manifest["totals"]["train"]["rows"] == pytest.approx(100, abs=2)  # rounded by domain
    recipe = REPOSITORY / "yamls/pretrain/itt_x4_162m.yaml"
    changed = [f"data.local={tmp_path / 'shards'}", "data.seq_len=64", "data.domains.book=null"]
    data = load_recipe(str(recipe), changed).data
    assert list(data.domains) == domains
    check_shards(data.local, data.seq_len, 32_000, data.domains, 64)
