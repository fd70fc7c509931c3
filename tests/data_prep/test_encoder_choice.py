"""Kinds of tokenizers that the fast encoder is proven for, held to it; all others are not taken."""

import json
import random

import pytest
import tokenizers
from small_conversions import model_of, texts_of
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from data_prep.documents import Document
from data_prep.encoder import Encoder
from data_prep.encoder_choice import GPT_4O, LLAMA_3, QWEN_2, why_reference
from data_prep.tokenizer import load_corpus_tokenizer
from itt_composer.models.tokenizer_json import json_of_sentencepiece

SPECIAL = ["<|begin|>", "<|end|>"]
LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
PIECES = [
    *("<|end|>", "<s>", "</s>", "<unk>", "▁", "▁▁", "<sym>", "hello", "the", "==", " ", "  "),
    *("\n", "\r\n", "\t", "\x00", "\x85", "\u2028", "\u00a0", "\u200b", "\ufeff", "'S", "'ll"),
    *("'ſ", "K", "İ", "123456", "½", "é", "e\u0301", "日本語", "각", "각", "😀", "🇩🇪"),
    *("\U000113c2", "\U00016d68\U00016d67", "\U0010ffff"),
]


def byte_level(texts, words=None, normalizer=None, prefix=False, added=()):
    """Make a byte-level BPE as JSON; `words` is the expression that cuts the text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if words:
        merged = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre_tokenizers.Split(Regex(words), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, merged])
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer.to_str().encode()


def changed(content, **model):
    found = json.loads(content)
    return json.dumps(found | {"model": found["model"] | model}).encode()


def load(folder, content):
    """Load the tokenizer of a file's bytes."""
    is_json = content.startswith(b"{")
    path = folder / ("tokenizer.json" if is_json else "tokenizer.model")
    path.write_bytes(content)
    return load_corpus_tokenizer(str(path), *(SPECIAL if is_json and b"<|end|>" in content else ()))


@pytest.fixture(scope="module")
def texts(root):
    return texts_of(root)


@pytest.fixture(scope="module")
def mixed(texts):
    """Real text, every seventh code point among letters, digits and blanks, and mixed pieces."""
    codes = [chr(code) for code in range(0, 0x110000, 7) if not 0xD800 <= code < 0xE000]
    spread = [f"a{char}b {char} 1{char}{char}.\n{char}'{char}s" for char in codes]
    pick = random.Random(0)
    pieces = ["".join(pick.choices(PIECES, k=pick.randint(1, 8))) for _ in range(3000)]
    return [*texts, *("\n".join(spread[n : n + 50]) for n in range(0, len(spread), 50)), *pieces]


def bare(content):
    """The JSON of a byte-level BPE with the keys alone that `tokenizers` does not read without."""
    found = json.loads(content)
    model = {key: found["model"][key] for key in ("vocab", "merges")}
    cut = {key: found["pre_tokenizer"][key] for key in ("type", "add_prefix_space", "trim_offsets")}
    # The id that counts is that of the vocabulary.
    added = [token | {"id": 5000 + token["id"]} for token in found["added_tokens"]]
    return json.dumps({"added_tokens": added, "pre_tokenizer": cut, "model": model}).encode()


PROVEN = {
    "gpt_2": lambda texts: byte_level(texts),
    "bare": lambda texts: bare(byte_level(texts, added=[AddedToken("the")])),
    "prefix": lambda texts: byte_level(texts, prefix=True),
    "llama_3": lambda texts: changed(byte_level(texts, LLAMA_3), ignore_merges=True),
    "qwen_2": lambda texts: byte_level(texts, QWEN_2, normalizers.NFC()),
    "gpt_4o": lambda texts: byte_level(texts, GPT_4O),
    "added": lambda texts: byte_level(
        texts, added=[AddedToken("<sym>"), AddedToken("hello"), AddedToken("  "), AddedToken("   ")]
    ),
    "llama": lambda texts: model_of(texts, **LLAMA),
    "llama_without_prefix": lambda texts: model_of(
        texts, add_dummy_prefix=False, user_defined_symbols=["<sym>", "=="], **LLAMA
    ),
    "llama_json": lambda texts: json_of_sentencepiece(model_of(texts, **LLAMA)),
}


