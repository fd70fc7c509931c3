"""A tokenizer's folder that transformers 4.57 and 5 read so that ids are those of the rows.

`AutoTokenizer` gives a text the ids that its document has in the rows: BOS where they have it, no
EOS, and the names of special tokens as the rows read them. For that the folder holds a
`tokenizer.json`, which both versions read alike, and a `tokenizer_config.json` of our own: under
version 5 a LLaMA tokenizer would be built anew from its vocabulary, and version 4.57 does not know
the class that version 5 writes.
"""

import base64
import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a blank
# What is taken over from the tokenizer_config.json of the tokenizer's own folder.
NAMED_TOKENS = ("unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
KEPT_SETTINGS = ("chat_template", "model_max_length", "padding_side")
UNIGRAM, BPE, CHARACTERS = 1, 2, 4  # types of a SentencePiece model
UNREACHABLE = 1000.0  # below every other score of a Unigram model


def tokenizer_config(
    own: dict[str, Any],
    vocabulary: Iterable[str],
    bos: str | None,
    eos: str,
    unk: str | None,
    text_stays_text: bool,
) -> dict[str, Any]:
    """Write the `tokenizer_config.json` of a folder.

    Args:
        own: that of the tokenizer's own folder.
        vocabulary: all tokens; a name that is not one of them is left out, as transformers would
            give it a new id.
        bos, eos: tokens around a document, bos None for none.
        unk: token for what has none, unless `own` names it.
        text_stays_text: whether the name of a special token in a text is text.
    """
    known = set(vocabulary)
    named = {"unk_token": unk} | {key: token_of(own.get(key)) for key in NAMED_TOKENS if key in own}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        **{key: token for key, token in named.items() if token in known},
        "split_special_tokens": text_stays_text,
        "clean_up_tokenization_spaces": False,
        **{key: own[key] for key in KEPT_SETTINGS if key in own},
    }


def token_of(value: Any) -> Any:
    """Return the token of an entry of `tokenizer_config.json`: a string, or one with settings."""
    return value.get("content") if isinstance(value, dict) else value


def complete_json(content: bytes, loaded: Any) -> bytes:
    """Add the keys that may be missing in a `tokenizer.json`, as `tokenizers` has read it.

    Args:
        content: of the file; returned as it is where nothing is to change.
        loaded: the `tokenizers.Tokenizer` of it.
    """
    found = json.loads(content)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    steps = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    parts = {name: getattr(loaded, name) for name in steps}
    read = {
        "added_tokens": [
            {"id": number, "content": token.content}
            | {flag: getattr(token, flag) for flag in flags}
            for number, token in sorted(loaded.get_added_tokens_decoder().items())
        ],
        **{name: part and json.loads(part.__getstate__()) for name, part in parts.items()},
        "model": {"type": type(loaded.model).__name__} | found["model"],
    }
    complete = {"version": "1.0", "truncation": None, "padding": None} | found | read
    return content if complete == found else json.dumps(complete, ensure_ascii=False).encode()


def with_document_ends(content: bytes, bos: str | None, special: Iterable[str]) -> bytes:
    """Change a `tokenizer.json` so that it puts BOS before a text and nothing else around it.

    Args:
        content: of the file; returned as it is where nothing is to change.
        bos: the token that begins a document, or None.
        special: tokens that are special, whatever the file says of them: transformers takes every
            token that the configuration names for special.
    """
    found = json.loads(content)
    changed = found | {"truncation": None, "padding": None}
    added = {token["content"]: token for token in found["added_tokens"]}
    vocabulary = _ids(found["model"])
    for token in special:
        settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        known = added.get(token) or {"id": vocabulary[token], "content": token, **settings}
        added[token] = known | {"special": True}
    changed["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    changed["post_processor"] = _post_processor(
        found, bos, None if bos is None else added[bos]["id"]
    )
    if found["model"].get("type") == "Unigram":
        names = {token["content"] for token in added.values() if token["special"]}
        changed["model"] = found["model"] | {"vocab": _out_of_reach(found["model"]["vocab"], names)}
    if changed == found:
        return content
    return json.dumps(changed, ensure_ascii=False).encode()


