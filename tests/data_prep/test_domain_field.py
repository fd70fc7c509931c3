"""Documents whose lines name their domain: the streams that a folder per domain gives."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from small_conversions import (
    assert_one_line,
    content,
    manifest_of,
    rows_of,
    texts_of,
    write_jsonl,
    zstd,
)

from data_prep import local_engine, part_rows
from itt_composer.basics.errors import UserError

SETS = {"RedPajamaC4": "c4", "RedPajamaGithub": "github", "RedPajamaBook": "book"}
FIELD = {"domain_field": "meta.redpajama_set_name"}
BUDGETS = {"train_tokens": "24k", "validation_tokens": "3k", "validation_share": 0.6}


def slim_line(text: str, name: str) -> bytes:
    meta = {"redpajama_set_name": name}
    return json.dumps({"text": text, "meta": meta}).encode() + b"\n"


@pytest.fixture(scope="module")
def labelled(corpus: Path) -> list[tuple[str, str]]:
    """Texts, each with the name of its set: many of one, few of another."""
    text = "".join(texts_of(corpus / "code"))
    texts = [text[start : start + 300] for start in range(0, 450_000, 300)]
    names = random.Random(7).choices(list(SETS), (6, 3, 1), k=len(texts))
    return list(zip(texts, names, strict=True))


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory, labelled: list[tuple[str, str]]) -> Path:
    """SlimPajama's layout: chunks whose lines name their set, one file plain and in the root."""
    root = tmp_path_factory.mktemp("slim") / "train"
    lines = [slim_line(*document) for document in labelled]
    (root / "chunk1").mkdir(parents=True)
    third = len(lines) // 3
    (root / "chunk1" / "example_train_0.jsonl.zst").write_bytes(zstd(b"".join(lines[:third])))
    (root / "chunk1" / "example_train_1.jsonl").write_bytes(b"".join(lines[third : 2 * third]))
    (root / "rest.jsonl").write_bytes(b"".join(lines[2 * third :]))
    return root


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("shares") / "shares.yaml"
    file.write_text("c4: 0.5\ngithub: 0.4\nbook: 0.1\n")
    return file


def test_gives_the_rows_and_counts_of_a_folder_per_domain(convert, slim, labelled, run, tmp_path):
    for name, domain in SETS.items():
        own = [text for text, its_name in labelled if its_name == name]
        write_jsonl(tmp_path / "folders" / domain / "all.jsonl", own)
    asked = {"validation_share": 0.2, "workers": 1}
    for root, out, field in [(slim, "slim", FIELD), (tmp_path / "folders", "folder", {})]:
        result = convert(**asked, **field, root=root, out=tmp_path / out)
        assert result.exit_code == 0, result.output
    manifest, other = manifest_of(tmp_path / "slim"), manifest_of(tmp_path / "folder")
    assert manifest["splits"] == other["splits"]
    assert manifest["totals"] == other["totals"]
    for split, domains in manifest["splits"].items():
        assert sorted(domains) == ["book", "c4", "github"]
        for domain, counts in domains.items():
            assert counts["documents"] > 0
            rows = [rows_of(tmp_path / out / split / domain) for out in ("slim", "folder")]
            np.testing.assert_array_equal(*rows)
    assert run("verify", tmp_path / "slim").exit_code == 0
    documents = json.loads(run("stats", tmp_path / "slim", "--json").stdout)["totals"]
    assert sum(counts["documents"] for counts in documents.values()) == len(labelled)


