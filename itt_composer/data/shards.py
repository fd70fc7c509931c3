"""Do shards fit a recipe or a model? Checked from their manifest and indexes before work starts."""

from pathlib import Path
from typing import TYPE_CHECKING

from itt_composer.basics.errors import Mistakes, UserError
from itt_composer.data.fingerprints import DamageError
from itt_composer.data.index import INDEX, ShardIndex
from itt_composer.data.manifest import HOW_TO_MAKE, Manifest

if TYPE_CHECKING:
    from itt_composer.recipe.schema import DataRecipe


def check_shards_of(data: "DataRecipe", vocab_size: int, batch_size: int) -> None:
    """Run `check_shards` for a recipe's data section, and name the key that named the shards.

    Raises:
        UserError: one sentence per misfit.
    """
    try:
        check_shards(data.local, data.seq_len, vocab_size, data.domains, batch_size, data.tokenizer)
    except UserError as error:
        place = f"data.local={data.local}" if data.remote is None else f"data.remote={data.remote}"
        lines = str(error).splitlines()
        raise UserError("\n".join(f"{place}: {line}" for line in lines)) from None


def check_shards(
    folder: str | Path,
    seq_len: int,
    vocab_size: int,
    domains: dict[str, float] | None,
    batch_size: int,
    tokenizer: str | None = None,
) -> None:
    """Refuse shards that do not fit the recipe.

    Args:
        folder: where the manifest lies.
        seq_len: tokens per row that the recipe asks for.
        vocab_size: ids of the model.
        domains: shares by name, or None for every domain there is.
        batch_size: rows of one training step, over all ranks.
        tokenizer: file or folder of the tokenizer that must have made the shards, or None.

    Raises:
        UserError: one sentence per misfit, each with the folder and what differs.
    """
    manifest = Manifest.read(folder)
    mistakes = Mistakes()
    with mistakes:
        if manifest.seq_len != seq_len:
            raise UserError(
                f"data folder {folder} holds rows of {manifest.seq_len} tokens, but the recipe "
                f"has data.seq_len={seq_len}; set it to {manifest.seq_len} or convert again"
            )
    with mistakes:
        if manifest.vocab_size > vocab_size:
            raise UserError(
                f"data folder {folder} was made with a tokenizer of {manifest.vocab_size} ids, "
                f"but the recipe has model.vocab_size={vocab_size}; set it to "
                f"{manifest.vocab_size}"
            )
    with mistakes:
        if tokenizer is not None and not manifest.is_made_with(tokenizer):
            raise UserError(
                f"data folder {folder} was made with another tokenizer than data.tokenizer="
                f"{tokenizer}; give the one in {Path(folder) / 'tokenizer'}, or convert again"
            )
    with mistakes:
        _check_rows(Path(folder), manifest, domains, batch_size)
    mistakes.report()


def _check_rows(
    folder: Path, manifest: Manifest, domains: dict[str, float] | None, batch_size: int
) -> None:
    present = manifest.rows("train")
    missing = [domain for domain in domains or {} if domain not in present]
    if missing:
        raise UserError(
            f"data folder {folder} has no training rows of the domain"
            f"{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} that "
            f"data.domains names; it has {', '.join(present) or 'none'}"
        )
    rows = sum(present[domain] for domain in domains or present)
    if rows < batch_size:
        raise UserError(
            f"data folder {folder} has {rows} training rows, fewer than one batch of "
            f"train.global_batch_size={batch_size}; lower it or convert more text"
        )
    if not manifest.rows("validation"):
        raise UserError(
            f"data folder {folder} has no validation rows; convert again with a larger "
            "--validation-share or more text"
        )
    for split, domain in manifest.streams(domains):
        check_index(folder, manifest, split, domain)


def check_vocabulary(
    folder: str | Path, manifest: Manifest, model: str, vocab_size: int, tokenizer: str
) -> None:
    """Refuse shards whose ids stand for other tokens than those of a trained model.

    Args:
        folder: where the manifest lies.
        manifest: of the shards.
        model: as the user named it.
        vocab_size: its ids.
        tokenizer: folder or hub name of its tokenizer; compared where it has a file of the same
            name as the shards' tokenizer.

    Raises:
        UserError: the sentence names the shards and the model.
    """
    if manifest.vocab_size > vocab_size:
        raise UserError(
            f"the shards in {folder} were made with a tokenizer of {manifest.vocab_size} ids, "
            f"but the model {model} has {vocab_size}"
        )
    own = Path(tokenizer) / Path(manifest.tokenizer.file).name
    if own.is_file() and not manifest.is_made_with(own):
        raise UserError(
            f"the shards in {folder} were made with another tokenizer than {own}, which is the "
            "model's; name shards made with that one"
        )


def check_index(folder: Path, manifest: Manifest, split: str, domain: str) -> None:
    """Refuse a stream whose index does not hold the rows that the manifest promises.

    Raises:
        UserError: names the index file.
    """
    path = folder / split / domain / INDEX
    index = ShardIndex.read(path)
    try:
        index.check(manifest)
    except DamageError as damage:
        raise UserError(f"{path} {damage}; {HOW_TO_MAKE} again") from None
    promised = manifest.rows(split)[domain]
    if index.rows != promised:
        raise UserError(
            f"{path} has {index.rows} rows, but the manifest {promised}; {HOW_TO_MAKE} again"
        )
