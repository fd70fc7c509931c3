"""Takes the rows and documents of a split that an analysis looks at."""

from pathlib import Path
from typing import Any

from torch import Tensor

from itt_composer.basics.errors import UserError
from itt_composer.data.manifest import Manifest
from itt_composer.data.stored_rows import StoredRows, batches_of, sample_of_split

SPLIT = "validation"


def open_shards(folder: Path) -> Manifest:
    """Read the manifest of shards that have validation rows.

    Raises:
        UserError: there are no shards, or none with validation rows.
    """
    manifest = Manifest.read(folder)
    if not manifest.rows(SPLIT):
        raise UserError(f"the shards in {folder} have no rows in their split {SPLIT!r}")
    return manifest


def validation_batches(folder: Path, rows: int, batch_size: int) -> list[dict[str, Tensor]]:
    """Draw a random sample of the validation rows, of all domains in proportion, in batches.

    Args:
        folder: of shards.
        rows: how many; all if there are fewer.
        batch_size: rows per batch.
    """
    every, sample = sample_of_split(folder / SPLIT, rows)
    return list(batches_of(every, sample, batch_size))


def document_beginning(folder: Path, manifest: Manifest, longest: int) -> tuple[str, list[int]]:
    """Return the first validation document of the domain with most rows, cut at its row's end.

    Args:
        folder: of shards.
        manifest: of these shards.
        longest: most tokens.

    Returns:
        A name that says which document it is, and its tokens.
    """
    domains = manifest.rows(SPLIT)
    domain = max(domains, key=lambda name: domains[name])
    ids = StoredRows(folder / SPLIT / domain)[0]["input_ids"].tolist()
    document = first_document(ids, manifest.bos_id, manifest.eos_id)
    return f"first validation document of {domain}", document[:longest]


def positions_of(config: Any, tokenizer: Any) -> int:
    """Return how many tokens a model takes; without a limit (BLOOM), its tokenizer's number."""
    return getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length


def first_document(ids: list[int], bos: int | None, eos: int | None) -> list[int]:
    """Return a row's tokens up to its second document, which begins at BOS or after EOS."""
    if bos is not None:
        return ids[: ids.index(bos, 1)] if bos in ids[1:] else ids
    return ids[: ids.index(eos) + 1] if eos is not None and eos in ids else ids
