"""Bytes of tokens: added over a document, those of the document's own text."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from streaming import LocalDataset

from eval.token_bytes import read_token_bytes
from itt_composer.data.manifest import Manifest, ShardSettings, TokenizerOrigin

BEGIN, END = "<|begin|>", "<|end|>"
TEXTS = [
    "",
    "plain words, and more of them",
    " starts with a blank, ends with blanks  \n\n",
    "\n\ttabs and\r\nline ends\n",
    "def code(x):\n        return x + 1234567\n",
    "héllo 日本語 😀 \u0000 \u00a0  two  blanks",
    "<s> the names of special tokens </s> <unk> <0x41> <pad>",
]


def sentencepiece_model(**settings):
    model = io.BytesIO()
    lines = [line for text in [*TEXTS, Path(__file__).read_text()] for line in text.splitlines()]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=420,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "bpe", "normalization_rule_name": "identity", **settings},
    )
    return model.getvalue()


def byte_level(alphabet, add_prefix_space=False):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BEGIN, END, "<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, Path(__file__).read_text()], trainer)
    tokenizer.add_tokens(["  two"])
    return tokenizer.to_str().encode()


def encoder_of(content):
    """(ids of a text, BOS, EOS) by the tokenizer's own library, and the name of its file."""
    if content.startswith(b"{"):
        loaded = tokenizers.Tokenizer.from_str(content.decode())
        ends = loaded.token_to_id(BEGIN), loaded.token_to_id(END)
        encode = lambda text: loaded.encode(text, add_special_tokens=False).ids  # noqa: E731
        return encode, *ends, "tokenizer/tokenizer.json"
    processor = SentencePieceProcessor(model_proto=content)
    return processor.encode, processor.bos_id(), processor.eos_id(), "tokenizer/tokenizer.model"


ALPHABET = tokenizers.pre_tokenizers.ByteLevel.alphabet()
FALLBACK = {"byte_fallback": True, "remove_extra_whitespaces": False}
KINDS = {
    "llama": lambda: sentencepiece_model(**FALLBACK),
    "no dummy prefix": lambda: sentencepiece_model(**FALLBACK, add_dummy_prefix=False),
    "unigram": lambda: sentencepiece_model(**FALLBACK, model_type="unigram"),
    "user-defined pieces": lambda: sentencepiece_model(**FALLBACK, user_defined_symbols=["<pad>"]),
    "byte-level": lambda: byte_level(ALPHABET),
}


@pytest.fixture
def table_of(tmp_path):
    """The table and the encoder of a tokenizer that lies beside shards."""

    def read(content, has_bos=True):
        encode, bos, eos, name = encoder_of(content)
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        settings = ShardSettings(
            seq_len=8,
            dtype="uint16",
            vocab_size=2**16,
            bos_id=bos if has_bos else None,
            eos_id=eos,
            tokenizer=TokenizerOrigin(file=name, sha256=""),
        )
        return read_token_bytes(tmp_path, settings), encode, ([bos] if has_bos else []), eos

    return read


@pytest.mark.parametrize("has_bos", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_documents_tokens_are_those_of_its_text(table_of, kind, has_bos):
    table, encode, bos, eos = table_of(KINDS[kind](), has_bos)
    row = [eos]
    for text in TEXTS:
        document = [*bos, *encode(text), eos]
        # A row's first token is not counted: EOS, as where a row begins with a document.
        assert table.count(torch.tensor([[eos, *document]])) == len(text.encode()), text
        row += document
    assert table.count(torch.tensor([row])) == sum(len(text.encode()) for text in TEXTS)


def test_a_blank_added_by_a_byte_level_tokenizer_counts_none(table_of):
    table, encode, bos, eos = table_of(byte_level(ALPHABET, add_prefix_space=True))
    for text in ("words", "\nwords", "two words"):
        assert table.count(torch.tensor([[eos, *bos, *encode(text), eos]])) == len(text)


def test_text_without_a_piece_has_no_bytes(table_of):
    table, encode, bos, eos = table_of(sentencepiece_model(character_coverage=0.98))
    assert table.count(torch.tensor([[eos, *bos, *encode("some words"), eos]])) == 10
    assert table.count(torch.tensor([[eos, *bos, *encode("日 words"), eos]])) is None


def test_tokenizers_whose_tokens_are_no_bytes_have_no_table(table_of):
    word_piece = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    word_piece.add_special_tokens([BEGIN, END])
    assert table_of(word_piece.to_str().encode())[0] is None
    assert table_of(byte_level(alphabet=[]))[0] is None


def test_the_documents_of_real_shards_have_their_own_bytes(shards):
    manifest = Manifest.read(shards)
    table = read_token_bytes(shards, manifest)
    processor = SentencePieceProcessor(model_file=str(shards / "tokenizer/tokenizer.model"))
    counted, texts = [], []
    for domain in ("code", "prose"):
        rows = LocalDataset(str(shards / "validation" / domain))
        ids = np.concatenate([rows[index]["input_ids"] for index in range(rows.num_samples)])
        ends = np.flatnonzero(ids == manifest.eos_id)
        for start, end in itertools.pairwise(ends):
            document = ids[start : end + 1].astype(np.int64)
            counted.append(table.count(torch.tensor(document[None])))
            texts.append(processor.decode(document[2:-1].tolist()))
    assert counted == [len(text.encode()) for text in texts]
    assert len(counted) > 20
    assert {len(text) for text in texts} == {500}  # as the documents were cut
