"""One part of a corpus → rows of token ids: what every engine runs on every worker."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.document_split import SPLITS, split_of
from data_prep.documents import (
    BadInputError,
    Document,
    Fields,
    Piece,
    PieceReader,
    document_of,
    where,
)
from data_prep.encoder import Encoder, EncoderMismatchError, Tokens, join_documents
from data_prep.part_plan import Part
from data_prep.part_record import PartRecord, Reject, SplitCounts
from data_prep.shard_writing import RowPacker, ShardOptions
from data_prep.tokenizer import Tokenizer
from itt_composer.basics.errors import UserError

# Lines that are held, decoded and encoded together. The memory of a worker follows from it.
BATCH_BYTES = 2_000_000
MOST_DOMAINS = 1000  # that lines may name


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know besides its part.

    Attributes:
        root: the corpus.
        fields: of a line.
        validation_share: share of documents, by a hash of their text, that is for validation.
        tokenizer: the tokenizer.
        encoder: "fast" or "reference".
        skip_bad_lines: reject them; else stop at the first.
        shards: how rows are stored.
    """

    root: Path
    fields: Fields
    validation_share: float
    tokenizer: Tokenizer
    encoder: str
    skip_bad_lines: bool
    shards: ShardOptions


class RowBlock(NamedTuple):
    """Rows of a domain and split, in order: (rows, seq_len)."""

    domain: str
    split: str
    rows: np.ndarray


class Progress(NamedTuple):
    """What was done since the last one: bytes of the input files, documents, ids."""

    input_bytes: int
    documents: int
    tokens: int


