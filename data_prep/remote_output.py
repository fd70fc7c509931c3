"""A conversion's output in an object store, through the streaming library.

`manifest.json` is the first object and the last one: at the start it says what is being written,
so that nobody else writes there and a lost working folder does no harm, and only at the end does
it list the streams. Objects are named by their part, so one that is written twice is the same.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from data_prep.complete_folder import check_same
from data_prep.part_record import DonePart
from data_prep.unfinished_conversion import UnfinishedConversion
from itt_composer.basics.errors import UserError
from itt_composer.data.index import INDEX
from itt_composer.data.manifest import MANIFEST, Manifest, ShardSettings

TIMEOUT_SECONDS = 60.0
ATTEMPTS = 5
MISSING = ("ResourceNotFoundError", "NotFound", "FileNotFoundError")

Result = TypeVar("Result")


class RemoteOutput:
    """An object store that gets each part as it is done.

    Args:
        url: where to.
        work_dir: where a hidden folder is made for what is not uploaded yet; None: right here.
    """

    is_remote = True

    def __init__(self, url: str, work_dir: Path | None) -> None:
        self.name = url
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", url)
        digest = sha256(url.encode()).hexdigest()[:8]  # run_1 and run-1 have one name
        self.folder = ((work_dir or Path()) / f".{name}-{digest}.partial").resolve()
        self.uploaded: set[str] = set()  # by this process

    def finished(self, settings: ShardSettings) -> Manifest | None:
        """Return the manifest there if it lists what `settings` make; None if there is none yet.

        Raises:
            UserError: something else is there, or the store cannot be used.
        """
        stored = self._stored()
        if stored is None:
            if self._as_sentence(self._objects):
                raise UserError(
                    f"{self.name} holds other objects and no manifest.json of this command: choose "
                    "another --out or delete them"
                )
            return None
        check_same(stored, settings.model_dump(), self.name)
        if "splits" not in stored:
            return None  # begun, not finished
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run killed right after its end
        return Manifest.parse(json.dumps(stored).encode(), f"{self.name}/{MANIFEST}")

    def written(self) -> float:
        """Return when OUT was completed: unknown here, so 0, before any input."""
        return 0.0

    def begin(self, settings: ShardSettings, state: UnfinishedConversion) -> None:
        """Announce in the store what is being written to it."""
        if self._stored() is None:
            state.forget_uploaded()  # first: parts of an output begun there count as uploaded
            file = self.folder / MANIFEST
            content = json.dumps(settings.model_dump(), indent=1) + "\n"
            file.write_text(content, encoding="utf-8")
            self._upload(MANIFEST)

    def upload(self, done: DonePart, record_file: Path) -> None:
        """Upload a part's shards, note that in its record, and free their space."""
        for name in done.files:
            self._upload(name)
        self.uploaded |= done.files.keys()
        done.uploaded = True
        replace(done, uploaded=True).save(record_file)
        for name in done.files:
            if Path(name).name != INDEX:  # the stream's index is made of these
                (self.folder / name).unlink(missing_ok=True)

    def publish(self, manifest: Manifest) -> None:
        """Upload what belongs to no part, the manifest last; remove the working folder."""
        names = manifest.files.keys() - self.uploaded
        rest = [name for name in names if (self.folder / name).is_file()]
        for name in sorted(rest, key=lambda name: name.count("/"), reverse=True):
            self._upload(name)
        self._upload(MANIFEST)
        shutil.rmtree(self.folder)

    def _stored(self) -> dict[str, Any] | None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / MANIFEST
            if not self._as_sentence(lambda: self._download(MANIFEST, file)):
                return None
            try:
                stored = json.loads(file.read_bytes())
                stored["format_version"]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{self.name}/{MANIFEST} is not of this command: choose another --out"
                ) from error
            return dict(stored)

    def _download(self, name: str, file: Path) -> bool:
        """Fetch an object; False when it is not there."""
        from streaming.base.storage.download import CloudDownloader

        downloader = CloudDownloader.get(self.name)
        try:
            downloader.download(f"{self.name}/{name}", str(file), timeout=TIMEOUT_SECONDS)
        except Exception as error:
            response = getattr(error, "response", None)
            code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
            if str(code) in ("404", "NoSuchKey") or type(error).__name__ in MISSING:
                return False
            raise
        return True

    def _objects(self) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return list(self._uploader_from(Path(folder)).list_objects("") or [])
            except NotImplementedError:  # the library cannot list this kind of store
                return []

    def _upload(self, name: str) -> None:
        self._as_sentence(lambda: self._uploader.upload_file(name))

    @cached_property
    def _uploader(self) -> Any:
        return self._uploader_from(self.folder)

    def _uploader_from(self, folder: Path) -> Any:
        from streaming.base.storage.upload import CloudUploader

        # It warns of a folder that is not empty, as this one is on purpose.
        logging.getLogger("streaming.base.storage.upload").setLevel(logging.ERROR)
        places = (str(folder), self.name)
        return CloudUploader.get(places, keep_local=True, retry=ATTEMPTS, exist_ok=True)

    def _as_sentence(self, call: Callable[[], Result]) -> Result:
        """Raise whatever a store's client raises as one sentence."""
        try:
            return call()
        except OSError as error:
            if error.filename is not None:
                raise  # a file of this machine
            raise self._unusable(error) from error
        except ImportError:
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return UserError(
            f"cannot use {self.name} ({reason}): check the name, the credentials and the "
            "network, then give the same command again"
        )
