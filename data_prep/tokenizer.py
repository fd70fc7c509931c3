"""Tokenizers: a SentencePiece `.model`, a `tokenizer.json`, a transformers folder or hub name.

Each is read by its reference implementation, SentencePiece or Hugging Face's `tokenizers`, whose
ids are the truth that the fast encoder is held to.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gigatoken
import sentencepiece
import tokenizers

from itt_composer.basics.errors import UserError
from itt_composer.models.tokenizer_json import (
    complete_json,
    json_of_sentencepiece,
    token_of,
    tokenizer_config,
    why_transformers_cannot,
    with_document_ends,
)
from itt_composer.recipe.model_is_data import check_model_folder

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
HUB_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*|[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = [
    "tokenizer*",
    "*chat_template*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "*.model",
]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer's file and what is needed of it; the objects that encode are made on first use.

    Attributes:
        kind: "sentencepiece" or "tokenizers", the reference implementation.
        content: of the model file that is written beside the rows.
        source_sha256: SHA-256 of the file that was given.
        vocab_size: number of ids; all ids are below it.
        bos_id: id that begins a document, or None.
        eos_id: id that ends a document.
        config: the `tokenizer_config.json` that is written.
        special_tokens: "text" or "token", what the name of a special token in a text is.
    """

    kind: str
    content: bytes = field(repr=False)
    source_sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    config: dict[str, Any] = field(repr=False)
    special_tokens: str = "text"

    @property
    def file(self) -> str:
        """Name of the model file in a tokenizer's folder."""
        return MODEL_FILE if self.kind == "sentencepiece" else JSON_FILE

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file."""
        return sha256(self.content).hexdigest()

    @cached_property
    def encode(self) -> Callable[[str], list[int]]:
        """The reference: text → ids, without BOS and EOS."""
        if self.kind == "sentencepiece":
            return _sentencepiece(self.content).encode
        tokenizer = _tokenizers(self.content, self.special_tokens == "text")
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def fast(self) -> gigatoken.Tokenizer:
        """gigatoken's encoder, which takes the name of a special token for the token."""
        return _gigatoken(self.kind, self.content)

    @cached_property
    def special(self) -> dict[str, int]:
        """The special tokens, or SentencePiece's control pieces, and their ids."""
        if self.kind == "sentencepiece":
            model = _sentencepiece(self.content)
            ids = [number for number in range(model.vocab_size()) if model.is_control(number)]
            return {model.id_to_piece(number): number for number in ids}
        added = json.loads(self.content)["added_tokens"]
        return {token["content"]: token["id"] for token in added if token["special"]}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields only: each process makes the objects that encode for itself."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads, see `itt_composer.models.tokenizer_json`."""
        folder.mkdir(exist_ok=True)
        if self.kind == "sentencepiece":
            made = json_of_sentencepiece(self.content)
            (folder / JSON_FILE).write_bytes(with_document_ends(made, self.config["bos_token"], []))
        (folder / self.file).write_bytes(self.content)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=1) + "\n", "utf-8")


def load_corpus_tokenizer(
    source: str,
    bos_token: str | None = None,
    eos_token: str | None = None,
    special_tokens: str = "text",
) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: a SentencePiece `.model` file, a `tokenizer.json`, a folder with either (the
            `.model` wins), or a name on the Hugging Face hub.
        bos_token: token that begins a document, "none" for none; None takes the tokenizer's own.
        eos_token: token that ends a document; None takes the tokenizer's own.
        special_tokens: "text" or "token", what the name of a special token in a text is.

    Raises:
        UserError: nothing there, not a tokenizer, one whose ids are random or that transformers
            cannot represent, or no such BOS or EOS token.
    """
    path = Path(source)
    if (
        not path.exists()
        and HUB_REPOSITORY.fullmatch(source)
        and (path.parent == Path() or not path.parent.exists())
    ):
        path = _download(source)
    file = _model_file(path)
    content = file.read_bytes()
    folder = path if path.is_dir() else file.parent
    config = _read_config(folder / CONFIG_FILE) | _chat_templates(folder)
    if file.name.endswith(".json"):
        return _from_json(file, content, config, bos_token, eos_token, special_tokens)
    if special_tokens == "token":
        raise UserError(
            f"SentencePiece reads the names of special tokens as text: for --special-tokens token "
            f"give a tokenizer.json instead of {file}"
        )
    own = config if path.is_dir() else {}
    return _from_sentencepiece(file, content, own, bos_token, eos_token)


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (MODEL_FILE, JSON_FILE):
        if (path / name).is_file():
            return path / name
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return _fast_file_of(path)
    raise UserError(
        f"no tokenizer at {path}: give a SentencePiece .model, a tokenizer.json, a folder with "
        "either, or a hub name"
    )


def _download(name: str) -> Path:
    """Fetch a tokenizer's files from the hub, or find them in the local cache."""
    # Imported here because it takes most of a second, and few tokenizers come from the hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no tokenizer at {name}, and the hub does not give one of that name "
            f"({str(error).splitlines()[0]}): check the name, or the network and HF_TOKEN"
        ) from error


def _fast_file_of(folder: Path) -> Path:
    """Write the `tokenizer.json` of a folder that has only the files of a slow tokenizer."""
    from transformers import AutoTokenizer  # takes seconds

    check_model_folder(folder)
    try:
        loaded = AutoTokenizer.from_pretrained(
            folder, use_fast=True, local_files_only=True, trust_remote_code=False
        )
        content = loaded.backend_tokenizer.to_str()
    except Exception as error:  # transformers raises whatever its loaders met
        raise UserError(
            f"transformers cannot load a fast tokenizer from {folder} ({_first_line(error)}): "
            f"give a folder with {MODEL_FILE} or {JSON_FILE}"
        ) from error
    made = Path(mkdtemp()) / JSON_FILE
    made.write_text(content, encoding="utf-8")
    return made


