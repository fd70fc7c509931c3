"""Reading RedPajama's jsonl form: one JSON object per line, the document in one of its fields."""

import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow

from data_prep.domains import compression_of, domain_name, is_text
from itt_composer.basics.errors import UserError

BUFFER = 1 << 20
BLOCK = 1 << 16  # of decompressed gzip
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
# A folder of the output, in object stores too.
DOMAIN_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]+")
DOMAIN_BYTES = 200  # most of its name; file systems take 255
HEAD = 1 << 16  # bytes in which the first lines show what kind of file it is
# Bytes of decompressed text: at most this much of a cut-off stream's end is lost.
DECOMPRESSED_BUFFER = 1 << 12


class BadInputError(Exception):
    """A line that does not hold a document, or a file that ends too early.

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


@dataclass(frozen=True)
class Fields:
    """The fields of a line that are read: names, or paths like `meta.source`.

    Attributes:
        text: holds the document.
        domain: names its domain; None where the folder does.
        domains: those that it may name, None for any.
    """

    text: str = "text"
    domain: str | None = None
    domains: frozenset[str] | None = None


class Document(NamedTuple):
    """One document: its text, the same in UTF-8, and its domain if the line names it."""

    text: str
    data: bytes
    domain: str | None = None


class PieceReader:
    """Lines of a piece, and the SHA-256 of the bytes of the file they were read from.

    Blank lines are passed over, but have a number. A compressed file is always one piece; then
    the hash is that of the compressed bytes.
    """

    def __init__(self, root: Path, piece: Piece) -> None:
        self.path = root / piece.file
        self.piece = piece
        self.sha256 = sha256()
        self.compression = compression_of(self.path)
        self.lines_read = 0
        self.raw_bytes = 0  # of the file, so that progress is known for compressed ones too
        self._lines_before: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines.

        Raises:
            BadInputError: the file holds nothing or no object per line, or its compressed stream
                is damaged or cut off.
        """
        has_lines = False
        problem = None if self.compression else _problem(self._head())
        with self.path.open("rb", buffering=BUFFER) as file:
            for line in () if problem else self._lines(file):
                self.lines_read += 1
                if _is_blank(line):
                    continue
                if self.compression and not has_lines and _is_odd(line):
                    problem = _problem(self._head() or line)
                    if problem:
                        break
                has_lines = True
                yield line
        if problem:
            self.hash_all()
        elif not has_lines and self.piece.end == self.path.stat().st_size:
            problem = "the file is empty: remove it or write its documents again"
        if problem and self.piece.start == 0:
            raise BadInputError(0, problem)

    def file_line(self, number: int) -> int:
        """Return the number in the file of a line of the piece; both count from 1."""
        if self._lines_before is None:
            self._lines_before = _lines_before(self.path, self.piece.start)
        return self._lines_before + number

    def hash_all(self) -> str:
        """Hash the bytes of the piece without looking at its lines; returns the SHA-256."""
        self.sha256, self.raw_bytes = sha256(), 0
        with self.path.open("rb") as file:
            if self.compression:
                while data := file.read(BUFFER):
                    self.sha256.update(data)
            else:
                for _ in self._own(file):
                    pass
        return self.sha256.hexdigest()

    def _head(self) -> bytes:
        """Return how the text begins; nothing if a compressed file is damaged there."""
        with self.path.open("rb") as file:
            if not self.compression:
                return file.read(HEAD)
            with (
                suppress(OSError, EOFError, zlib.error),
                _decompressed(file, self.compression) as stream,
            ):
                return io.BufferedReader(stream).read(HEAD)
        return b""

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        return self._compressed(file) if self.compression else self._own(file)

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
        watched = _Watched(file, self)
        try:
            with _decompressed(watched, self.compression) as stream:
                yield from io.BufferedReader(stream, DECOMPRESSED_BUFFER)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
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
                f"here or in the megabyte of text after it the {self.compression} stream is "
                f"damaged or cut off ({error})",
            ) from error


def _decompressed(file: io.IOBase, compression: str | None) -> Any:
    """Open the text of a compressed file."""
    if compression == "gzip":  # not pyarrow, which takes zeros after the last member for damage
        return _Gzip(file)
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), compression)


def _is_blank(line: bytes) -> bool:
    return line.isspace() or (line.startswith(BOM) and not line[len(BOM) :].strip())


