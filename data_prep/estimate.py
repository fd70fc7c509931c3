"""How many tokens a corpus has, about: from a few documents of every domain."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data_prep.budgets import Budgets, validation_share_needed
from data_prep.documents import BadInputError, Piece, PieceReader, document_of
from data_prep.tokenizer import Tokenizer

FILES = 8
DOCUMENTS_PER_FILE = 8
BYTES_PER_FILE = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """Of one domain.

    Attributes:
        tokens: in all.
        lengths: (documents,), tokens of the documents looked at.
    """

    tokens: float
    lengths: np.ndarray


def estimate(root: Path, files: list[Path], text_field: str, tokenizer: Tokenizer) -> Estimate:
    """Estimate a domain from the first documents of a few of its files, bad lines passed over."""
    chosen = files[:: max(1, len(files) // FILES)][:FILES]
    sizes = {path: path.stat().st_size for path in files}
    read_bytes, lengths = 0.0, []
    for path in chosen:
        reader = PieceReader(root, Piece(path.relative_to(root).as_posix(), 0, sizes[path]))
        line_bytes = 0
        try:
            for line in islice(reader, DOCUMENTS_PER_FILE):
                line_bytes += len(line)
                try:
                    text = document_of(line, text_field).text
                except ValueError:
                    continue
                lengths.append(len(tokenizer.encode(text)) + 2)
                if line_bytes > BYTES_PER_FILE:
                    break
        except BadInputError:
            pass
        # Of a compressed file more has been read than was looked at, so this is the lower bound.
        read_bytes += line_bytes if path.suffix == ".jsonl" else min(line_bytes, reader.raw_bytes)
    total = sum(sizes.values())
    tokens = sum(lengths) / read_bytes * total if read_bytes else 0.0
    return Estimate(tokens, np.array(lengths, np.int64))


def validation_threshold(
    estimates: dict[str, Estimate], budgets: Budgets, seq_len: int, largest: float
) -> float:
    """Share of all documents, the same in every domain, that holds every validation budget.

    One share for all domains, so that a document that lies in two of them is on one side.

    Args:
        estimates: of each domain.
        budgets: with limits for "validation" and, it may be, for "train".
        seq_len: ids per row.
        largest: the most it may be.
    """
    needed = []
    for domain, found in estimates.items():
        wanted = (budgets.limit("validation", domain) or 0) * seq_len
        train = budgets.limit("train", domain)
        available = found.tokens
        if train is not None:
            available = min(available, train * seq_len + wanted)
        needed.append(validation_share_needed(wanted, available, found.lengths))
    return min(largest, max(needed))
