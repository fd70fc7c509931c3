"""What an unfinished conversion has done so far, kept beside its output.

.OUT.partial/                the output as it grows, renamed to OUT at the end
.OUT.partial/.state/         recipe.json, lock, parts/<domain>/<part>.json, work/
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_prep.conversion import PartRecord
from data_prep.documents import Piece, PieceReader
from data_prep.manifest import changes
from data_prep.part_store import DonePart, stat_of, write_synced
from data_prep.parts import Part
from itt_composer.errors import UserError

STATE = ".state"
THRESHOLD = "threshold.json"


class State:
    """The folder of an unfinished conversion, held by one process at a time.

    Args:
        folder: the unfinished output.
        out: what it becomes; for messages.
    """

    def __init__(self, folder: Path, out: str) -> None:
        self.folder = folder
        self.out = out
        self.own = folder / STATE
        self.work = self.own / "work"
        self.lock = FileLock(self.own / "lock")

    def open(self, recipe: dict[str, Any]) -> None:
        """Take the folder until `close`.

        Raises:
            UserError: another process has it, or it was begun with other options.
        """
        self.own.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another conversion is writing {self.out} now: wait for it or choose another --out"
            ) from None
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        file = self.own / "recipe.json"
        differences = file.exists() and changes(json.loads(file.read_bytes()), recipe)
        if differences and self._has_done():
            self.lock.release()
            raise UserError(
                f"{self.folder} holds an unfinished conversion with other options "
                f"({differences}): give those again, or delete that folder to start anew"
            )
        if differences or not file.exists():
            (self.own / THRESHOLD).unlink(missing_ok=True)
            write_synced(file, json.dumps(recipe, indent=1))

    def close(self) -> None:
        """Let go of the folder, and remove it if no part is done."""
        if not self._has_done():
            self.discard()
        self.lock.release()

    def discard(self) -> None:
        """Remove what was done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def threshold(self, compute: Callable[[], float]) -> float:
        """The share of documents for validation, computed once: a mended line changes it not."""
        file = self.own / THRESHOLD
        if not file.exists():
            write_synced(file, json.dumps(compute()))
        return float(json.loads(file.read_bytes()))

    def _has_done(self) -> bool:
        return any((self.own / "parts").glob("*/*.json"))

    def record_file(self, part: Part) -> Path:
        """Where the record of a part lies once it is done."""
        return self.own / "parts" / part.domain / f"{part.name}.json"

    def done(self, plan: dict[str, list[Part]], root: Path) -> dict[str, dict[int, DonePart]]:
        """The parts that are done and are still what the plan asks for, by domain and index.

        A part that the plan no longer has, for its files were mended or cut otherwise, is
        forgotten and so are its shards.

        Raises:
            UserError: a file that a done part was made of has changed.
        """
        found: dict[str, dict[int, DonePart]] = {domain: {} for domain in plan}
        for file in sorted((self.own / "parts").glob("*/*.json")):
            done = DonePart.load(file)
            check_unchanged(root, done, self.folder)
            if _is_planned(done.record, plan) and self._is_there(done):
                found[done.record.domain][done.record.index] = done
            else:
                self.forget(done, file)
        return found

    def forget(self, done: DonePart, file: Path) -> None:
        """Remove a part's record, then its shards."""
        file.unlink()
        for name in done.files:
            shutil.rmtree((self.folder / name).parent, ignore_errors=True)

    def _is_there(self, done: DonePart) -> bool:
        if done.uploaded:
            return True
        paths = {self.folder / name: stored["bytes"] for name, stored in done.files.items()}
        return all(path.is_file() and path.stat().st_size == n for path, n in paths.items())


def _is_planned(record: PartRecord, plan: dict[str, list[Part]]) -> bool:
    parts = plan.get(record.domain, [])
    pieces = tuple(Piece(piece["file"], piece["start"], piece["end"]) for piece in record.inputs)
    return record.index < len(parts) and parts[record.index].pieces == pieces


def check_unchanged(root: Path, done: DonePart, folder: Path) -> None:
    """Refuse a part whose input is no longer what it was made of.

    Raises:
        UserError: names the file.
    """
    for stored, stat in zip(done.record.inputs, done.stats, strict=True):
        path = root / stored["file"]
        piece = Piece(stored["file"], stored["start"], stored["end"])
        if not path.is_file():
            raise UserError(
                f"{path} is gone, but a part that is done was made of it: put it back, or delete "
                f"{folder} to start anew"
            )
        if stat_of(path) != stat and piece_sha256(root, piece) != stored["sha256"]:
            raise UserError(
                f"{path} has changed since a part that is done was made of it: put the file back, "
                f"or delete {folder} to start anew"
            )


def piece_sha256(root: Path, piece: Piece) -> str:
    """SHA-256 of the bytes of a piece as they are now."""
    return PieceReader(root, piece).hash_all()
