"""`index.json` of a stream or of one part of it: the shards, their files and their rows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, PositiveInt, ValidationError

from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import DamageError, StoredPart
from itt_composer.data.manifest import HOW_TO_MAKE, ShardSettings, is_below

INDEX = "index.json"
COLUMN = "input_ids"


class _IndexPart(StoredPart):
    # The streaming library's reader refuses other keys too.
    model_config = ConfigDict(extra="forbid")


class ShardFile(_IndexPart):
    """A file of a shard, raw or compressed, by its path below the index."""

    basename: str
    bytes: int
    hashes: dict[str, str]


class Shard(_IndexPart):
    """A shard; all but the first three fields stand in its own header too."""

    samples: PositiveInt
    raw_data: ShardFile
    zip_data: ShardFile | None
    version: int
    format: str
    compression: str | None
    hashes: list[str]
    size_limit: int | None
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]

    @property
    def stored(self) -> ShardFile:
        """The file that was written."""
        return self.zip_data or self.raw_data

    @property
    def configuration(self) -> dict[str, Any]:
        """What the header of the shard must say."""
        return self.model_dump(exclude={"samples", "raw_data", "zip_data"})

    def below(self, folder: str) -> "Shard":
        """Return the same shard with its files named from a folder above."""
        infos = {
            key: info and info.model_copy(update={"basename": f"{folder}/{info.basename}"})
            for key, info in (("raw_data", self.raw_data), ("zip_data", self.zip_data))
        }
        return self.model_copy(update=infos)


class ShardIndex(_IndexPart):
    """The shards of a stream, in the order of their rows."""

    version: Literal[2] = 2
    shards: list[Shard]

    @classmethod
    def read(cls, path: Path) -> "ShardIndex":
        """Read an index file.

        Raises:
            UserError: the file is missing or is not an index.
        """
        try:
            return cls.parse(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {HOW_TO_MAKE} again") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}); {HOW_TO_MAKE} again") from None
        except DamageError as damage:
            raise UserError(f"{path} {damage}; {HOW_TO_MAKE} again") from None

    @classmethod
    def parse(cls, content: bytes) -> "ShardIndex":
        """Read the index in the bytes of a file.

        Raises:
            DamageError: they are not an index, or it names a file outside its folder or twice.
        """
        try:
            index = cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its beginning"
            raise DamageError(f"is not an index of shards: {first['msg']} at {where}") from None
        names = set()
        for shard in index.shards:
            name = shard.stored.basename
            if not is_below(name):
                raise DamageError(f"names {name!r}, which lies outside its folder")
            if name in names:
                raise DamageError(f"names {name} more than once")
            names.add(name)
        return index

    @classmethod
    def merge(cls, parts: Iterable[tuple[str, "ShardIndex"]]) -> "ShardIndex":
        """Put the shards of parts in a row, each part in a folder below the index."""
        return cls(shards=[shard.below(name) for name, part in parts for shard in part.shards])

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.samples for shard in self.shards)

    def to_json(self) -> str:
        """Return the content of the file, as the streaming library writes it."""
        return json.dumps(self.model_dump(), sort_keys=True)

    def check(self, settings: ShardSettings) -> None:
        """Refuse an index that describes other shards than their manifest does.

        Raises:
            DamageError: names the shard and what differs.
        """
        for shard in self.shards:
            subject = f"describes {shard.stored.basename} with"
            check_configuration(shard.configuration, settings, subject)
            _check_files(shard, settings)


def check_configuration(stated: Any, settings: ShardSettings, subject: str) -> None:
    """Compare the configuration of a shard, from its index or header, with the manifest's.

    Raises:
        DamageError: begins with `subject` and names the key that differs.
    """
    if not isinstance(stated, dict):
        raise DamageError(f"{subject} a configuration that is not a JSON object")
    expected = {
        "version": 2,
        "format": "mds",
        "compression": settings.compression,
        "hashes": settings.hashes,
        "column_names": [COLUMN],
        "column_encodings": [f"ndarray:{settings.dtype}:{settings.seq_len}"],
        "column_sizes": [row_bytes(settings)],
    }
    for key, value in expected.items():
        if key not in stated or stated[key] != value:
            raise DamageError(f"{subject} {key} {stated.get(key)}, but the manifest means {value}")


def row_bytes(settings: ShardSettings) -> int:
    """Return the bytes of one row."""
    return settings.seq_len * np.dtype(settings.dtype).itemsize


def _check_files(shard: Shard, settings: ShardSettings) -> None:
    raw, stored = shard.raw_data, shard.stored
    if (shard.zip_data is not None) != (settings.compression is not None):
        state = "uncompressed" if shard.zip_data is None else "compressed"
        raise DamageError(f"calls {stored.basename} {state}, unlike the manifest")
    if stored.basename != raw.basename + settings.compression_suffix:
        raise DamageError(f"pairs {raw.basename} with {stored.basename}, another shard's file")
    for info in filter(None, (raw, shard.zip_data)):
        if sorted(info.hashes) != sorted(settings.hashes):
            raise DamageError(
                f"gives {info.basename} the hashes {_list(info.hashes)}, "
                f"the manifest {_list(settings.hashes)}"
            )


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