def _from_sentencepiece(
    file: Path,
    content: bytes,
    config: dict[str, Any],
    bos_token: str | None,
    eos_token: str | None,
) -> Tokenizer:
    try:
        processor = _sentencepiece(content)
    except RuntimeError as error:
        raise UserError(
            f"{file} is neither a SentencePiece model nor a tokenizer.json: give one of these"
        ) from error
    if reason := why_transformers_cannot(content):
        raise UserError(f"{file} is a SentencePiece model {reason}, which transformers cannot read")

    def piece_id(token: str, option: str) -> int:
        if token == "none":
            raise UserError(f"documents cannot be separated without an end: give {option} a token")
        found = processor.piece_to_id(token)
        if found == processor.unk_id():
            raise UserError(f"{file} has no piece {token!r}, which {option} names")
        return int(found)

    bos: int | None = processor.bos_id()
    if bos_token is not None:
        bos = None if bos_token == "none" else piece_id(bos_token, "--bos-token")
    eos = processor.eos_id() if eos_token is None else piece_id(eos_token, "--eos-token")
    if eos < 0 or (bos is not None and bos < 0):
        raise UserError(
            f"{file} has no {'EOS' if eos < 0 else 'BOS'} piece, so documents cannot be "
            f"separated: name one with {'--eos-token' if eos < 0 else '--bos-token (or none)'}"
        )
    pieces = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    begin = None if bos is None else pieces[bos]
    written = tokenizer_config(config, pieces, begin, pieces[eos], pieces[processor.unk_id()], True)
    digest = sha256(content).hexdigest()
    return Tokenizer("sentencepiece", content, digest, len(pieces), bos, eos, written)


def _from_json(
    file: Path,
    content: bytes,
    config: dict[str, Any],
    bos_token: str | None,
    eos_token: str | None,
    special_tokens: str,
) -> Tokenizer:
    try:
        tokenizer = _tokenizers(content, True)
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{file} is not a tokenizer.json ({_first_line(error)})") from error
    if getattr(tokenizer.model, "dropout", None):
        raise UserError(f"{file} has a dropout, so its ids are random: set model.dropout to null")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)

    def token(given: str | None, own: str, option: str) -> str | None:
        name = given if given is not None else token_of(config.get(own))
        if name is None or name == "none":
            return None
        if name not in vocabulary:
            raise UserError(f"{file} has no token {name!r}, which {option} names")
        return str(name)

    bos = token(bos_token, "bos_token", "--bos-token")
    eos = token(eos_token, "eos_token", "--eos-token")
    if bos is None and bos_token is None and "bos_token" not in config:
        raise UserError(f"{file} does not say which token begins a document: give --bos-token")
    if eos is None:
        raise UserError(f"{file} does not say which token ends a document: give --eos-token")
    written = tokenizer_config(config, vocabulary, bos, eos, None, special_tokens == "text")
    if getattr(tokenizer.pre_tokenizer, "add_prefix_space", False):
        written["add_prefix_space"] = True  # transformers 4.57 sets it to what stands here
    named = {value for key, value in written.items() if key.endswith("_token")} - {None}
    made = Tokenizer(
        "tokenizers",
        with_document_ends(complete_json(content, tokenizer), bos, sorted(named)),
        sha256(content).hexdigest(),
        max(vocabulary.values()) + 1,
        None if bos is None else vocabulary[bos],
        vocabulary[eos],
        written,
        special_tokens,
    )
    for name, number in made.special.items() if special_tokens == "text" else ():
        if number in made.encode(f"{name} a {name}"):
            raise UserError(
                f"{file} has {name!r} among its words, so that it cannot be text: give "
                "--special-tokens token"
            )
    return made


def _read_config(file: Path) -> dict[str, Any]:
    """Read a `tokenizer_config.json`; empty where there is none."""
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object")
    for name in ("bos_token", "eos_token"):
        token = token_of(config.get(name))
        if not isinstance(token, str) and (token is not None or config.get(name) is not None):
            raise UserError(f"{file}: {name} is not a token: name one with --{name[:3]}-token")
    return config


def _chat_templates(folder: Path) -> dict[str, Any]:
    """Read the files of chat templates, which transformers prefers to `tokenizer_config.json`."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    try:
        found = {name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}
    except ValueError as error:
        raise UserError(f"{folder} holds a chat template that is not UTF-8 ({error})") from error
    if not found:
        return {}
    if found.keys() == {"default"}:
        return {"chat_template": found["default"]}
    return {"chat_template": [{"name": key, "template": found[key]} for key in found]}


# Made once in a process: a worker gets the tokenizer again with every part, and gigatoken takes a
# quarter of a second to read one.
@lru_cache(maxsize=1)
def _gigatoken(kind: str, content: bytes) -> gigatoken.Tokenizer:
    if kind == "sentencepiece":
        return gigatoken.Tokenizer.from_sentencepiece(content)
    return gigatoken.Tokenizer.from_json(content)


@lru_cache(maxsize=1)
def _sentencepiece(content: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=content)


@lru_cache(maxsize=2)
def _tokenizers(content: bytes, text_stays_text: bool) -> Any:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    tokenizer.encode_special_tokens = text_stays_text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
