"""Estimates how many tokens a corpus has, from a few documents of every domain."""

from dataclasses import dataclass
from itertools import islice
from math import sqrt
from pathlib import Path

import numpy as np

from data_prep.budgets import Budgets, validation_share_needed
from data_prep.documents import BadInputError, Fields, Piece, PieceReader, document_of
from data_prep.tokenizer import Tokenizer

FILES = 8
DOCUMENTS_PER_FILE = 8
MIXED_DOCUMENTS_PER_FILE = 64  # where a file holds several domains
BYTES_PER_FILE = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """How many tokens one domain has.

    Attributes:
        tokens: in all.
        lengths: (documents,), tokens of the documents looked at.
    """

    tokens: float
    lengths: np.ndarray


def estimate(
    root: Path, source: str, files: list[Path], fields: Fields, tokenizer: Tokenizer
) -> dict[str, Estimate]:
    """Estimate the domains of a source from the first documents of a few of its files.

    Bad lines are passed over. Where lines name their domain, the few that name one of several
    say less of it, so the estimate is the lower end of what they suggest.
    """
    chosen = files[:: max(1, len(files) // FILES)][:FILES]
    sizes = {path: path.stat().st_size for path in files}
    documents = DOCUMENTS_PER_FILE if fields.domain is None else MIXED_DOCUMENTS_PER_FILE
    read_bytes = 0.0
    lengths: dict[str, list[int]] = {}
    for path in chosen:
        reader = PieceReader(root, Piece(path.relative_to(root).as_posix(), 0, sizes[path]))
        line_bytes = 0
        try:
            for line in islice(reader, documents):
                line_bytes += len(line)
                try:
                    document = document_of(line, fields)
                except ValueError:
                    continue
                length = len(tokenizer.encode(document.text)) + 2
                lengths.setdefault(document.domain or source, []).append(length)
                if line_bytes > BYTES_PER_FILE:
                    break
        except BadInputError:
            pass
        # More of a compressed file was read than was looked at, so this is the lower bound.
        read_bytes += line_bytes if not reader.compression else min(line_bytes, reader.raw_bytes)
    total = sum(sizes.values())
    found = {}
    for domain in lengths if fields.domain else [source]:
        own = np.array(lengths.get(domain, []), np.int64)
        tokens = own.sum() / read_bytes * total if read_bytes else 0.0
        doubt = 1 + 2 / sqrt(len(own)) if fields.domain else 1.0
        found[domain] = Estimate(tokens / doubt, own)
    return found


def validation_threshold(
    estimates: dict[str, Estimate], budgets: Budgets, seq_len: int, largest: float
) -> float:
    """Choose one share of all documents that is large enough for every validation budget.

    It is the same in every domain, so that a document that lies in two of them is on one side.

    Args:
        estimates: of each domain there is; one with a budget and without text is passed over.
        budgets: with limits for "validation" and, it may be, for "train".
        seq_len: ids per row.
        largest: the most it may be; what is given where no document was read.
    """
    needed = []
    for domain, found in estimates.items():
        wanted = (budgets.limit("validation", domain) or 0) * seq_len
        train = budgets.limit("train", domain)
        available = found.tokens
        if train is not None:
            available = min(available, train * seq_len + wanted)
        needed.append(validation_share_needed(wanted, available, found.lengths))
    return min(largest, max(needed, default=1.0))
