"""What every result file has: a kind, a format number, and a check of all that it holds."""

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from itt_composer.basics.errors import UserError
from itt_composer.basics.text import readable

# The files of perplexity suites had no kind before they had a format.
BEFORE_KINDS = {"suite", "settings"}


class ResultPart(BaseModel):
    """A part of a result. Keys that are not declared are kept: settings of models and suites."""

    model_config = ConfigDict(extra="allow", strict=True)

    def given(self) -> dict[str, Any]:
        """Return what was given, undeclared keys included, as plain values."""
        return self.model_dump(exclude_unset=True)


class ResultFile(ResultPart):
    """The content of a result file.

    Attributes:
        KIND: the file's `kind`.
        FORMAT: the file's `format`; a file of another one is of another version of this program.
        MADE_BY: what writes it, for messages.
    """

    KIND: ClassVar[str]
    FORMAT: ClassVar[int]
    MADE_BY: ClassVar[str]

    def content(self) -> dict[str, Any]:
        """Return the result as its JSON file holds it."""
        return {"kind": self.KIND, "format": self.FORMAT, **self.given()}


class AnalysisFile(ResultFile):
    """The result of an analysis of one model.

    Attributes:
        model_sha256: of weights, configuration and tokenizer.
        trained_batches: of a run, after how many its weights were taken; None if unknown.
    """

    model_sha256: str
    trained_batches: int | None = None


class ResultError(UserError):
    """A file does not hold the result that was asked for.

    Attributes:
        why: the rest of a sentence that begins with the file's name.
    """

    def __init__(self, file: Path, why: str, advice: str):
        super().__init__(f"{file} {why}; {advice}")
        self.why = why


AnyResult = TypeVar("AnyResult", bound=ResultFile)


def read_result(file: Path, *kinds: type[AnyResult], advice: str) -> AnyResult:
    """Read a result file and check everything in it.

    Args:
        file: the JSON file.
        kinds: the results that it may hold.
        advice: what to do where the file is not a result of these kinds.

    Raises:
        ResultError: it is not JSON, of another kind or version, or damaged; names the first key
            that is missing or wrong.
    """
    try:
        content = readable(json.loads(file.read_bytes()))
    except ValueError:
        raise ResultError(file, "is not JSON", advice) from None
    own = content if isinstance(content, dict) else {}
    kind, number = own.pop("kind", None), own.pop("format", None)
    found = next((one for one in kinds if kind == one.KIND), None)
    is_old = kind is None and own.keys() >= BEFORE_KINDS
    if found is None and not is_old:
        names = " or ".join(one.MADE_BY for one in kinds)
        raise ResultError(file, f"is not a result of {names}", advice)
    if found is None or number != found.FORMAT:
        raise ResultError(file, "is of another version of this program", "measure it again")
    try:
        return found.model_validate(own)
    except ValidationError as error:
        raise ResultError(file, f"is damaged: {in_words(error)}", "measure it again") from None


def in_words(error: ValidationError) -> str:
    """Say which key is wrong first, and how: `settings.0.tokens is missing`."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "value_error":  # it names the rest of the key
        return ".".join(filter(None, [key, first["msg"].removeprefix("Value error, ")]))
    return f"{key} {first['msg'].removeprefix('Input ')}"