@pytest.mark.parametrize("kind", PROVEN)
def test_the_fast_encoder_gives_the_ids_of_the_reference(kind, texts, mixed, tmp_path):
    content = PROVEN[kind](texts)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load(tmp_path, content)
    assert why_reference(tokenizer) is None
    documents = [Document(text, text.encode()) for text in mixed]
    got = Encoder(tokenizer, "fast").encode(documents).documents()
    for ids, text in zip(got, mixed, strict=True):
        assert ids.tolist() == tokenizer.encode(text), text


NOT_PROVEN = {
    "lowercase": (
        lambda texts: byte_level(texts, normalizer=normalizers.Lowercase()),
        "the normalizer Lowercase",
    ),
    "nfkc": (
        lambda texts: byte_level(
            texts, LLAMA_3, normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])
        ),
        "the normalizer NFC+NFKC",
    ),
    "words": (lambda texts: byte_level(texts, r"\w+|\W"), "its pre-tokenizer"),
    "no_words": (
        lambda texts: byte_level(texts).replace(b'"use_regex":true', b'"use_regex":false'),
        "its pre-tokenizer",
    ),
    "word_ends": (
        lambda texts: changed(byte_level(texts), end_of_word_suffix="</w>"),
        "end_of_word_suffix",
    ),
    "single_word": (
        lambda texts: byte_level(texts, added=[AddedToken("the", single_word=True)]),
        "the added token 'the', which is single_word",
    ),
    "lstrip": (
        lambda texts: byte_level(texts, added=[AddedToken("the", lstrip=True)]),
        "the added token 'the', which is lstrip",
    ),
    "rstrip": (  # 'FOO  b' has the added token of blanks after it in the reference alone
        lambda texts: byte_level(texts, added=[AddedToken("  "), AddedToken("FOO", rstrip=True)]),
        "the added token 'FOO', which is rstrip",
    ),
    "special_rstrip": (
        lambda texts: byte_level(texts, added=[AddedToken("<|a|>", rstrip=True, special=True)]),
        "the added token '<|a|>', which is rstrip",
    ),
    "overlapping": (
        lambda texts: byte_level(
            texts, added=[AddedToken("abc"), AddedToken("bcd", normalized=False)]
        ),
        "the added tokens 'bcd' and 'abc', of which one is normalized",
    ),
    "normalized": (
        lambda texts: byte_level(texts, QWEN_2, normalizers.NFC(), added=[AddedToken("é")]),
        "the added token 'é', which is normalized",
    ),
    "unigram": (
        lambda texts: model_of(texts, model_type="unigram"),
        "a SentencePiece model that is not BPE",
    ),
    "nfkc.model": (
        lambda texts: model_of(texts, model_type="bpe", byte_fallback=True),
        "the normalizer nmt_nfkc",
    ),
    "blanks.model": (
        lambda texts: model_of(texts, **LLAMA | {"remove_extra_whitespaces": True}),
        "a normalizer that changes blanks",
    ),
    "no_bytes.model": (
        lambda texts: model_of(texts, **LLAMA | {"byte_fallback": False}),
        "a SentencePiece model without byte pieces",
    ),
    "symbols.model": (
        lambda texts: model_of(texts, user_defined_symbols=["<sym>"], **LLAMA),
        "user-defined symbols beside a blank put in front",
    ),
}


@pytest.mark.parametrize("kind", NOT_PROVEN)
def test_what_is_not_proven_goes_to_the_reference(kind, texts, tmp_path):
    make, reason = NOT_PROVEN[kind]
    assert why_reference(load(tmp_path, make(texts))) == reason
