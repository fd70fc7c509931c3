"""The result of `itt analyse tokens`: which tokens think."""

from typing import ClassVar

from pydantic import Field, model_validator

from itt_composer.results.base import AnalysisFile, ResultPart


class RowsSeen(ResultPart):
    """The rows that were looked at."""

    folder: str
    split: str
    rows: int
    tokens: int


class Histogram(ResultPart):
    """Router weights in bins, of all tokens and of those that take the step."""

    edges: list[float]
    counts: list[int]
    selected_counts: list[int]


class KindOfToken(ResultPart):
    """How many tokens of a kind there are, and the share of them that takes the step."""

    tokens: int
    share: float | None


class StepOfLayer(ResultPart):
    """What a step of a layer does with the tokens; None where something has no meaning.

    Attributes:
        layer: counted from 0.
        step: 0 is the first pass.
        share: of all tokens that take the step.
        weight_mean, weight_std: of the router's weights; None without a router.
        selected_weight_mean: of the tokens that take the step.
        histogram: of the weights.
        overlap, complement: shares of the step's tokens that did and did not take the step before.
        union: share of all tokens that took either step.
        classes: by kind of token.
    """

    layer: int
    step: int
    share: float | None
    weight_mean: float | None
    weight_std: float | None
    selected_weight_mean: float | None
    histogram: Histogram | None
    overlap: float | None
    complement: float | None
    union: float | None
    classes: dict[str, KindOfToken]


class StepEncoding(ResultPart):
    """φ_t of a layer, over its values."""

    layer: int
    step: int
    mean: float
    std: float
    min: float
    max: float


class StateNorm(ResultPart):
    """Mean Euclidean norm of the tokens' states after a layer."""

    layer: int
    mean: float


class StepOfText(ResultPart):
    """What a step does with each token of a text.

    Attributes:
        weights: of the router; None without one.
        selected: 1 for the tokens that take the step, 0 for the others.
    """

    layer: int
    step: int
    weights: list[float] | None
    selected: list[int]


class ShownText(ResultPart):
    """A text, token by token."""

    name: str
    tokens: list[str]
    steps: list[StepOfText]

    @model_validator(mode="after")
    def _has_every_token(self) -> "ShownText":
        for number, step in enumerate(self.steps):
            for name, values in (("selected", step.selected), ("weights", step.weights)):
                if values is not None and len(values) != len(self.tokens):
                    raise ValueError(
                        f"steps.{number}.{name} has {len(values)} values for "
                        f"{len(self.tokens)} tokens"
                    )
        return self


class ThinkingResults(AnalysisFile):
    """The whole file.

    Attributes:
        data: the rows.
        router_selection: the rule in force; None without a router.
        select_ratios: ρ_t in force.
        steps: by layer and step; empty for a model that takes none.
        step_encodings: by layer and step; empty for a model without.
        state_norms: by layer; empty for a model that is not of this project.
        texts: the first document of the rows, and those that were given.
    """

    KIND: ClassVar[str] = "thinking"
    FORMAT: ClassVar[int] = 1
    MADE_BY: ClassVar[str] = "`itt analyse tokens`"

    data: RowsSeen
    router_selection: str | None
    select_ratios: list[float]
    steps: list[StepOfLayer]
    step_encodings: list[StepEncoding]
    state_norms: list[StateNorm] = Field([])
    texts: list[ShownText]
