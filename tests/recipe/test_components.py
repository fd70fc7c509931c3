"""Everything a recipe can name: settings that fit their targets, names that are known."""

import importlib
import inspect
import math

import pytest
import torch
from composer.core import Callback, Time
from pydantic import TypeAdapter, ValidationError

from itt_composer.recipe.components import (
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


@pytest.mark.parametrize(("share_of_peak", "left"), [(1.0, 0.9), (0.5, 0.95), (0.0, 1.0)])
def test_weight_decay_is_the_share_of_a_weight_that_a_step_takes_at_the_peak_rate(
    share_of_peak, left
):
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    section = OPTIMIZERS.section().model_validate({"decoupled_adamw": settings})
    weight = torch.nn.Parameter(torch.ones(3))
    (optimizer,) = section.build([weight])
    optimizer.param_groups[0]["lr"] *= share_of_peak
    weight.grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), left))


def test_the_rate_of_a_batch_is_the_schedules_of_the_batch_before(small_recipe, make_trainer):
    class Rates(Callback):
        def __init__(self):
            self.of_batch = []

        def batch_start(self, state, logger):
            self.of_batch.append(state.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    recipe = small_recipe("scheduler.cosine_with_warmup.t_warmup=5ba", "train.eval_interval=1ep")
    make_trainer(recipe, rates)[0].fit()
    # A linear warm-up over 5 of 10 batches, then the half of a cosine down to a tenth.
    decay = [0.1 + 0.45 * (1 + math.cos(math.pi * batch / 5)) for batch in range(4)]
    planned = [0, 0.2, 0.4, 0.6, 0.8, *decay]
    assert rates.of_batch == pytest.approx([1e-3 * share for share in [0, *planned]])


@pytest.mark.parametrize("none", ["0ba", "0dur"])
def test_training_without_a_warm_up_starts_at_the_peak_rate_and_without_a_warning(
    small_recipe, make_trainer, none, recwarn
):
    recipe = small_recipe(f"scheduler.cosine_with_warmup.t_warmup={none}", "train.max_duration=2ba")
    trainer, _ = make_trainer(recipe)
    assert trainer.state.optimizers[0].param_groups[0]["lr"] == 1e-3
    trainer.fit()
    assert not [each for each in recwarn if "warmup" in str(each.message)]


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
