"""Which runs are repeats of one experiment: they differ in nothing but their seeds."""

import hashlib
import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from itt_composer.basics.errors import UserError
from itt_composer.recipe.changes import changes, is_free
from itt_composer.recipe.layers import values_of
from itt_composer.recipe.thinking import ThinkingSettings

SEEDS = ("seed", "data.shuffle_seed")
# What neither the model nor its training hangs on, and what follows from other keys.
UNIMPORTANT = ("run_name", "train.eval_*", "train.calibration_rows", "model.attn_implementation")
LONGEST_NAME = 60  # of several runs together


def important_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Flat keys and values that runs of one experiment share.

    Args:
        recipe: as nested mappings.
    """
    return {
        key: value
        for key, (_, value) in changes({}, recipe).items()
        if not (is_free(key) or key in SEEDS or any(fnmatchcase(key, one) for one in UNIMPORTANT))
    }


def with_thinking_of_today(recipe: dict[str, Any]) -> dict[str, Any]:
    """With the thinking settings that came after the recipe was written, by their defaults."""
    try:
        settings = ThinkingSettings(**recipe["thinking"])
        resolved = settings.resolve(recipe["model"]["num_hidden_layers"])
    except (KeyError, TypeError, ValueError):
        return recipe  # whoever makes a model of it reports what is wrong
    return {**recipe, "thinking": {k: v for k, v in vars(resolved).items() if v is not None}}


def rows_of_run(run_folder: Path, split: str) -> dict[str, str]:
    """SHA-256 of each stream of a split of a run, and of the tokenizer; empty if unknown."""
    try:
        digests = json.loads((run_folder / "shards.json").read_bytes())
        own = ("tokenizer", f"{split}/")
        return {key: value for key, value in digests.items() if key.startswith(own)}
    except (OSError, ValueError, AttributeError):
        return {}  # a run of an earlier version has none


def experiment_sha256(run_folder: Path) -> str | None:
    """Of all that runs of one experiment share: its recipes but for the seeds, and its rows.

    A run that went on with another recipe or other shards does not repeat one that had them from
    the start.

    Args:
        run_folder: with `recipe.yaml` and `shards.json`.

    Returns:
        None where one of these is missing.

    Raises:
        UserError: a recipe that cannot be read.
    """
    rows = rows_of_run(run_folder, "train")
    if not rows or not (run_folder / "recipe.yaml").is_file():
        return None
    recipes = {}
    for file in [run_folder / "recipe.yaml", *sorted(run_folder.glob("recipe_until_*.yaml"))]:
        try:
            recipe = values_of(file.read_text(encoding="utf-8"))
            recipes[file.name] = important_settings(with_thinking_of_today(recipe))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
    before = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(run_folder.glob("shards_until_*.json"))
    }
    shared = json.dumps([rows, recipes, before], sort_keys=True, default=str)
    return hashlib.sha256(shared.encode()).hexdigest()


def common_name(names: Sequence[str]) -> str:
    """`llama-seed17/18` of llama-seed17 and llama-seed18, the name itself of a single run."""
    if len(names) == 1:
        return names[0]
    parts = [re.findall(r"\d+|\D+", name) for name in names]
    shortest = min(map(len, parts))
    before = next((at for at in range(shortest) if len({own[at] for own in parts}) > 1), shortest)
    left = [own[before:] for own in parts]
    shortest = min(map(len, left))
    after = next((at for at in range(shortest) if len({own[-1 - at] for own in left}) > 1), 0)
    middles = ["".join(own[: len(own) - after]) for own in left]
    name = "".join(parts[0][:before]) + "/".join(middles)
    name += "".join(left[0][len(left[0]) - after :])
    is_plain = before + after > 0 and all(middles) and not any("/" in one for one in names)
    return name if is_plain and len(name) <= LONGEST_NAME else first_of(names)


def first_of(names: Sequence[str]) -> str:
    """`llama + 2 more`, the name itself of a single run."""
    return f"{names[0]} + {len(names) - 1} more" if len(names) > 1 else names[0]
