"""Which runs are repeats of one experiment: they differ in nothing but their seeds."""

import hashlib
import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from itt_composer.recipe.changes import changes, is_free
from itt_composer.recipe.thinking import ThinkingSettings
from itt_composer.runs.folder import RunFolder

SEEDS = ("seed", "data.shuffle_seed")
# Keys on which neither the model nor its training depends, or that follow from others.
UNIMPORTANT = ("run_name", "train.eval_*", "train.calibration_rows", "model.attn_implementation")
LONGEST_NAME = 60  # of several runs together


def important_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the flat keys and values that runs of one experiment share.

    Args:
        recipe: as nested mappings.
    """
    return {
        key: value
        for key, (_, value) in changes({}, recipe).items()
        if not (is_free(key) or key in SEEDS or any(fnmatchcase(key, one) for one in UNIMPORTANT))
    }


def with_thinking_of_today(recipe: dict[str, Any]) -> dict[str, Any]:
    """Add the thinking settings that came after the recipe was written, by their defaults."""
    try:
        settings = ThinkingSettings(**recipe["thinking"])
        resolved = settings.resolve(recipe["model"]["num_hidden_layers"])
    except (KeyError, TypeError, ValueError):
        return recipe  # whoever makes a model of it reports what is wrong
    return {**recipe, "thinking": {k: v for k, v in vars(resolved).items() if v is not None}}


def experiment_sha256(run: RunFolder) -> str | None:
    """Return the digest of all that runs of one experiment share: recipes but for seeds, and rows.

    A run that went on with another recipe or other shards does not repeat one that had them from
    the start.

    Returns:
        None where `recipe.yaml` or `shards.json` is missing.

    Raises:
        UserError: a recipe that cannot be read.
    """
    rows = run.row_digests("train")
    if not rows or not run.is_run():
        return None
    recipes = {
        name: important_settings(with_thinking_of_today(recipe))
        for name, recipe in {run.recipe_file.name: run.recipe(), **run.former_recipes()}.items()
    }
    before = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(run.path.glob("shards_until_*.json"))
    }
    shared = json.dumps([rows, recipes, before], sort_keys=True, default=str)
    return hashlib.sha256(shared.encode()).hexdigest()


def common_name(names: Sequence[str]) -> str:
    """Name several runs: `llama-seed17/18` of llama-seed17 and llama-seed18."""
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
    """Name several runs by the first of them: `llama + 2 more`."""
    return f"{names[0]} + {len(names) - 1} more" if len(names) > 1 else names[0]