def _ids(model: dict[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def _post_processor(found: dict[str, Any], bos: str | None, bos_id: int | None) -> Any:
    """Make a template with BOS; keep what corrects the offsets of byte-level tokens."""
    own = found.get("post_processor") or {}
    parts = own.get("processors", [own])
    kept = [part for part in parts if part.get("type") == "ByteLevel"]
    if bos is not None:

        def begin(sequence: str, number: int) -> list[dict[str, Any]]:
            token = {"SpecialToken": {"id": bos, "type_id": number}}
            return [token, {"Sequence": {"id": sequence, "type_id": number}}]

        template = {
            "type": "TemplateProcessing",
            "single": begin("A", 0),
            "pair": begin("A", 0) + begin("B", 1),
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        }
        kept.append(template)
    if len(kept) > 1:
        return {"type": "Sequence", "processors": kept}
    return kept[0] if kept else None


def _out_of_reach(vocab: list[Any], names: set[str]) -> list[Any]:
    """Make a Unigram model find no special token in a text, as SentencePiece does."""
    lowest = min(score for piece, score in vocab if piece not in names)
    return [[piece, lowest - UNREACHABLE if piece in names else score] for piece, score in vocab]


def why_transformers_cannot(content: bytes) -> str | None:
    """Name what transformers cannot represent of a SentencePiece model; None if it can."""
    spec = parsed_model(content).trainer_spec
    if spec.model_type not in (UNIGRAM, BPE, CHARACTERS):
        return "of words"
    return "with blanks at the end of words" if spec.treat_whitespace_as_suffix else None


def how_transformers_differs(content: bytes) -> str | None:
    """Say where transformers gives a few texts other ids than the model; None if nowhere."""
    model = parsed_model(content)
    if model.trainer_spec.model_type == UNIGRAM:
        return "it breaks ties of a Unigram model in another way"
    if model.normalizer_spec.precompiled_charsmap:
        name = model.normalizer_spec.name
        return f"it applies {name} to letters with combining marks in another way"
    return None


def json_of_sentencepiece(content: bytes) -> bytes:
    """Make the `tokenizer.json` of a SentencePiece model that transformers can represent.

    As transformers converts them, except for pieces that are not text: no merge makes one, so that
    a name such as `</s>` in a text stays text; and the model's own normalizer is kept.
    """
    model = parsed_model(content)
    kinds = type(model.pieces[0])
    symbols = [piece.piece for piece in model.pieces if piece.type == kinds.USER_DEFINED]
    special = {
        piece.piece for piece in model.pieces if piece.type in (kinds.CONTROL, kinds.UNKNOWN)
    }
    added = [
        {
            "id": number,
            "content": piece.piece,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": True,
        }
        for number, piece in enumerate(model.pieces)
        if piece.piece in special
    ]
    is_unigram = model.trainer_spec.model_type == UNIGRAM
    merging = _unigram(model) if is_unigram else _bpe(model)
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(model.normalizer_spec),
        "pre_tokenizer": _isolated(symbols, _cuts(merging, symbols)),
        "post_processor": None,
        "decoder": _decoder(model.normalizer_spec.add_dummy_prefix),
        "model": merging,
    }
    return json.dumps(made, ensure_ascii=False).encode()


def parsed_model(content: bytes) -> Any:
    """Parse a SentencePiece model's file as a protocol buffer."""
    from sentencepiece import sentencepiece_model_pb2  # few folders need it

    return sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]


def _normalizer(spec: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:  # blanks alone, not line breaks as `Strip` does
        steps.append(_replace({"Regex": r"\A +| +\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(_replace({"String": " "}, SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _isolated(symbols: list[str], cuts: list[str]) -> dict[str, Any] | None:
    """Make user-defined symbols stand alone, the longest first, and cut what `_cuts` finds.

    As added tokens they would cut the text, and every part would get a blank in front.
    """
    if not symbols:
        return None
    longest_first = [re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True)]
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in ("|".join(longest_first), r"\A(?:" + "|".join(cuts) + ")")
    ]
    return {"type": "Sequence", "pretokenizers": steps if cuts else steps[:1]}


def _cuts(model: dict[str, Any], symbols: list[str]) -> list[str]:
    """Find where to cut text between user-defined symbols that is the name of a piece.

    With `ignore_merges` a text such as `</s>` or `<0x41>` would be that piece, which SentencePiece
    makes of no text. It is cut after its first token, over whose end no merge goes.
    """
    if not model.get("ignore_merges"):
        return []
    merged = Tokenizer.from_str(json.dumps({"model": model | {"ignore_merges": False}}))
    names = sorted(model["vocab"].keys() - set(symbols))
    cuts = []
    for name, found in zip(names, merged.encode_batch(names), strict=True):
        if found.ids != [model["vocab"][name]]:
            end = found.offsets[0][1]
            cuts.append(rf"{re.escape(name[:end])}(?={re.escape(name[end:])}\z)")
    return cuts


def _decoder(has_prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: Any) -> dict[str, Any]:
    kinds = type(model.pieces[0])
    no_text = {p.piece for p in model.pieces if p.type not in (kinds.NORMAL, kinds.USER_DEFINED)}
    return {
        "type": "Unigram",
        "unk_id": model.trainer_spec.unk_id,
        "vocab": _out_of_reach([[piece.piece, piece.score] for piece in model.pieces], no_text),
        "byte_fallback": model.trainer_spec.byte_fallback,
    }


def _bpe(model: Any) -> dict[str, Any]:
    kinds = type(model.pieces[0])
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == kinds.NORMAL}
    merges = []
    for piece, score in normal.items():
        cuts = [(piece[:place], piece[place:]) for place in range(1, len(piece))]
        merges += [(score, *cut) for cut in cuts if cut[0] in normal and cut[1] in normal]
    # SentencePiece merges by score. The order of one piece's own pairs is transformers'.
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.trainer_spec.unk_piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.trainer_spec.byte_fallback,
        # A user-defined symbol stands alone and has no merges.
        "ignore_merges": any(piece.type == kinds.USER_DEFINED for piece in model.pieces),
        "vocab": {piece.piece: number for number, piece in enumerate(model.pieces)},
        "merges": [[left, right] for _, left, right in merges],
    }
