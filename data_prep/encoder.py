"""Documents → token ids, fast, and held to the tokenizer's reference implementation.

gigatoken encodes; a steady share of the text is encoded by the reference too, and the first
difference stops the run. Where gigatoken is known to read a text differently, the reference's
ids are taken.
"""

from typing import NamedTuple
from zlib import crc32

import numpy as np

from data_prep.documents import Document
from data_prep.tokenizer import Tokenizer

# So many documents are encoded twice; the reference is 25 times slower than gigatoken.
CHECKED_ONE_IN = 512
# And of every part the first that is no larger, so that small corpora are not left unchecked.
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
        """The ids of each document."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1])


class Encoder:
    """Encodes the documents of a part, in batches.

    Args:
        tokenizer: the tokenizer.
        kind: "fast" for gigatoken with checks, "reference" for the reference alone.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.has_checked = False

    def encode(self, documents: list[Document]) -> Tokens:
        """Encode documents, without BOS and EOS.

        Raises:
            EncoderMismatchError: the two encoders disagree on a document.
        """
        if self.kind == "reference":
            return Tokens.of([self._reference(document) for document in documents])
        tokens = self._with_control_texts(documents, self._fast(documents))
        self._check(documents, tokens)
        return tokens

    def _reference(self, document: Document) -> np.ndarray:
        return np.array(self.tokenizer.encode(document.text), np.uint32)

    def _fast(self, documents: list[Document]) -> Tokens:
        # On the calling thread: the processes of a run compose, gigatoken's own pool would not.
        encoded = [document.data for document in documents]
        lists = self.tokenizer.fast.encode_batch(encoded, parallel=False).layout
        ends = lists.offsets.data
        return Tokens(lists.content.data[ends[0] : ends[-1]], np.diff(ends))

    def _with_control_texts(self, documents: list[Document], tokens: Tokens) -> Tokens:
        """Take the reference's ids for documents in which gigatoken found a control token.

        SentencePiece reads the spelling of one as text, gigatoken as the token itself.
        """
        places = np.flatnonzero(np.isin(tokens.ids, self.tokenizer.control_ids))
        if not len(places):
            return tokens
        found = tokens.documents()
        for number in np.unique(np.searchsorted(np.cumsum(tokens.lengths), places, side="right")):
            found[number] = self._reference(documents[number])
        return Tokens.of(found)

    def _check(self, documents: list[Document], tokens: Tokens) -> None:
        """Compare the documents that are in the sample."""
        end = 0
        for number, (document, length) in enumerate(zip(documents, tokens.lengths, strict=True)):
            start, end = end, end + length
            small = len(document.data) <= SMALL_BYTES
            if is_checked(document.data) or (small and not self.has_checked):
                self.has_checked = True
                ids, expected = tokens.ids[start:end], self._reference(document)
                if not np.array_equal(expected, ids):
                    raise EncoderMismatchError(number, _difference(ids, expected))


def is_checked(data: bytes) -> bool:
    """Whether a document is in the sample: decided by how it begins, so always the same ones."""
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


def _difference(got: np.ndarray, expected: np.ndarray) -> str:
    common = min(len(got), len(expected))
    differs = np.flatnonzero(got[:common] != expected[:common])
    place = int(differs[0]) if len(differs) else common
    ours, theirs = (ids[place : place + 4].tolist() for ids in (got, expected))
    return f"from token {place} on gigatoken gives {ours}, the reference {theirs}"
