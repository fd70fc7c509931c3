"""The trained tokenizer: LLaMA's habits, transformers' ids, no look at validation documents."""

import itertools
import subprocess
from collections import Counter

import pytest
import sentencepiece
from packaging.version import Version
from small_conversions import (
    AWKWARD,
    assert_one_line,
    content,
    manifest_of,
    model_of,
    texts_of,
    write_jsonl,
)

from data_prep import tokenizer_training
from data_prep.document_split import split_of
from data_prep.tokenizer import load_corpus_tokenizer


@pytest.fixture(scope="module")
def processor(tokenizer):
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))


def test_special_ids_are_llamas(processor):
    assert processor.vocab_size() == 800
    assert [processor.unk_id(), processor.bos_id(), processor.eos_id()] == [0, 1, 2]
    assert processor.pad_id() == -1


def test_text_survives_encoding(processor, root):
    texts = [*texts_of(root), *AWKWARD, "ⴰⵣⵓⵍ is in no training document"]
    for text in texts:
        # SentencePiece writes blanks as U+2581, so that character alone cannot come back.
        assert processor.decode(processor.encode(text)) == text.replace("▁", " ")


def test_digits_are_single_tokens_and_line_breaks_single_bytes(processor):
    assert processor.encode("2024\n\n", out_type=str) == ["▁", *"2024", "<0x0A>", "<0x0A>"]
    pieces = [processor.id_to_piece(i) for i in range(3 + 256, processor.vocab_size())]
    assert not [piece for piece in pieces if len(piece) > 1 and any(map(str.isdigit, piece))]


@pytest.mark.parametrize("use_fast", [True, False])
def test_transformers_gives_the_ids_of_sentencepiece(tokenizer, processor, root, use_fast):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer, use_fast=use_fast, local_files_only=True)
    assert [loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id] == [0, 1, 2]
    for text in [*texts_of(root), *AWKWARD]:
        assert loaded(text).input_ids == [1, *processor.encode(text)]


