"""Reading jsonl: every kind of bad input stops, naming file and line."""

import json

import pytest

from data_prep.documents import read_documents
from data_prep.domains import find_domains
from itt_composer.errors import UserError

GOOD = b'{"text": "fine"}\n'


def test_documents_keep_their_text(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"meta": {}, "body": "日本 \r\n x "}, ensure_ascii=False)
    path.write_bytes(line.encode() + b"\r\n" + line.encode())
    documents = list(read_documents(path, "body"))
    assert [document.text for document in documents] == ["日本 \r\n x "] * 2
    assert documents[0].data == "日本 \r\n x ".encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "broken JSON at column 10"),
        (b"\n", "broken JSON at column 1"),
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
        list(read_documents(path, "text"))
    assert str(caught.value).startswith(f"{path}, line 3: {message}")
    assert "\n" not in str(caught.value)


def test_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(UserError, match=r"empty\.jsonl: the file is empty"):
        list(read_documents(path, "text"))


def test_domains_and_files_are_sorted_and_hidden_folders_ignored(tmp_path):
    for name in ("b/z.jsonl", "b/a/y.jsonl", "a/x.jsonl", ".shards.partial/w.jsonl", "a/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    domains = find_domains(tmp_path)
    assert list(domains) == ["a", "b"]
    assert domains["b"] == [tmp_path / "b/a/y.jsonl", tmp_path / "b/z.jsonl"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no domain folders"),
        (["stray.jsonl", "a/x.jsonl"], "stray.jsonl lies outside a domain"),
        (["a/x.jsonl", "b/readme.txt"], "b has no .jsonl, .jsonl.gz, .jsonl.zst files"),
        (["common_crawl/x.jsonl", "cc/y.jsonl"], "are both the domain cc"),
    ],
)
def test_bad_tree_is_named(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(UserError) as caught:
        find_domains(tmp_path)
    assert message in str(caught.value)


def test_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_domains(tmp_path / "nowhere")
