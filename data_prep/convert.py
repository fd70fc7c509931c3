"""`convert`: jsonl to MDS shards of fixed-length token rows, one stream per domain and split."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.documents import Document, find_domains, read_documents
from data_prep.manifest import (
    already_complete,
    complete_folder,
    fingerprint_files,
    is_inside,
    write_manifest,
)
from data_prep.split import SPLITS, split_of
from data_prep.tokenizer import MODEL_FILE, Tokenizer, copy_tokenizer, load_tokenizer
from itt_composer.errors import UserError

if TYPE_CHECKING:
    from streaming import MDSWriter

COLUMN = "input_ids"


@dataclass
class Counts:
    """What became of the documents of one domain in one split.

    `tokens` counts the ids in rows, BOS and EOS included; `dropped_tokens` the tail that did not
    fill the last row.
    """

    documents: int = 0
    characters: int = 0
    utf8_bytes: int = 0
    tokens: int = 0
    dropped_tokens: int = 0
    rows: int = 0


class RowStream:
    """Packs documents into rows of exactly `seq_len` ids and writes them to one MDS stream.

    The folder appears with the first row: a stream without rows has none.
    """

    def __init__(self, folder: Path, seq_len: int, dtype: str) -> None:
        self.folder = folder
        self.seq_len = seq_len
        self.dtype = dtype
        self.counts = Counts()
        self.remainder = np.empty(0, dtype)  # (fewer than seq_len,)
        self.writer: MDSWriter | None = None

    def add(self, document: Document, ids: list[int]) -> None:
        """Append a document's ids, BOS and EOS included; what fills no row waits for the next."""
        self.counts.documents += 1
        self.counts.characters += len(document.text)
        self.counts.utf8_bytes += document.utf8_bytes
        tokens = np.concatenate([self.remainder, np.array(ids, self.dtype)])
        filled = len(tokens) // self.seq_len * self.seq_len
        for row in tokens[:filled].reshape(-1, self.seq_len):
            self._write(row)
        self.remainder = tokens[filled:]

    def finish(self) -> Counts:
        """Close the stream, drop the remainder, and return the counts."""
        if self.writer:
            self.writer.finish()
        self.counts.dropped_tokens = len(self.remainder)
        return self.counts

    def _write(self, row: np.ndarray) -> None:
        if self.writer is None:
            # Imported here because it imports torch.
            from streaming import MDSWriter

            columns = {COLUMN: f"ndarray:{self.dtype}:{self.seq_len}"}
            self.writer = MDSWriter(out=str(self.folder), columns=columns, hashes=["sha256"])
        self.writer.write({COLUMN: row})
        self.counts.rows += 1
        self.counts.tokens += self.seq_len


def convert(
    root: Path,
    out: Path,
    tokenizer_path: Path,
    seq_len: int,
    validation_share: float,
    text_field: str,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any] | None:
    """Convert `root/<domain>/**/*.jsonl` into `out/{train,validation}/<domain>` MDS streams.

    Args:
        root: folder with a folder per domain.
        out: folder to make; appears only when it is complete.
        tokenizer_path: a SentencePiece `.model` file or a folder with `tokenizer.model`.
        seq_len: ids per row.
        validation_share: share (0..1) of documents that `split_of` puts into validation.
        text_field: name of the field that holds the text.
        on_progress: called after each document with the input bytes done and in all.

    Returns:
        The manifest, or None when `out` already held this output.

    Raises:
        UserError: bad input, no training rows, or `out` holds something else.
    """
    if is_inside(out, root):
        raise UserError(f"--out {out} lies inside the input {root}: choose a folder outside it")
    tokenizer = load_tokenizer(tokenizer_path)
    domains = find_domains(root)
    processor = tokenizer.processor
    dtype = "uint16" if processor.vocab_size() < 1 << 16 else "uint32"
    recipe = {
        "command": "convert",
        "seq_len": seq_len,
        "dtype": dtype,
        "vocab_size": processor.vocab_size(),
        "bos_id": processor.bos_id(),
        "eos_id": processor.eos_id(),
        "validation_share": validation_share,
        "text_field": text_field,
        "tokenizer": {"file": f"tokenizer/{MODEL_FILE}", "sha256": tokenizer.sha256},
        "inputs": fingerprint_files(root, [path for paths in domains.values() for path in paths]),
    }
    if already_complete(out, recipe):
        return None
    total = sum(entry["bytes"] for entry in recipe["inputs"].values())
    splits: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    with complete_folder(out) as folder:
        copy_tokenizer(tokenizer, folder / "tokenizer")
        done = 0
        for domain, paths in domains.items():
            streams = {s: RowStream(folder / s / domain, seq_len, dtype) for s in SPLITS}
            for document in (d for path in paths for d in read_documents(path, text_field)):
                split = split_of(document.text, validation_share)
                streams[split].add(document, _encode(tokenizer, document.text))
                done += document.line_bytes
                on_progress(done, total)
            for split, stream in streams.items():
                splits[split][domain] = asdict(stream.finish())
        totals = {split: _sum(domains.values()) for split, domains in splits.items()}
        if totals["train"]["rows"] == 0:
            raise UserError(
                f"{root} fills no training row of {seq_len} tokens: "
                "lower --seq-len or --validation-share, or add text"
            )
        return write_manifest(folder, recipe, {"splits": splits, "totals": totals})


def empty_streams(manifest: dict[str, Any]) -> list[str]:
    """Name each split/domain that was asked for but got no rows, so it has no stream."""
    asked = SPLITS if manifest["validation_share"] > 0 else ("train",)
    return [
        f"{split}/{domain}"
        for split in asked
        for domain, counts in manifest["splits"][split].items()
        if counts["rows"] == 0
    ]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    processor = tokenizer.processor
    return [processor.bos_id(), *processor.encode(text), processor.eos_id()]


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter(asdict(Counts()))
    for domain in counts:
        total.update(domain)
    return dict(total)
