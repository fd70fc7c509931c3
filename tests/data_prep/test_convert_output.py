"""What `convert` writes: names, shards, compression, hashes; complete or not there."""

import json
import os
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from small_conversions import (
    REPOSITORY,
    assert_one_line,
    content,
    manifest_of,
    rows_of,
    texts_of,
    write_jsonl,
)


def index_of(stream):
    return json.loads((stream / "index.json").read_text())["shards"]


def test_redpajamas_folder_names_become_the_papers(convert, root, tmp_path):
    names = {
        **{"common_crawl": "cc", "c4": "c4", "github": "github", "books": "book"},
        **{"wikipedia": "wiki", "arxiv": "arxiv", "stack_exchange": "stackexchange"},
    }
    for folder in names:
        write_jsonl(tmp_path / "root" / folder / "a.jsonl", texts_of(root / "code"))
    assert convert(root=tmp_path / "root").exit_code == 0
    assert list(manifest_of(tmp_path / "shards")["splits"]["train"]) == sorted(names.values())
    assert sorted(path.name for path in (tmp_path / "shards" / "train").iterdir()) == sorted(
        names.values()
    )


def test_shards_stay_below_their_size_and_hold_all_rows(convert, tmp_path):
    assert convert(out=tmp_path / "one", validation_share=0).exit_code == 0
    result = convert(out=tmp_path / "many", validation_share=0, shard_size="5kb")
    assert result.exit_code == 0, result.output
    shards = index_of(tmp_path / "many" / "train" / "code")
    assert len(shards) > 5
    assert all(shard["raw_data"]["bytes"] <= 5 * 1024 for shard in shards)
    assert all(shard["samples"] > 0 for shard in shards)
    one, many = (rows_of(tmp_path / name / "train" / "code") for name in ("one", "many"))
    assert np.array_equal(one, many)


def test_a_shard_too_small_for_a_row_is_refused_and_the_smallest_holds_one(convert, tmp_path):
    error = assert_one_line(
        convert(shard_size="5000b", seq_len=2048),
        "--shard-size 5000 is too small for a row of 2048 tokens: give at least ",
    )
    smallest = error.rpartition(" ")[2]
    assert list(tmp_path.iterdir()) == []
    assert convert(shard_size=f"{smallest}b", validation_share=0, seq_len=2048).exit_code == 0
    shards = index_of(tmp_path / "shards" / "train" / "code")
    assert [shard["samples"] for shard in shards] == [1] * len(shards)
    assert len(rows_of(tmp_path / "shards" / "train" / "code")) == len(shards)


def test_compressed_shards_are_what_streaming_reads(convert, tmp_path):
    from streaming import StreamingDataset

    assert convert(out=tmp_path / "plain", validation_share=0).exit_code == 0
    options = {"compression": "zstd:5", "shard_size": "20kb", "hashes": "xxh64"}
    assert convert(out=tmp_path / "zstd", validation_share=0, **options).exit_code == 0
    stream = tmp_path / "zstd" / "train" / "code"
    shards = index_of(stream)
    assert len(shards) > 1
    for shard in shards:
        data = (stream / shard["zip_data"]["basename"]).read_bytes()
        assert shard["zip_data"]["basename"].endswith(".mds.zstd")
        assert shard["zip_data"]["hashes"]["sha256"] == sha256(data).hexdigest()
        assert list(shard["zip_data"]["hashes"]) == ["sha256", "xxh64"]
    files = manifest_of(tmp_path / "zstd")["files"]
    assert {f"train/code/{s['zip_data']['basename']}" for s in shards} < files.keys()
    dataset = StreamingDataset(
        remote=str(stream), local=str(tmp_path / "cache"), shuffle=False, batch_size=1
    )
    rows = np.stack([dataset[number]["input_ids"] for number in range(len(dataset))])
    assert np.array_equal(rows, rows_of(tmp_path / "plain" / "train" / "code"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("compression", "rar", "--compression rar is not known or has no such level: give one of"),
        ("compression", "zstd:99", "--compression zstd:99 is not known or has no such level"),
        ("hashes", "md6", "--hashes: 'md6' is not known: give some of"),
    ],
)
def test_unknown_compressions_and_hashes_are_one_sentence(
    convert, tmp_path, option, value, message
):
    assert_one_line(convert(**{option: value}), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seq_len", 0, "should be greater than or equal to 1"),
        ("workers", 0, "should be greater than or equal to 1"),
        ("validation_share", 1.5, "should be less than or equal to 1"),
        ("max_reject_share", -1, "should be greater than or equal to 0"),
        ("part_size", "0b", "is not a size from 1b to 4gb"),
        ("shard_size", "5gb", "is not a size from 1b to 4gb"),
        ("shard_size", "large", "is not a size from 1b to 4gb"),
        ("encoder", "slow", "'slow' is not one of 'fast', 'reference'"),
        ("on_bad_line", "ignore", "'ignore' is not one of 'stop', 'skip'"),
    ],
)
def test_options_out_of_range_are_usage_errors(convert, tmp_path, option, value, message):
    result = convert(**{option: value})
    assert result.exit_code == 2
    words = result.stderr.translate({ord(line): " " for line in "│\n"}).split()
    assert message in " ".join(words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["partial", "state"])
