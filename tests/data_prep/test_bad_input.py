"""Bad input: each kind stops the run by file and line, and can be mended or skipped."""

import gzip
import json
import os

import pytest
import sentencepiece
from small_conversions import assert_one_line, content, manifest_of, texts_of, write_jsonl, zstd

GOOD = 40  # documents before the bad line


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


def as_lines(texts):
    return [json.dumps({"text": text}).encode() + b"\n" for text in texts]


@pytest.fixture(scope="module")
def texts(corpus):
    text = "".join(texts_of(corpus / "code"))
    return [text[start : start + 1000] for start in range(0, 300_000, 1000)]


@pytest.fixture
def mixed(tmp_path, texts):
    """A corpus of two good domains, and the path of the file that is to be bad."""
    write_jsonl(tmp_path / "root" / "good" / "a.jsonl", texts[:150])
    write_jsonl(tmp_path / "root" / "worse" / "a.jsonl", texts[150:200])
    return tmp_path / "root" / "worse" / "b.jsonl"


BAD_LINES = [
    (b'{"text": "cut', "broken JSON at column 10"),
    (b'{"meta": {}}', 'no field "text"; name the text\'s field with --text-field'),
    (b'{"text": null}', 'field "text" is NoneType, not a string'),
    (b'{"text": ["a"]}', 'field "text" is list, not a string'),
    (b'["text"]', "a JSON list where an object was expected"),
    (b'{"text": "caf\xe9"}', "invalid UTF-8 at byte 14 of the line"),
    (b'{"text": "\\udc00"}', 'field "text" holds half of a surrogate pair'),
    (b"\x00" * 30, "broken JSON at column 1"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_line_stops_by_file_and_line_and_mended_the_run_ends_as_if_it_never_was(
    convert, mixed, texts, tmp_path, line, message
):
    good = as_lines(texts[200:])
    mixed.write_bytes(b"".join([*good[:GOOD], line + b"\n", *good[GOOD:]]))
    options = {"root": tmp_path / "root", "part_size": "100kb", "workers": 1}
    error = assert_one_line(convert(**options))
    assert error.startswith(f"{mixed}, line {GOOD + 1}: {message}")
    assert not (tmp_path / "shards").exists()

    mixed.write_bytes(b"".join(good))
    result = convert(**options)
    assert result.exit_code == 0, result.output
    assert convert(**options, out=tmp_path / "fresh").exit_code == 0
    assert content(tmp_path / "shards") == content(tmp_path / "fresh")
    assert not (tmp_path / ".shards.partial").exists()


def test_every_bad_line_is_skipped_listed_and_counted(convert, mixed, texts, tmp_path):
    good = as_lines(texts[200:])
    lines = [*good[:GOOD], *(line + b"\n" for line, _ in BAD_LINES), *good[GOOD:]]
    mixed.write_bytes(b"".join(lines))
    options = {"root": tmp_path / "root", "on_bad_line": "skip", "max_reject_share": 0.1}
    result = convert(**options)
    assert result.exit_code == 0, result.output
    out = tmp_path / "shards"
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").open()]
    assert [(r["file"], r["line"]) for r in rejects] == [
        ("worse/b.jsonl", GOOD + number) for number in range(1, len(BAD_LINES) + 1)
    ]
    for reject, (_, message) in zip(rejects, BAD_LINES, strict=True):
        assert reject["reason"].startswith(message)
    manifest = manifest_of(out)
    assert manifest["rejects"] == {"good": 0, "worse": len(BAD_LINES)}
    assert "rejects.jsonl" in manifest["files"]
    # What is left is what the good lines alone give.
    mixed.write_bytes(b"".join(good))
    assert convert(**options, out=tmp_path / "clean").exit_code == 0
    assert not (tmp_path / "clean" / "rejects.jsonl").exists()
    for split in ("train", "validation"):
        shards = content(tmp_path / "clean" / split)
        assert shards == content(out / split)
        assert manifest_of(tmp_path / "clean")["splits"][split] == manifest["splits"][split]


def test_line_numbers_are_those_of_the_file_in_its_later_pieces(convert, texts, tmp_path):
    path = tmp_path / "root" / "code" / "a.jsonl"
    path.parent.mkdir(parents=True)
    lines = as_lines(texts)
    for number in (120, 250):
        lines.insert(number, b'{"text": 1}\n')
    path.write_bytes(b"".join(lines))
    options = {"root": tmp_path / "root", "part_size": "20kb", "workers": 1}
    error = assert_one_line(convert(**options))
    assert f"{path}, line 121: " in error or f"{path}, line 251: " in error
    result = convert(**options, on_bad_line="skip")  # may be switched on a resume
    assert result.exit_code == 0, result.output
    rejects = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").open()]
    assert [reject["line"] for reject in rejects] == [121, 251]


def test_a_large_file_may_be_mended_though_later_parts_of_it_are_done(convert, texts, tmp_path):
    path = tmp_path / "root" / "code" / "a.jsonl"
    path.parent.mkdir(parents=True)
    lines = as_lines(texts)
    # The parts of a file are begun in an order of their own, so try a bad line in each of them.
    for number in range(0, len(lines), 60):
        # Long, so that all that follows lies elsewhere once it is gone.
        path.write_bytes(b"".join([*lines[:number], b"{" * 3000 + b"\n", *lines[number:]]))
        options = {"root": tmp_path / "root", "part_size": "50kb", "workers": 1}
        assert_one_line(convert(**options), f"{path}, line {number + 1}: broken JSON")
        path.write_bytes(b"".join(lines))
        result = convert(**options)
        assert result.exit_code == 0, result.output
        assert convert(**options, out=tmp_path / "fresh").exit_code == 0
        assert content(tmp_path / "shards") == content(tmp_path / "fresh")
        for name in ("shards", "fresh"):
            (tmp_path / name).rename(tmp_path / f"{name}{number}")


def compressed(texts, name):
    data = b"".join(as_lines(texts))
    return gzip.compress(data) if name.endswith(".gz") else zstd(data)


def test_a_zstd_window_too_large_to_be_read_is_reported_with_its_file(convert, tmp_path):
    # A frame that asks for a window of 2 GB, as --long=31 does, and holds one block as it is.
    frame = bytes.fromhex("28b52ffd 00 a8 110000") + b"{}"
    file = tmp_path / "root" / "prose" / "long.jsonl.zst"
    file.parent.mkdir(parents=True)
    file.write_bytes(frame)
    sentence = "its zstd window is too large to be read here: compress it without --long"
    assert_one_line(convert(root=tmp_path / "root", workers=1), "long.jsonl.zst", sentence)


DAMAGES = {
    "cut in half": lambda data: data[: len(data) // 2],
    "last byte cut off": lambda data: data[:-1],
    "flipped in the middle": lambda data: flipped(data, len(data) // 2),
    "flipped at the start": lambda data: flipped(data, 1),
    "another file after it": lambda data: data + b'{"text": "not compressed"}\n',
    "not compressed at all": lambda data: b'{"text": "plain"}\n' * 100,
}


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_compressed_file_is_named_mended_and_skipped(
    convert, mixed, texts, tmp_path, suffix, damage
):
    path = mixed.with_suffix(f".jsonl.{suffix}")
    whole = compressed(texts[200:], path.name)
    path.write_bytes(DAMAGES[damage](whole))
    options = {"root": tmp_path / "root", "workers": 1}
    kind = {"gz": "gzip", "zst": "zstd"}[suffix]
    error = assert_one_line(convert(**options), f"{kind} stream is damaged or cut off (")
    assert error.startswith(f"{path}, line ")

    skipping = {"on_bad_line": "skip", "max_reject_share": 0.1, "out": tmp_path / "skipped"}
    result = convert(**options | skipping)
    assert result.exit_code == 0, result.output
    rejects = [json.loads(line) for line in (tmp_path / "skipped" / "rejects.jsonl").open()]
    assert [reject["file"] for reject in rejects] == [f"worse/b.jsonl.{suffix}"]
    assert f"warning: worse/b.jsonl.{suffix} could not be read to its end: what" in result.stderr
    # Its fingerprint is that of the whole file: the output is known again though it was touched.
    os.utime(path)
    assert "nothing to do" in convert(**options | skipping).output

    path.write_bytes(whole)
    assert convert(**options).exit_code == 0
    documents = manifest_of(tmp_path / "shards")["splits"]
    assert sum(split["worse"]["documents"] for split in documents.values()) == len(texts[150:])


@pytest.mark.parametrize("name", ["b.jsonl", "b.jsonl.gz", "b.jsonl.zst", "0/b.jsonl.gz"])
def test_empty_file_is_named_and_skipped_as_a_whole(convert, mixed, tmp_path, name):
    path = mixed.parent / name
    path.parent.mkdir(exist_ok=True)
    content_of_nothing = {"b.jsonl.zst": zstd(b""), "0/b.jsonl.gz": gzip.compress(b"")}
    path.write_bytes(content_of_nothing.get(name, b""))
    options = {"root": tmp_path / "root", "workers": 1}
    error = assert_one_line(convert(**options))
    assert error == f"{path}: the file is empty: remove it or write its documents again"
    result = convert(**options, on_bad_line="skip", max_reject_share=0.01)
    assert result.exit_code == 0, result.output
    rejects = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").open()]
    assert [(reject["file"], reject["line"]) for reject in rejects] == [(f"worse/{name}", 0)]


def test_folder_without_files_is_named(convert, mixed, tmp_path):
    empty = tmp_path / "root" / "zero"
    (empty / "deep").mkdir(parents=True)
    (empty / "README.md").write_text("nothing here")
    assert_one_line(
        convert(root=tmp_path / "root"), f"domain {empty} has no .jsonl and .json files, plain"
    )


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_ids_outside_the_tokenizer_are_bad_lines(
    mixed, texts, tokenizer, tmp_path, kind, monkeypatch
):
    """No tokenizer does so by itself, so this one believes it had fewer ids than it has."""
    from dataclasses import replace

    from data_prep import convert as conversion
    from data_prep.tokenizer import load_corpus_tokenizer
    from itt_composer.basics.errors import UserError

    whole = load_corpus_tokenizer(str(tokenizer))
    rare = whole.vocab_size - 1  # of single characters, the rarest
    processor = sentencepiece.SentencePieceProcessor(model_proto=whole.content)
    smaller = replace(whole, vocab_size=rare)
    clean = [text for text in texts if rare not in whole.encode(text)][:100]
    assert len(clean) == 100
    write_jsonl(mixed.parents[1] / "good" / "a.jsonl", clean)
    write_jsonl(
        mixed.parents[1] / "worse" / "a.jsonl",
        [*clean[:7], f"a {processor.id_to_piece(rare)} b", *clean[7:]],
    )
    monkeypatch.setattr(conversion, "load_corpus_tokenizer", lambda *_: smaller)
    options = conversion.Options(
        mixed.parents[1], str(tmp_path / "shards"), "any", 64, workers=1, max_reject_share=0.5
    )
    reason = f"encoded to the id {rare}, but the tokenizer has {rare} ids"
    if kind == "stop":
        with pytest.raises(UserError) as caught:
            conversion.convert_corpus(options)
        assert str(caught.value) == f"{mixed.with_name('a.jsonl')}, line 8: {reason}"
        return
    manifest = conversion.convert_corpus(replace(options, skip_bad_lines=True))
    assert manifest.rejects == {"good": 0, "worse": 1}
    (reject,) = (json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").open())
    assert reject == {"file": "worse/a.jsonl", "line": 8, "reason": reason}
    for counts in manifest.splits.values():
        assert counts["good"] == counts["worse"]


def test_more_bad_lines_than_the_share_admits_stop_the_run(convert, mixed, texts, tmp_path):
    lines = as_lines(texts[200:])
    mixed.write_bytes(b"".join([*lines[:50], *[b"{\n"] * 6, *lines[50:]]))
    options = {"root": tmp_path / "root", "on_bad_line": "skip", "workers": 1}
    error = assert_one_line(convert(**options))
    assert "lines so far are bad, more than --max-reject-share 0.01 admits" in error
    assert "the first: worse/b.jsonl, line 51: broken JSON" in error
    assert_one_line(convert(**options), "are bad, more than --max-reject-share 0.01 admits")
    sentence = "worse/b.jsonl, line 51: broken JSON"
    error = assert_one_line(convert(**options | {"on_bad_line": "stop"}), sentence)
    assert "an earlier run left it out under --on-bad-line skip: give that again" in error
    assert not (tmp_path / "shards").exists()
    assert convert(**options, max_reject_share=0.02).exit_code == 0  # 6 of 306
    assert manifest_of(tmp_path / "shards")["rejects"]["worse"] == 6


def test_files_with_more_bad_lines_than_admitted_may_be_mended(convert, mixed, texts, tmp_path):
    lines = as_lines(texts[200:])
    mixed.write_bytes(b"".join([*lines[:50], *[b"{" * 500 + b"\n"] * 40, *lines[50:]]))
    options = {"root": tmp_path / "root", "part_size": "20kb", "workers": 1}
    skipping = options | {"on_bad_line": "skip"}
    assert_one_line(convert(**skipping), "are bad, more than --max-reject-share")
    assert list((tmp_path / ".shards.partial").rglob("parts/worse/*.json"))
    mixed.write_bytes(b"".join(lines))
    result = convert(**skipping)
    assert result.exit_code == 0, result.output
    assert convert(**options, out=tmp_path / "fresh").exit_code == 0
    assert content(tmp_path / "shards") == content(tmp_path / "fresh")


def unfinished(convert, mixed, texts, tmp_path):
    """A conversion with parts that are done, stopped at a bad line; and its options."""
    mixed.write_bytes(b"".join(as_lines(texts[200:])) + b"{\n")
    options = {"root": tmp_path / "root", "part_size": "40kb", "workers": 1}
    assert_one_line(convert(**options), "worse/b.jsonl, line 101: broken JSON")
    assert list((tmp_path / ".shards.partial").rglob("parts/good/*.json"))
    return options


def test_other_options_on_a_resume_are_refused_and_the_first_ones_go_on(
    convert, mixed, texts, tmp_path
):
    options = unfinished(convert, mixed, texts, tmp_path)
    for changed, difference in [
        ({"seq_len": 32}, "seq_len 64, asked for 32"),
        ({"validation_share": 0.5}, "validation_share 0.05, asked for 0.5"),
        ({"encoder": "reference"}, "encoder fast, asked for reference"),
        ({"part_size": "50kb"}, "part_size 40960, asked for 51200"),
    ]:
        error = assert_one_line(convert(**options | changed), difference)
        assert error.startswith(f"{tmp_path / '.shards.partial'} holds an unfinished conversion")
        assert error.endswith("give those again, or delete that folder to start anew")
    mixed.write_bytes(b"".join(as_lines(texts[200:])))
    assert convert(**options).exit_code == 0


def test_input_changed_under_a_done_part_is_refused_and_put_back_goes_on(
    convert, mixed, texts, tmp_path
):
    options = unfinished(convert, mixed, texts, tmp_path)
    path = tmp_path / "root" / "good" / "a.jsonl"
    original = path.read_bytes()
    path.write_bytes(original.replace(b"return", b"retorn"))
    error = assert_one_line(convert(**options), f"{path} has changed since a part that is done")
    assert "put the file back" in error
    path.unlink()
    write_jsonl(path.with_name("other.jsonl"), ["another"])
    assert_one_line(convert(**options), f"{path} is gone, but a part that is done was made of it")
    path.with_name("other.jsonl").unlink()
    path.write_bytes(original)  # with another date
    mixed.write_bytes(b"".join(as_lines(texts[200:])))
    assert convert(**options).exit_code == 0


def test_input_changed_while_it_was_converted_is_noticed(convert, mixed, tmp_path, monkeypatch):
    from data_prep import convert as conversion

    path = tmp_path / "root" / "good" / "a.jsonl"
    finish = conversion.finish_streams

    def change_and_finish(*arguments):
        path.write_bytes(path.read_bytes().replace(b"return", b"retorn"))
        return finish(*arguments)

    monkeypatch.setattr(conversion, "finish_streams", change_and_finish)
    result = convert(root=tmp_path / "root", workers=1)
    assert result.exit_code == 1
    assert f"error: {path} has changed since a part that is done was made of it" in result.stderr
    assert not (tmp_path / "shards").exists()


def test_bad_line_met_by_one_of_several_workers_is_one_sentence(convert, mixed, texts, tmp_path):
    mixed.write_bytes(b"".join(as_lines(texts[200:])) + b"{\n")
    options = {"root": tmp_path / "root", "part_size": "40kb", "workers": 2}
    assert_one_line(convert(**options), f"{mixed}, line 101: broken JSON at column 2")
    mixed.write_bytes(b"".join(as_lines(texts[200:])))
    assert convert(**options).exit_code == 0
    assert convert(**options | {"workers": 1, "out": tmp_path / "one"}).exit_code == 0
    assert content(tmp_path / "shards") == content(tmp_path / "one")
