"""The manifest that `convert` writes, as a class; reading it."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from itt_composer.basics.errors import UserError
from itt_composer.data.shards import HOW_TO_MAKE, read_manifest


class ManifestPart(BaseModel):
    """Of a manifest: exact types, nothing changed afterwards."""

    model_config = ConfigDict(strict=True, frozen=True)


class StreamCounts(ManifestPart):
    """What became of the documents of one domain in one split.

    `tokens` counts the ids in rows; `dropped_tokens` the tail that filled no row, `unused_tokens`
    the ids in rows that a budget left out.
    """

    documents: NonNegativeInt
    characters: NonNegativeInt
    utf8_bytes: NonNegativeInt
    tokens: NonNegativeInt
    dropped_tokens: NonNegativeInt
    unused_tokens: NonNegativeInt
    rows: NonNegativeInt


class FileFingerprint(ManifestPart):
    """Size in bytes and SHA-256 of a file's content."""

    bytes: NonNegativeInt
    sha256: str


class ConvertManifest(ManifestPart):
    """The manifest of `convert`, as far as reading its output needs it."""

    format_version: Literal[2]
    command: Literal["convert"]
    seq_len: PositiveInt
    dtype: Literal["uint16", "uint32"]
    vocab_size: PositiveInt
    compression: str | None = None
    hashes: list[str]
    engine: str
    splits: dict[str, dict[str, StreamCounts]]
    totals: dict[str, StreamCounts]
    rejects: dict[str, NonNegativeInt]
    special_tokens: Literal["text", "token"] = "text"
    special_token_names: dict[str, NonNegativeInt] = {}
    files: dict[str, FileFingerprint]


def read_convert_manifest(out: str | Path) -> ConvertManifest:
    """Read the manifest of a folder that `convert` wrote.

    Raises:
        UserError: `out` is an address or no folder, its manifest is missing or broken, or another
            command or a newer version wrote it.
    """
    # A Path has already made one slash of the two.
    if match := re.match(r"([a-z][a-z0-9-]+):/+", str(out)):
        raise UserError(f"{out} is an address ({match[1]}), not a folder: give a local copy of it")
    raw = read_manifest(out)
    try:
        return ConvertManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{Path(out) / 'manifest.json'} is broken at {key} ({first['msg']}): "
            f"{HOW_TO_MAKE} again"
        ) from None