def test_killed_in_the_last_moment_the_next_run_only_renames(convert, tmp_path, kind):
    """Between the steps of publishing: the state set aside, the folder renamed, the state gone."""
    assert convert().exit_code == 0
    expected = content(tmp_path / "shards")
    (tmp_path / ".shards.state").mkdir()
    (tmp_path / ".shards.state" / "recipe.json").touch()
    if kind == "partial":
        (tmp_path / "shards").rename(tmp_path / ".shards.partial")
    result = convert()
    assert "nothing to do" in result.output
    assert content(tmp_path / "shards") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_folder_that_appeared_meanwhile_is_not_overwritten(convert, tmp_path):
    assert convert().exit_code == 0
    (tmp_path / "shards").rename(tmp_path / ".shards.partial")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.tex").write_text("mine")
    assert_one_line(convert(), "shards exists and is not a complete output of this command")
    assert (tmp_path / "shards" / "thesis.tex").read_text() == "mine"


def test_leftovers_of_killed_runs_do_not_reach_the_output(convert, root, tmp_path):
    """Shards without a record, and half-written files of any kind, beside parts that are done."""
    write_jsonl(tmp_path / "root" / "code" / "a.jsonl", texts_of(root / "code"))
    bad = tmp_path / "root" / "prose" / "b.jsonl"
    write_jsonl(bad, texts_of(root / "prose")[:5])  # small, so that it comes last
    good = bad.read_bytes()
    bad.write_bytes(good + b"{\n")
    options = {"root": tmp_path / "root", "part_size": "20kb", "workers": 1}
    assert_one_line(convert(**options), "b.jsonl, line 6: broken JSON")
    partial = tmp_path / ".shards.partial"
    record = next(partial.rglob("parts/code/*.json"))
    shard = next((partial / "train" / "code").rglob("*.mds"))
    stale = [
        *("train/code/00999/shard.00000.mds", "train/other/00000/index.json"),
        *("train/code/tails/index.json", "validation/prose/index.json.12.partial"),
        *("manifest.json.12.partial", "tokenizer/other.json", "rejects.jsonl"),
    ]
    for name in stale:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(b"half")
    bad.write_bytes(good)
    before = record.stat().st_mtime_ns, shard.stat().st_mtime_ns
    result = convert(**options)
    assert result.exit_code == 0, result.output
    kept = tmp_path / "shards" / shard.relative_to(partial)
    assert kept.stat().st_mtime_ns == before[1]  # done parts were not done again
    assert convert(**options, out=tmp_path / "fresh").exit_code == 0
    assert content(tmp_path / "shards") == content(tmp_path / "fresh")


def test_every_file_of_the_output_is_in_the_manifest_with_its_hash(convert, tmp_path):
    assert convert(validation_share=0.2, part_size="20kb", workers=1).exit_code == 0
    found = content(tmp_path / "shards")
    del found["manifest.json"]
    prints = {
        name: {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        for name, data in found.items()
    }
    assert manifest_of(tmp_path / "shards")["files"] == prints


def test_progress_is_logged_without_a_terminal(convert, root):
    result = convert()
    line = [line for line in result.stderr.splitlines() if "documents," in line][-1]
    documents = sum(len(texts_of(folder)) for folder in root.iterdir())
    megabytes = sum(path.stat().st_size for path in root.rglob("*.jsonl")) / 1e6
    assert f" {documents:,} documents, {megabytes:,.1f} of {megabytes:,.1f} MB" in line


def test_help_of_every_command_needs_neither_torch_nor_streaming():
    code = """
import sys
from typer.testing import CliRunner
from data_prep.__main__ import app
commands = [command.callback.__name__.replace("_", "-") for command in app.registered_commands]
assert {"convert", "verify", "stats", "sample-corpus", "train-tokenizer"} <= set(commands)
for command in commands:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and "--help" in result.output, result.output
sys.exit("torch" in sys.modules or "streaming" in sys.modules or "numpy" in sys.modules)
"""
    environment = os.environ | {"COLUMNS": "200"}
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment).returncode
        == 0
    )


def test_linked_folders_are_read_and_other_compressions_refused(convert, root, tmp_path):
    (tmp_path / "linked" / "code").mkdir(parents=True)
    (tmp_path / "linked" / "code" / "snapshot").symlink_to(root / "code", target_is_directory=True)
    (tmp_path / "linked" / "code" / "loop").symlink_to(tmp_path / "linked", True)
    assert convert(root=tmp_path / "linked").exit_code == 0
    names = set(manifest_of(tmp_path / "shards")["inputs"])
    assert names == {"code/snapshot/b.jsonl", "code/snapshot/a/deep.jsonl"}
    (tmp_path / "linked" / "code" / "more.jsonl.xz").touch()
    result = convert(root=tmp_path / "linked")
    assert result.exit_code == 1
    assert "more.jsonl.xz is of a kind that is not read" in result.stderr


def test_options_that_would_do_nothing_are_refused(convert, tmp_path):
    assert "--shares divides" in convert(shares=tmp_path / "x.yaml").stderr
    assert "--master is for --engine spark" in convert(master="local[2]").stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_unfinished_work_is_for_object_stores_only(convert, tmp_path):
    sentence = "--work-dir is for an --out in an object store: leave it out"
    assert_one_line(convert(work_dir=tmp_path / "work"), sentence)


def test_what_a_run_killed_in_its_last_step_left_is_removed(convert, tmp_path):
    left = tmp_path / ".shards.state"
    (left / "parts" / "code").mkdir(parents=True)
    assert convert().exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    left.mkdir()
    (left / "thesis.tex").touch()
    assert "nothing to do" in convert().output
    assert (left / "thesis.tex").exists()
