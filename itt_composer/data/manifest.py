"""The manifest of a folder of shards: how they were made, what they hold, and every file.

`itt convert` writes it; training, evaluation, analysis, `itt verify` and `itt stats` read it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import Fingerprint, StoredPart

MANIFEST = "manifest.json"
FORMAT_VERSION = 2  # the newest one, which is written
HOW_TO_MAKE = "make shards with `itt convert`"
# Every manifest of shards has these, even an old one.
NEEDED_KEYS = {"seq_len", "dtype", "vocab_size", "tokenizer", "splits", "totals", "files"}


class StreamCounts(StoredPart):
    """What became of the documents of one domain in one split.

    `tokens` counts the ids in rows; `dropped_tokens` the tail that filled no row, `unused_tokens`
    the ids in rows that a budget left out.
    """

    documents: NonNegativeInt
    characters: NonNegativeInt
    utf8_bytes: NonNegativeInt
    tokens: NonNegativeInt
    dropped_tokens: NonNegativeInt
    unused_tokens: NonNegativeInt = 0
    rows: NonNegativeInt

    @classmethod
    def sum(cls, counts: Iterable["StreamCounts"]) -> "StreamCounts":
        """Add up the counts of several streams."""
        counts = list(counts)
        sums = {name: sum(getattr(one, name) for one in counts) for name in cls.model_fields}
        return cls(**sums)


class TokenizerOrigin(StoredPart):
    """The tokenizer that made the ids.

    Attributes:
        file: its copy, as a path below the folder.
        sha256: of that copy.
        source_sha256: of the file that was given.
    """

    file: str
    sha256: str
    source_sha256: str | None = None


class InputFile(StoredPart):
    """A file of the corpus: its bytes, and the SHA-256 of each piece of it that was read."""

    bytes: NonNegativeInt
    sha256: list[str | None] | str


class ShardSettings(StoredPart):
    """What the content of shards depends on besides their input; known before work starts.

    Fields that only newer versions of `convert` write have defaults. The order of fields is that of
    the file.

    Attributes:
        seq_len: token ids per row.
        dtype: of an id.
        vocab_size: number of ids; all ids are below it.
        bos_id, eos_id: ids around a document; None for no id before it.
        special_tokens: whether the name of a special token in a document is text or the token.
        validation_share: largest share of documents (0..1) for validation.
        validation_tokens, train_tokens: budgets over all domains, or None.
        shares: share of each domain (0..1) in the budgets, or None.
        why_reference: why the reference encodes instead of the fast encoder, or None.
        part_size, shard_size: bytes.
        hashes: algorithms whose hashes an index holds.
    """

    format_version: Literal[1, 2] = 2
    command: Literal["convert"] = "convert"
    seq_len: PositiveInt
    dtype: Literal["uint16", "uint32"]
    vocab_size: PositiveInt
    bos_id: NonNegativeInt | None
    eos_id: NonNegativeInt
    tokenizer: TokenizerOrigin
    special_tokens: Literal["text", "token"] = "text"
    text_field: str = "text"
    domain_field: str | None = None
    validation_share: float = 0.0
    validation_tokens: PositiveInt | None = None
    train_tokens: PositiveInt | None = None
    shares: dict[str, float] | None = None
    encoder: str = "reference"
    why_reference: str | None = None
    part_size: PositiveInt | None = None
    shard_size: PositiveInt | None = None
    compression: str | None = None
    hashes: list[str] = Field(default=["sha256"])
    engine: str = "local"

    @property
    def compression_suffix(self) -> str:
        """What compression appends to the name of a shard's file."""
        return f".{self.compression.partition(':')[0]}" if self.compression else ""


