"""The folder of one training run, and what its files say about going on."""

import difflib
import json
import os
from pathlib import Path
from typing import Any

from itt_composer.config import Recipe, recipe_as_yaml
from itt_composer.errors import UserError
from itt_composer.files import write_whole

LATEST = "latest-rank0.pt"


class RunFolder:
    """`recipe.yaml`, `checkpoints/`, `model/` and `summary.json` of a run.

    `summary.json` is written last: it marks a finished run.
    """

    def __init__(self, recipe: Recipe):
        self.path = Path(recipe.run_folder)
        self.recipe_file = self.path / "recipe.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.summary = self.path / "summary.json"
        self._recipe_text = recipe_as_yaml(recipe)

    def is_finished(self) -> bool:
        """Whether this very recipe has been trained to its end here."""
        return self.summary.is_file() and self._saved_recipe() == self._recipe_text

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.checkpoints / LATEST).exists()

    def check_resumable(self) -> None:
        """Refuse to go on with, or write over, the run of another recipe.

        Raises:
            UserError: with the lines that differ.
        """
        saved = self._saved_recipe()
        if saved is None or saved == self._recipe_text:
            return
        lines = difflib.unified_diff(
            saved.splitlines(), self._recipe_text.splitlines(), n=0, lineterm=""
        )
        changes = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        raise UserError(
            f"{self.recipe_file} is of another recipe ({'; '.join(changes)}); choose another "
            "run_name or run_folder, or delete the folder to train anew"
        )

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

    def write_recipe(self) -> None:
        """Save the resolved recipe beside the checkpoints."""
        write_whole(self.recipe_file, self._recipe_text)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        write_whole(self.summary, json.dumps(summary, indent=1) + "\n")

    def _saved_recipe(self) -> str | None:
        try:
            return self.recipe_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.recipe_file} cannot be read: {error}") from None
