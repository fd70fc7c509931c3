"""Reading RedPajama's jsonl form: one JSON object per line, the document in one of its fields."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from itt_composer.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BUFFER = 1 << 20
# Of decompressed text: what a cut-off stream gave last is lost up to this.
DECOMPRESSED_BUFFER = 1 << 12


class BadInputError(Exception):
    """A line that holds no document, or a file that ends before its time.

    Attributes:
        line: number of the line in its file, from 1; 0 for the file as a whole.
        reason: what is wrong with it.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


@dataclass(frozen=True)
class Piece:
    """The lines of one file that start in the bytes [start, end).

    Attributes:
        file: path below the corpus's root, with forward slashes.
        start: first byte.
        end: first byte that is no longer part of it; the file's size for the last piece.
    """

    file: str
    start: int
    end: int


class Document(NamedTuple):
    """One document: its text, and the same in UTF-8."""

    text: str
    data: bytes


class PieceReader:
    """Lines of a piece, and the SHA-256 of the bytes of the file they were read from.

    A compressed file is always one piece; then the hash is that of the compressed bytes.
    """

    def __init__(self, root: Path, piece: Piece) -> None:
        self.path = root / piece.file
        self.piece = piece
        self.sha256 = sha256()
        self.lines_read = 0
        self.raw_bytes = 0  # of the file, so that progress can be told for compressed ones too
        self._lines_before: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines.

        Raises:
            BadInputError: the file is empty or its compressed stream is damaged or cut off.
        """
        with self.path.open("rb", buffering=BUFFER) as file:
            lines = self._compressed(file) if self.path.suffix in COMPRESSIONS else self._own(file)
            for line in lines:
                self.lines_read += 1
                yield line
        if self.lines_read == 0 and self.piece.start == 0:
            raise BadInputError(0, "the file is empty: remove it or write its documents again")

    def file_line(self, number: int) -> int:
        """Number in the file of a line of the piece, both from 1."""
        if self._lines_before is None:
            self._lines_before = _lines_before(self.path, self.piece.start)
        return self._lines_before + number

    def hash_all(self) -> str:
        """SHA-256 of the piece's bytes of the file, its lines not looked at."""
        with self.path.open("rb") as file:
            if self.path.suffix in COMPRESSIONS:
                while data := file.read(BUFFER):
                    self.sha256.update(data)
            else:
                for _ in self._own(file):
                    pass
        return self.sha256.hexdigest()

    def _own(self, file: BinaryIO) -> Iterator[bytes]:
        position = self.piece.start
        if position:
            file.seek(position - 1)
            position += len(file.readline()) - 1  # a line that the piece before owns
        while position < self.piece.end and (line := file.readline()):
            position += len(line)
            self.raw_bytes += len(line)
            self.sha256.update(line)
            yield line

    def _compressed(self, file: BinaryIO) -> Iterator[bytes]:
        import pyarrow

        watched = _Watched(file, self)
        source = pyarrow.PythonFile(watched, "r")
        compression = COMPRESSIONS[self.path.suffix]
        try:
            with pyarrow.CompressedInputStream(source, compression) as stream:
                yield from io.BufferedReader(stream, DECOMPRESSED_BUFFER)
        except OSError as error:
            if error.errno is not None:
                raise
            while watched.read(BUFFER):  # for the hash of the whole file
                pass
            if "too much memory" in str(error):
                raise BadInputError(
                    0, "its zstd window is too large to be read here: compress it without --long"
                ) from error
            self.lines_read += 1  # the line in which it broke off
            raise BadInputError(
                self.lines_read,
                f"here or in the megabyte of text after it the {compression} stream is damaged or "
                f"cut off ({error})",
            ) from error


class _Watched(io.RawIOBase):
    """Tells a reader what is read from its file."""

    def __init__(self, file: BinaryIO, reader: PieceReader) -> None:
        self.file = file
        self.reader = reader

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.reader.sha256.update(data)
        self.reader.raw_bytes += len(data)
        return data


def _lines_before(path: Path, start: int) -> int:
    """Lines of a file that start before a byte, which is in the first line of the next piece."""
    count = 0
    remaining = start - 1  # a line break in the very last byte ends a line that starts before it
    with path.open("rb") as file:
        while remaining > 0 and (block := file.read(min(remaining, BUFFER))):
            count += block.count(b"\n")
            remaining -= len(block)
    return count + 1 if start else 0


def read_documents(path: Path, text_field: str) -> Iterator[Document]:
    """Yield the documents of one file, in order.

    Args:
        path: a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file.
        text_field: name of the field that holds the text.

    Raises:
        UserError: the file is empty or cut off, or a line is not a JSON object in UTF-8 with a
            string in `text_field`; names file and line.
    """
    reader = PieceReader(path.parent, Piece(path.name, 0, path.stat().st_size))
    try:
        for line in reader:
            try:
                yield document_of(line, text_field)
            except ValueError as error:
                raise BadInputError(reader.lines_read, str(error)) from error
    except BadInputError as error:
        raise UserError(where(path, error.line) + error.reason) from error


def where(path: Path | str, line: int) -> str:
    """Start of a sentence about a line, or about a file (line 0)."""
    return f"{path}, line {line}: " if line else f"{path}: "


def document_of(line: bytes, text_field: str) -> Document:
    """The document of a line.

    Raises:
        ValueError: there is none; says why.
    """
    try:
        fields = json.loads(line.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON at column {error.colno} ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON that cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON {type(fields).__name__} where an object was expected")
    if text_field not in fields:
        raise ValueError(f'no field "{text_field}"; name the text\'s field with --text-field')
    text = fields[text_field]
    if not isinstance(text, str):
        raise ValueError(f'field "{text_field}" is {type(text).__name__}, not a string')
    try:
        return Document(text, text.encode())
    except UnicodeEncodeError:
        reason = f'field "{text_field}" holds half of a surrogate pair, which is no text'
        raise ValueError(reason) from None
