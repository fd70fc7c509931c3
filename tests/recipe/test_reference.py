"""Every key of a recipe is declared once, and the page of all keys is what is declared."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from itt_composer.cli.recipes import app
from itt_composer.models import IttConfig
from itt_composer.recipe.reference import Key, page_of_keys, recipe_keys
from itt_composer.recipe.thinking import THINKING_FIELDS, ThinkingSettings

PAGE = Path(__file__).parents[2] / "docs/recipe_keys.md"


def within(keys):
    for key in keys:
        yield key
        yield from within(key.keys or ())


KEYS = {key.name: key for key in within(recipe_keys())}


def test_the_page_of_keys_is_what_is_declared():
    assert PAGE.read_text(encoding="utf-8") == page_of_keys(), (
        "run `itt recipes --keys > docs/recipe_keys.md`"
    )


def test_the_command_prints_the_page():
    result = CliRunner().invoke(app, ["--keys"])
    assert (result.exit_code, result.stdout) == (0, page_of_keys())


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_every_key_says_what_it_means_and_what_a_begun_run_does_with_another_value(key: Key):
    assert key.schema["description"]
    assert key.resume


def test_the_page_shows_types_defaults_and_what_null_stands_for():
    rows = {line.split(" | ")[0]: line for line in page_of_keys().splitlines() if "|" in line}
    assert "| integer or null | null → `4` |" in rows["| `thinking_steps`"]
    assert '| integer ≥ 1 or `"auto"` | – |' in rows["| `microbatch_size`"]
    assert '| time | `"1000ba"` |' in rows["| `save_interval`"]
    assert "| list of numbers | `[0.9, 0.95]` |" in rows["| `betas`"]
    assert "| `200`; null → all of them |" in rows["| `limit`"]


def test_a_model_config_takes_and_stores_every_thinking_setting():
    parameters = inspect.signature(IttConfig).parameters
    for field in dataclasses.fields(ThinkingSettings):
        assert (parameters[field.name].default, f"thinking.{field.name}" in KEYS) == (
            field.default,
            True,
        )
    config = IttConfig(num_hidden_layers=4, thinking_steps=3, thinking_update="increment")
    stored = json.loads(config.to_json_string(use_diff=False))
    expected = ThinkingSettings(thinking_steps=3, thinking_update="increment").resolve(4)
    assert {name: stored[name] for name in THINKING_FIELDS} == vars(expected)
