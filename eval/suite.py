"""An evaluation suite: a YAML file and `key=value` overrides, checked before torch is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from itt_composer.data.shards import domains_with_rows, read_manifest
from itt_composer.errors import UserError
from itt_composer.settings import COMMAND_LINE, parse_overrides, read_yaml, validate
from itt_composer.thinking import RouterSelection

Ratio = Annotated[float, Field(ge=0, le=1)]


class PerplexitySuite(BaseModel):
    """Perplexity of one model on the rows of a split.

    Attributes:
        model: a transformers folder, such as a run's `model/`.
        data: a folder of shards with its manifest.
        split: "validation", or "train".
        batch_size: rows that go through the model at once.
        select_ratios: elastic settings to measure, each a list of ρ_t, or null for the model's
            own.
        router_selection: rules to measure each of them by: "threshold" (causal), "top_k" (as in
            training), "top_p", or null for the model's own.
        early_exit: ε to measure each of them at, or null for the model's own.
        output: JSON file for the results, or null.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    data: str
    split: str = "validation"
    batch_size: int = Field(16, ge=1)
    select_ratios: list[list[Ratio] | None] = Field([None], min_length=1)
    router_selection: list[RouterSelection | None] = Field([None], min_length=1)
    early_exit: list[Annotated[float, Field(ge=0)] | None] = Field([None], min_length=1)
    output: str | None = None


def load_suite(path: Path, overrides: Sequence[str]) -> PerplexitySuite:
    """Read a suite and see that its model and data are there.

    Raises:
        UserError: one sentence per mistake.
    """
    layers = [(str(path), read_yaml(path)), (COMMAND_LINE, parse_overrides(overrides))]
    suite = validate(PerplexitySuite, layers)
    if not (Path(suite.model) / "config.json").is_file():
        raise UserError(
            f"model={suite.model} is not a transformers folder (it has no config.json); a finished "
            "training run has one in its folder model/"
        )
    if suite.output is not None and Path(suite.output).is_dir():
        raise UserError(f"output={suite.output} is a folder; name a file for the results")
    if not domains_with_rows(read_manifest(suite.data), suite.split):
        raise UserError(f"data={suite.data} has no rows in its split {suite.split!r}")
    return suite
