"""The differences between the recipe of a run and the one to go on with, and which are possible."""

from functools import lru_cache
from typing import Any

from itt_composer.recipe.fields import FREE, ON_REQUEST
from itt_composer.recipe.reference import Key, recipe_keys

UNSET = "unset"
# Components that a run cannot go on without, by a setting that each of them has.
KEPT = {
    "algorithms.capacity_annealing.start_temperature": (
        "the routers' temperature would stay as it is; end annealing by a shorter duration"
    ),
}

Differences = dict[str, tuple[Any, Any]]


def changes(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    """Return the keys ("train.max_duration") whose values differ, with old and new value.

    Args:
        old, new: recipes as nested mappings; a key that only one has is "unset" in the other.
    """
    before, after = _flat(old), _flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, UNSET), after.get(key, UNSET)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def is_free(key: str) -> bool:
    """Return whether a run may go on with another value of this key without being asked."""
    return when_resumed(key) == FREE


def why_fixed(key: str) -> str | None:
    """Return why a run that has begun cannot follow this key; None if it can or has none."""
    declared = _declared().get(key)
    return None if declared is None or declared.resume in (FREE, ON_REQUEST) else declared.resume


def when_resumed(key: str) -> str | None:
    """Return what a key's declaration, or that of its section or mapping, says of resuming."""
    steps = key.split(".")
    places = (".".join(steps[:end]) for end in range(len(steps), 0, -1))
    return next((_declared()[place].resume for place in places if place in _declared()), None)


@lru_cache
def _declared() -> dict[str, Key]:
    """Return all keys and sections by their names."""

    def within(keys: tuple[Key, ...]) -> dict[str, Key]:
        found: dict[str, Key] = {}
        for key in keys:
            found |= {key.name: key, **within(key.keys or ())}
        return found

    return within(recipe_keys())


def impossible(differences: Differences) -> dict[str, Differences]:
    """Return the differences that a run which has begun cannot follow, by the reason.

    A key that no recipe has comes from another version and is left out.
    """
    reasons: dict[str, Differences] = {}
    for key, (old, new) in differences.items():
        reason = (KEPT.get(key) if new == UNSET else None) or why_fixed(key)
        if reason is not None:
            reasons.setdefault(reason, {})[key] = (old, new)
    return reasons


def describe(differences: Differences) -> str:
    """Write the differences out: `seed 17 → 3, train.max_duration 10ba → 20ba`."""
    return ", ".join(f"{key} {old} → {new}" for key, (old, new) in differences.items())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and (value or not prefix):  # a section may be empty
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
