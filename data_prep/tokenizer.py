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
from typing import TYPE_CHECKING, Any

from itt_composer.errors import UserError

if TYPE_CHECKING:
    import gigatoken

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
COMPANIONS = (CONFIG_FILE, "special_tokens_map.json", JSON_FILE)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]*|[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ["tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model"]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer's file and what is needed of it; the objects that encode are made on first use.

    Attributes:
        kind: "sentencepiece" or "tokenizers", the reference implementation.
        content: of the model file.
        vocab_size: number of ids; all ids are below it.
        bos_id: id that begins a document, or None.
        eos_id: id that ends a document.
        companions: further files of the tokenizer's folder, by name.
    """

    kind: str
    content: bytes = field(repr=False)
    vocab_size: int
    bos_id: int | None
    eos_id: int
    companions: dict[str, bytes] = field(repr=False, default_factory=dict)

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
        tokenizer = _tokenizers(self.content)
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    @cached_property
    def fast(self) -> "gigatoken.Tokenizer":
        """The same by gigatoken.

        Raises:
            UserError: gigatoken does not read this kind of tokenizer.
        """
        try:
            return _gigatoken(self.kind, self.content)
        except Exception as error:  # a Rust library: its errors have no common class
            raise UserError(
                f"gigatoken cannot read this tokenizer ({_first_line(error)}): "
                "add --encoder reference"
            ) from error

    @cached_property
    def control_ids(self) -> list[int]:
        """Ids that SentencePiece gives to no text, and gigatoken to a text that spells them out."""
        if self.kind != "sentencepiece":
            return []
        processor = _sentencepiece(self.content)
        return [number for number in range(processor.vocab_size()) if processor.is_control(number)]

    def __getstate__(self) -> dict[str, Any]:
        """Fields only: the objects that encode are made anew in each process."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads."""
        folder.mkdir(exist_ok=True)
        for name, content in self.companions.items():
            (folder / name).write_bytes(content)
        (folder / self.file).write_bytes(self.content)


def load_tokenizer(
    source: str, bos_token: str | None = None, eos_token: str | None = None
) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: a SentencePiece `.model` file, a `tokenizer.json`, a folder with either (the
            `.model` wins), or a name on the Hugging Face hub.
        bos_token: token that begins a document, "none" for none; None takes the tokenizer's own.
        eos_token: token that ends a document; None takes the tokenizer's own.

    Raises:
        UserError: nothing there, not a tokenizer, or no such BOS or EOS token.
    """
    path = Path(source)
    if (
        not path.exists()
        and HUB_NAME.fullmatch(source)
        and (path.parent == Path() or not path.parent.exists())
    ):
        path = _download(source)
    file = _model_file(path)
    content = file.read_bytes()
    folder = path if path.is_dir() else None
    if file.name.endswith(".json"):
        return _from_json(file, content, folder, bos_token, eos_token)
    return _from_sentencepiece(file, content, folder, bos_token, eos_token)


def _model_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (MODEL_FILE, JSON_FILE):
        if (path / name).is_file():
            return path / name
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return _converted(path)
    raise UserError(
        f"no tokenizer at {path}: give a SentencePiece .model, a tokenizer.json, a folder with "
        "either, or a hub name"
    )


def _download(name: str) -> Path:
    """Fetch a tokenizer's files from the hub, or find them in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no tokenizer at {name}, and the hub does not give one of that name "
            f"({str(error).splitlines()[0]}): check the name, or the network and HF_TOKEN"
        ) from error


def _converted(folder: Path) -> Path:
    """Write the `tokenizer.json` of a folder that has only the files of a slow tokenizer."""
    import tempfile

    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
        content = loaded.backend_tokenizer.to_str()
    except Exception as error:  # transformers raises whatever its loaders met
        raise UserError(
            f"transformers cannot load a fast tokenizer from {folder} ({_first_line(error)}): "
            f"give a folder with {MODEL_FILE} or {JSON_FILE}"
        ) from error
    made = Path(tempfile.mkdtemp()) / JSON_FILE
    made.write_text(content, encoding="utf-8")
    return made


def _from_sentencepiece(
    file: Path, content: bytes, folder: Path | None, bos_token: str | None, eos_token: str | None
) -> Tokenizer:
    try:
        processor = _sentencepiece(content)
    except RuntimeError as error:
        raise UserError(
            f"{file} is neither a SentencePiece model nor a tokenizer.json: give one of these"
        ) from error

    def piece_id(token: str, option: str) -> int:
        if token == "none":
            raise UserError(f"documents cannot be told apart without an end: give {option} a token")
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
            f"{file} has no {'EOS' if eos < 0 else 'BOS'} piece, so documents cannot be told "
            f"apart: name one with {'--eos-token' if eos < 0 else '--bos-token (or none)'}"
        )
    if folder is not None:
        _named_tokens(folder / CONFIG_FILE)  # readable: it goes into the output
    companions = {CONFIG_FILE: llama_config(processor)} | _companions(folder)
    named = {"bos_token": bos_token, "eos_token": eos_token}
    _name_tokens(companions, {key: name for key, name in named.items() if name is not None})
    return Tokenizer("sentencepiece", content, processor.vocab_size(), bos, eos, companions)


