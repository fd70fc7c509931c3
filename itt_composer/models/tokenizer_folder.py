"""Copies a tokenizer's files so that every version of transformers gives a text the same ids.

Version 5 builds a LLaMA's tokenizer anew from its vocabulary, with other ids for a text that begins
with a blank or spells out `<s>`. Every version reads a `tokenizer.json` as it is, where the
configuration names the class `PreTrainedTokenizerFast`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from itt_composer.models.tokenizer import readable_config
from itt_composer.models.tokenizer_json import (
    json_of_sentencepiece,
    token_of,
    why_transformers_cannot,
    with_document_ends,
)

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
MODEL_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
# What LLaMA's class takes a token for that no file names, and the settings that it alone reads.
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA_SETTINGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "legacy",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "use_default_system_prompt",
)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that belong to its tokenizer."""
    files = {file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern)}
    return sorted(file for file in files if file.is_file())


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files of a folder into another, readable for every version."""
    for file in tokenizer_files(folder):
        place = out / file.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    place = out / CONFIG_FILE
    before = _json_object(place)
    config = readable_config(_read_alike(out, before))
    if config != before:
        place.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")


def is_read_alike(folder: Path) -> bool:
    """Return whether every version reads a folder's tokenizer alike, as far as is known."""
    return not _is_llamas(folder, _json_object(folder / CONFIG_FILE))


def _is_llamas(folder: Path, config: dict[str, Any]) -> bool:
    """Return whether transformers takes LLaMA's class, for which it has changed the ids."""
    implied = LLAMA_CLASSES[0] if (folder / MODEL_FILE).is_file() else None
    return config.get("tokenizer_class", implied) in LLAMA_CLASSES


def _read_alike(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Give a LLaMA's tokenizer a `tokenizer.json`; return the configuration that has it read."""
    if not _is_llamas(folder, config) or config.get("add_eos_token"):
        return config
    content, is_made = _content(folder, config)
    if content is None:
        return config
    named = LLAMA_TOKENS | _json_object(folder / "special_tokens_map.json") | config
    found = json.loads(content)
    known = {token["content"] for token in found["added_tokens"]}
    bos = token_of(named["bos_token"]) if config.get("add_bos_token", True) else None
    if bos is not None and bos not in known:
        return config
    (folder / JSON_FILE).write_bytes(with_document_ends(content, bos, []))
    tokens = {name: named[name] for name in LLAMA_TOKENS if token_of(named[name]) in known}
    kept = {name: value for name, value in config.items() if name not in LLAMA_SETTINGS}
    # Chat templates and tokens of a user's own are written by name, and have to be read as tokens.
    is_chat = bool(config.get("chat_template")) or any(folder.glob("chat_template.*"))
    is_text = is_made and not is_chat and not _further_tokens(folder, config)
    return {
        "split_special_tokens": is_text,
        "clean_up_tokenization_spaces": False,
        **tokens,
        **kept,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _content(folder: Path, config: dict[str, Any]) -> tuple[bytes | None, bool]:
    """Return the `tokenizer.json`, and whether it is made of the SentencePiece model here."""
    if (folder / JSON_FILE).is_file():
        return (folder / JSON_FILE).read_bytes(), False
    if not (folder / MODEL_FILE).is_file():
        return None, False
    model = (folder / MODEL_FILE).read_bytes()
    if why_transformers_cannot(model):
        return None, False
    made = json.loads(json_of_sentencepiece(model))
    known = {token["content"] for token in made["added_tokens"]} | set(_pieces(made["model"]))
    further = _further_tokens(folder, config)
    made["added_tokens"] += [token for token in further if token["content"] not in known]
    return json.dumps(made, ensure_ascii=False).encode(), True


def _pieces(model: dict[str, Any]) -> list[str]:
    vocabulary = model["vocab"]
    return list(vocabulary) if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]


def _further_tokens(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens that were added to a model, with their ids, as `tokenizer.json` has them.

    Those that every LLaMA has are not among them.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    listed = {
        int(number): flags | token
        for number, token in config.get("added_tokens_decoder", {}).items()
    }
    for name, number in _json_object(folder / "added_tokens.json").items():
        listed.setdefault(number, flags | {"content": name})
    return [
        {"id": number, **{key: token[key] for key in ("content", *flags)}}
        for number, token in sorted(listed.items())
        if token["content"] not in LLAMA_TOKENS.values()
    ]


def _json_object(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes()) if file.is_file() else {}
