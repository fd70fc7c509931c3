"""Reading RedPajama's jsonl form: `ROOT/<domain>/**/*.jsonl`, one JSON object per line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from itt_composer.errors import UserError

COMPRESSED = (".jsonl.gz", ".jsonl.zst")


class Document(NamedTuple):
    """One document: its text, its UTF-8 size in bytes, and the bytes of its line in the file."""

    text: str
    utf8_bytes: int
    line_bytes: int


def find_domains(root: Path) -> dict[str, list[Path]]:
    """List the `.jsonl` files of every domain, in sorted order. Hidden folders are ignored.

    Raises:
        UserError: `root` is missing, has no domain folders or has files outside of them; a
            domain has no `.jsonl` files or has compressed ones.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give one that holds a folder per domain")
    if strays := sorted(root.glob("*.jsonl")):
        raise UserError(f"{strays[0]} lies outside a domain: move it into a folder of its own")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise UserError(f"{root} has no domain folders: put the .jsonl files into {root}/<domain>")
    return {folder.name: _domain_files(folder) for folder in folders}


def _domain_files(folder: Path) -> list[Path]:
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(COMPRESSED):
            raise UserError(f"{path} is compressed, which is not read: decompress it first")
    files = sorted(path for path in folder.rglob("*.jsonl") if path.is_file())
    if not files:
        raise UserError(f"domain {folder} has no .jsonl files: add some or remove the folder")
    return files


def read_documents(path: Path, text_field: str) -> Iterator[Document]:
    """Yield the documents of one file, in order.

    Args:
        path: a `.jsonl` file.
        text_field: name of the field that holds the text.

    Raises:
        UserError: the file is empty, or a line is not a JSON object in UTF-8 with a string in
            `text_field`; names file and line.
    """
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = _text_of(line, text_field)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            yield Document(text, len(text.encode()), len(line))
    if number == 0:
        raise UserError(f"{path} is empty: remove it or write its documents again")


def _text_of(line: bytes, text_field: str) -> str:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise UserError(f"broken JSON at column {error.colno} ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"JSON that cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise UserError(f"a JSON {type(fields).__name__} where an object was expected")
    if text_field not in fields:
        raise UserError(f'no field "{text_field}"; name the text\'s field with --text-field')
    text = fields[text_field]
    if not isinstance(text, str):
        raise UserError(f'field "{text_field}" is {type(text).__name__}, not a string')
    if not is_unicode(text):
        raise UserError(f'field "{text_field}" holds half of a surrogate pair, which is no text')
    return text


def is_unicode(text: str) -> bool:
    """Whether a string has a UTF-8 form, which one with a lone surrogate has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
