"""The run folder that training writes: locked, begun or gone on with, and marked as finished."""

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

import yaml

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import write_json, write_whole
from itt_composer.recipe.changes import Differences, changes, describe, impossible, is_free
from itt_composer.recipe.layers import values_of
from itt_composer.recipe.schema import Recipe, recipe_as_yaml
from itt_composer.runs.folder import RunFolder

ALLOW_CHANGES = "--allow-changes"
LOCKED = (BlockingIOError, PermissionError)  # the errors by which another's lock shows
LEASE = 120  # seconds; of NFS it is 90 by default


class TrainingRun(RunFolder):
    """The folder of a run that a recipe is trained in.

    The run's first rank holds `.lock`, which the system releases when that process ends.

    Args:
        recipe: that begins the run, or goes on with it.
    """

    def __init__(self, recipe: Recipe):
        super().__init__(recipe.run_folder)
        self._recipe_text = recipe_as_yaml(recipe)
        self._autoresume = recipe.train.autoresume
        self._lock: int | None = None

    def is_finished(self) -> bool:
        """Whether this recipe has been trained to its end here."""
        saved = self._saved_recipe()
        if saved is None or not self.has_ended():
            return False
        return all(is_free(key) for key in self._changes(saved))

    def check_resumable(self, allow_changes: bool = False) -> Differences:
        """Refuse to go on with, or write over, the run of another recipe.

        Args:
            allow_changes: go on with another recipe.

        Returns:
            Keys that differ, with their old and new values.

        Raises:
            UserError: names the keys that differ, or those that a run which has begun cannot
                follow; or there is a run and `train.autoresume` is off.
        """
        if not self._autoresume and self.has_checkpoint():
            raise UserError(
                f"{self.checkpoints} holds the checkpoints of a run, and train.autoresume=false; "
                "delete the folder to train anew, or choose another run_name or run_folder"
            )
        saved = self._saved_recipe()
        differences = {} if saved is None else self._changes(saved)
        fixed = impossible(differences) if self.has_checkpoint() else {}
        if fixed:
            cannot = "; ".join(f"{describe(keys)} ({reason})" for reason, keys in fixed.items())
            raise UserError(
                f"{self.recipe_file} is of another recipe, and a run that has begun cannot follow "
                f"{cannot}; choose another run_name or run_folder, or delete the folder to train "
                "anew"
            )
        refused = {key: pair for key, pair in differences.items() if not is_free(key)}
        if refused and not allow_changes:
            raise UserError(
                f"{self.recipe_file} is of another recipe ({describe(refused)}); choose another "
                "run_name or run_folder, delete the folder to train anew, or add "
                f"{ALLOW_CHANGES} to go on with these changes"
            )
        return differences

    def check_same_shards(
        self, digests: dict[str, str], allow_changes: bool = False
    ) -> Differences:
        """Refuse to go on with other rows or another tokenizer than the run so far.

        Args:
            digests: see `Manifest.digests`.
            allow_changes: go on with them.

        Returns:
            What differs, with the beginnings of the old and new digests.

        Raises:
            UserError: names what differs.
        """
        if not self.shards_file.is_file() or not self.has_checkpoint():
            return {}
        try:
            saved = json.loads(self.shards_file.read_bytes())
            found = changes(saved, digests)
        except (ValueError, AttributeError, OSError) as error:
            raise UserError(
                f"{self.shards_file} cannot be read ({error}); put it back, or delete it to go on "
                "with whatever shards there are"
            ) from None
        found = {key: (old[:8], new[:8]) for key, (old, new) in found.items()}
        if found and not allow_changes:
            raise UserError(
                f"{self.path} was trained on other shards than these ({describe(found)}), "
                "and would go on with another list of rows; give it those of before, or a copy of "
                f"them, or add {ALLOW_CHANGES} to go on with these"
            )
        return found

    def check_writable(self) -> None:
        """Make the folder, before anything heavy starts.

        Raises:
            UserError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run_folder={self.path} cannot be made: {error.strerror}; choose another"
            ) from None
        if not os.access(self.path, os.W_OK):
            raise UserError(f"run_folder={self.path} cannot be written to; choose another")

    def lock(self) -> None:
        """Keep other runs out of the folder for the life of this process.

        A lock of POSIX, not of BSD: loader processes do not inherit it, so that it goes with this
        process however that ends.

        Raises:
            UserError: another process has it.
        """
        path = self.path / ".lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(path)
        except OSError as error:
            if not isinstance(error, LOCKED):
                # Lustre mounted without flock, NFS without its lock daemon.
                print(
                    f"note: {self.path} is on a file system without locks ({error.strerror}), so "
                    "nothing keeps a second run out of it",
                    file=sys.stderr,
                )
                return
            owner = path.read_text(encoding="utf-8").strip() or "unknown"
            raise UserError(
                f"run_folder={self.path} is in use by another run (process {owner}); wait for its "
                "end, end it, or choose another run_name or run_folder"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _take(self, path: Path) -> None:
        """Take the lock; wait for that of another machine, which NFS keeps when it crashes."""
        assert self._lock is not None
        for seconds_left in range(LEASE, -1, -1):
            try:
                return fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except LOCKED:
                owner = path.read_text(encoding="utf-8").strip()
                if not seconds_left or owner.endswith(f" on {socket.gethostname()}"):
                    raise
                if seconds_left == LEASE:
                    print(
                        f"{self.path} is in use by process {owner}; waiting for {LEASE} s",
                        flush=True,
                    )
            time.sleep(1)

    def write_recipe(self, batch: int = 0) -> None:
        """Save the resolved recipe beside the checkpoints.

        Args:
            batch: batches done; a recipe that is replaced is kept under this number.
        """
        saved = self._saved_recipe()
        if saved is not None and any(not is_free(key) for key in self._changes(saved)):
            # First: with the new recipe in its place, it would mark the longer run as finished.
            self.summary_file.unlink(missing_ok=True)
            write_whole(self.path / f"recipe_until_batch_{batch}.yaml", saved)
        write_whole(self.recipe_file, self._recipe_text)

    def write_shards(self, digests: dict[str, str], batch: int = 0) -> None:
        """Save what the run's rows are made of, see `Manifest.digests`; keep what differs.

        Args:
            digests: of the rows from here on.
            batch: that the run goes on after.
        """
        if batch and self.shards_file.is_file():
            saved = self.shards_file.read_text(encoding="utf-8")
            if json.loads(saved) != digests:
                write_whole(self.path / f"shards_until_batch_{batch}.json", saved)
        write_json(self.shards_file, digests)

    def _changes(self, saved: str) -> Differences:
        return changes(values_of(saved), values_of(self._recipe_text))

    def _saved_recipe(self) -> str | None:
        text = self.recipe_text()
        if text is None:
            return None
        try:
            is_recipe = "run_name" in values_of(text)
        except yaml.YAMLError as error:
            raise UserError(f"{self.recipe_file} cannot be read: {error}") from None
        if not is_recipe:
            raise UserError(
                f"{self.recipe_file} does not hold a recipe; delete the folder to train anew"
            )
        return text
