"""The thinking settings: what a recipe and a model config may say, and what is impossible.

Pure Python, so that a recipe is checked before torch is imported. `ThinkingSettings` declares each
field once; the recipe's schema, `IttConfig` and the page of all keys come from it.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar, Literal, get_args, get_origin

from itt_composer.basics.errors import FieldError
from itt_composer.recipe.fields import ON_REQUEST, START, field_notes

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
ONLY_ITT: Mapping[str, Any] = {"dense": False, "loop": False}
Implied = Callable[["ThinkingSettings", int], Any]


def _every_other_layer(settings: "ThinkingSettings", num_hidden_layers: int) -> list[int]:
    """1, 3, 5, …"""
    return list(range(1, num_hidden_layers, 2))


def _equal_ratios(settings: "ThinkingSettings", num_hidden_layers: int) -> list[float]:
    """0.5 for each step; 1 without a router"""
    steps = settings.thinking_steps
    steps = DEFAULT_THINKING_STEPS if steps is None else steps
    is_routed = settings.thinking == "itt" and settings.adaptive_routing is not False
    ratio = DEFAULT_SELECT_RATIO if is_routed else 1.0
    return [ratio] * (steps - 1) if isinstance(steps, int) else []


def _rules(
    meaning: str,
    source: str = "",
    *,
    implied: Any | Implied = None,
    fixed: Mapping[str, Any] | None = None,
    needs: str = "",
    resume: str = "",
) -> dict[str, Any]:
    """Return what a field's declaration says.

    Args:
        meaning, source, resume: see `fields.field_notes`.
        implied: the value that None stands for in an ITT, or a function of the settings and the
            number of layers that returns it.
        fixed: the values of kinds that leave no choice.
        needs: the flag without which the field has no meaning.
    """
    words = implied.__doc__ if callable(implied) else f"`{json.dumps(implied)}`"
    words = "" if implied is None else words or ""
    meaning += f" (with `{needs}`)" if needs else ""
    rules = {"implied": implied, "fixed": fixed or {}, "needs": needs}
    return {**field_notes(meaning, source, resume, words), **rules}


@dataclass
class ThinkingSettings:
    """How a model thinks. A field left at null (None) takes the value that the kind implies.

    "loop" leaves a choice in `thinking_steps`, `thinking_layers`, `select_ratios` and `early_exit`
    only, "dense" in none.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid", "strict": True}

    thinking: Thinking = field(
        default="itt",
        metadata=_rules(
            '"dense" is plain LLaMA; "loop" applies each thinking layer T times to all tokens; '
            '"itt" routes, encodes and accumulates (the Inner Thinking Transformer)',
            "Table 1",
        ),
    )
    thinking_steps: int | None = field(
        default=None,
        metadata=_rules(
            "T: one full pass and T-1 further steps",
            "Table 1",
            implied=DEFAULT_THINKING_STEPS,
            fixed={"dense": 1},
        ),
    )
    thinking_layers: list[int] | None = field(
        default=None,
        metadata=_rules(
            "0-based indices of the layers that think, rising",
            implied=_every_other_layer,
            fixed={"dense": []},
        ),
    )
    select_ratios: list[float] | None = field(
        default=None,
        metadata=_rules(
            "ρ_t of the T-1 further steps, shares of the tokens in 0..1; under "
            "`router_selection: top_p` shares of the router's total weight",
            "Table 1",
            implied=_equal_ratios,
            fixed={"dense": []},
            resume=ON_REQUEST,
        ),
    )
    router_norm: RouterNorm | None = field(
        default=None,
        metadata=_rules(
            "maps a router's score to a token's weight",
            "Table 3",
            implied="sigmoid",
            needs="adaptive_routing",
            resume=ON_REQUEST,
        ),
    )
    router_selection: RouterSelection | None = field(
        default=None,
        metadata=_rules(
            '"top_k" takes the ⌈ρ·seq⌉ tokens of largest weight; "top_p" the fewest tokens that '
            'hold the share ρ of the weight; "threshold" every token whose own weight exceeds what '
            "a share ρ of all tokens does (for inference: it is causal)",
            "Table 3",
            implied="top_k",
            needs="adaptive_routing",
            resume=ON_REQUEST,
        ),
    )
    reweighting: Reweighting | None = field(
        default=None,
        metadata=_rules(
            '"select_only" leaves skipped tokens as they are; "symmetric" reweights them too, with '
            "the identity in place of the layer",
            "Table 3",
            implied="select_only",
            needs="adaptive_routing",
            resume=ON_REQUEST,
        ),
    )
    residual_thinking: bool | None = field(
        default=None,
        metadata=_rules(
            "accumulate the steps (Residual Thinking Connection); false: each step replaces the "
            "state",
            "Table 3",
            implied=True,
            fixed=ONLY_ITT,
            resume=ON_REQUEST,
        ),
    )
    thinking_update: ThinkingUpdate | None = field(
        default=None,
        metadata=_rules(
            "what a step contributes: \"output\" is the layer's output f(Y), as the paper's "
            'formula has it; "increment" is f(Y) − Y, what the layer adds to its input',
            implied="output",
            fixed={"dense": None, "loop": None},
            resume=ON_REQUEST,
        ),
    )
    adaptive_routing: bool | None = field(
        default=None,
        metadata=_rules(
            "let a router pick tokens; false: every token takes every step",
            "Table 3",
            implied=True,
            fixed=ONLY_ITT,
        ),
    )
    step_encoding: bool | None = field(
        default=None,
        metadata=_rules(
            "learn a Thinking Step Encoding φ_t per step; false: φ = 1",
            "Table 3",
            implied=True,
            fixed=ONLY_ITT,
        ),
    )
    step_encoding_init: float | None = field(
        default=None,
        metadata=_rules(
            "what φ_t of the further steps starts training with; φ_0 starts at 1",
            implied=1.0,
            needs="step_encoding",
            resume=START,
        ),
    )
    early_exit: float = field(
        default=0.0,
        metadata=_rules(
            "ε: a token whose state a step changes by less than this share of its norm takes no "
            "further step in that layer; 0 is off",
            fixed={"dense": 0.0},
            resume=ON_REQUEST,
        ),
    )

    def resolve(self, num_hidden_layers: int) -> "ThinkingSettings":
        """Fill in every field and check the whole.

        Args:
            num_hidden_layers: decoder layers of the model.

        Returns:
            New settings without None (a field that has no meaning for the kind stays None).

        Raises:
            FieldError: a setting is impossible.
        """
        check_choice("thinking", self.thinking, Thinking)
        values = {}
        for each in fields(self):
            given, rules = getattr(self, each.name), each.metadata
            decided_by = self._decided_by(each.name)
            if decided_by is not None:
                fixed = rules["fixed"].get(self.thinking)
                if given is not None and given != fixed:
                    decider = f"{decided_by}={getattr(self, decided_by)!r}"
                    raise FieldError(
                        f"{each.name}={given!r} has no meaning with {decider}; remove it",
                        *(each.name, decided_by),
                    )
                given = fixed if given is None else given
            elif given is None:
                implied = rules["implied"]
                given = implied(self, num_hidden_layers) if callable(implied) else implied
            values[each.name] = copy.copy(given)
        resolved = ThinkingSettings(**values)
        resolved._check(num_hidden_layers)
        return resolved

    def _decided_by(self, name: str) -> str | None:
        """The other field that leaves no choice in this one: the kind, or a flag that is off."""
        rules = self.__dataclass_fields__[name].metadata
        needs = rules["needs"]
        if self.thinking in rules["fixed"]:
            return "thinking"
        if needs and self._decided_by(needs):
            return "thinking"
        return needs if needs and getattr(self, needs) is False else None

    def _check(self, num_hidden_layers: int) -> None:
        """Refuse what is impossible in settings that are filled in."""
        for each in fields(self):
            _check_declared(each.name, getattr(self, each.name), each.type)
        self._check_layers(num_hidden_layers)
        check_early_exit(self.early_exit)
        if self.thinking == "itt":
            self._check_updates()
        assert self.thinking_steps is not None
        assert self.select_ratios is not None
        check_select_ratios(self.select_ratios, self.thinking_steps, bool(self.adaptive_routing))
        if self.adaptive_routing and self.thinking_steps > MOST_ROUTED_STEPS:
            raise FieldError(
                f"thinking_steps must be at most {MOST_ROUTED_STEPS} with a router, not "
                f"{self.thinking_steps}",
                *("thinking_steps", "adaptive_routing"),
            )
        if self.router_selection == "top_p" and self.router_norm != "sigmoid":
            raise FieldError(
                "router_selection='top_p' needs router_norm='sigmoid': shares of the weight "
                "are only defined for positive weights",
                *("router_selection", "router_norm"),
            )

    def _check_layers(self, num_hidden_layers: int) -> None:
        steps, layers = self.thinking_steps, self.thinking_layers
        if type(steps) is not int or steps < 1:
            raise FieldError(
                f"thinking_steps must be an integer of at least 1, not {steps!r}", "thinking_steps"
            )
        if self.thinking != "dense" and steps < 2:
            raise FieldError(
                f"thinking_steps must be at least 2 with thinking='{self.thinking}', not {steps}; "
                "for a model that does not think use thinking='dense'",
                *("thinking_steps", "thinking"),
            )
        if not isinstance(layers, (list, tuple)):
            raise FieldError(
                f"thinking_layers must be a list of layer indices, not {layers!r}",
                "thinking_layers",
            )
        if self.thinking != "dense" and not layers:
            raise FieldError(
                f"thinking_layers is empty although thinking='{self.thinking}'",
                *("thinking_layers", "thinking", "num_hidden_layers"),
            )
        for layer in layers:
            if type(layer) is not int or not 0 <= layer < num_hidden_layers:
                raise FieldError(
                    f"thinking_layers names layer {layer!r}, but the model has layers "
                    f"0 to {num_hidden_layers - 1}",
                    *("thinking_layers", "num_hidden_layers"),
                )
        if sorted(set(layers)) != list(layers):
            raise FieldError(
                f"thinking_layers must rise without repeats, not {list(layers)}", "thinking_layers"
            )

    def _check_updates(self) -> None:
        if self.thinking_update == "increment" and not self.residual_thinking:
            raise FieldError(
                "thinking_update='increment' needs residual_thinking=True: an increment alone is "
                "not a state",
                *("thinking_update", "residual_thinking"),
            )
        if self.thinking_update == "increment" and self.reweighting == "symmetric":
            raise FieldError(
                "reweighting='symmetric' needs thinking_update='output': the identity, in place of "
                "the layer, has no increment",
                *("reweighting", "thinking_update"),
            )
        initial = self.step_encoding_init
        if self.step_encoding and not _is_finite(initial):
            raise FieldError(
                f"step_encoding_init must be a number, not {initial!r}", "step_encoding_init"
            )


