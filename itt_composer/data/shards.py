"""What a folder of shards holds, read from its manifest; checked before training starts."""

import json
from pathlib import Path
from typing import Any

from itt_composer.errors import UserError

SPLITS = ("train", "validation")
NEEDED_KEYS = {"seq_len", "vocab_size", "splits", "totals"}
HOW_TO_MAKE = "make shards with `python -m data_prep convert`"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The `manifest.json` that `data_prep convert` wrote into `folder`.

    Raises:
        UserError: the folder is missing or holds no readable manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"data folder {folder} is not there; {HOW_TO_MAKE}")
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"data folder {folder} has no manifest.json; {HOW_TO_MAKE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {HOW_TO_MAKE} again") from None
    if not isinstance(manifest, dict) or not manifest.keys() >= NEEDED_KEYS:
        raise UserError(f"{path} does not describe shards; {HOW_TO_MAKE}")
    return manifest


def domains_with_rows(manifest: dict[str, Any], split: str) -> dict[str, int]:
    """Rows of each domain of a split, domains without rows left out."""
    domains = manifest["splits"].get(split, {})
    return {name: counts["rows"] for name, counts in domains.items() if counts["rows"]}


def check_shards(
    folder: str | Path,
    seq_len: int,
    vocab_size: int,
    domains: dict[str, float] | None,
    batch_size: int,
) -> None:
    """Refuse shards that do not fit the recipe.

    Args:
        folder: where the manifest lies.
        seq_len: tokens per row that the recipe asks for.
        vocab_size: ids of the model.
        domains: shares by name, or None for every domain there is.
        batch_size: rows of one training step, over all ranks.

    Raises:
        UserError: the sentence names the folder and what differs.
    """
    manifest = read_manifest(folder)
    if manifest["seq_len"] != seq_len:
        raise UserError(
            f"data folder {folder} holds rows of {manifest['seq_len']} tokens, but the recipe has "
            f"data.seq_len={seq_len}; set it to {manifest['seq_len']} or convert again"
        )
    if manifest["vocab_size"] > vocab_size:
        raise UserError(
            f"data folder {folder} was made with a tokenizer of {manifest['vocab_size']} ids, but "
            f"the recipe has model.vocab_size={vocab_size}; set it to {manifest['vocab_size']}"
        )
    present = domains_with_rows(manifest, "train")
    for domain in domains or {}:
        if domain not in present:
            raise UserError(
                f"data folder {folder} has no training rows of the domain {domain!r} that "
                f"data.domains names; it has {', '.join(present) or 'none'}"
            )
    rows = sum(present[domain] for domain in domains or present)
    if rows < batch_size:
        raise UserError(
            f"data folder {folder} has {rows} training rows, fewer than one batch of "
            f"train.global_batch_size={batch_size}; lower it or convert more text"
        )
    if not domains_with_rows(manifest, "validation"):
        raise UserError(
            f"data folder {folder} has no validation rows; convert again with a larger "
            "--validation-share or more text"
        )
    for split in SPLITS:
        for domain in domains_with_rows(manifest, split):
            index = Path(folder) / split / domain / "index.json"
            if not index.is_file():
                raise UserError(f"{index} is missing; {HOW_TO_MAKE} again")
