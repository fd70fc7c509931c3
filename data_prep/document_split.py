"""Train or validation: decided per document by a hash of its text alone.

The decision depends neither on the order of documents nor on their files, the machine or the
number of processes, and two identical documents always land on the same side.
"""

from hashlib import blake2b

SPLITS = ("train", "validation")


def document_fraction(text: str | bytes) -> float:
    """Map a document's text, or its UTF-8, to a fraction in [0, 1), uniformly and stable forever.

    The fraction is made of the first 53 bits of BLAKE2b-64 of the UTF-8 text, all that a float
    holds exactly, so it is always below 1.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate and so has no UTF-8 form.
    """
    data = text.encode() if isinstance(text, str) else text
    digest = blake2b(data, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def split_of(text: str | bytes, validation_share: float) -> str:
    """Return "validation" for a share (0..1) of all possible texts, "train" for the others."""
    return "validation" if document_fraction(text) < validation_share else "train"
