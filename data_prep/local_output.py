"""A conversion's output in a folder: it grows in `.OUT.partial` beside OUT, renamed at the end."""

import shutil
from pathlib import Path

from data_prep.complete_folder import check_same, read_stored
from data_prep.durable_files import sync
from data_prep.part_record import DonePart
from data_prep.unfinished_conversion import STATE, UnfinishedConversion, is_state
from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import DamageError
from itt_composer.data.manifest import MANIFEST, Manifest, ShardSettings


class LocalOutput:
    """A folder that appears when it is complete."""

    is_remote = False

    def __init__(self, out: Path) -> None:
        self.name = str(out)
        self.out = out.resolve()
        self.folder = self.out.with_name(f".{self.out.name}.partial")
        self.finished_state = self.out.with_name(f".{self.out.name}.state")

    def finished(self, settings: ShardSettings) -> Manifest | None:
        """Return the manifest of OUT if it holds what `settings` make; None if there is none yet.

        Raises:
            UserError: OUT holds something else.
        """
        if is_state(self.finished_state):  # a run was killed in its last step
            shutil.rmtree(self.finished_state)
        is_free = not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir()))
        if is_free and (self.folder / MANIFEST).is_file() and not (self.folder / STATE).exists():
            self._rename()  # a run was killed between the last two steps of `publish`
        elif is_free:
            return None
        check_same(read_stored(self.out), settings.model_dump(), self.name)
        manifest = Manifest.read(self.out)
        for name, file in manifest.files.items():
            try:
                file.check_size(self.out / name)
            except DamageError as damage:
                raise UserError(
                    f"{self.out / name} {damage}: delete {self.name} and run the command again"
                ) from None
        return manifest

    def written(self) -> float:
        """Return when OUT was completed, in seconds since 1970."""
        return (self.out / MANIFEST).stat().st_mtime

    def begin(self, settings: ShardSettings, state: UnfinishedConversion) -> None:
        """Do nothing: a folder needs no announcement."""

    def upload(self, done: DonePart, record_file: Path) -> None:
        """Do nothing: the part lies in its place already."""

    def publish(self, manifest: Manifest) -> None:
        """Make the complete folder OUT."""
        (self.folder / STATE).replace(self.finished_state)
        self._rename()
        shutil.rmtree(self.finished_state)

    def _rename(self) -> None:
        self.folder.replace(self.out)
        sync(self.out.parent)
