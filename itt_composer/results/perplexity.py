"""The result of a perplexity suite: one model on the rows of a split, at one setting or more."""

from typing import ClassVar

from pydantic import Field

from itt_composer.results.base import ResultFile, ResultPart
from itt_composer.results.model import MeasuredModel


class PerplexityFigures(ResultPart):
    """What was measured on some rows.

    Attributes:
        tokens: that were predicted.
        bytes: of their text; None where the tokenizer does not give the bytes of its tokens.
        loss: nats per token.
        perplexity: `exp(loss)`.
        bits_per_byte: of text; None where `bytes` is.
    """

    tokens: int
    bytes: int | None
    loss: float
    perplexity: float
    bits_per_byte: float | None


class AskedSetting(ResultPart):
    """How the model was asked to think.

    Attributes:
        select_ratios: ρ_t of the steps after the first pass, fractions in 0..1; empty without any.
        router_selection: the rule; None without a router.
        early_exit: ε; 0 is off.
    """

    select_ratios: list[float]
    router_selection: str | None
    early_exit: float


class Setting(PerplexityFigures, AskedSetting):
    """All rows at one setting.

    Attributes:
        domains: the same figures for each domain.
        realised_shares: of the tokens that took each step, a list over the thinking layers.
        paper_flops_per_token: of a forward pass, by the paper's count at the ratios asked for;
            None for a model that is not of this project.
        executed_flops_per_token: the same at the realised shares.
    """

    domains: dict[str, PerplexityFigures]
    realised_shares: list[list[float]] = Field([])
    paper_flops_per_token: float | None = None
    executed_flops_per_token: float | None = None


class SuiteOfPerplexity(ResultPart):
    """The suite's settings; those that nobody reads back are kept undeclared."""

    data: str
    split: str


class PerplexityResults(ResultFile):
    """The whole file.

    Attributes:
        suite: as it was run.
        seq_len: tokens of a row.
        text_sha256: of the rows and the tokenizer.
        model: as it came, whatever it was asked.
        settings: one for each setting, in the order of the suite.
    """

    KIND: ClassVar[str] = "perplexity"
    FORMAT: ClassVar[int] = 2
    MADE_BY: ClassVar[str] = "a perplexity suite"

    suite: SuiteOfPerplexity
    seq_len: int | None = None
    text_sha256: str
    model: MeasuredModel
    settings: list[Setting] = Field(min_length=1)
