"""Reading jsonl: every kind of bad input stops, naming file and line."""

import gzip
import json
import os
import re

import pytest
from small_conversions import zstd

from data_prep.documents import Document, Fields, Piece, PieceReader, document_of, read_documents
from data_prep.domains import MIXED, find_corpus, not_read_sentence
from itt_composer.basics.errors import UserError

GOOD = b'{"text": "fine"}\n'


def test_documents_keep_their_text(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"meta": {}, "body": "日本 \r\n x "}, ensure_ascii=False)
    path.write_bytes(line.encode() + b"\r\n" + line.encode())
    documents = list(read_documents(path, Fields("body")))
    assert [document.text for document in documents] == ["日本 \r\n x "] * 2
    assert documents[0].data == "日本 \r\n x ".encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "broken JSON at column 10"),
        (b'{"text": "a"} {"text": "b"}', "broken JSON at column 15"),
        (b'{"text": "caf\xe9"}', "invalid UTF-8 at byte 14 of the line"),
        (b'["a"]', "a JSON list where an object was expected"),
        (b'{"meta": {}}', 'no field "text"; name the text\'s field with --text-field'),
        (b'{"text": null}', 'field "text" is NoneType, not a string'),
        (b'{"text": 5}', 'field "text" is int, not a string'),
        (b'{"text": "\\ud800"}', 'field "text" holds half of a surrogate pair'),
        (b"[" * 100_000, "JSON that cannot be read"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD * 2 + line)
    with pytest.raises(UserError) as caught:
        list(read_documents(path, Fields()))
    assert str(caught.value).startswith(f"{path}, line 3: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_byte_order_marks_and_blank_lines_are_passed_over_and_keep_their_numbers(
    tmp_path, compress
):
    suffix = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[compress]
    path = tmp_path / f"a.jsonl{suffix}"
    bom = b"\xef\xbb\xbf"
    lines = [bom + GOOD, b"\n", b" \t\r\n", bom + b"\n", bom + GOOD, GOOD.rstrip(), b"\n\n"]
    path.write_bytes(compress(b"".join(lines)))
    assert [document.text for document in read_documents(path, Fields())] == ["fine"] * 3
    path.write_bytes(compress(b"".join([*lines, b"{\n"])))
    with pytest.raises(UserError, match=r"a\.jsonl\S*, line 8: broken JSON"):
        list(read_documents(path, Fields()))


ONE_DOCUMENT = [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ONE_DOCUMENT), "is JSON that is not one object per line: write it so"),
        (json.dumps(ONE_DOCUMENT, indent=1), "is JSON that is not one object per line"),
        (json.dumps({"data": ONE_DOCUMENT}, indent=1), "is JSON that is not one object per line"),
        ('[{"text": "a"},\n{"text": "b"}\n]', "is JSON that is not one object per line"),
        ('[\n{"text": "a"}\n,{"text": "b"}\n]', "is JSON that is not one object per line"),
        ('{"version": 1,\n"data": []}', "is JSON that is not one object per line"),
        ('\ufeff\n[{"text": "a"},\n{"text": "b"}]', "is JSON that is not one object per line"),
        ('{"text": "a"}\n'.encode("utf-16"), "is UTF-16: write it in UTF-8"),
        ("\n \n\ufeff\n", "is empty: remove it or write its documents again"),
        ("", "is empty: remove it or write its documents again"),
    ],
)
def test_file_without_an_object_per_line_is_named(tmp_path, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    stored_as = {"a.json": data}
    if data:
        stored_as |= {"a.json.gz": gzip.compress(data), "a.json.zst": zstd(data)}
    for name, stored in stored_as.items():
        path = tmp_path / name
        path.write_bytes(stored)
        with pytest.raises(UserError) as caught:
            list(read_documents(path, Fields()))
        assert str(caught.value).startswith(f"{path}: the file {message}")


@pytest.mark.parametrize("first", ['["a"]', '[{"text": "a"},', '{"text": "a",', "{"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
def test_odd_first_line_before_good_ones_is_the_only_bad_line(tmp_path, first, compress):
    suffix = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[compress]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(first.encode() + b"\n" + GOOD * 10_000))
    reader = PieceReader(tmp_path, Piece(path.name, 0, path.stat().st_size))
    assert list(reader) == [first.encode() + b"\n", *[GOOD] * 10_000]
    with pytest.raises(UserError, match=r"a\.jsonl\S*, line 1: (broken JSON|a JSON list)"):
        list(read_documents(path, Fields()))


NAME = "meta.redpajama_set_name"


@pytest.mark.parametrize(
    ("line", "domain"),
    [
        ({"meta": {"redpajama_set_name": "RedPajamaCommonCrawl"}}, "cc"),
        ({"meta": {"redpajama_set_name": "RedPajamaStackExchange"}}, "stackexchange"),
        ({"meta": {"redpajama_set_name": "mine"}}, "mine"),
        ({"meta.redpajama_set_name": "wikipedia"}, "wiki"),
    ],
)
def test_field_of_a_line_names_its_domain_as_the_paper_does(line, domain):
    data = json.dumps(line | {"text": "fine"}).encode()
    assert document_of(data, Fields("text", NAME)) == Document("fine", b"fine", domain)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, f'no field "{NAME}"; name the domain\'s field with --domain-field'),
        ("text", f'no field "{NAME}"; name the domain\'s field with --domain-field'),
        ({"redpajama_set_name": 5}, f'field "{NAME}" is int, not a string'),
        ({"redpajama_set_name": "a/b"}, f"field \"{NAME}\" is 'a/b', which cannot name a folder"),
        ({"redpajama_set_name": ".."}, "which cannot name a folder"),
        ({"redpajama_set_name": ""}, "which cannot name a folder"),
        ({"redpajama_set_name": ".mixed"}, "which cannot name a folder"),
        ({"redpajama_set_name": "a\0"}, "which cannot name a folder"),
        ({"redpajama_set_name": "\ud800"}, f"field \"{NAME}\" is '\\ud800', which cannot name"),
        ({"redpajama_set_name": "\u65e5" * 67}, "which cannot name a folder"),  # 201 bytes
        ({"redpajama_set_name": "RedPajamaBook"}, "the domain book has no share: give it one in"),
    ],
)
def test_line_without_a_domain_is_bad(meta, message):
    line = json.dumps({"text": "fine", "meta": meta}).encode()
    with pytest.raises(ValueError, match=re.escape(message)):
        document_of(line, Fields("text", NAME, frozenset({"cc"})))


