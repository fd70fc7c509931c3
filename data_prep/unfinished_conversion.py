"""What an unfinished conversion has done so far, kept beside its output.

.OUT.partial/                the output as it grows, renamed to OUT at the end
.OUT.partial/.state/         recipe.json, lock, work/, and of every part that is done
                             parts/<source>/<part>.json, or <part>.bad if a line stopped it
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.complete_folder import changes
from data_prep.documents import Piece, PieceReader
from data_prep.durable_files import write_synced
from data_prep.part_plan import Part
from data_prep.part_record import BAD, DonePart, Kept, PartRecord, stat_of
from itt_composer.basics.errors import UserError
from itt_composer.data.manifest import ShardSettings

STATE = ".state"
RECIPE = "recipe.json"
THRESHOLD = "threshold.json"


def is_state(folder: Path) -> bool:
    """Return whether a folder is what an ended run left, whole or in part, and nothing else."""
    names = (RECIPE, THRESHOLD, "lock", "parts", "work")
    return folder.is_dir() and all(path.name.startswith(names) for path in folder.iterdir())


class UnfinishedConversion:
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

    def open(self, settings: ShardSettings) -> None:
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
        recipe = settings.model_dump(exclude={"format_version"})
        file = self.own / RECIPE
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
        """Return the share of documents for validation: computed once, whatever is mended."""
        file = self.own / THRESHOLD
        if not file.exists():
            write_synced(file, json.dumps(compute()))
        return float(json.loads(file.read_bytes()))

    def _has_done(self) -> bool:
        return any((self.own / "parts").glob("*/*.json"))

    def record_file(self, part: Part) -> Path:
        """Return where the record of a part lies once it is done."""
        return self.own / "parts" / part.source / f"{part.name}.json"

    def done(self, plan: dict[str, list[Part]], root: Path) -> dict[str, dict[int, DonePart]]:
        """Find the parts that are done and still what the plan asks for, by source and index.

        A part that the plan no longer has, for its files were mended or cut otherwise, is
        forgotten and so are its shards, and those of parts that were killed before their record.

        Raises:
            UserError: a file that a done part was made of has changed, and it was not one with a
                bad line, which may be mended.
        """
        found: dict[str, dict[int, DonePart]] = {source: {} for source in plan}
        files = sorted((self.own / "parts").glob("*/*.json"))
        all_done = [DonePart.load(file) for file in files]
        bad = self._stopped_at() | {r.file for done in all_done for r in done.record.rejects}
        for file, done in zip(files, all_done, strict=True):
            is_stale = not (_is_planned(done.record, plan) and self._is_there(done))
            try:
                check_unchanged(root, done, self.folder)
            except UserError:
                if bad.isdisjoint(piece["file"] for piece in done.record.inputs):
                    raise
                is_stale = True
            if is_stale:
                self.forget(done, file)
            else:
                found[done.record.source][done.record.index] = done
        known = {name for parts in found.values() for part in parts.values() for name in part.files}
        self._remove_all_but(known)
        return found

    def _stopped_at(self) -> set[str]:
        """List the files of the parts in which a bad line stopped an earlier run."""
        notes = (self.own / "parts").glob(f"*/*{BAD}")
        return {name for note in notes for name in json.loads(note.read_bytes())}

    def _remove_all_but(self, known: set[str]) -> None:
        """Remove what killed runs left: every file that belongs to no part that is done."""
        for top in self.folder.iterdir():
            if top.name == STATE:
                continue
            for path in (*sorted(top.rglob("*"), reverse=True), top):  # a folder after its content
                if path.is_dir():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path.relative_to(self.folder).as_posix() not in known:
                    path.unlink()

    def forget(self, done: DonePart, file: Path) -> None:
        """Remove a part's record, then its shards."""
        file.unlink()
        for name in done.files:
            shutil.rmtree((self.folder / name).parent, ignore_errors=True)

    def forget_uploaded(self) -> None:
        """Forget the parts whose shards lay in an object store that was emptied since."""
        for file in (self.own / "parts").glob("*/*.json"):
            done = DonePart.load(file)
            if done.uploaded:
                self.forget(done, file)

    def drop_rows(self, done: DonePart, kept: Kept, file: Path) -> None:
        """Remove all rows of a part in the domains and splits that keep none."""
        dropped = [
            f"{split}/{domain}/{file.stem}"
            for domain, splits in done.kept.items()
            for split, rows in splits.items()
            if rows > kept.get(domain, {}).get(split, 0)
        ]
        done.files = {
            name: stored
            for name, stored in done.files.items()
            if not any(name.startswith(f"{folder}/") for folder in dropped)
        }
        done.kept = kept
        done.save(file)  # first: what it does not name is removed by the next run
        for folder in dropped:
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    def _is_there(self, done: DonePart) -> bool:
        if done.uploaded:
            return True
        paths = {self.folder / name: stored.bytes for name, stored in done.files.items()}
        return all(path.is_file() and path.stat().st_size == n for path, n in paths.items())


def _is_planned(record: PartRecord, plan: dict[str, list[Part]]) -> bool:
    parts = plan.get(record.source, [])
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
    """Return the SHA-256 of the bytes of a piece as they are now."""
    return PieceReader(root, piece).hash_all()
