"""Rows of token ids straight from a text file, where there are no shards."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from itt_composer.basics.errors import UserError


def read_texts(file: Path) -> list[str]:
    """Read the documents of a file: each line's `text` of a .jsonl file, else the whole as one.

    Args:
        file: UTF-8.

    Raises:
        UserError: it cannot be read, is not UTF-8, has a line without a text, or has no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start + 1:,})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    texts = list(_texts_of_lines(file, content)) if file.suffix == ".jsonl" else [content]
    if not any(text.strip() for text in texts):
        raise UserError(f"{file} has no text")
    return texts


def _texts_of_lines(file: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}: line {number}: is not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f"{file}: line {number}: needs a string `text`")
        yield row["text"]


def rows_of_tokens(documents: Iterable[Sequence[int]], seq_len: int) -> list[list[int]]:
    """Join documents and cut them into whole rows; what is left at the end is not used.

    Args:
        documents: token ids, each with what begins and ends a document.
        seq_len: tokens of a row.
    """
    tokens = [token for document in documents for token in document]
    ends = range(seq_len, len(tokens) + 1, seq_len)
    return [tokens[end - seq_len : end] for end in ends]
