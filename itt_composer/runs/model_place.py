"""Which model a MODEL means: of a run folder, a checkpoint, a transformers folder or the hub.

Every command that takes a model finds it here, before torch is imported; `loading.py` loads it.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itt_composer.basics.errors import UserError
from itt_composer.recipe.model_is_data import check_model_folder
from itt_composer.runs.checkpoints.places import NoCheckpointError, find_checkpoint
from itt_composer.runs.folder import RunFolder

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
NO_MODEL = "name a run folder, a checkpoint, a transformers folder or a model on the hub"
GENERIC_NAMES = ("/", "model", "checkpoints", "latest")


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is.

    Attributes:
        named: as the user named it.
        kind: "folder" of transformers, "run" that has finished (its folder `model/`), "checkpoint"
            (also the newest of a run that has not), or a name on the "hub".
        source: the transformers folder, the checkpoint, or the name on the hub.
        run: the run that trained it, where it still lies in its folder.
        label: how a message names it: `named`, after the key if it was given by one.
    """

    named: str
    kind: Literal["folder", "run", "checkpoint", "hub"]
    source: str
    run: RunFolder | None = None
    label: str = ""

    @property
    def folder(self) -> Path | None:
        """The transformers folder, if it is one."""
        return Path(self.source) if self.kind in ("folder", "run") else None

    def writable_folder(self, command: str) -> Path:
        """Return the transformers folder, for a command that needs one here.

        Raises:
            UserError: the model is a checkpoint or on the hub; says how to make a folder of it.
        """
        if self.folder is not None:
            return self.folder
        if self.kind == "hub":
            raise UserError(
                f"{self.label} is not there; {command} takes a run folder or a transformers folder "
                f"(for a model on the hub, `hf download {self.named} --local-dir DIR` makes one)"
            )
        raise UserError(
            f"{self.label} is a checkpoint, and {command} takes a transformers folder: write one "
            f"with `itt export {self.named} OUT` and name OUT instead"
        )


def find_model(named: str, key: str = "") -> ModelPlace:
    """Find out what a MODEL is.

    Args:
        named: a run folder, a checkpoint, a transformers folder, or a name on the hub.
        key: of a suite or recipe that names it, for messages; none for a command's argument.

    Raises:
        UserError: it is neither here nor a name on the hub (`runs/x` is none where there is a
            folder `runs`), is something else, or is a transformers folder whose files ask for
            something unknown.
    """
    place, label = Path(named), f"{key}={named}" if key else named
    if not place.exists() and not place.is_symlink():
        is_in_folder_here = place.parent != Path() and place.parent.exists()
        if HUB_NAME.fullmatch(named) and not is_in_folder_here:
            return ModelPlace(named, "hub", named, None, label)
        raise UserError(f"{label} is not there; {NO_MODEL}")
    if (place / "config.json").is_file():
        check_model_folder(place)
        above = RunFolder(place.resolve().parent)
        is_of_run = place.resolve().name == above.model.name and above.has_ended()
        return ModelPlace(named, "folder", named, above if is_of_run else None, label)
    run = RunFolder(place)
    if run.has_ended() and (run.model / "config.json").is_file():
        check_model_folder(run.model)
        return ModelPlace(named, "run", str(run.model), run, label)
    if place.suffix != ".pt" and not place.is_dir() and not place.is_symlink():
        raise UserError(f"{label} is not a model; {NO_MODEL}")
    try:
        checkpoint = find_checkpoint(place)
    except NoCheckpointError:
        raise UserError(
            f"{label} is not a model: the folder has neither a config.json nor a checkpoint; "
            f"{NO_MODEL}"
        ) from None
    except UserError as error:
        raise UserError(f"{label}: {error}" if key else str(error)) from None
    run = RunFolder(checkpoint.parent.parent)
    return ModelPlace(named, "checkpoint", str(checkpoint), run, label)


def model_name(path: str, revision: str | None = None) -> str:
    """Return a short name, for tables and folders: the run's, where a folder is called `model`.

    A checkpoint's begins with the run's; a revision follows the name on the hub.
    """
    place = Path(path)
    if place.exists():  # `..` has a name, too; not resolved, as a link's own name is the user's
        place = Path(os.path.normpath(place.absolute()))
    own = [part for part in place.parts if part not in GENERIC_NAMES] or ["model"]
    is_of_run = place.parent.name == "checkpoints" and place.name == own[-1]
    name = "-".join(own[-2:] if is_of_run else own[-1:]).removesuffix(".pt")
    return f"{name}@{revision.replace('/', '_')}" if revision else name
