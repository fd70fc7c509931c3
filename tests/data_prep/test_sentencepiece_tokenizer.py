"""The trained tokenizer: LLaMA's habits, transformers' ids, no look at validation documents."""

import pytest
import sentencepiece
from small_conversions import AWKWARD, content, manifest_of, texts_of, write_jsonl

from data_prep.split import split_of


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