@pytest.mark.parametrize("budgets", [{}, BUDGETS])
def test_any_number_of_workers_and_a_stop_in_between_give_the_same_bytes(
    convert, slim, shares, tmp_path, monkeypatch, budgets, run
):
    asked = {"root": slim, "part_size": "40kb", **FIELD, **budgets}
    asked |= {"shares": shares} if budgets else {}
    for workers in (1, 2):
        result = convert(**asked, workers=workers, out=tmp_path / f"by_{workers}")
        assert result.exit_code == 0, result.output
    store, stored = local_engine.store_part, []

    def store_few(part, *arguments):
        stored.append(part.index)
        if len(stored) % 3 == 0:
            raise UserError("stopped here")
        return store(part, *arguments)

    monkeypatch.setattr(local_engine, "store_part", store_few)
    for _ in range(40):
        result = convert(**asked, workers=1, out=tmp_path / "resumed")
        if result.exit_code == 0:
            break
        assert_one_line(result, "stopped here")
    assert len(stored) > 6
    assert content(tmp_path / "resumed") == content(tmp_path / "by_1") == content(tmp_path / "by_2")
    assert run("verify", tmp_path / "resumed").exit_code == 0
    if budgets:
        counts = manifest_of(tmp_path / "resumed")["splits"]
        rows = {domain: count["rows"] for domain, count in counts["train"].items()}
        assert rows == {"c4": 188, "github": 150, "book": 38}
        rows = {domain: count["rows"] for domain, count in counts["validation"].items()}
        assert rows == {"c4": 23, "github": 19, "book": 5}


def test_the_largest_domain_is_read_no_further_than_its_budget(convert, slim, shares, tmp_path):
    asked = {"root": slim, "part_size": "40kb", "shares": shares, "workers": 1, **FIELD}
    result = convert(**asked, train_tokens="24k")
    assert result.exit_code == 0, result.output
    manifest = manifest_of(tmp_path / "shards")
    hashes = [sha for file in manifest["inputs"].values() for sha in file["sha256"]]
    assert None in hashes  # parts that no domain needed
    unused = {d: counts["unused_tokens"] for d, counts in manifest["splits"]["train"].items()}
    most = 40_960 // 2  # tokens of a part
    assert max(unused.values()) < most


def test_line_of_a_domain_without_a_share_stops_or_is_listed(convert, slim, shares, tmp_path):
    shares.with_name("two.yaml").write_text("c4: 0.5\ngithub: 0.4\nbook: null\n")
    asked = {"root": slim, "shares": shares.with_name("two.yaml"), "train_tokens": "10k", **FIELD}
    error = assert_one_line(convert(**asked, workers=1))
    assert error.endswith("the domain book has no share: give it one in the file of --shares")
    result = convert(**asked, workers=1, on_bad_line="skip", max_reject_share=0.5)
    assert result.exit_code == 0, result.output
    manifest = manifest_of(tmp_path / "shards")
    assert sorted(manifest["splits"]["train"]) == ["c4", "github"]
    assert manifest["rejects"]["mixed"] > 0
    assert f"rejected lines: mixed {manifest['rejects']['mixed']}" in result.stdout


def test_a_field_that_names_no_domain_is_refused(convert, tmp_path, monkeypatch):
    monkeypatch.setattr(part_rows, "MOST_DOMAINS", 20)
    (tmp_path / "root").mkdir()
    lines = (slim_line("text", f"page {number}") for number in range(30))
    (tmp_path / "root" / "a.jsonl").write_bytes(b"".join(lines))
    error = assert_one_line(convert(root=tmp_path / "root", workers=1, **FIELD))
    assert error.startswith(
        f"{tmp_path / 'root' / 'a.jsonl'}, line 21: more than 20 domains so far"
    )
    error = assert_one_line(convert(root=tmp_path / "root", workers=1, domain_field="source"))
    assert 'a.jsonl, line 1: no field "source"; name the domain\'s field with --domain' in error


def test_tokenizer_is_trained_on_files_in_any_folder(run, slim, labelled, tmp_path):
    asked = ("--vocab-size", 400, "--validation-share", 0)
    error = assert_one_line(run("train-tokenizer", slim, "--out", tmp_path / "tokenizer", *asked))
    assert "rest.jsonl lies outside a domain" in error
    field = ("--domain-field", FIELD["domain_field"])
    result = run("train-tokenizer", slim, "--out", tmp_path / "tokenizer", *asked, *field)
    assert result.exit_code == 0, result.output
    assert manifest_of(tmp_path / "tokenizer")["trained_on"]["documents"] == len(labelled)