def test_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: the file is empty"):
        list(read_documents(path, Fields()))


def test_domains_and_files_are_sorted_and_hidden_folders_ignored(tmp_path):
    for name in ("b/z.jsonl", "b/a/y.jsonl", "a/x.jsonl", ".shards.partial/w.jsonl", "a/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    domains = find_corpus(tmp_path).sources
    assert list(domains) == ["a", "b"]
    assert domains["b"] == [tmp_path / "b/a/y.jsonl", tmp_path / "b/z.jsonl"]


READ = [
    *("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zstd", "a.json", "a.json.gz", "a.json.zst"),
    *("A.JSONL", "A.JSON.GZ", "c4-train.00000-of-01024.json.gz", "out.jsonl/part-00000.json"),
]


def test_every_kind_of_json_lines_is_found_and_read(tmp_path):
    for name in READ:
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        compress = gzip.compress if name.lower().endswith("gz") else bytes
        compress = zstd if ".zst" in name else compress
        path.write_bytes(compress(GOOD))
    files = find_corpus(tmp_path).sources["d"]
    assert len(files) == len(READ)
    texts = [document.text for path in files for document in read_documents(path, Fields())]
    assert texts == ["fine"] * len(READ)


def test_other_files_are_listed_in_a_sentence_and_hidden_ones_ignored(tmp_path):
    for name in ("a/x.jsonl", "a/README.md", "a/deep/_SUCCESS", "a/.y.jsonl", "LICENSE", ".z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    (tmp_path / "manifest.json").write_text("{}")  # as sample-corpus leaves it
    corpus = find_corpus(tmp_path)
    assert corpus.not_read == ["LICENSE", "a/README.md", "a/deep/_SUCCESS"]
    sentence = not_read_sentence(tmp_path, corpus.not_read)
    assert sentence.startswith(f"3 files below {tmp_path} (2 without a suffix, 1 .md; the first is")
    assert not_read_sentence(tmp_path, []) is None


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a/x.parquet",
            "a/deep/x.txt",
            "a/X.CSV",
            "a/x.jsonl.xz",
            "a/x.jsonl.bz2",
            "a/x.jsonl.part",
        ),
        *("x.parquet", "a/x.arrow", "a/x.tar.gz", "a/x.txt.gz", "a/x.ndjson", "a/x.warc"),
    ],
)
def test_files_that_may_hold_documents_and_are_not_read_stop(tmp_path, name):
    for file in ("a/a.jsonl", name):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(GOOD)
    for mixed in (False, True):
        with pytest.raises(UserError) as caught:
            find_corpus(tmp_path, mixed)
        assert str(caught.value).startswith(
            f"{tmp_path / name} is of a kind that is not read: make"
        )


def test_links_are_followed_and_one_to_nothing_is_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jsonl").write_bytes(GOOD)
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "y.jsonl").symlink_to(tmp_path / "elsewhere" / "x.jsonl")
    found = find_corpus(tmp_path / "root").sources
    assert [path.name for paths in found.values() for path in paths] == ["y.jsonl", "x.jsonl"]
    for name in ("a/gone.jsonl", "gone"):
        link = tmp_path / "root" / name
        link.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match=f"^{link} is a link to nothing: mend or remove it$"):
            find_corpus(tmp_path / "root")
        link.unlink()
    os.mkfifo(tmp_path / "root" / "a" / "z.jsonl")
    with pytest.raises(UserError, match=r"z\.jsonl is not a regular file"):
        find_corpus(tmp_path / "root")


def test_where_lines_name_their_domain_all_files_are_one_source(tmp_path):
    for name in ("x.jsonl", "chunk1/y.jsonl.zst", "chunk1/deep/z.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    (tmp_path / "empty").mkdir()
    files = find_corpus(tmp_path, mixed=True).sources[MIXED]
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    assert names == ["chunk1/deep/z.json", "chunk1/y.jsonl.zst", "x.jsonl"]
    with pytest.raises(UserError, match=r"empty has no \.jsonl and \.json files"):
        find_corpus(tmp_path / "empty", mixed=True)


def test_a_file_or_folder_whose_name_is_not_text_is_named(tmp_path):
    for name in (b"a/\xff.jsonl", b"\xff/a.jsonl"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(GOOD)
        with pytest.raises(UserError, match=r"udcff.*has a name that is not UTF-8: rename it") as e:
            find_corpus(tmp_path)
        str(e.value).encode()
        path.unlink()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no domain folders"),
        (["stray.jsonl", "a/x.jsonl"], "stray.jsonl lies outside a domain"),
        (["a/x.jsonl", "b/readme.md"], "b has no .jsonl and .json files"),
        (["common_crawl/x.jsonl", "cc/y.jsonl"], "are both the domain cc"),
    ],
)
def test_bad_tree_is_named(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(UserError) as caught:
        find_corpus(tmp_path)
    assert message in str(caught.value)


def test_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_corpus(tmp_path / "nowhere")
