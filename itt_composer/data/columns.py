"""Files of rows (JSON lines or Parquet), checked against the columns that their reader needs.

Columns that it does not read may stand in a file as well.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from itt_composer.basics.errors import UserError

FORMATS = (".parquet", ".jsonl")

Text = Annotated[str, Field(description="string")]


class Columns(BaseModel):
    """The columns that are read; each row is checked against it."""

    model_config = ConfigDict(strict=True)

    @classmethod
    def expected(cls) -> str:
        """List the columns, like `question (string), answer (list of strings)`."""
        columns = cls.model_fields.items()
        return ", ".join(f"{name} ({field.description})" for name, field in columns)


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
    """Read a checked file: the table of Parquet, or the columns of JSON lines."""
    if file.suffix == ".parquet":
        return pq.read_table(file)
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if not line.isspace()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _checked_lines(
    file: Path, columns: type[Columns] | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield numbered lines of JSON, each with its check."""
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
        raise ValueError("this is not an object {…} of columns")


def _checked_rows(
    file: Path, columns: type[Columns] | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield numbered rows of Parquet, each with its check."""
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
    """Describe the first mistake of a row, and what is expected."""
    assert columns is not None
    details = error.errors()[0]
    column = ".".join(map(str, details["loc"]))
    expected = f"expected are the columns {columns.expected()}"
    if details["type"] == "json_invalid":
        return f"is not JSON: {details['ctx']['error']}; {expected}, one JSON object a line"
    if not column and details["type"] == "model_type":
        return f"is not a JSON object; {expected}"
    if details["type"] == "missing":
        return _missing(column, columns)
    if details["type"] == "value_error":
        message = str(details["ctx"]["error"])
    else:
        message = details["msg"][0].lower() + details["msg"][1:]
    return f"column {column}: {message}; {expected}" if column else f"{message}; {expected}"


def _missing(column: str, columns: type[Columns]) -> str:
    return f"column {column} is missing; expected are the columns {columns.expected()}"
