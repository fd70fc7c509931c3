"""Documents → token ids, fast, and held to the tokenizer's reference implementation.

gigatoken encodes; a steady share of the text is encoded by the reference too, and the first
difference stops the run. Where gigatoken is known to read a text differently, the reference's
ids are taken.
"""

from typing import NamedTuple

import numpy as np

from data_prep.tokenizer import Tokenizer

ENCODERS = ("fast", "reference")
# Share of the text that is encoded twice. The reference is 25 times slower than gigatoken.
CHECKED_SHARE = 0.002


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
    """Encodes batches of documents; keeps count of how much of the text has been checked.

    Args:
        tokenizer: the tokenizer.
        kind: "fast" for gigatoken with checks, "reference" for the reference alone.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.encoded_bytes = 0
        self.checked_bytes = 0

    def encode(self, texts: list[str]) -> Tokens:
        """Encode documents, without BOS and EOS.

        Raises:
            EncoderMismatchError: the two encoders disagree on a document.
        """
        if self.kind == "reference":
            return Tokens.of([_array(self.tokenizer.encode(text)) for text in texts])
        encoded = [text.encode() for text in texts]
        # Control tokens spelt out in a text are rare, so such documents go to the reference.
        controls = self.tokenizer.control_texts
        special = [i for i, data in enumerate(encoded) if any(text in data for text in controls)]
        tokens = self._mixed(texts, encoded, set(special)) if special else self._fast(encoded)
        self._check(texts, encoded, tokens)
        return tokens

    def _fast(self, encoded: list[bytes]) -> Tokens:
        import awkward

        # On the calling thread: the processes of a run compose, gigatoken's own pool would not.
        ragged = self.tokenizer.fast.encode_batch(encoded, parallel=False)
        ids = awkward.flatten(ragged, axis=1).to_numpy()
        return Tokens(ids, awkward.num(ragged, axis=1).to_numpy())

    def _mixed(self, texts: list[str], encoded: list[bytes], special: set[int]) -> Tokens:
        plain = [data for i, data in enumerate(encoded) if i not in special]
        remaining = iter(self._fast(plain).documents() if plain else [])
        return Tokens.of(
            [
                _array(self.tokenizer.encode(text)) if i in special else next(remaining)
                for i, text in enumerate(texts)
            ]
        )

    def _check(self, texts: list[str], encoded: list[bytes], tokens: Tokens) -> None:
        """Compare a document whenever less than the share has been compared so far."""
        end = 0
        for number, (data, length) in enumerate(zip(encoded, tokens.lengths, strict=True)):
            start, end = end, end + length
            if self.checked_bytes <= CHECKED_SHARE * self.encoded_bytes:
                self.checked_bytes += len(data)
                expected = _array(self.tokenizer.encode(texts[number]))
                if not np.array_equal(expected, tokens.ids[start:end]):
                    raise EncoderMismatchError(number, _difference(tokens.ids[start:end], expected))
            self.encoded_bytes += len(data)


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


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint32)


def _difference(got: np.ndarray, expected: np.ndarray) -> str:
    common = min(len(got), len(expected))
    differs = np.flatnonzero(got[:common] != expected[:common])
    place = int(differs[0]) if len(differs) else common
    ours, theirs = (ids[place : place + 4].tolist() for ids in (got, expected))
    return f"from token {place} on gigatoken gives {ours}, the reference {theirs}"
