"""The thinking settings: what they imply and what is impossible."""

import math

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from itt_composer.recipe.thinking import ThinkingSettings


def resolve(**settings):
    return ThinkingSettings(**settings).resolve(num_hidden_layers=8)


def test_itt_thinks_four_steps_with_half_of_the_tokens_in_every_other_layer():
    assert resolve() == ThinkingSettings(
        thinking="itt",
        thinking_steps=4,
        thinking_layers=[1, 3, 5, 7],
        select_ratios=[0.5, 0.5, 0.5],
        router_norm="sigmoid",
        router_selection="top_k",
        reweighting="select_only",
        residual_thinking=True,
        thinking_update="output",
        adaptive_routing=True,
        step_encoding=True,
        step_encoding_init=1.0,
    )


def test_loop_thinks_the_same_steps_with_every_token_and_nothing_else():
    assert resolve(thinking="loop") == ThinkingSettings(
        thinking="loop",
        thinking_steps=4,
        thinking_layers=[1, 3, 5, 7],
        select_ratios=[1.0, 1.0, 1.0],
        residual_thinking=False,
        adaptive_routing=False,
        step_encoding=False,
    )


def test_dense_thinks_nowhere():
    assert resolve(thinking="dense") == ThinkingSettings(
        thinking="dense",
        thinking_steps=1,
        thinking_layers=[],
        select_ratios=[],
        residual_thinking=False,
        adaptive_routing=False,
        step_encoding=False,
    )


def test_without_a_router_every_token_takes_every_step():
    settings = resolve(adaptive_routing=False, thinking_steps=3)
    assert settings.select_ratios == [1.0, 1.0]
    assert settings.router_norm is settings.router_selection is settings.reweighting is None


def test_what_is_given_is_kept():
    given_settings = {"thinking_steps": 3, "thinking_layers": [0, 7], "select_ratios": [0.9, 0]}
    settings = resolve(**given_settings, router_norm="tanh", step_encoding=False)
    assert given_settings.items() <= vars(settings).items()
    assert (settings.router_norm, settings.step_encoding) == ("tanh", False)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_default_layers_are_those_the_model_has(layers):
    settings = ThinkingSettings(thinking="loop")
    if layers == 1:
        with pytest.raises(ValueError, match="thinking_layers is empty"):
            settings.resolve(layers)
    else:
        assert settings.resolve(layers).thinking_layers == list(range(1, layers, 2))


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("thinking", {"thinking": "deep"}),
        ("thinking_steps", {"thinking_steps": 0}),
        ("thinking_steps", {"thinking_steps": 1}),
        ("thinking_steps", {"thinking_steps": 2.0}),
        ("thinking_steps", {"thinking_steps": 33}),
        ("thinking_steps", {"thinking_steps": True}),
        ("thinking_layers", {"thinking_layers": []}),
        ("thinking_layers", {"thinking_layers": [8]}),
        ("thinking_layers", {"thinking_layers": [-1]}),
        ("thinking_layers", {"thinking_layers": [1, 1]}),
        ("thinking_layers", {"thinking_layers": [3, 1]}),
        ("thinking_layers", {"thinking_layers": [1.0]}),
        ("select_ratios", {"select_ratios": [0.5, 0.5]}),
        ("select_ratios", {"select_ratios": [0.5, 0.5, 1.01]}),
        ("select_ratios", {"select_ratios": [0.5, -0.1, 0.5]}),
        ("select_ratios", {"select_ratios": [0.5, math.nan, 0.5]}),
        ("select_ratios", {"select_ratios": [0.5, True, 0.5]}),
        ("select_ratios", {"select_ratios": 0.5}),
        ("select_ratios", {"select_ratios": "abc"}),
        ("select_ratios", {"thinking": "loop", "select_ratios": [0.5, 0.5, 0.5]}),
        ("select_ratios", {"adaptive_routing": False, "select_ratios": [0.5, 0.5, 0.5]}),
        ("select_ratios", {"thinking": "dense", "select_ratios": [0.5]}),
        ("thinking_steps", {"thinking": "dense", "thinking_steps": 4}),
        ("thinking_layers", {"thinking": "dense", "thinking_layers": [1]}),
        ("step_encoding", {"thinking": "dense", "step_encoding": True}),
        ("residual_thinking", {"thinking": "loop", "residual_thinking": True}),
        ("adaptive_routing", {"thinking": "loop", "adaptive_routing": True}),
        ("router_norm", {"thinking": "loop", "router_norm": "sigmoid"}),
        ("router_selection", {"adaptive_routing": False, "router_selection": "top_k"}),
        ("reweighting", {"adaptive_routing": False, "reweighting": "symmetric"}),
        ("thinking_update", {"thinking_update": "difference"}),
        ("thinking_update", {"thinking_update": "increment", "residual_thinking": False}),
        ("thinking_update", {"thinking": "loop", "thinking_update": "output"}),
        ("reweighting", {"thinking_update": "increment", "reweighting": "symmetric"}),
        ("step_encoding_init", {"step_encoding_init": math.nan}),
        ("step_encoding_init", {"step_encoding_init": True}),
        ("step_encoding_init", {"step_encoding_init": 0.5, "step_encoding": False}),
        ("step_encoding_init", {"thinking": "dense", "step_encoding_init": 1.0}),
        ("router_norm", {"router_norm": "softmax"}),
        ("router_selection", {"router_selection": "top_q"}),
        ("reweighting", {"reweighting": "all"}),
        ("router_selection", {"router_selection": "top_p", "router_norm": "tanh"}),
    ],
    ids=str,
)
def test_an_impossible_setting_is_refused_by_name(field, settings):
    with pytest.raises(ValueError, match=rf"^{field}\b"):
        resolve(**settings)


def maybe(values):
    return st.none() | values


ANY_SETTINGS = st.builds(
    ThinkingSettings,
    thinking=st.sampled_from(["dense", "loop", "itt"]),
    thinking_steps=maybe(st.integers(1, 4)),
    thinking_layers=maybe(st.lists(st.integers(0, 4), max_size=3, unique=True).map(sorted)),
    select_ratios=maybe(st.lists(st.sampled_from([0, 0.3, 1, 1.0]), max_size=3)),
    router_norm=maybe(st.sampled_from(["sigmoid", "tanh"])),
    router_selection=maybe(st.sampled_from(["top_k", "top_p"])),
    reweighting=maybe(st.sampled_from(["select_only", "symmetric"])),
    residual_thinking=maybe(st.booleans()),
    adaptive_routing=maybe(st.booleans()),
    step_encoding=maybe(st.booleans()),
    thinking_update=maybe(st.sampled_from(["output", "increment"])),
    step_encoding_init=maybe(st.sampled_from([0, 0.5, 1.0])),
)


@given(settings=ANY_SETTINGS, layers=st.integers(2, 6))
def test_what_is_accepted_once_is_accepted_unchanged_again(settings, layers):
    try:
        resolved = settings.resolve(layers)
    except ValueError:
        event("refused")
        return
    event("accepted")
    assert resolved.resolve(layers) == resolved
    given_settings = {name: value for name, value in vars(settings).items() if value is not None}
    assert given_settings.items() <= vars(resolved).items()
