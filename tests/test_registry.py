"""Everything a recipe can name: settings that fit their targets, names that are known."""

import importlib
import inspect

import pytest
import torch
from composer.core import Time
from pydantic import TypeAdapter, ValidationError

from itt_composer.registry import (
    ALGORITHMS,
    CALLBACKS,
    LOGGERS,
    OPTIMIZERS,
    SCHEDULERS,
    Duration,
)

REGISTRIES = (OPTIMIZERS, SCHEDULERS, ALGORITHMS, CALLBACKS, LOGGERS)
COMPONENTS = [
    pytest.param(registry, name, settings, id=name)
    for registry in REGISTRIES
    for name, settings in registry
]
# Settings without a default, and what the trainer passes in front of them.
REQUIRED = {"decoupled_adamw": {"lr": 0.1}, "json_lines": {"path": "metrics.jsonl"}}
POSITIONAL = {"decoupled_adamw": {"params"}}


def parameters_of(settings):
    """The target's constructor parameters that have a name."""
    module, name = settings.target.split(":")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p for p in signature.parameters.values() if p.kind not in variadic}


@pytest.mark.parametrize(("registry", "name", "settings"), COMPONENTS)
def test_settings_are_the_parameters_of_the_target(registry, name, settings):
    parameters = parameters_of(settings)
    given = set(settings.model_fields)
    assert given <= set(parameters)
    required = {p.name for p in parameters.values() if p.default is inspect.Parameter.empty}
    assert required <= given | POSITIONAL.get(name, set())


@pytest.mark.parametrize(("registry", "name", "settings"), COMPONENTS)
def test_every_component_is_built_from_its_defaults(
    registry, name, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    section = registry.section().model_validate({name: REQUIRED.get(name, {})})
    positional = [[torch.nn.Parameter(torch.zeros(1))] for _ in POSITIONAL.get(name, ())]
    (built,) = section.build(*positional)
    assert type(built).__name__ == settings.target.split(":")[1]


def test_the_settings_reach_the_component():
    section = OPTIMIZERS.section().model_validate({"decoupled_adamw": {"lr": 0.5, "eps": 0.25}})
    (optimizer,) = section.build([torch.nn.Parameter(torch.zeros(1))])
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps"]) == (0.5, 0.25)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_unknown_names_are_refused_and_null_is_left_out(registry):
    with pytest.raises(ValidationError, match="nonesuch"):
        registry.section().model_validate({"nonesuch": {}})
    name, _ = next(iter(registry))
    assert registry.section().model_validate({name: None}).build() == []


@pytest.mark.parametrize("text", ["500ba", "2e9tok", "1ep", "64sp", "0.03dur", "1dur"])
def test_a_duration_is_one_that_composer_reads(text):
    assert TypeAdapter(Duration).validate_python(text) == text
    Time.from_input(text)


@pytest.mark.parametrize("text", ["", "700", "700steps", "-1ba", "0.5ba", "1.5e3tok", "ba", "1ba "])
def test_another_duration_is_refused(text):
    with pytest.raises(ValidationError):
        TypeAdapter(Duration).validate_python(text)
