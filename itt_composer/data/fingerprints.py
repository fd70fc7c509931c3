"""One file of a folder of shards: is it still the bytes that were written?

The streaming library looks at hashes only when it downloads or decompresses, never at a shard that
already lies there.
"""

import builtins
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt

CHUNK = 1 << 20


class DamageError(Exception):
    """What is wrong with one file, as the end of a sentence that begins with its name."""


class StoredPart(BaseModel):
    """A part of a manifest or an index: types are exact, and nothing changes after reading."""

    model_config = ConfigDict(strict=True, frozen=True)


class Fingerprint(StoredPart):
    """The size of a file in bytes and the SHA-256 of its content."""

    bytes: NonNegativeInt
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """Read a file and take its fingerprint."""
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return cls(bytes=size, sha256=digest.hexdigest())

    def check_size(self, path: Path) -> None:
        """Refuse a file that is missing or has another size.

        Raises:
            DamageError: says which.
        """
        with reading():
            size = path.stat().st_size
        if size != self.bytes:
            raise DamageError(f"has {size:,} bytes instead of {self.bytes:,}")

    def check(self, path: Path) -> None:
        """Read a file of any size and refuse it if it is not the one that was written.

        Raises:
            DamageError: it is missing, cannot be read, or has another size or content.
        """
        self.check_size(path)
        with reading():
            found = Fingerprint.of(path)
        self._compare(found.sha256)

    def content(self, path: Path) -> "builtins.bytes":
        """Read a file whole, and check it as `check` does.

        Raises:
            DamageError: as `check`.
        """
        self.check_size(path)
        with reading():
            data = path.read_bytes()
        self._compare(hashlib.sha256(data).hexdigest())
        return data

    def _compare(self, sha256: str) -> None:
        if sha256 != self.sha256:
            raise DamageError("does not match its SHA-256")


@contextmanager
def reading() -> Iterator[None]:
    """Raise a `DamageError` where a file is missing or cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise DamageError("is missing") from None
    except OSError as error:
        raise DamageError(f"cannot be read ({error.strerror})") from None
