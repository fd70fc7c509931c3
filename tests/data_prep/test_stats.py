"""`stats` prints what a manifest counts, and refuses what is not a manifest of shards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import assert_refused

from data_prep.stats import count_shards
from itt_composer.basics.errors import UserError

COUNTS = {
    "train": {
        "c4": {"documents": 1200, "characters": 9000, "rows": 300, "tokens": 2400},
        "code[red]": {"documents": 10, "characters": 1000, "rows": 100, "tokens": 800},
    },
    "validation": {
        "c4": {"documents": 5, "characters": 20, "rows": 0, "tokens": 0},
        "code[red]": {"documents": 0, "characters": 0, "rows": 0, "tokens": 0},
    },
}
LEFT = {
    "train": {"c4": (5, 595), "code[red]": (0, 0)},
    "validation": {"c4": (5, 0), "code[red]": (0, 0)},
}


def write_manifest(out: Path, **changed: Any) -> Path:
    """Write a manifest as `convert` does; a change to None removes the key."""
    splits = {
        split: {
            domain: counts
            | {"utf8_bytes": counts["characters"]}
            | dict(zip(("dropped_tokens", "unused_tokens"), LEFT[split][domain], strict=True))
            for domain, counts in domains.items()
        }
        for split, domains in COUNTS.items()
    }
    totals = {
        split: {key: sum(c[key] for c in domains.values()) for key in domains["c4"]}
        for split, domains in splits.items()
    }
    manifest = {
        "format_version": 2,
        "command": "convert",
        "seq_len": 8,
        "dtype": "uint16",
        "vocab_size": 500,
        "bos_id": 1,
        "eos_id": 2,
        "tokenizer": {"file": "tokenizer/tokenizer.model", "sha256": "00"},
        "compression": None,
        "hashes": ["sha256"],
        "engine": "local",
        "splits": splits,
        "totals": totals,
        "rejects": {"c4": 1234, "code[red]": 0},
        "budgets": None,
        "files": {},
    }
    kept = {key: value for key, value in (manifest | changed).items() if value is not None}
    out.mkdir(exist_ok=True)
    (out / "manifest.json").write_text(json.dumps(kept))
    return out


def test_shares_and_characters_per_token_of_every_domain(tmp_path):
    found = count_shards(write_manifest(tmp_path))
    c4 = found.splits["train"]["c4"]
    assert (c4.documents, c4.rows, c4.tokens) == (1200, 300, 2400)
    assert c4.share == 0.75
    # The tail and what a budget left out were characters too: 2,400 + 5 + 595 ids.
    assert c4.characters_per_token == 3.0
    total = found.totals["train"]
    assert (total.documents, total.rows, total.tokens, total.share) == (1210, 400, 3200, 1.0)
    assert total.characters_per_token == pytest.approx(10_000 / 3_800)


def test_a_split_without_tokens_has_no_shares(tmp_path):
    found = count_shards(write_manifest(tmp_path))
    assert found.splits["validation"]["c4"].share == 0
    assert found.splits["validation"]["c4"].characters_per_token == 4.0
    assert found.splits["validation"]["code[red]"].characters_per_token is None
    assert found.totals["validation"].share == 0


def test_the_command_prints_a_table_per_split(tmp_path, run):
    result = run("stats", write_manifest(tmp_path))
    assert result.exit_code == 0
    cells = [line.split() for line in result.stdout.splitlines()]
    assert ["c4", "1,200", "300", "2,400", "3.00", "75.0%"] in cells
    assert ["code[red]", "10", "100", "800", "1.25", "25.0%"] in cells
    assert ["all", "1,210", "400", "3,200", "2.63", "100.0%"] in cells
    assert ["code[red]", "0", "0", "0", "–", "0.0%"] in cells
    assert result.stdout.splitlines()[-1] == "rejected lines: c4 1,234"


def test_without_rejects_nothing_is_said_of_them(tmp_path, run):
    assert "rejected" not in run("stats", write_manifest(tmp_path, rejects={"c4": 0})).stdout


def test_the_command_prints_one_json_document(tmp_path, run):
    result = run("stats", write_manifest(tmp_path), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["seq_len"] == 8
    assert document["rejects"] == {"c4": 1234, "code[red]": 0}
    assert document["splits"]["train"]["code[red]"] == {
        "documents": 10,
        "rows": 100,
        "tokens": 800,
        "characters_per_token": 1.25,
        "share": 0.25,
    }
    assert document["splits"]["validation"]["code[red]"]["characters_per_token"] is None
    assert document["totals"]["train"]["tokens"] == 3200


def test_stats_and_an_uncompressed_verify_start_without_torch(tmp_path):
    script = (
        "import sys, data_prep.verify\n"
        "from data_prep.stats import count_shards, tables_of_stats\n"
        f"tables_of_stats(count_shards({str(write_manifest(tmp_path))!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"command": "train-tokenizer"}, "does not describe shards"),
        ({"format_version": 3}, "has format 3, newer than the 2 read here; update"),
        ({"totals": None}, "does not describe shards"),
        ({"splits": None}, "is of shards that are not finished"),
        ({"files": {"a": {"bytes": 1}}}, "is broken at files.a.sha256 (Field required)"),
        ({"seq_len": "8"}, "is broken at seq_len ("),
        ({"dtype": "int8"}, "is broken at dtype ("),
        ({"splits": {"train": {"c4": {"rows": 3}}}}, "is broken at splits.train.c4.documents ("),
        ({"rejects": {"c4": -1}}, "is broken at rejects.c4 ("),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path, changed, message):
    with pytest.raises(UserError) as caught:
        count_shards(write_manifest(tmp_path, **changed))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("address", ["s3://bucket/shards", "azure-dl://b/shards", Path("s3://b/x")])
def test_an_address_is_refused(address):
    with pytest.raises(UserError, match="not a folder: give a local copy of it"):
        count_shards(address)


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_bad_input_is_one_sentence(tmp_path, run, content):
    out = tmp_path / "shards"
    if content is not None:
        out.mkdir()
        (out / "manifest.json").write_text(content)
    assert_refused(run("stats", out, "--json"), str(out))
