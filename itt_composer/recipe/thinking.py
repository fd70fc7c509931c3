"""The thinking settings: what a recipe and a model config may say, and what is impossible.

Pure Python, so that a recipe is checked before torch is imported. `IttConfig` stores the
resolved settings as its own fields.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal, get_args

Thinking = Literal["dense", "loop", "itt"]
RouterNorm = Literal["sigmoid", "tanh"]
RouterSelection = Literal["top_k", "top_p", "threshold"]
Reweighting = Literal["select_only", "symmetric"]
ThinkingUpdate = Literal["output", "increment"]

DEFAULT_THINKING_STEPS = 4
# Tables of thresholds grow with the cube of the steps; these are 31 MB in each layer.
MOST_ROUTED_STEPS = 32
DEFAULT_SELECT_RATIO = 0.5
# What can be changed after training.
ELASTIC_FIELDS = ("select_ratios", "router_selection", "early_exit")


@dataclass
class ThinkingSettings:
    """How a model thinks. A field left at None takes the value its `thinking` kind implies.

    Attributes:
        thinking: "dense" is plain LLaMA; "loop" applies each thinking layer T times to all
            tokens; "itt" routes, encodes and accumulates (the Inner Thinking Transformer).
        thinking_steps: T, one full pass and T-1 further steps. Dense: 1. Default: 4.
        thinking_layers: 0-based indices of the layers that think. Default: 1, 3, 5, …
        select_ratios: ρ_t of the T-1 further steps, shares of the tokens in 0..1; under
            `router_selection="top_p"` shares of the router's total weight. Default: 0.5 each.
        router_norm: maps a router's score to a token's weight.
        router_selection: "top_k" takes the ⌈ρ·seq⌉ tokens of largest weight; "top_p" the
            fewest tokens that hold the share ρ of the weight; "threshold" every token whose own
            weight exceeds what a share ρ of all tokens does (for inference: it is causal).
        reweighting: "select_only" leaves skipped tokens as they are; "symmetric" reweights
            them too, with the identity in place of the layer.
        residual_thinking: accumulate the steps (Residual Thinking Connection); False: each
            step replaces the state.
        thinking_update: what a step contributes: "output" is the layer's output f(Y), as the
            paper's formula has it; "increment" is f(Y) − Y, what the layer adds to its input.
        adaptive_routing: let a router pick tokens; False: every token takes every step.
        step_encoding: learn a Thinking Step Encoding φ_t per step; False: φ = 1.
        step_encoding_init: what φ_t of the further steps starts training with; φ_0 starts at 1.
        early_exit: ε; a token whose state a step changes by less than this share of its norm
            takes no further step in that layer. 0 is off.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid", "strict": True}

    thinking: Thinking = "itt"
    thinking_steps: int | None = None
    thinking_layers: list[int] | None = None
    select_ratios: list[float] | None = None
    router_norm: RouterNorm | None = None
    router_selection: RouterSelection | None = None
    reweighting: Reweighting | None = None
    residual_thinking: bool | None = None
    thinking_update: ThinkingUpdate | None = None
    adaptive_routing: bool | None = None
    step_encoding: bool | None = None
    step_encoding_init: float | None = None
    early_exit: float = 0.0

    def resolve(self, num_hidden_layers: int) -> "ThinkingSettings":
        """Fill in every field and check the whole.

        Args:
            num_hidden_layers: decoder layers of the model.

        Returns:
            New settings without None (a field that has no meaning for the kind stays None).

        Raises:
            ValueError: a setting is impossible; the sentence names the field.
        """
        check_choice("thinking", self.thinking, Thinking)
        fixed = _fixed_by_kind(self)
        for name, value in fixed.items():
            given = getattr(self, name)
            if given is not None and given != value:
                raise ValueError(
                    f"{name}={given!r} has no meaning with {_why_fixed(self, name)}; remove it"
                )
        values = {**_defaults(self, num_hidden_layers), **fixed}
        given_values = {name: value for name, value in vars(self).items() if value is not None}
        resolved = ThinkingSettings(**{**values, **given_values})
        resolved._check(num_hidden_layers)
        return resolved

    def _check(self, num_hidden_layers: int) -> None:
        steps, layers = self.thinking_steps, self.thinking_layers
        assert steps is not None
        assert layers is not None
        assert self.select_ratios is not None
        check_early_exit(self.early_exit)
        if type(steps) is not int or steps < 1:
            raise ValueError(f"thinking_steps must be an integer of at least 1, not {steps!r}")
        if not isinstance(layers, (list, tuple)):
            raise ValueError(f"thinking_layers must be a list of layer indices, not {layers!r}")
        for name in ("residual_thinking", "adaptive_routing", "step_encoding"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.thinking != "dense" and steps < 2:
            raise ValueError(
                f"thinking_steps must be at least 2 with thinking='{self.thinking}', not {steps}; "
                "for a model that does not think use thinking='dense'"
            )
        if self.thinking != "dense" and not layers:
            raise ValueError(f"thinking_layers is empty although thinking='{self.thinking}'")
        for layer in layers:
            if type(layer) is not int or not 0 <= layer < num_hidden_layers:
                raise ValueError(
                    f"thinking_layers names layer {layer!r}, but the model has layers "
                    f"0 to {num_hidden_layers - 1}"
                )
        if sorted(set(layers)) != list(layers):
            raise ValueError(f"thinking_layers must rise without repeats, not {list(layers)}")
        if self.thinking == "itt":
            self._check_updates()
        check_select_ratios(self.select_ratios, steps, adaptive_routing=bool(self.adaptive_routing))
        if self.adaptive_routing:
            if steps > MOST_ROUTED_STEPS:
                raise ValueError(
                    f"thinking_steps must be at most {MOST_ROUTED_STEPS} with a router, not {steps}"
                )
            check_choice("router_norm", self.router_norm, RouterNorm)
            check_choice("router_selection", self.router_selection, RouterSelection)
            check_choice("reweighting", self.reweighting, Reweighting)
            if self.router_selection == "top_p" and self.router_norm != "sigmoid":
                raise ValueError(
                    "router_selection='top_p' needs router_norm='sigmoid': shares of the weight "
                    "are only defined for positive weights"
                )

    def _check_updates(self) -> None:
        check_choice("thinking_update", self.thinking_update, ThinkingUpdate)
        if self.thinking_update == "increment" and not self.residual_thinking:
            raise ValueError(
                "thinking_update='increment' needs residual_thinking=True: an increment alone is "
                "no state"
            )
        if self.thinking_update == "increment" and self.reweighting == "symmetric":
            raise ValueError(
                "reweighting='symmetric' needs thinking_update='output': the identity, in place of "
                "the layer, has no increment"
            )
        initial = self.step_encoding_init
        if self.step_encoding and (
            isinstance(initial, bool) or not isinstance(initial, Real) or not math.isfinite(initial)
        ):
            raise ValueError(f"step_encoding_init must be a number, not {initial!r}")


def check_early_exit(epsilon: float) -> float:
    """Refuse what is no relative change.

    Raises:
        ValueError: a negative number, or none at all.
    """
    is_number = isinstance(epsilon, Real) and not isinstance(epsilon, bool)
    if not is_number or not 0 <= epsilon < math.inf:
        raise ValueError(f"early_exit must be a relative change of at least 0, not {epsilon!r}")
    return float(epsilon)


def check_select_ratios(
    select_ratios: Sequence[float], thinking_steps: int, adaptive_routing: bool
) -> None:
    """Refuse ratios that no model of `thinking_steps` steps can use.

    Raises:
        ValueError: wrong count, a value outside 0..1, or a part of the tokens without a router.
    """
    if isinstance(select_ratios, str) or not isinstance(select_ratios, Sequence):
        raise ValueError(f"select_ratios must be a list of numbers, not {select_ratios!r}")
    if len(select_ratios) != thinking_steps - 1:
        raise ValueError(
            f"select_ratios has {len(select_ratios)} values, but thinking_steps={thinking_steps} "
            f"needs {thinking_steps - 1}: one for each step after the first pass"
        )
    for ratio in select_ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1:
            raise ValueError(f"select_ratios must lie in 0..1, not {ratio!r}")
        if not adaptive_routing and ratio not in (0, 1):
            raise ValueError(
                f"select_ratios must be 0 or 1 without a router, not {ratio!r}: "
                "every token takes the step or none"
            )


def _fixed_by_kind(settings: ThinkingSettings) -> dict:
    """The fields that the kind (or the missing router) leaves no choice in."""
    no_router = {"router_norm": None, "router_selection": None, "reweighting": None}
    loop = {
        "residual_thinking": False,
        "thinking_update": None,
        "adaptive_routing": False,
        "step_encoding": False,
        "step_encoding_init": None,
        **no_router,
    }
    if settings.thinking == "dense":
        nothing = {"thinking_steps": 1, "thinking_layers": [], "select_ratios": []}
        return {**nothing, "early_exit": 0.0, **loop}
    if settings.thinking == "loop":
        return loop
    no_encoding = {"step_encoding_init": None} if settings.step_encoding is False else {}
    return {**no_encoding, **(no_router if settings.adaptive_routing is False else {})}


def _why_fixed(settings: ThinkingSettings, name: str) -> str:
    if settings.thinking == "itt":
        return f"{'step_encoding' if name == 'step_encoding_init' else 'adaptive_routing'}=False"
    return f"thinking='{settings.thinking}'"


def _defaults(settings: ThinkingSettings, num_hidden_layers: int) -> dict:
    steps = settings.thinking_steps
    steps = DEFAULT_THINKING_STEPS if steps is None else steps
    routed = settings.thinking == "itt" and settings.adaptive_routing is not False
    ratio = DEFAULT_SELECT_RATIO if routed else 1.0
    return {
        "thinking_steps": steps,
        "thinking_layers": list(range(1, num_hidden_layers, 2)),
        "select_ratios": [ratio] * (steps - 1) if isinstance(steps, int) else [],
        "router_norm": "sigmoid",
        "router_selection": "top_k",
        "reweighting": "select_only",
        "residual_thinking": True,
        "thinking_update": "output",
        "adaptive_routing": True,
        "step_encoding": True,
        "step_encoding_init": 1.0,
    }


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        ValueError: naming the field and what it may be.
    """
    if value not in get_args(choices):
        listed = ", ".join(repr(choice) for choice in get_args(choices))
        raise ValueError(f"{name} must be one of {listed}, not {value!r}")