def _from_json(
    file: Path, content: bytes, folder: Path | None, bos_token: str | None, eos_token: str | None
) -> Tokenizer:
    try:
        tokenizer = _tokenizers(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{file} is not a tokenizer.json ({_first_line(error)})") from error
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    config = _named_tokens(file.parent / CONFIG_FILE if folder is None else folder / CONFIG_FILE)

    def token_id(token: str | None, own: str, option: str) -> int | None:
        name = token if token is not None else config.get(own)
        if name is None or name == "none":
            return None
        if name not in vocabulary:
            raise UserError(f"{file} has no token {name!r}, which {option} names")
        return int(vocabulary[name])

    bos = token_id(bos_token, "bos_token", "--bos-token")
    eos = token_id(eos_token, "eos_token", "--eos-token")
    if bos is None and bos_token is None and "bos_token" not in config:
        raise UserError(f"{file} does not say which token begins a document: give --bos-token")
    if eos is None:
        raise UserError(f"{file} does not say which token ends a document: give --eos-token")
    companions = _companions(folder)
    companions.pop(JSON_FILE, None)
    if CONFIG_FILE not in companions or bos_token is not None or eos_token is not None:
        ids = {"bos_token": bos, "eos_token": eos}
        by_id = {number: token for token, number in vocabulary.items()}
        named = {key: "none" if number is None else by_id[number] for key, number in ids.items()}
        _name_tokens(companions, named)
    return Tokenizer("tokenizers", content, max(vocabulary.values()) + 1, bos, eos, companions)


def _name_tokens(companions: dict[str, bytes], named: dict[str, str]) -> None:
    """Have transformers know the tokens that stand around documents; "none" is none."""
    if not named:
        return
    config = json.loads(companions.get(CONFIG_FILE, b"{}"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    config |= {key: None if name == "none" else name for key, name in named.items()}
    if named.get("bos_token") == "none":
        config["add_bos_token"] = False  # true without one, a LLaMA tokenizer cannot be loaded
    companions[CONFIG_FILE] = (json.dumps(config, indent=1) + "\n").encode()
    companions.pop("special_tokens_map.json", None)  # it would overrule them


def _named_tokens(config_file: Path) -> dict[str, str | None]:
    """`bos_token` and `eos_token` of a `tokenizer_config.json`, None where it says null."""
    try:
        config = json.loads(config_file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{config_file} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{config_file} is not a JSON object")
    tokens = {name: config[name] for name in ("bos_token", "eos_token") if name in config}
    named = {name: t.get("content") if isinstance(t, dict) else t for name, t in tokens.items()}
    for name, token in named.items():
        if not isinstance(token, str) and (token is not None or tokens[name] is not None):
            raise UserError(f"{config_file}: {name} is no token: name one with --{name[:3]}-token")
    return named


def _companions(folder: Path | None) -> dict[str, bytes]:
    if folder is None:
        return {}
    return {n: (folder / n).read_bytes() for n in COMPANIONS if (folder / n).is_file()}


def llama_config(processor: Any) -> bytes:
    """What transformers needs to load a SentencePiece model as a LLaMA tokenizer."""
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": processor.id_to_piece(processor.bos_id()) if processor.bos_id() >= 0 else None,
        "eos_token": processor.id_to_piece(processor.eos_id()) if processor.eos_id() >= 0 else None,
        "unk_token": processor.id_to_piece(processor.unk_id()),
        "add_bos_token": processor.bos_id() >= 0,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        # Ids as SentencePiece gives them; the other setting differs for text that starts blank.
        "legacy": True,
    }
    return (json.dumps(config, indent=1) + "\n").encode()


# Made once in a process: a worker gets the tokenizer anew with every part, and gigatoken takes a
# quarter of a second to read one.
@lru_cache(maxsize=1)
def _gigatoken(kind: str, content: bytes) -> "gigatoken.Tokenizer":
    import gigatoken

    if kind == "sentencepiece":
        return gigatoken.Tokenizer.from_sentencepiece(content)
    return gigatoken.Tokenizer.from_json(content)


@lru_cache(maxsize=1)
def _sentencepiece(content: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=content)


@lru_cache(maxsize=1)
def _tokenizers(content: bytes) -> Any:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