class Manifest(ShardSettings):
    """Everything known about a folder of shards.

    Attributes:
        validation_threshold: share of documents (0..1) that went into validation.
        inputs: by path below the corpus.
        splits: counts by split and domain.
        totals: counts by split.
        rejects, special_token_names: numbers of lines left out and of special tokens' names met,
            by domain, or "mixed" where lines name their domain.
        cut_files: files of the corpus that could not be read to their end.
        files: of the folder, by path below it.
        not_read: files of the corpus that hold no documents by their names.
    """

    validation_threshold: float | None = None
    inputs: dict[str, InputFile] = Field(default={})
    splits: dict[str, dict[str, StreamCounts]]
    totals: dict[str, StreamCounts]
    rejects: dict[str, NonNegativeInt] = Field(default={})
    special_token_names: dict[str, NonNegativeInt] = Field(default={})
    cut_files: list[str] = Field(default=[])
    files: dict[str, Fingerprint]
    not_read: list[str] = Field(default=[])

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read the manifest of a folder that `convert` wrote.

        Raises:
            UserError: the folder is missing or an address, or `parse` refuses its manifest.
        """
        # A Path has already made one slash of the two.
        if match := re.match(r"([a-z][a-z0-9-]+):/+", str(folder)):
            raise UserError(
                f"{folder} is an address ({match[1]}), not a folder: give a local copy of it"
            )
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"data folder {folder} is not there; {HOW_TO_MAKE}")
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"data folder {folder} has no {MANIFEST}; {HOW_TO_MAKE}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}); {HOW_TO_MAKE} again") from None
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, place: str) -> "Manifest":
        """Read the manifest in the bytes of a file.

        Args:
            content: the bytes.
            place: path or address of the file, for the messages.

        Raises:
            UserError: the file is broken or in a newer format, another command wrote it, the
                conversion is not finished, or it names a file outside its folder.
        """
        try:
            values = json.loads(content)
        except ValueError as error:
            raise UserError(f"{place} cannot be read ({error}); {HOW_TO_MAKE} again") from None
        _check_kind(values, place)
        try:
            manifest = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{place} is broken at {key} ({first['msg']}): {HOW_TO_MAKE} again"
            ) from None
        streams = [f"{split}/{name}" for split, names in manifest.splits.items() for name in names]
        for name in (*manifest.files, *streams):
            if not is_below(name):
                raise UserError(f"{place} names {name!r}, which lies outside its folder")
        return manifest

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.model_dump(), indent=1) + "\n"

    def rows(self, split: str) -> dict[str, int]:
        """Count the rows of each domain of a split; domains without rows are left out."""
        domains = self.splits.get(split, {})
        return {name: counts.rows for name, counts in domains.items() if counts.rows}

    def streams(self, domains: Mapping[str, float] | None) -> list[tuple[str, str]]:
        """List (split, domain) of every stream that a run reads: its domains, all of validation.

        Args:
            domains: those it trains on, with their shares; None for every one that has rows.
        """
        training = [("train", name) for name in domains or self.rows("train")]
        return training + [("validation", name) for name in self.rows("validation")]

    def digests(self, streams: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Hash what rows are made of: each stream ("train/c4") and the "tokenizer"; SHA-256.

        A copy has the same hashes, and so has another conversion of the same text in the same way.
        """
        digests = {"tokenizer": self.tokenizer.sha256}
        for split, domain in streams:
            stream = f"{split}/{domain}"
            hashes = [
                f"{name} {self.files[name].sha256}"
                for name in sorted(self.files)
                if name.startswith(f"{stream}/")
            ]
            digests[stream] = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return digests

    def split_sha256(self, split: str) -> str:
        """Hash the rows of a split and the tokenizer that made them: equal for copies of shards."""
        digests = self.digests((split, domain) for domain in self.rows(split))
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def is_made_with(self, tokenizer: str | Path) -> bool:
        """Return whether a tokenizer made the shards: the given file, or the copy beside them.

        Raises:
            UserError: there is no such file.
        """
        known = (self.tokenizer.sha256, self.tokenizer.source_sha256)
        return tokenizer_sha256(tokenizer) in known


def _check_kind(values: Any, place: str) -> None:
    """Refuse a file that is not the manifest of finished shards in a format known here."""
    if not isinstance(values, dict) or values.get("command") != "convert":
        raise UserError(f"{place} does not describe shards; {HOW_TO_MAKE}")
    version = values.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{place} has format {version}, newer than the {FORMAT_VERSION} read here; "
            "update itt_composer"
        )
    if "splits" not in values:
        raise UserError(f"{place} is of shards that are not finished; let `convert` end first")
    if not values.keys() >= NEEDED_KEYS:
        raise UserError(f"{place} does not describe shards; {HOW_TO_MAKE}")


def is_below(name: str) -> bool:
    """Return whether a relative path stays below its folder and is in its only normal form."""
    path = PurePosixPath(name)
    return path.as_posix() == name and not path.is_absolute() and ".." not in path.parts


def tokenizer_sha256(path: str | Path) -> str:
    """Hash a tokenizer's file; of a folder, its `tokenizer.model`, else its `tokenizer.json`.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    candidates = [path / "tokenizer.model", path / "tokenizer.json"] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
    raise UserError(
        f"data.tokenizer={path}: there is no such tokenizer; give a tokenizer.model, a "
        "tokenizer.json, or the folder of one"
    )
