"""Decides from a tokenizer's file whether gigatoken gives it the ids of the reference.

gigatoken 0.10 refuses some steps of a tokenizer and leaves others out without a word. So the fast
encoder is taken for the kinds alone that were compared with SentencePiece 0.2 and `tokenizers` 0.22
on real text, on every code point and on mixed pieces of text, without one difference;
`tests/data_prep/test_encoder_choice.py` holds them to it. All other kinds go to the reference.
"""

import json
import re
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from data_prep.tokenizer import Tokenizer
from itt_composer.models.tokenizer_json import BPE, SPACE, parsed_model

# How a text is cut into words before its bytes are merged.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
WORDS = (LLAMA_3, QWEN_2, GPT_4O)
# Characters that compose only in newer Unicode tables (U+10500 to U+16FFF, in UTF-8).
NEWER_COMPOSED = re.compile(rb"\xf0[\x90-\x96]")


def encoder_for(tokenizer: Tokenizer, asked: str) -> tuple[str, str | None]:
    """Choose the encoder, and say why it is the reference where "fast" was asked for."""
    reason = why_reference(tokenizer) if asked == "fast" else None
    return (asked if reason is None else "reference"), reason


def why_reference(tokenizer: Tokenizer) -> str | None:
    """Name what in a tokenizer the fast encoder is not proven for; None if there is nothing."""
    if tokenizer.kind == "sentencepiece":
        return _of_sentencepiece(parsed_model(tokenizer.content))
    return _of_json(json.loads(tokenizer.content))


def is_composed_anew(tokenizer: Tokenizer) -> bool:
    """Return whether NFC is applied, in which Unicode's versions differ; see `NEWER_COMPOSED`."""
    return tokenizer.kind == "tokenizers" and {"type": "NFC"} in _steps(
        json.loads(tokenizer.content)
    )


def _of_sentencepiece(model: Any) -> str | None:
    trained, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = type(model.pieces[0])
    found = {piece.type for piece in model.pieces}
    if trained.model_type != BPE:
        return "a SentencePiece model that is not BPE"
    if not trained.byte_fallback:
        return "a SentencePiece model without byte pieces"
    if normalizer.precompiled_charsmap:
        return f"the normalizer {normalizer.name}"
    if normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        return "a normalizer that changes blanks"
    if kinds.USER_DEFINED in found and normalizer.add_dummy_prefix:
        return "user-defined symbols beside a blank put in front"
    if kinds.UNUSED in found:
        return "unused pieces"
    return None


def _of_json(content: dict[str, Any]) -> str | None:
    model = content["model"]
    if model["type"] != "BPE":
        return f"a {model['type']} model"
    if _is_llama(content):
        return _unless_special(content)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            return name
    if any(step != {"type": "NFC"} for step in _steps(content)):
        return f"the normalizer {'+'.join(step['type'] for step in _steps(content))}"
    if not _is_known(content["pre_tokenizer"]):
        return "its pre-tokenizer"
    if not _byte_alphabet() <= model["vocab"].keys():
        return "a vocabulary without some bytes"
    return _of_added_tokens(content)


def _of_added_tokens(content: dict[str, Any]) -> str | None:
    steps = _steps(content)
    for token in content["added_tokens"]:
        for flag in FLAGS if steps else FLAGS[:-1]:
            if token[flag]:
                return f"the added token {token['content']!r}, which is {flag}"
    names: dict[bool, list[str]] = {True: [], False: []}
    for token in content["added_tokens"]:
        names[token["normalized"]].append(token["content"])
    for first in names[False]:  # `tokenizers` looks for these first, gigatoken for all at once
        for second in names[True]:
            if _can_overlap(first, second):
                return f"the added tokens {first!r} and {second!r}, of which one is normalized"
    return None


def _can_overlap(one: str, other: str) -> bool:
    """Return whether both can occur in a text in such a way that they share characters."""
    lengths = range(1, min(len(one), len(other)))
    return (
        one in other
        or other in one
        or any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in lengths)
    )


def _is_llama(content: dict[str, Any]) -> bool:
    """Return whether it is SentencePiece's BPE as transformers writes LLaMA's."""
    space = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    model = content["model"]
    return (
        _steps(content) == space
        and content["pre_tokenizer"] is None
        and model.get("byte_fallback")
        and not model.get("ignore_merges")
        and {f"<0x{byte:02X}>" for byte in range(256)} <= model["vocab"].keys()
    )


def _unless_special(content: dict[str, Any]) -> str | None:
    for token in content["added_tokens"]:
        if not token["special"] or any(token[flag] for flag in FLAGS):
            return f"the added token {token['content']!r} beside a blank put in front"
    return None


def _steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    """List the steps of the normalizer."""
    normalizer = content["normalizer"]
    if normalizer is None:
        return []
    return list(normalizer.get("normalizers", [normalizer]))


def _is_known(found: dict[str, Any] | None) -> bool:
    if found is None:
        return False
    if found["type"] == "ByteLevel":
        return bool(found["use_regex"])
    if found["type"] != "Sequence" or len(found["pretokenizers"]) != 2:
        return False
    split, byte_level = found["pretokenizers"]
    settings = {"type": "Split", "behavior": "Isolated", "invert": False}
    return (
        any(split == settings | {"pattern": {"Regex": words}} for words in WORDS)
        and byte_level["type"] == "ByteLevel"
        and not byte_level["use_regex"]
        and not byte_level["add_prefix_space"]
    )


def _byte_alphabet() -> set[str]:
    return set(ByteLevel.alphabet())