@pytest.mark.parametrize("has_prefix", [True, False])
def test_names_of_pieces_beside_user_defined_symbols_are_text_to_transformers(
    root, tmp_path, has_prefix
):
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.model").write_bytes(
        model_of(
            texts_of(root),
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["[SYM]", "FOO"],
            add_dummy_prefix=has_prefix,
        )
    )
    made = load_corpus_tokenizer(str(tmp_path / "tokenizer.model"))
    made.save(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    parts = ["[SYM]", "FOO", "</s>", "<s>", "<unk>", "<0x41>", "<0xE3>", " ", "a", "the", "é", "▁"]
    for text in map("".join, itertools.product(parts, ["", *parts], ["", "FOO", "</s>", "b"])):
        assert loaded(text).input_ids == [1, *made.encode(text)], text


def test_validation_documents_do_not_shape_the_tokenizer(root, tokenizer, run, tmp_path):
    for domain in ("code", "prose"):
        texts = texts_of(root / domain)
        train = [text for text in texts if split_of(text, 0.05) == "train"]
        assert len(train) < len(texts)
        write_jsonl(tmp_path / "train" / domain / "all.jsonl", train)
    out = tmp_path / "tokenizer"
    assert (
        run("train-tokenizer", tmp_path / "train", "--out", out, "--vocab-size", 800).exit_code == 0
    )
    assert content(out)["tokenizer.model"] == content(tokenizer)["tokenizer.model"]
    assert manifest_of(out)["trained_on"] == manifest_of(tokenizer)["trained_on"]


def test_another_validation_share_trains_on_other_documents(root, tokenizer, run, tmp_path):
    out = tmp_path / "tokenizer"
    options = ("--out", out, "--vocab-size", 800, "--validation-share", 0.5)
    assert run("train-tokenizer", root, *options).exit_code == 0
    texts = [text for text in texts_of(root) if split_of(text, 0.5) == "train"]
    assert manifest_of(out)["trained_on"]["documents"] == len(texts)
    assert content(out)["tokenizer.model"] != content(tokenizer)["tokenizer.model"]


def test_second_call_is_skipped_and_other_options_refused(root, tokenizer, run):
    before = content(tokenizer)
    result = run("train-tokenizer", root, "--out", tokenizer, "--vocab-size", 800)
    assert result.exit_code == 0
    assert "nothing to do" in result.output
    result = run("train-tokenizer", root, "--out", tokenizer, "--vocab-size", 900)
    assert result.exit_code == 1
    assert "vocab_size 800, asked for 900" in result.stderr
    assert content(tokenizer) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vocab-size", 4096), "cannot make 4096 pieces from this corpus (Vocabulary size too"),
        (("--vocab-size", 100), "cannot make 100 pieces from this corpus (Vocabulary size is"),
        (("--validation-share", 1), "root has no training text"),
        (("--text-field", "body"), 'a.jsonl, line 1: no field "body"'),
    ],
)
def test_impossible_training_is_one_sentence_and_leaves_nothing(run, tmp_path, options, message):
    write_jsonl(tmp_path / "root" / "d" / "a.jsonl", ["too little text"] * 3)
    result = run("train-tokenizer", tmp_path / "root", "--out", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_bad_line_stops_the_training(root, run, tmp_path):
    path = tmp_path / "root" / "d" / "a.jsonl"
    write_jsonl(path, texts_of(root))
    with path.open("a") as file:
        file.write("not JSON\n")
    result = run("train-tokenizer", tmp_path / "root", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{path}, line {len(texts_of(root)) + 1}: broken JSON" in result.stderr
    assert not (tmp_path / "out").exists()


LONG = "XQ" * 35_000  # a run in which SentencePiece's trainer ends its process


@pytest.fixture
def with_awkward_lines(root, tmp_path):
    """Good text, and in a second file lines that SentencePiece's trainer does not take as such."""
    good = texts_of(root)
    write_jsonl(tmp_path / "root" / "d" / "a.jsonl", good)
    sparkline = "zqjx ▂▅▇ zqjx ▅"  # U+2585 is its own mark
    lines = [LONG, "日本" * 40_000, " " * 70_000, "one word " * 150_000, *[sparkline] * 400]
    write_jsonl(tmp_path / "root" / "d" / "b.jsonl", ["\n".join(lines), "\u0000\u2581\ufffe"])
    return tmp_path / "root"


def test_lines_that_sentencepiece_does_not_take_are_cut_learned_from_and_counted(
    run, with_awkward_lines, tmp_path
):
    out = tmp_path / "tokenizer"
    asked = ("--vocab-size", 800, "--validation-share", 0)
    result = run("train-tokenizer", with_awkward_lines, "--out", out, *asked)
    assert result.exit_code == 0, result.output
    trained_on = manifest_of(out)["trained_on"]
    texts = texts_of(with_awkward_lines)
    size = sum(len(text.encode()) for text in texts)
    counts = {"documents": len(texts), "utf8_bytes": size}
    # 70,000 and 80,000 characters in runs of 32,768; blanks can be cut anywhere.
    assert trained_on == counts | {"cut_runs": 4, "reserved_characters": 800}
    assert "cut after 32,768 characters at 4 places" in result.stderr
    assert "the character ▅ (U+2585) at 800 places was not learned" in result.stderr
    processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    assert {"▁zqjx", "XQXQ", "▁word"} <= {processor.id_to_piece(n) for n in range(800)}
    assert processor.decode(processor.encode("▂▅▇")) == "▂▅▇"


def test_long_lines_are_cut_at_blanks_and_lose_nothing_else(monkeypatch):
    monkeypatch.setattr(tokenizer_training, "LONGEST_LINE", 8)
    for line in ("", "a b", "12345678", "123456789", "1234567 9", " a  b   c    d     e", "x" * 30):
        counts = Counter()
        pieces = list(tokenizer_training._as_taken(line, counts))
        assert all(0 < len(piece) <= 8 for piece in pieces)
        assert "".join(pieces).replace(" ", "") == line.replace(" ", "")
        assert counts["cut_runs"] == {"123456789": 1, "x" * 30: 3}.get(line, 0)
        if not counts["cut_runs"] and line:
            assert " ".join(pieces) == line


@pytest.mark.skipif(
    Version(sentencepiece.__version__) >= Version("0.2.1"), reason="newer trainers take such lines"
)
def test_file_on_which_the_trainer_ends_is_named_and_nothing_is_left(
    run, with_awkward_lines, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenizer_training, "LONGEST_LINE", 100_000)
    asked = ("--vocab-size", 800, "--validation-share", 0)
    result = run("train-tokenizer", with_awkward_lines, "--out", tmp_path / "out", *asked)
    error = assert_one_line(result)
    file = with_awkward_lines / "d" / "b.jsonl"
    assert error.startswith(f"SentencePiece's trainer does not take the text of {file} and has end")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_trainer_that_was_killed_is_one_sentence_and_nothing_is_left(
    run, root, tmp_path, monkeypatch
):
    def killed(*arguments, **options):
        process = subprocess.Popen(*arguments, **options)
        process.kill()
        return process

    monkeypatch.setattr(tokenizer_training, "Popen", killed)
    result = run("train-tokenizer", root, "--out", tmp_path / "out")
    assert "was killed by signal 9, perhaps for lack of memory" in assert_one_line(result)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_read_and_an_output_inside_the_input_are_reported(root, run, tmp_path):
    write_jsonl(tmp_path / "root" / "d" / "a.jsonl", texts_of(root))
    (tmp_path / "root" / "d" / "README.md").write_text("about it")
    asked = ("train-tokenizer", tmp_path / "root", "--vocab-size", 400, "--out")
    error = assert_one_line(run(*asked, tmp_path / "root" / "tokenizer"))
    assert "lies inside the input" in error
    result = run(*asked, tmp_path / "out")
    assert "warning: 1 file below" in result.stderr
    assert manifest_of(tmp_path / "out")["not_read"] == ["d/README.md"]