def convert_part(
    part: Part,
    settings: Settings,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Iterator[RowBlock | PartRecord]:
    """Yield the rows of a part, split by split as they fill, and at last its record.

    Raises:
        UserError: a bad line that is not to be skipped, or an encoder that errs; names file and
            line.
    """
    conversion = _Conversion(part, settings, on_progress)
    for piece in part.pieces:
        yield from conversion.piece(piece)
    yield conversion.finish()


class _Line(NamedTuple):
    """A document and the number of its line in the piece, from 1."""

    number: int
    document: Document


class _Conversion:
    """The state of one part: packers, encoder, counts."""

    def __init__(
        self, part: Part, settings: Settings, on_progress: Callable[[Progress], None]
    ) -> None:
        self.part = part
        self.settings = settings
        self.on_progress = on_progress
        self.encoder = Encoder(settings.tokenizer, settings.encoder)
        self.packers: dict[str, dict[str, RowPacker]] = {}
        self.record = PartRecord(part.source, part.index)
        if settings.fields.domain is None:
            self._add_domain(part.source)
        self.reported_bytes = 0  # of the piece's file, by on_progress

    def piece(self, piece: Piece) -> Iterator[RowBlock]:
        """Convert one piece, batch by batch."""
        reader = PieceReader(self.settings.root, piece)
        for batch in self._batches(reader):
            read, documents, tokens = reader.raw_bytes, 0, 0
            for (domain, split), lines in self._by_stream(reader, batch).items():
                ids, count = self._encode(reader, domain, split, lines)
                documents, tokens = documents + count, tokens + len(ids)
                rows = self.packers[domain][split].add(ids)
                self.record.domains[domain][split].rows += len(rows)
                yield RowBlock(domain, split, rows)
            self.on_progress(Progress(read - self.reported_bytes, documents, tokens))
            self.reported_bytes = read
        self.on_progress(Progress(reader.raw_bytes - self.reported_bytes, 0, 0))
        self.reported_bytes = 0
        self.record.lines += reader.lines_read
        self.record.inputs.append(asdict(piece) | {"sha256": reader.sha256.hexdigest()})

    def finish(self) -> PartRecord:
        """Put the tails into the record and return it."""
        self.record.tails = {
            domain: {split: packer.tail for split, packer in packers.items()}
            for domain, packers in self.packers.items()
        }
        self.record.special_tokens = self.encoder.special_tokens
        return self.record

    def _add_domain(self, domain: str) -> None:
        shards = self.settings.shards
        self.packers[domain] = {s: RowPacker(shards.seq_len, shards.dtype) for s in SPLITS}
        self.record.domains[domain] = {split: SplitCounts() for split in SPLITS}

    def _batches(self, reader: PieceReader) -> Iterator[list[_Line]]:
        """Yield the documents of a piece in batches, bad lines rejected."""
        batch: list[_Line] = []
        size = 0
        try:
            for line in reader:
                try:
                    document = document_of(line, self.settings.fields)
                except ValueError as error:
                    self._reject(reader, reader.lines_read, str(error))
                    continue
                batch.append(_Line(reader.lines_read, document))
                size += len(line)
                if size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        except BadInputError as error:
            self._reject(reader, error.line, error.reason)
            self.record.cut_files.append(reader.piece.file)
        if batch:
            yield batch

    def _by_stream(
        self, reader: PieceReader, batch: list[_Line]
    ) -> dict[tuple[str, str], list[_Line]]:
        """Sort lines by domain and split."""
        lines: dict[tuple[str, str], list[_Line]] = {}
        for line in batch:
            domain = line.document.domain or self.part.source
            if domain not in self.packers:
                if len(self.packers) == MOST_DOMAINS:
                    raise UserError(
                        f"{where(reader.path, reader.file_line(line.number))}more than "
                        f'{MOST_DOMAINS:,} domains so far: "{self.settings.fields.domain}" is not '
                        "a field that names a domain; give another --domain-field"
                    )
                self._add_domain(domain)
            split = split_of(line.document.data, self.settings.validation_share)
            lines.setdefault((domain, split), []).append(line)
        return lines

    def _encode(
        self, reader: PieceReader, domain: str, split: str, lines: list[_Line]
    ) -> tuple[np.ndarray, int]:
        """Encode documents, with BOS and EOS, and return the ids and the number of documents."""
        tokenizer = self.settings.tokenizer
        try:
            tokens = self.encoder.encode([line.document for line in lines])
        except EncoderMismatchError as error:
            place = where(reader.path, reader.file_line(lines[error.document].number))
            raise UserError(
                f"{place}{error}: delete the unfinished output and run again with "
                "--encoder reference"
            ) from error
        if len(tokens.ids) and tokens.ids.max() >= tokenizer.vocab_size:
            lines, tokens = self._without_unknown_ids(reader, lines, tokens)
        counts = self.record.domains[domain][split]
        counts.documents += len(lines)
        counts.characters += sum(len(line.document.text) for line in lines)
        counts.utf8_bytes += sum(len(line.document.data) for line in lines)
        ids = join_documents(tokens, tokenizer.bos_id, tokenizer.eos_id)
        counts.tokens += len(ids)
        return ids, len(lines)

    def _without_unknown_ids(
        self, reader: PieceReader, lines: list[_Line], tokens: Tokens
    ) -> tuple[list[_Line], Tokens]:
        """Reject documents with an id that the tokenizer does not have."""
        kept = []
        size = self.settings.tokenizer.vocab_size
        for line, ids in zip(lines, tokens.documents(), strict=True):
            if len(ids) and ids.max() >= size:
                reason = f"encoded to the id {ids.max()}, but the tokenizer has {size} ids"
                self._reject(reader, line.number, reason)
            else:
                kept.append((line, ids))
        return [line for line, _ in kept], Tokens.of([ids for _, ids in kept])

    def _reject(self, reader: PieceReader, number: int, reason: str) -> None:
        """Leave out a line of the piece (from 1; 0: the file), or stop at it."""
        line = reader.file_line(number) if number else 0
        if not self.settings.skip_bad_lines:
            raise UserError(where(reader.path, line) + reason)
        self.record.rejects.append(Reject(reader.piece.file, line, reason))
