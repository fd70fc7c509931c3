"""Documents → token ids, fast, and checked against the tokenizer's reference implementation.

gigatoken encodes; a steady share of the text is encoded by the reference too, and so is the line in
which a kind of character comes first; the first difference stops the run. Where gigatoken is known
to read a text differently, the reference's ids are taken.
"""

import re
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np

from data_prep.documents import Document
from data_prep.encoder_choice import NEWER_COMPOSED, is_composed_anew
from data_prep.tokenizer import Tokenizer

# So many documents are encoded twice; the reference is 25 times slower than gigatoken.
CHECKED_ONE_IN = 512
# And the first of every part that is no larger than this, so that small corpora are checked too.
SMALL_BYTES = 16_000


class EncoderMismatchError(Exception):
    """The fast encoder gave other ids than the reference.

    Attributes:
        document: index of the document in its batch.
    """

    def __init__(self, document: int, reason: str) -> None:
        super().__init__(reason)
        self.document = document


class Tokens(NamedTuple):
    """Ids of several documents in a row.

    Attributes:
        ids: (tokens,), uint32.
        lengths: (documents,), int64, tokens of each.
    """

    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, documents: list[np.ndarray]) -> "Tokens":
        """Put documents in a row."""
        ids = np.concatenate(documents) if documents else np.empty(0, np.uint32)
        return cls(ids, np.array([len(document) for document in documents], np.int64))

    def documents(self) -> list[np.ndarray]:
        """Return the ids of each document."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1])


class Encoder:
    """Encodes the documents of a part, in batches.

    Args:
        tokenizer: the tokenizer.
        kind: "fast" for gigatoken with checks, "reference" for the reference alone.

    Attributes:
        special_tokens: names of special tokens that were met in documents.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.has_checked = False
        self.special_tokens = 0
        self._special_ids = list(tokenizer.special.values())
        self._is_composed = kind == "fast" and is_composed_anew(tokenizer)
        self._is_met = np.zeros(128 + 0x110000 // 64, bool)  # see `_first_places`

    def encode(self, documents: list[Document]) -> Tokens:
        """Encode documents, without BOS and EOS.

        Raises:
            EncoderMismatchError: the two encoders disagree on a document.
        """
        if self.kind == "reference":
            self.special_tokens += sum(map(self._count_names, documents))
            return Tokens.of([self._reference(document) for document in documents])
        tokens = self._fast(documents)
        named = self._with_special_tokens(tokens)
        self.special_tokens += sum(self._count_names(documents[number]) for number in named)
        tokens = self._exact(documents, tokens, named)
        self._check(documents, tokens)
        return tokens

    def _reference(self, document: Document) -> np.ndarray:
        return np.array(self.tokenizer.encode(document.text), np.uint32)

    def _fast(self, documents: list[Document]) -> Tokens:
        # On the calling thread: a run has processes of its own, and gigatoken's pool would compete.
        encoded = [document.data for document in documents]
        lists = self.tokenizer.fast.encode_batch(encoded, parallel=False).layout
        ends = lists.offsets.data
        return Tokens(lists.content.data[ends[0] : ends[-1]], np.diff(ends))

    def _with_special_tokens(self, tokens: Tokens) -> list[int]:
        """Return the numbers of the documents in which gigatoken found special tokens."""
        places = np.flatnonzero(np.isin(tokens.ids, self._special_ids))
        return np.unique(np.searchsorted(np.cumsum(tokens.lengths), places, side="right")).tolist()

    def _exact(self, documents: list[Document], tokens: Tokens, named: list[int]) -> Tokens:
        """Take the reference's ids where gigatoken's are known to differ.

        The name of a special token is text to the reference (but for `--special-tokens token`),
        and to gigatoken the token. And NFC composes what a newer Unicode composes.
        """
        differ = set(named) if self.tokenizer.special_tokens == "text" else set()
        if self._is_composed:
            data = (document.data for document in documents)
            differ |= {number for number, d in enumerate(data) if NEWER_COMPOSED.search(d)}
        if not differ:
            return tokens
        found = tokens.documents()
        for number in differ:
            found[number] = self._reference(documents[number])
        return Tokens.of(found)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        """A pattern that finds the names of special tokens, the longest first."""
        names = sorted(self.tokenizer.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def _count_names(self, document: Document) -> int:
        return len(self._names.findall(document.text))

    def _check(self, documents: list[Document], tokens: Tokens) -> None:
        """Compare the documents that are in the sample, and lines with new kinds of characters."""
        end = 0
        for number, (document, length) in enumerate(zip(documents, tokens.lengths, strict=True)):
            start, end = end, end + length
            small = len(document.data) <= SMALL_BYTES
            if is_checked(document.data) or (small and not self.has_checked):
                self.has_checked = True
                self._compare(number, "token", tokens.ids[start:end], document)
        numbers, lines = self._lines_with_new_characters(documents)
        if not lines:
            return
        fast = self._fast(lines)
        exact = self._exact(lines, fast, self._with_special_tokens(fast)).documents()
        for number, line, ids in zip(numbers, lines, exact, strict=True):
            self._compare(number, f"{line.text!r}: token", ids, line)

    def _compare(self, number: int, what: str, ids: np.ndarray, document: Document) -> None:
        expected = self._reference(document)
        if not np.array_equal(expected, ids):
            raise EncoderMismatchError(number, _difference(what, ids, expected))

    def _lines_with_new_characters(
        self, documents: list[Document]
    ) -> tuple[list[int], list[Document]]:
        """Find the lines where kinds of characters appear first, and their documents' numbers."""
        data = [document.data for document in documents]
        ends = np.cumsum([len(one) for one in data])
        places = _first_places(np.frombuffer(b"".join(data), np.uint8), self._is_met)
        numbers = np.searchsorted(ends, places, side="right").tolist()
        lines = [
            _line_around(data[number], place - int(ends[number]) + len(data[number]))
            for number, place in zip(numbers, places, strict=True)
        ]
        return numbers, [Document(line.decode(), line) for line in lines]


def _first_places(text: np.ndarray, is_met: np.ndarray) -> list[int]:
    """Find where kinds of characters appear for the first time, and mark them as met.

    Args:
        text: (bytes,), UTF-8.
        is_met: (128 + 0x110000 // 64,), bool: each ASCII character, then blocks of 64 code points.
    """
    leads = np.flatnonzero(text >= 0xC0)
    first, second, third = (
        text[np.minimum(leads + n, len(text) - 1)].astype(np.int64) for n in range(3)
    )
    two, three = first & 0x1F, (first & 0x0F) << 6 | second & 0x3F
    four = (first & 0x07) << 12 | (second & 0x3F) << 6 | third & 0x3F
    blocks = 128 + np.where(first < 0xE0, two, np.where(first < 0xF0, three, four))
    new = np.flatnonzero(~is_met[blocks])
    kinds, at = np.unique(blocks[new], return_index=True)
    ascii_met = np.flatnonzero(np.bincount(text, minlength=256)[:128])
    letters = ascii_met[~is_met[ascii_met]]
    is_met[kinds], is_met[letters] = True, True
    return [*leads[new[at]].tolist(), *(int(np.argmax(text == letter)) for letter in letters)]


def _line_around(text: bytes, place: int) -> bytes:
    """Return the line around a byte of a text, cut to about 100 bytes on each side."""
    start = max(text.rfind(b"\n", 0, place) + 1, place - 100)
    end = text.find(b"\n", place + 1)
    line = text[start : min(len(text) if end < 0 else end + 1, place + 100)]
    return line.decode(errors="ignore").encode()


def is_checked(data: bytes) -> bool:
    """Return whether a document is in the sample; its beginning decides, so always the same."""
    return crc32(data[:256]) % CHECKED_ONE_IN == 0


def join_documents(tokens: Tokens, bos_id: int | None, eos_id: int) -> np.ndarray:
    """Put BOS before and EOS after each document: (tokens + 1 or 2 per document,), uint32."""
    before = 0 if bos_id is None else 1
    lengths = tokens.lengths + before + 1
    ends = np.cumsum(lengths)
    joined = np.empty(int(ends[-1]) if len(ends) else 0, np.uint32)
    is_text = np.ones(len(joined), bool)
    is_text[ends - 1] = False
    joined[ends - 1] = eos_id
    if bos_id is not None:
        is_text[ends - lengths] = False
        joined[ends - lengths] = bos_id
    joined[is_text] = tokens.ids
    return joined


def _difference(what: str, got: np.ndarray, expected: np.ndarray) -> str:
    common = min(len(got), len(expected))
    differs = np.flatnonzero(got[:common] != expected[:common])
    place = int(differs[0]) if len(differs) else common
    ours, theirs = (ids[place : place + 4].tolist() for ids in (got, expected))
    return f"from {what} {place} on gigatoken gives {ours}, the reference {theirs}"