def _problem(head: bytes) -> str | None:
    """Say why a file that begins like this does not hold an object per line; None if it may.

    Where the lines after an odd first one are objects, that line alone is broken.
    """
    if head.startswith(UTF_16):
        return "the file is UTF-16: write it in UTF-8"
    lines = io.BytesIO(head.removeprefix(BOM).lstrip()).readlines()
    if not lines or not _is_odd(lines[0]):
        return None
    whole = lines if len(head) < HEAD else lines[:-1]  # the last one may be cut
    after = [line for line in whole[1:] if not line.isspace()][:2]
    is_brace = lines[0].strip() == b"{"  # of an object over several lines, or a broken line
    if is_brace and not (after and after[0].lstrip()[:1] in (b'"', b"}")):
        return None
    if after and all(map(_is_object, after)):
        return None
    return (
        "the file is JSON that is not one object per line: write it so (the elements of a "
        "list with `jq -c '.[]'`), or move it out of the corpus"
    )


def _is_odd(first: bytes) -> bool:
    """Return whether a file with this first line may not hold an object per line."""
    line = first.removeprefix(BOM).lstrip()
    has_comma = line.endswith(b"\n") and line.rstrip().endswith(b",")
    return first.startswith(UTF_16) or line.startswith(b"[") or line.rstrip() == b"{" or has_comma


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Gzip(io.RawIOBase):
    """The text of a gzip file, held back until damage would show before the text that it spoils."""

    def __init__(self, file: Any) -> None:
        self.blocks = self._blocks(gzip.GzipFile(fileobj=file))
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.rest = self.rest or memoryview(next(self.blocks, b""))
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size

    def _blocks(self, file: gzip.GzipFile) -> Iterator[bytes]:
        held: deque[bytes] = deque()
        try:
            while block := file.read1(BLOCK):
                held.append(block)
                if len(held) > BUFFER // BLOCK:
                    yield held.popleft()
        except EOFError:  # cut off, but sound so far
            yield from held
            raise
        yield from held


class _Watched(io.RawIOBase):
    """A file that counts and hashes for a reader what is read from it."""

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
    """Count the lines of a file that start before a byte in the first line of the next piece."""
    count = 0
    remaining = start - 1  # a line break in the very last byte ends a line that starts before it
    with path.open("rb") as file:
        while remaining > 0 and (block := file.read(min(remaining, BUFFER))):
            count += block.count(b"\n")
            remaining -= len(block)
    return count + 1 if start else 0


def read_documents(path: Path, fields: Fields) -> Iterator[Document]:
    """Yield the documents of one file, in order.

    Args:
        path: a file of JSON lines, plain, `.gz` or `.zst`.
        fields: which hold the text and, if any does, the domain.

    Raises:
        UserError: the file is empty or cut off, or a line is not a JSON object in UTF-8 with
            strings in the fields; names file and line.
    """
    reader = PieceReader(path.parent, Piece(path.name, 0, path.stat().st_size))
    try:
        for line in reader:
            try:
                yield document_of(line, fields)
            except ValueError as error:
                raise BadInputError(reader.lines_read, str(error)) from error
    except BadInputError as error:
        raise UserError(where(path, error.line) + error.reason) from error


def where(path: Path | str, line: int) -> str:
    """Begin a sentence about a line, or about a file (line 0)."""
    return f"{path}, line {line}: " if line else f"{path}: "


def document_of(line: bytes, fields: Fields) -> Document:
    """Read the document of a line.

    Raises:
        ValueError: there is none; says why.
    """
    try:
        values = json.loads(line.removeprefix(BOM).rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON at column {error.colno} ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON that cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"a JSON {type(values).__name__} where an object was expected")
    text = _string(values, fields.text, "the text's field with --text-field")
    domain = None
    if fields.domain is not None:
        name = _string(values, fields.domain, "the domain's field with --domain-field")
        domain = _checked_domain(domain_name(name), fields)
    try:
        return Document(text, text.encode(), domain)
    except UnicodeEncodeError:
        reason = f'field "{fields.text}" holds half of a surrogate pair, which is not text'
        raise ValueError(reason) from None


def _string(values: dict[str, Any], name: str, what: str) -> str:
    """Return the string in a field; a name with dots may be a path."""
    found: Any = values
    for key in (name,) if name in values else name.split("."):
        if not isinstance(found, dict) or key not in found:
            raise ValueError(f'no field "{name}"; name {what}')
        found = found[key]
    if not isinstance(found, str):
        raise ValueError(f'field "{name}" is {type(found).__name__}, not a string')
    return found


def _checked_domain(name: str, fields: Fields) -> str:
    size = len(name.encode(errors="surrogatepass"))
    if not is_text(name) or not DOMAIN_NAME.fullmatch(name) or size > DOMAIN_BYTES:
        raise ValueError(f'field "{fields.domain}" is {name[:80]!r}, which cannot name a folder')
    if fields.domains is not None and name not in fields.domains:
        raise ValueError(f"the domain {name} has no share: give it one in the file of --shares")
    return name