THINKING_FIELDS = tuple(each.name for each in fields(ThinkingSettings))


def _check_declared(name: str, value: object, annotation: Any) -> None:
    """Refuse a value that is none of a declared `Literal`, or not a flag where one is declared."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal and value is not None:
            check_choice(name, value, kind)
        if kind is bool and value is not None and not isinstance(value, bool):
            raise FieldError(f"{name} must be true or false, not {value!r}", name)


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_early_exit(epsilon: float) -> float:
    """Refuse what is not a relative change.

    Raises:
        FieldError: a negative number, or not a number.
    """
    if not _is_finite(epsilon) or epsilon < 0:
        raise FieldError(
            f"early_exit must be a relative change of at least 0, not {epsilon!r}", "early_exit"
        )
    return float(epsilon)


def check_select_ratios(
    select_ratios: Sequence[float], thinking_steps: int, adaptive_routing: bool
) -> None:
    """Refuse ratios that no model of `thinking_steps` steps can use.

    Raises:
        FieldError: wrong count, a value outside 0..1, or a part of the tokens without a router.
    """
    if isinstance(select_ratios, str) or not isinstance(select_ratios, Sequence):
        raise FieldError(
            f"select_ratios must be a list of numbers, not {select_ratios!r}", "select_ratios"
        )
    if len(select_ratios) != thinking_steps - 1:
        plural = "" if len(select_ratios) == 1 else "s"
        raise FieldError(
            f"select_ratios has {len(select_ratios)} value{plural}, but thinking_steps="
            f"{thinking_steps} needs {thinking_steps - 1}: one for each step after the first pass",
            *("select_ratios", "thinking_steps"),
        )
    for ratio in select_ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1:
            raise FieldError(f"select_ratios must lie in 0..1, not {ratio!r}", "select_ratios")
        if not adaptive_routing and ratio not in (0, 1):
            raise FieldError(
                f"select_ratios must be 0 or 1 without a router, not {ratio!r}: "
                "every token takes the step or none",
                *("select_ratios", "adaptive_routing", "thinking"),
            )


def check_choice(name: str, value: object, choices: object) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        FieldError: the sentence lists what the field may be.
    """
    if value not in get_args(choices):
        listed = ", ".join(repr(choice) for choice in get_args(choices))
        raise FieldError(f"{name} must be one of {listed}, not {value!r}", name)
