"""Data files of tasks: their rows, and the columns that the tasks of the paper's suite read.

A file is JSON lines or Parquet. Columns that a task does not read may stand in it as well.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from itt_composer.errors import UserError

FORMATS = (".parquet", ".jsonl")
Row = dict[str, Any]

Text = Annotated[str, Field(description="string")]
Texts = Annotated[list[str], Field(min_length=1, description="list of strings")]
FourTexts = Annotated[list[str], Field(min_length=4, max_length=4, description="list of 4 strings")]


def _holds(part: str, reason: str) -> AfterValidator:
    def check(text: str) -> str:
        if part not in text:
            raise ValueError(reason)
        return text

    return AfterValidator(check)


class Columns(BaseModel):
    """The columns that a task reads; each row is checked against it."""

    model_config = ConfigDict(strict=True)

    @classmethod
    def expected(cls) -> str:
        """`question (string), answer (list of strings)`."""
        columns = cls.model_fields.items()
        return ", ".join(f"{name} ({field.description})" for name, field in columns)


class SciQ(Columns):
    """SciQ."""

    question: Text
    support: Text
    distractor1: Text
    distractor2: Text
    distractor3: Text
    correct_answer: Text


class Piqa(Columns):
    """PIQA."""

    goal: Text
    sol1: Text
    sol2: Text
    label: Annotated[Literal[0, 1], Field(description="0 or 1")]


class WinoGrande(Columns):
    """WinoGrande."""

    sentence: Annotated[
        str, _holds("_", "should hold the gap _"), Field(description="string with the gap _")
    ]
    option1: Text
    option2: Text
    answer: Annotated[Literal["1", "2"], Field(description='"1" or "2"')]


class Choices(BaseModel):
    """Options of an ARC question and what they are called."""

    model_config = ConfigDict(strict=True)

    text: Texts
    label: Texts


class Arc(Columns):
    """ARC-Easy and ARC-Challenge."""

    question: Text
    choices: Annotated[Choices, Field(description="text and label, lists of strings")]
    answerKey: Annotated[str, Field(description="string, one of the labels")]

    @model_validator(mode="after")
    def _has_its_answer(self) -> "Arc":
        if len(self.choices.text) != len(self.choices.label):
            raise ValueError("choices: text and label should be of one length")
        if self.answerKey not in self.choices.label:
            raise ValueError(f"answerKey={self.answerKey!r} is none of the labels of choices")
        return self


class HellaSwag(Columns):
    """HellaSwag."""

    activity_label: Text
    ctx_a: Text
    ctx_b: Text
    endings: FourTexts
    label: Annotated[
        Literal["0", "1", "2", "3", 0, 1, 2, 3], Field(description='"0", "1", "2" or "3"')
    ]


class LogiQA(Columns):
    """LogiQA."""

    label: Annotated[Literal["a", "b", "c", "d"], Field(description='"a", "b", "c" or "d"')]
    context: Text
    question: Text
    options: FourTexts


class BoolQ(Columns):
    """BoolQ, as in SuperGLUE."""

    passage: Text
    question: Text
    label: Annotated[Literal[0, 1], Field(description="0 for no, 1 for yes")]


class Lambada(Columns):
    """LAMBADA in OpenAI's form."""

    text: Annotated[
        str, _holds(" ", "should hold several words"), Field(description="string of several words")
    ]


class Mmlu(Columns):
    """A subject of MMLU."""

    question: Text
    choices: FourTexts
    answer: Annotated[Literal[0, 1, 2, 3], Field(description="0, 1, 2 or 3")]


class NqOpen(Columns):
    """NQ-open."""

    question: Text
    answer: Texts


BY_TASK: dict[str, type[Columns]] = {
    "sciq": SciQ,
    "piqa": Piqa,
    "winogrande": WinoGrande,
    "arc_easy": Arc,
    "arc_challenge": Arc,
    "hellaswag": HellaSwag,
    "logiqa": LogiQA,
    "boolq": BoolQ,
    "lambada_openai": Lambada,
    "nq_open": NqOpen,
}
MMLU_DATASET = "cais/mmlu"


def columns_of(task: str, config: Mapping[str, Any]) -> type[Columns] | None:
    """What a leaf task reads, or None for tasks outside of the paper's suite."""
    return Mmlu if config.get("dataset_path") == MMLU_DATASET else BY_TASK.get(task)


def check_file(file: Path, columns: type[Columns] | None) -> int:
    """Check every row of a data file.

    Args:
        file: JSON lines or Parquet.
        columns: what its rows must hold, or None: anything.

    Returns:
        how many rows it has.

    Raises:
        UserError: names the file, the line (or row), the column, and the columns expected.
    """
    rows = 0
    reader = _checked_lines if file.suffix == ".jsonl" else _checked_rows
    for where, check in reader(file, columns):
        rows += 1
        try:
            check()
        except ValidationError as error:
            raise UserError(f"{file}: {where}: {_reason(error, columns)}") from None
        except ValueError as error:
            raise UserError(f"{file}: {where}: is not JSON: {error}") from None
    if not rows:
        raise UserError(f"{file} has no rows; put the task's data there, or delete it")
    return rows


def read_rows(file: Path) -> dict[str, list[Any]] | pa.Table:
    """A checked file: the table of Parquet, or the columns of JSON lines."""
    if file.suffix == ".parquet":
        return pq.read_table(file)
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if not line.isspace()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _checked_lines(
    file: Path, columns: type[Columns] | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Numbered lines of JSON, each with its check."""
    check = columns.model_validate_json if columns else _json_object
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield f"line {number}", lambda line=line: check(line)  # type: ignore[misc]
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not a text file in UTF-8") from None


def _json_object(line: str) -> None:
    if not isinstance(json.loads(line), dict):
        raise ValueError("no object {…} of columns")


def _checked_rows(
    file: Path, columns: type[Columns] | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Numbered rows of Parquet, each with its check."""
    names = list(columns.model_fields) if columns else None
    try:
        present = set(pq.read_schema(file).names)
        if columns and not present.issuperset(columns.model_fields):
            missing = next(name for name in columns.model_fields if name not in present)
            raise UserError(f"{file}: {_missing(missing, columns)}")
        rows = pq.read_table(file, columns=names).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: is not a whole Parquet file: {reason}") from None
    for number, row in enumerate(rows, 1):
        check = columns.model_validate if columns else dict
        yield f"row {number}", lambda row=row, check=check: check(row)  # type: ignore[misc]


def _reason(error: ValidationError, columns: type[Columns] | None) -> str:
    """The first mistake of a row, and what is expected."""
    assert columns is not None
    details = error.errors()[0]
    column = ".".join(map(str, details["loc"]))
    expected = f"expected are the columns {columns.expected()}"
    if details["type"] == "json_invalid":
        return f"is not JSON: {details['ctx']['error']}; {expected}, one JSON object a line"
    if not column and details["type"] == "model_type":
        return f"is no JSON object; {expected}"
    if details["type"] == "missing":
        return _missing(column, columns)
    if details["type"] == "value_error":
        message = str(details["ctx"]["error"])
    else:
        message = details["msg"][0].lower() + details["msg"][1:]
    return f"column {column}: {message}; {expected}" if column else f"{message}; {expected}"


def _missing(column: str, columns: type[Columns]) -> str:
    return f"column {column} is missing; expected are the columns {columns.expected()}"
