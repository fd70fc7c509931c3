"""Every key of a recipe with its type, default, meaning and source, as the schema declares them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from itt_composer.recipe.fields import FREE, ON_REQUEST
from itt_composer.recipe.schema import Recipe

PREAMBLE = """\
# Keys of a recipe

After this page you know every key that a recipe can set, its default and its meaning. Parts,
overrides and mistakes are explained in [recipes](recipes.md). Tables and algorithms are those of
the paper. `itt recipes --keys` prints this page from the declarations in `itt_composer/recipe/`.

A key without a default has to be given; "null → …" says what null stands for. The last column says
whether a run that has begun goes on with another value: always (free), with `--allow-changes`, or
never (fixed), as in [training](training.md).
"""
# How JSON Schema's types are called in YAML.
TYPES = {"boolean": "true or false", "null": "null", "object": "mapping", "string": "text"}
LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
}


@dataclass(frozen=True)
class Key:
    """One key, or a section or component that holds keys.

    Attributes:
        name: with the sections that it stands in, `train.compile`.
        schema: of its value, in JSON Schema with the notes of `fields.field_notes`.
        keys: of a section or component; None for a key of its own.
        is_required: whether it has to be given.
        resume: what a run that goes on does with another value; see `fields.field_notes`.
    """

    name: str
    schema: dict[str, Any]
    keys: tuple["Key", ...] | None
    is_required: bool
    resume: str


@lru_cache
def recipe_keys() -> tuple[Key, ...]:
    """Return the keys and sections at the top of a recipe."""
    schema = Recipe.model_json_schema()
    return tuple(_keys_of(schema, schema["$defs"], "", ""))


def _keys_of(group: dict[str, Any], classes: dict, prefix: str, resume: str) -> Iterator[Key]:
    for name, schema in group["properties"].items():
        own = schema.get("resume", resume)
        inner, path = _class_of(schema, classes), prefix + name
        keys = None if inner is None else tuple(_keys_of(inner, classes, f"{path}.", own))
        described = schema if inner is None else {**inner, **schema}
        yield Key(path, described, keys, name in group.get("required", ()), own)


def _class_of(schema: dict[str, Any], classes: dict) -> dict[str, Any] | None:
    """Return the schema of the class whose keys a section or component has."""
    references = [
        choice["$ref"] for choice in (schema, *schema.get("anyOf", ())) if "$ref" in choice
    ]
    return {"properties": {}, **classes[references[0].rpartition("/")[2]]} if references else None


def page_of_keys() -> str:
    """Return docs/recipe_keys.md: every key by section, in Markdown."""
    keys = recipe_keys()
    parts = [PREAMBLE, "## The recipe itself", _key_table(key for key in keys if key.keys is None)]
    for section in keys:
        if section.keys is None:
            continue
        parts += [f"## `{section.name}`", _introduction(section)]
        components = [key for key in section.keys if key.keys is not None]
        if not components:
            parts.append(_key_table(section.keys))
        for component in components:
            parts += [f"### `{component.name}`", _introduction(component)]
            if component.keys:
                parts.append(_key_table(component.keys))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _introduction(section: Key) -> str:
    """Return what the recipe, or the docstring of its class, says about a section or component."""
    source = section.schema.get("source")
    return section.schema["description"] + (f"\n\nBuilds `{source}`." if source else "")


def _key_table(keys: Iterable[Key]) -> str:
    heading = "| key | type | default | meaning | source | begun run |\n"
    lines = [heading + "| :--- | :--- | :--- | :--- | :--- | :--- |"]
    for key in keys:
        cells = [
            f"`{key.name.rpartition('.')[2]}`",
            _type(key.schema),
            _default(key),
            key.schema["description"],
            key.schema.get("source", "–"),
            key.resume if key.resume in (FREE, ON_REQUEST) else "fixed",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _default(key: Key) -> str:
    implied, default = key.schema.get("implied"), key.schema.get("default")
    if key.is_required:
        return implied or "–"
    shown = f"`{json.dumps(default)}`"
    if implied is None:
        return shown
    return f"null → {implied}" if default is None else f"{shown}; null → {implied}"


def _type(schema: dict[str, Any]) -> str:
    """Write a value's type in words: "integer ≥ 1 or null"."""
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum") or [schema["const"]]
        return ", ".join(f"`{json.dumps(choice)}`" for choice in choices)
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_type(schema['items'])}s"
    name = schema.get("format") or TYPES.get(kind, kind)
    limits = [words.format(schema[limit]) for limit, words in LIMITS.items() if limit in schema]
    return f"{name} {', '.join(limits)}".strip()
