"""Conversion: exact rows, honest counts, complete or absent output."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import sentencepiece
from small_conversions import REPOSITORY, content, manifest_of, rows_of, texts_of, write_jsonl

from data_prep.document_split import split_of
from data_prep.shard_writing import ShardWriter

COUNTED = (
    "documents",
    "characters",
    "utf8_bytes",
    "tokens",
    "dropped_tokens",
    "unused_tokens",
    "rows",
)


def expected_tokens(model, texts):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    bos, eos = processor.bos_id(), processor.eos_id()
    return [token for text in texts for token in (bos, *processor.encode(text), eos)]


def assert_stream_holds(out, split, domain, texts, model, seq_len, dtype="uint16"):
    """Compare a stream and its counts with ids and counts computed from the texts alone."""
    tokens = expected_tokens(model, texts)
    rows = rows_of(out / split / domain)
    assert rows.dtype == dtype
    assert rows.shape == (len(tokens) // seq_len, seq_len)
    assert rows.flatten().tolist() == tokens[: rows.size]
    counts = (len(texts), sum(map(len, texts)), sum(len(text.encode()) for text in texts))
    counts = (*counts, rows.size, len(tokens) - rows.size, 0, len(rows))
    assert manifest_of(out)["splits"][split][domain] == dict(zip(COUNTED, counts, strict=True))


def test_rows_and_counts_are_those_of_the_documents(convert, root, tokenizer, tmp_path):
    result = convert(validation_share=0.2)
    assert result.exit_code == 0, result.output
    for domain in ("code", "prose"):
        for split in ("train", "validation"):
            texts = [t for t in texts_of(root / domain) if split_of(t, 0.2) == split]
            model = tokenizer / "tokenizer.model"
            assert_stream_holds(tmp_path / "shards", split, domain, texts, model, 64)


def test_manifest_says_what_the_shards_were_made_of(convert, root, tokenizer, tmp_path):
    convert()
    manifest = manifest_of(tmp_path / "shards")
    expected = {"seq_len": 64, "vocab_size": 800, "bos_id": 1, "eos_id": 2, "dtype": "uint16"}
    assert expected.items() <= manifest.items()
    assert manifest["validation_share"] == 0.05
    assert set(manifest["inputs"]) == {"code/a/deep.jsonl", "code/b.jsonl", "prose/all.jsonl"}
    for name, stored in manifest["inputs"].items():
        assert stored["bytes"] == (root / name).stat().st_size
    for split, domains in manifest["splits"].items():
        sums = {key: sum(counts[key] for counts in domains.values()) for key in COUNTED}
        assert manifest["totals"][split] == sums
    copied = tmp_path / "shards" / manifest["tokenizer"]["file"]
    assert copied.read_bytes() == (tokenizer / "tokenizer.model").read_bytes()


def test_identical_documents_never_land_on_both_sides(convert, root, tmp_path):
    texts = texts_of(root / "code")
    write_jsonl(tmp_path / "twice" / "a" / "1.jsonl", texts)
    write_jsonl(tmp_path / "twice" / "b" / "1.jsonl", texts[::-1])
    assert convert(root=tmp_path / "twice", validation_share=0.3).exit_code == 0
    splits = manifest_of(tmp_path / "shards")["splits"]
    for counts in splits.values():
        assert counts["a"]["documents"] == counts["b"]["documents"] > 0
    documents = sum(counts["a"]["documents"] for counts in splits.values())
    assert documents == len(texts)


def test_same_input_gives_the_same_bytes(convert, tmp_path):
    convert(out=tmp_path / "one")
    convert(out=tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_bare_model_file_is_taken_and_made_loadable(convert, tokenizer, tmp_path):
    assert convert(tokenizer=tokenizer / "tokenizer.model").exit_code == 0
    copied = content(tmp_path / "shards" / "tokenizer")
    original = content(tokenizer)
    assert copied == {name: content for name, content in original.items() if name in copied}
    assert set(copied) == {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}


def test_large_vocabulary_needs_uint32(convert, root, tokenizer, tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    model = ModelProto.FromString((tokenizer / "tokenizer.model").read_bytes())
    for number in range(len(model.pieces), 65_535):
        model.pieces.add(piece=f"unused{number}", score=-1e6)
    largest = tmp_path / "largest.model"
    largest.write_bytes(model.SerializeToString())
    model.pieces.add(piece="▁the▁one▁too▁many", score=1e6)
    larger = tmp_path / "larger.model"
    larger.write_bytes(model.SerializeToString())

    convert(out=tmp_path / "uint16", tokenizer=largest)
    assert manifest_of(tmp_path / "uint16")["dtype"] == "uint16"
    convert(out=tmp_path / "uint32", tokenizer=larger, validation_share=0)
    assert manifest_of(tmp_path / "uint32")["dtype"] == "uint32"
    texts = texts_of(root / "code")
    assert_stream_holds(tmp_path / "uint32", "train", "code", texts, larger, 64, "uint32")


def test_second_call_is_skipped(convert, tmp_path):
    convert()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = convert()
    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert "nothing to do" in result.output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_options_inputs_or_damage_are_refused(convert, root, tmp_path):
    convert()
    write_jsonl(tmp_path / "other" / "code" / "a.jsonl", ["another document"] * 100)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for changed, message in [
        ({"seq_len": 32}, "seq_len 64, asked for 32"),
        ({"validation_share": 0.1}, "validation_share 0.05, asked for 0.1"),
        ({"root": tmp_path / "other"}, "other inputs"),
        ({"out": tmp_path / "mine"}, "exists and is not a complete output of this command"),
        ({"out": root / "shards"}, "lies inside the input"),
    ]:
        result = convert(**changed)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    shard = next((tmp_path / "shards").rglob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    result = convert()
    assert result.exit_code == 1
    assert f"{shard} has " in result.stderr


def test_stream_without_rows_has_no_folder_and_a_warning(convert, root, tmp_path):
    write_jsonl(tmp_path / "root" / "big" / "a.jsonl", texts_of(root / "code"))
    write_jsonl(tmp_path / "root" / "small" / "a.jsonl", ["tiny"])
    result = convert(root=tmp_path / "root", validation_share=0.2)
    assert result.exit_code == 0
    for split in ("train", "validation"):
        assert f"warning: {split}/small has no rows" in result.stderr
        assert not (tmp_path / "shards" / split / "small").exists()
    assert "big has no rows" not in result.stderr


def test_compressed_text_has_workers_for_the_text_that_is_in_it(
    root, tokenizer, tmp_path, monkeypatch
):
    import gzip

    from data_prep import convert as conversion

    asked = []

    def one_worker(count, on_progress):
        asked.append(count)
        return workers(1, on_progress)

    workers = conversion.workers
    monkeypatch.setattr(conversion, "workers", one_worker)
    monkeypatch.setattr(conversion, "usable_cores", lambda: 16)
    data = gzip.compress((root / "prose" / "all.jsonl").read_bytes())
    for number in range(6):
        path = tmp_path / "root" / "prose" / f"{number}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = conversion.Options(tmp_path / "root", str(tmp_path / "out"), str(tokenizer), 64)
    conversion.convert_corpus(replace(options, part_size=3 * len(data)))
    assert asked == [6]


def test_no_training_rows_is_an_error(convert, tmp_path):
    result = convert(seq_len=10_000_000)
    assert result.exit_code == 1
    assert "fills no training row of 10000000 tokens" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_line_late_in_the_input_leaves_nothing(convert, root, tmp_path):
    path = tmp_path / "root" / "code" / "a.jsonl"
    write_jsonl(path, texts_of(root / "code"))
    with path.open("a") as file:
        file.write('{"text": 7}\n')
    last = len(path.read_text().splitlines())
    result = convert(root=tmp_path / "root")
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error == f'error: {path}, line {last}: field "text" is int, not a string'
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_full_disk_while_writing_shards_leaves_nothing(convert, tmp_path, monkeypatch):
    def full(writer, rows):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "write", full)
    result = convert()
    assert result.exit_code == 1
    assert "the disk is full" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unusable_tokenizers_are_named(convert, tokenizer, tmp_path):
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "tokenizer.json").write_text("{}")
    (tmp_path / "text.model").write_text("not a model")
    for path, message in [
        (tmp_path / "absent", f"no tokenizer at {tmp_path / 'absent'}"),
        (
            tmp_path / "fast",
            f"{tmp_path / 'fast' / 'tokenizer.json'} is not a tokenizer.json (Model missing",
        ),
        (
            tmp_path / "text.model",
            "text.model is neither a SentencePiece model nor a tokenizer.json",
        ),
    ]:
        result = convert(tokenizer=path)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "shards").exists()


def test_killed_run_shows_no_data_and_the_next_one_finishes(convert, corpus, tokenizer, tmp_path):
    out = tmp_path / "shards"
    arguments = ("--out", out, "--tokenizer", tokenizer, "--seq-len", 64)
    command = [sys.executable, "-m", "data_prep", "convert", corpus, *arguments]
    process = subprocess.Popen([str(part) for part in command], cwd=REPOSITORY)
    while not (tmp_path / ".shards.partial" / ".state" / "recipe.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert (tmp_path / ".shards.partial").exists()
    assert convert().exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_errors_end_a_real_process_with_one_line_and_code_1(tmp_path):
    command = [sys.executable, "-m", "data_prep", "train-tokenizer", "nowhere", "--out", "x"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: nowhere is not a folder: give one that holds a folder per domain"
    ]


def test_nothing_imports_torch_before_the_first_row():
    modules = "data_prep.__main__, data_prep.sample_corpus, data_prep.tokenizer, data_prep.convert"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'streaming' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ("local", "what is done is kept, the same command goes on from there"),
        ("spark", "Spark keeps nothing of it, the same command starts again"),
    ],
)
def test_control_c_says_what_the_engine_keeps(convert, monkeypatch, tmp_path, engine, sentence):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.convert._convert_parts", interrupted)
    result = convert(engine=engine)
    assert result.exit_code == 130
    assert result.stderr == f"stopped: {sentence}\n"
    assert not list(tmp_path.iterdir())
