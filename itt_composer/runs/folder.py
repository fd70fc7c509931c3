"""The folder of a run, read: its recipe, summary, losses and checkpoints; no torch."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from itt_composer.basics.errors import UserError
from itt_composer.recipe.layers import values_of
from itt_composer.runs.checkpoints.places import complete_checkpoints, partial_checkpoints
from itt_composer.runs.metrics import read_metrics
from itt_composer.runs.summary import RunSummary, read_summary

# Logged at each validation: by the rule of training, and by thresholds.
LOSSES = ("metrics/eval/LanguageCrossEntropy", "metrics/eval_threshold/LanguageCrossEntropy")
SECTIONS = ("model", "thinking", "data", "train")


class RunFolder:
    """`recipe.yaml`, `shards.json`, `metrics.jsonl`, `checkpoints/`, `model/` and `summary.json`.

    Reading needs nothing but the folder, whether the run has finished or not, and whether this
    version wrote it or an older one. `summary.json` is written last: it marks a finished run.

    Args:
        path: of the folder, which need not be there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.shards_file = self.path / "shards.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.summary_file = self.path / "summary.json"

    def is_run(self) -> bool:
        """Whether a run has begun here."""
        return self.recipe_file.is_file()

    def has_ended(self) -> bool:
        """Whether the run, whatever its recipe, has come to its end."""
        return self.summary_file.is_file()

    def recipe_text(self) -> str | None:
        """Return `recipe.yaml`, the resolved recipe, as it is; None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self.recipe_file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.recipe_file} cannot be read: {error}") from None

    def recipe(self) -> dict[str, Any]:
        """Return the recipe as nested mappings, as resolved by the version that wrote it.

        Raises:
            UserError: there is none, or the file does not hold the recipe of a run.
        """
        text = self.recipe_text()
        if text is None:
            raise UserError(
                f"{self.path} is not a run folder (it has no {self.recipe_file.name}); name the "
                "folder that a recipe sets as run_folder, such as runs/quickstart/itt_x4"
            )
        return _recipe_of(text, self.recipe_file)

    def former_recipes(self) -> dict[str, dict[str, Any]]:
        """Return the recipes that the run was trained by before it went on with another.

        Returns:
            by the names of their files, `recipe_until_batch_<n>.yaml`.

        Raises:
            UserError: one cannot be read.
        """
        files = sorted(self.path.glob("recipe_until_*.yaml"))
        return {file.name: _recipe_of(file.read_text("utf-8", "replace"), file) for file in files}

    def shards(self) -> Path:
        """Return the folder of the shards that the recipe names, which need not be there.

        Raises:
            UserError: as `recipe`, or the recipe names none.
        """
        local = self.recipe()["data"].get("local")
        if not isinstance(local, str):
            raise UserError(f"{self.recipe_file} names no data.local; is it damaged?")
        return Path(local)

    def row_digests(self, split: str) -> dict[str, str]:
        """Return the SHA-256 of each stream of a split and of the tokenizer; empty if unknown."""
        try:
            digests = json.loads(self.shards_file.read_bytes())
            own = ("tokenizer", f"{split}/")
            return {key: value for key, value in digests.items() if key.startswith(own)}
        except (OSError, ValueError, AttributeError):
            return {}  # a run of an early version has none

    def summary(self) -> RunSummary | None:
        """Return what the run had come to at its end; None while it has not.

        Raises:
            UserError: the file is damaged, or was changed.
        """
        return read_summary(self.summary_file)

    def metrics(self, wanted: Callable[[str], bool] | None = None) -> list[dict[str, Any]]:
        """Return what the run logged, see `read_metrics`; nothing where there is no log."""
        return read_metrics(self.metrics_file, wanted) if self.metrics_file.is_file() else []

    def losses_after(self, batches: int) -> tuple[float | None, float | None]:
        """Return the validation losses measured after these batches, by the two `LOSSES`.

        Nats per token; None where nothing was measured.
        """
        with suppress(UserError):
            summary = self.summary()
            if summary is not None and summary.batches == batches:
                return summary.validation_loss, summary.validation_loss_by_threshold
        lines = self.metrics({"batch", *LOSSES}.__contains__)
        line = next((line for line in lines if line["batch"] == batches), {})
        by_own_rule, by_threshold = (line.get(name) for name in LOSSES)
        return by_own_rule, by_threshold

    def list_checkpoints(self) -> list[Path]:
        """List the checkpoints, the newest first, but those of which a part was never written."""
        return complete_checkpoints(self.checkpoints)

    def list_partial(self) -> list[Path]:
        """List what is left of checkpoints whose saving was interrupted."""
        return partial_checkpoints(self.checkpoints)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from, whole or damaged."""
        return bool(self.list_checkpoints())


def _recipe_of(text: str, file: Path) -> dict[str, Any]:
    try:
        recipe = values_of(text)
        if "run_name" in recipe and all(isinstance(recipe[name], dict) for name in SECTIONS):
            return recipe
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{file} does not hold the recipe of a run; name another folder")
