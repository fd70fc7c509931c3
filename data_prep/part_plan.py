"""Parts: what one worker converts at a time, defined by the input alone.

Small files of a source are put together until they reach the part size; a larger plain file is
cut into ranges of that size, at line starts. A compressed file is never cut. So the
parts, and with them the shards, do not depend on the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

from data_prep.documents import Piece
from data_prep.domains import compression_of

# A compressed byte is counted as this many of text.
TEXT_PER_COMPRESSED_BYTE = 3


@dataclass(frozen=True)
class Part:
    """Pieces of one source that are converted together.

    Attributes:
        source: the domain, or `MIXED`.
        index: place among the parts of the source, from 0.
        pieces: in the order of conversion.
    """

    source: str
    index: int
    pieces: tuple[Piece, ...]

    @property
    def input_bytes(self) -> int:
        """Bytes of the input files, as they lie on disk."""
        return sum(piece.end - piece.start for piece in self.pieces)

    @property
    def text_bytes(self) -> int:
        """Approximate bytes of text in them."""
        return sum(_text_bytes(piece) for piece in self.pieces)

    @property
    def name(self) -> str:
        """Folder of its shards below `split/domain`."""
        return f"{self.index:05}"


def plan_parts(
    root: Path, sources: dict[str, list[Path]], part_bytes: int, spread: bool
) -> dict[str, list[Part]]:
    """Cut the files of every source into parts.

    Args:
        root: the corpus.
        sources: files by source, in order.
        part_bytes: text of a part, about.
        spread: order the parts of a source by a hash of where they start, so that the first of
            them are a fair sample of it; else as in the input.
    """
    plan = {}
    for source, files in sources.items():
        sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
        pieces = [p for file, size in sizes.items() for p in pieces_of(file, size, part_bytes)]
        groups = list(_groups(pieces, part_bytes))
        if spread:
            groups.sort(key=_place)
        plan[source] = [Part(source, index, pieces) for index, pieces in enumerate(groups)]
    return plan


def pieces_of(file: str, size: int, part_bytes: int) -> list[Piece]:
    """Cut a file, by its path below the corpus and its size, into ranges; or not at all.

    They begin at multiples of the part size, so that a line mended near the end of a file does
    not move them; the last one has half to one and a half of it.
    """
    count = 1 if compression_of(Path(file)) else max(1, round(size / part_bytes))
    bounds = [*(part_bytes * number for number in range(count)), size]
    return [Piece(file, *ends) for ends in pairwise(bounds)]


def _groups(pieces: list[Piece], part_bytes: int) -> Iterator[tuple[Piece, ...]]:
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        text = _text_bytes(piece)
        if group and size + text > 1.5 * part_bytes:
            yield tuple(group)
            group, size = [], 0
        group.append(piece)
        size += text
        if size >= part_bytes:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _text_bytes(piece: Piece) -> int:
    factor = TEXT_PER_COMPRESSED_BYTE if compression_of(Path(piece.file)) else 1
    return (piece.end - piece.start) * factor


def _place(pieces: tuple[Piece, ...]) -> bytes:
    first = pieces[0]
    return blake2b(f"{first.file}:{first.start}".encode(), digest_size=8).digest()
