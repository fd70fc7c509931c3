"""YAML that we write is read back as it was, whatever text stands in it."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_recipe import RECIPE

from itt_composer.basics.errors import UserError
from itt_composer.recipe.layers import as_yaml, parse_overrides, values_of
from itt_composer.recipe.schema import load_recipe, recipe_as_yaml

# Any text, and above all what YAML or OmegaConf might take for something else.
SUSPECT = st.text(st.sampled_from("0123456789eExo+-._:${}\\#'\" \n\t~&*[],nulyestrf"), max_size=10)
TEXT = (st.text(st.characters(codec="utf-8"), max_size=12) | SUSPECT).filter("???".__ne__)
LEAVES = TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True) | st.from_regex(
    r"[0-9]+(\.[0-9]+)?[eE][-]?[0-9]+", fullmatch=True
)
NUMBERS = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
READ_OTHERWISE = [
    *("12e03", "1e5", "1.5e3", "1e-5", "1_0e2", "1:30", "null", "~", "yes", "off", "0x10", "0o7"),
    *("1_000", "2020-01-01", ".inf", ".nan", "", " ", "${x}", "\\${x}", "\\\\${", "a: b", "- a"),
    *("#a", "&a", "*a", "!a", "=", "<<", "\x85", "\u2028", "é", "a\nb", "{", "[", "%", "@", "`"),
]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_values_are_read_back_as_they_were_written(values):
    assert values_of(as_yaml(values)) == values


@pytest.mark.parametrize("text", READ_OTHERWISE)
def test_text_that_looks_like_something_else_stays_text_as_key_and_as_value(text):
    values = {text: text, "list": [text, {text: text}]}
    assert values_of(as_yaml(values)) == values


@settings(max_examples=30, deadline=None)
@given(st.data())
@example(None)
def test_every_text_and_number_of_a_recipe_is_read_back(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "base.yaml").write_text(RECIPE)
    components = ["loggers={json_lines: {path: x}, tensorboard: {}, wandb: {}}"]
    recipe = load_recipe(
        folder / "base.yaml", [*components, "callbacks.lm_eval={eval_interval: 5ba}"]
    )
    draw = data.draw if data else lambda strategy: "12e03" if strategy is not NUMBERS else 1e-5
    recipe.run_name = draw(NAMES)
    recipe.run_folder = draw(TEXT.filter(lambda text: "://" not in text)) if data else "1:30"
    recipe.init_from, recipe.seed = draw(TEXT), 3
    shards, wandb, tasks = recipe.data, recipe.loggers.wandb, recipe.callbacks.lm_eval
    shards.local, shards.remote, shards.tokenizer = draw(TEXT), draw(TEXT), draw(TEXT)
    shards.domains = {draw(TEXT): draw(NUMBERS), draw(TEXT): draw(NUMBERS)}
    recipe.loggers.json_lines.path = draw(TEXT)
    recipe.loggers.tensorboard.log_dir = draw(TEXT)
    wandb.project, wandb.group, wandb.entity = draw(TEXT), draw(TEXT), draw(TEXT)
    wandb.tags, tasks.only = [draw(TEXT), draw(TEXT)], [draw(TEXT)]
    tasks.suite, tasks.data_dir, tasks.tokenizer = draw(TEXT), draw(TEXT), draw(TEXT) + "x"
    recipe.optimizer.decoupled_adamw.lr = draw(NUMBERS)
    recipe.model.rope_theta = draw(NUMBERS)
    written = folder / "written.yaml"
    written.write_text(recipe_as_yaml(recipe))
    again = load_recipe(written)
    assert again.model_dump(exclude={"thinking"}) == recipe.model_dump(exclude={"thinking"})


@pytest.mark.parametrize("text", ["- [", "5", "a: ${b}", "a: b: c"])
def test_a_broken_document_is_broken_yaml(text):
    with pytest.raises(yaml.YAMLError):
        values_of(text)


def test_every_override_that_is_none_is_named():
    with pytest.raises(UserError) as caught:
        parse_overrides(["seed=1", "banana", "=3"])
    assert [line.split(" is not")[0] for line in str(caught.value).splitlines()] == [
        *("command line: 'banana'", "command line: '=3'")
    ]
