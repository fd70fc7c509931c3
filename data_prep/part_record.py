"""What became of a part: counts, left-over ids, rejects, and the files of its shards."""

import json
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from data_prep.durable_files import write_synced
from itt_composer.data.fingerprints import Fingerprint

Kept: TypeAlias = dict[str, dict[str, int]]  # rows by domain and split
BAD = ".bad"  # instead of .json: the files of a part that a bad line stopped


class Reject(NamedTuple):
    """A line that was left out; line 0 stands for a whole file."""

    file: str
    line: int
    reason: str


@dataclass
class SplitCounts:
    """What a part has for a domain and split; `rows` are full ones, the tail not counted."""

    documents: int = 0
    characters: int = 0
    utf8_bytes: int = 0
    tokens: int = 0
    rows: int = 0


@dataclass
class PartRecord:
    """What became of a part.

    Attributes:
        source, index: the part.
        inputs: of each piece: file, start, end and the SHA-256 of the bytes read.
        lines: lines read, rejected ones included.
        rejects: lines left out.
        cut_files: files that could be read to a damaged place only, or not at all.
        special_tokens: names of special tokens that were met in documents.
        domains: counts by domain and split; `tokens` are all ids, BOS, EOS and tail included.
        tails: ids by domain and split that fill no row, (fewer than seq_len,).
    """

    source: str
    index: int
    inputs: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0
    rejects: list[Reject] = field(default_factory=list)
    cut_files: list[str] = field(default_factory=list)
    special_tokens: int = 0
    domains: dict[str, dict[str, SplitCounts]] = field(default_factory=dict)
    tails: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def rows(self, split: str, domain: str) -> int:
        """Count the full rows of a domain."""
        return self.domains[domain][split].rows if domain in self.domains else 0

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        tails = {
            domain: {
                split: {"dtype": str(tail.dtype), "ids": b64encode(tail.tobytes()).decode()}
                for split, tail in splits.items()
            }
            for domain, splits in self.tails.items()
        }
        return asdict(self) | {"tails": tails}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PartRecord":
        """Make the record from JSON values."""
        return cls(
            **values
            | {
                "rejects": [Reject(*reject) for reject in values["rejects"]],
                "domains": {
                    domain: {split: SplitCounts(**c) for split, c in splits.items()}
                    for domain, splits in values["domains"].items()
                },
                "tails": {
                    domain: {
                        split: np.frombuffer(b64decode(tail["ids"]), tail["dtype"])
                        for split, tail in splits.items()
                    }
                    for domain, splits in values["tails"].items()
                },
            }
        )


@dataclass
class DonePart:
    """A part that is done.

    Attributes:
        record: what was in it.
        kept: rows by domain and split that were written; fewer than the record's where a budget
            ends, and no entry of a domain that takes nothing of this part.
        files: fingerprints of the files written, by path below the output.
        stats: size and modification time of the input files, in the order of the pieces.
        uploaded: the shards lie in the object store and no longer here.
    """

    record: PartRecord
    kept: Kept
    files: dict[str, Fingerprint] = field(default_factory=dict)
    stats: list[dict[str, int]] = field(default_factory=list)
    uploaded: bool = False

    def save(self, path: Path) -> None:
        """Write it to a file, which is whole or absent."""
        files = {name: file.model_dump() for name, file in self.files.items()}
        values = vars(self) | {"record": self.record.to_json(), "files": files}
        write_synced(path, json.dumps(values))

    @classmethod
    def load(cls, path: Path) -> "DonePart":
        """Read it from its file."""
        return cls.from_json(json.loads(path.read_bytes()))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DonePart":
        """Make it from JSON values."""
        files = {name: Fingerprint(**file) for name, file in values.get("files", {}).items()}
        record = PartRecord.from_json(values["record"])
        return cls(**values | {"record": record, "files": files})


def stat_of(path: Path) -> dict[str, int]:
    """Return what shows cheaply that a file may have changed: its size and time."""
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
