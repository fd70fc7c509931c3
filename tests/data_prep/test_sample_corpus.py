"""The sample corpus: real text, and no text in two documents."""

import argparse
import ast
import html.entities
import json
from collections import Counter
from pathlib import Path

from small_conversions import content, manifest_of, texts_of

from data_prep import sample_corpus as sample
from data_prep.docstrings import separate_docstrings
from data_prep.sample_corpus import DOMAINS, NoveltyFilter

SOURCE = '''# A comment.
"""Module — with a dash."""
"""A second string."""
import os; """not leading"""

class A:
    """Class."""

    size = 1

    @property
    def empty(self):
        """Only this."""

    async def one_line(self): "Short."

    def commented(self):
        "Half " "and half."  # why
        text = """kept: assigned"""
        def inner():
            """
            Inner.

                indented
            """
            return text
        return inner

if os:
    def conditional():
        # before
        """Conditional."""
        return f"""not a docstring"""
'''


def test_docstrings_are_separated_from_code_and_the_rest_is_verbatim():
    code, docstrings = separate_docstrings(SOURCE, ast.parse(SOURCE), "m")
    assert docstrings == [
        ("m", "Module — with a dash.\n\nA second string."),
        ("m.A", "Class."),
        ("m.A.empty", "Only this."),
        ("m.A.one_line", "Short."),
        ("m.A.commented", "Half and half."),
        ("m.A.commented.inner", "Inner.\n\n    indented"),
        ("m.conditional", "Conditional."),
    ]
    assert code.splitlines() == [
        "# A comment.",
        'import os; """not leading"""',
        "",
        "class A:",
        "",
        "    size = 1",
        "",
        "    @property",
        "    def empty(self):",
        "        pass",
        "",
        "    async def one_line(self): pass",
        "",
        "    def commented(self):",
        "        pass  # why",
        '        text = """kept: assigned"""',
        "        def inner():",
        "            return text",
        "        return inner",
        "",
        "if os:",
        "    def conditional():",
        "        # before",
        '        return f"""not a docstring"""',
    ]


def test_novelty_filter_drops_what_mostly_repeats():
    lines = [f"a distinctive line with the number {number}" for number in range(10)]
    novelty = NoveltyFilter()
    assert novelty.admits("\n".join(lines))
    assert not novelty.admits("\n".join(lines))
    assert not novelty.admits("\n".join([*lines[:4], *(f"{line} again" for line in lines[4:])]))
    assert novelty.admits("\n".join([*lines[:2], *(f"{line} anew" for line in lines[2:])]))
    assert novelty.admits("short\nlines\n" * 50)


def test_no_text_occurs_in_two_documents(corpus):
    texts = [text for domain in DOMAINS for text in texts_of(corpus / domain)]
    assert len(set(texts)) == len(texts)
    # Runs of four lines, the size of a paragraph, may be shared by very little of the text.
    documents = [[line.strip() for line in text.splitlines() if line.strip()] for text in texts]
    runs = [{tuple(d[i : i + 4]) for i in range(len(d) - 3)} for d in documents]
    shared = {run for run, count in Counter(r for each in runs for r in each).items() if count > 1}
    size = sum(len("".join(run)) for each in runs for run in each)
    assert sum(len("".join(run)) for each in runs for run in each & shared) < 0.02 * size


def test_code_holds_no_docstrings(corpus):
    for code in texts_of(corpus / "code"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                assert ast.get_docstring(node) is None


def test_documents_have_redpajamas_shape_and_name_their_source(corpus):
    for domain in DOMAINS:
        for line in (corpus / domain / f"{domain}.jsonl").open(encoding="utf-8"):
            document = json.loads(line)
            assert set(document) == {"text", "meta"}
            assert document["meta"]["source"]
            assert len(document["text"]) >= 200


def test_sources_are_neither_tests_nor_vendored(corpus):
    lines = (corpus / "code" / "code.jsonl").open(encoding="utf-8")
    modules = {json.loads(line)["meta"]["source"] for line in lines}
    assert {"argparse", "ast", "asyncio.base_events"} <= modules
    parts = {part for module in modules for part in module.split(".")}
    assert parts.isdisjoint({"test", "tests", "_vendor", "encodings", "site-packages"})


def test_tables_are_left_out(monkeypatch):
    files = [(module.__name__, Path(module.__file__)) for module in (html.entities, argparse)]
    monkeypatch.setattr(sample, "_modules", lambda: iter(files))
    assert {document.source for document in sample._module_documents()} == {"argparse"}


def test_manifest_counts_the_documents(corpus):
    domains = manifest_of(corpus)["domains"]
    for domain in DOMAINS:
        texts = texts_of(corpus / domain)
        assert domains[domain] == {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "utf8_bytes": sum(len(text.encode()) for text in texts),
        }
    assert 4_000_000 <= sum(counts["utf8_bytes"] for counts in domains.values()) < 5_000_000


def test_a_corpus_so_small_that_a_domain_gets_nothing_makes_a_tokenizer(run, tmp_path):
    result = run("sample-corpus", "--out", tmp_path / "tiny", "--megabytes", 1)
    assert result.exit_code == 0
    files = sorted(path.name for path in (tmp_path / "tiny").glob("*/*"))
    domains = manifest_of(tmp_path / "tiny")["domains"]
    assert files == sorted(f"{domain}.jsonl" for domain in domains)
    assert len(files) < len(DOMAINS)
    out = ("--out", tmp_path / "tokenizer", "--vocab-size", 512)
    assert run("train-tokenizer", tmp_path / "tiny", *out).exit_code == 0


def test_corpus_is_the_same_every_time(corpus, run, tmp_path):
    result = run("sample-corpus", "--out", tmp_path / "again", "--megabytes", 4)
    assert result.exit_code == 0
    assert content(tmp_path / "again") == content(corpus)


def test_distributions_do_not_depend_on_what_has_been_imported(monkeypatch, tmp_path):
    before = sample.installation_fingerprint()
    information = tmp_path / "extra-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert sample.installation_fingerprint() == before


def test_second_call_is_skipped_and_another_size_refused(corpus, run):
    before = content(corpus)
    result = run("sample-corpus", "--out", corpus, "--megabytes", 4)
    assert result.exit_code == 0
    assert "nothing to do" in result.output
    result = run("sample-corpus", "--out", corpus, "--megabytes", 5)
    assert result.exit_code == 1
    assert "megabytes 4, asked for 5" in result.stderr
    assert content(corpus) == before


def test_too_little_text_is_one_sentence_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_modules", lambda: iter(()))
    result = run("sample-corpus", "--out", tmp_path / "corpus", "--megabytes", 500)
    assert result.exit_code == 1
    assert "MB of text that fits, not 500" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_megabytes_out_of_range_is_a_usage_error(run, tmp_path):
    result = run("sample-corpus", "--out", tmp_path / "corpus", "--megabytes", 0)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
