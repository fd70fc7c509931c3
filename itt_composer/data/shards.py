"""What a folder of shards holds, read from its manifest; checked before training starts."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itt_composer.basics.errors import Mistakes, UserError

if TYPE_CHECKING:
    from itt_composer.recipe.schema import DataRecipe

FORMAT_VERSION = 2  # of manifests, the newest; written by `data_prep`
NEEDED_KEYS = {"seq_len", "dtype", "vocab_size", "tokenizer", "splits", "totals", "files"}
HOW_TO_MAKE = "make shards with `itt convert`"
COLUMN = "input_ids"


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
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"data folder {folder} has no manifest.json; {HOW_TO_MAKE}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); {HOW_TO_MAKE} again") from None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, place: str) -> dict[str, Any]:
    """The manifest in the bytes of a file.

    Args:
        content: the bytes.
        place: path or address of the file, for the messages.

    Raises:
        UserError: broken JSON, another command's manifest, that of an unfinished conversion, or
            one in a newer format.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise UserError(f"{place} cannot be read ({error}); {HOW_TO_MAKE} again") from None
    if not isinstance(manifest, dict) or manifest.get("command") != "convert":
        raise UserError(f"{place} does not describe shards; {HOW_TO_MAKE}")
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{place} has format {version}, newer than the {FORMAT_VERSION} read here; "
            "update itt_composer"
        )
    if "splits" not in manifest:
        raise UserError(f"{place} is of shards that are not finished; let `convert` end first")
    if not manifest.keys() >= NEEDED_KEYS:
        raise UserError(f"{place} does not describe shards; {HOW_TO_MAKE}")
    return manifest


def domains_with_rows(manifest: dict[str, Any], split: str) -> dict[str, int]:
    """Rows of each domain of a split, domains without rows left out."""
    domains = manifest["splits"].get(split, {})
    return {name: counts["rows"] for name, counts in domains.items() if counts["rows"]}


def streams_in_use(
    manifest: dict[str, Any], domains: dict[str, float] | None
) -> list[tuple[str, str]]:
    """(split, domain) of every stream that a run reads: what it trains on, all of validation."""
    training = domains or domains_with_rows(manifest, "train")
    validation = domains_with_rows(manifest, "validation")
    return [("train", name) for name in training] + [("validation", name) for name in validation]


def content_digests(manifest: dict[str, Any], domains: dict[str, float] | None) -> dict[str, str]:
    """What a run's rows are made of: SHA-256 of each stream in use ("train/c4") and "tokenizer".

    A copy has the same ones, another conversion of the same text in the same way, too.
    """
    return _digests(manifest, streams_in_use(manifest, domains))


def split_sha256(manifest: dict[str, Any], split: str) -> str:
    """Of the rows of a split and the tokenizer that made them: equal for copies of the shards."""
    streams = [(split, domain) for domain in domains_with_rows(manifest, split)]
    digests = json.dumps(_digests(manifest, streams), sort_keys=True)
    return hashlib.sha256(digests.encode()).hexdigest()


def _digests(manifest: dict[str, Any], streams: list[tuple[str, str]]) -> dict[str, str]:
    files = manifest["files"]
    digests = {"tokenizer": manifest["tokenizer"]["sha256"]}
    for split, domain in streams:
        stream = f"{split}/{domain}"
        hashes = [
            f"{name} {files[name]['sha256']}"
            for name in sorted(files)
            if name.startswith(f"{stream}/")
        ]
        digests[stream] = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return digests


def check_shards_of(data: "DataRecipe", vocab_size: int, batch_size: int) -> None:
    """`check_shards` for a recipe's data section, with the key that named the shards.

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
    manifest = read_manifest(folder)
    mistakes = Mistakes()
    with mistakes:
        if manifest["seq_len"] != seq_len:
            raise UserError(
                f"data folder {folder} holds rows of {manifest['seq_len']} tokens, but the recipe "
                f"has data.seq_len={seq_len}; set it to {manifest['seq_len']} or convert again"
            )
    with mistakes:
        if manifest["vocab_size"] > vocab_size:
            raise UserError(
                f"data folder {folder} was made with a tokenizer of {manifest['vocab_size']} ids, "
                f"but the recipe has model.vocab_size={vocab_size}; set it to "
                f"{manifest['vocab_size']}"
            )
    with mistakes:
        if tokenizer is not None and not is_tokenizer_of(manifest, tokenizer):
            raise UserError(
                f"data folder {folder} was made with another tokenizer than data.tokenizer="
                f"{tokenizer}; give the one in {Path(folder) / 'tokenizer'}, or convert again"
            )
    with mistakes:
        _check_rows(Path(folder), manifest, domains, batch_size)
    mistakes.tell()


def _check_rows(
    folder: Path, manifest: dict[str, Any], domains: dict[str, float] | None, batch_size: int
) -> None:
    present = domains_with_rows(manifest, "train")
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
    if not domains_with_rows(manifest, "validation"):
        raise UserError(
            f"data folder {folder} has no validation rows; convert again with a larger "
            "--validation-share or more text"
        )
    for split, domain in streams_in_use(manifest, domains):
        check_index(folder, manifest, split, domain)


def check_vocabulary(
    folder: str | Path, manifest: dict[str, Any], model: str, vocab_size: int, tokenizer: str
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
    if manifest["vocab_size"] > vocab_size:
        raise UserError(
            f"the shards in {folder} were made with a tokenizer of {manifest['vocab_size']} ids, "
            f"but the model {model} has {vocab_size}"
        )
    own = Path(tokenizer) / Path(manifest["tokenizer"]["file"]).name
    if own.is_file() and not is_tokenizer_of(manifest, own):
        raise UserError(
            f"the shards in {folder} were made with another tokenizer than {own}, which is the "
            "model's; name shards made with that one"
        )


def check_index(folder: Path, manifest: dict[str, Any], split: str, domain: str) -> None:
    """Refuse a stream whose index does not hold the rows that the manifest promises.

    Raises:
        UserError: the sentence names the index file.
    """
    path = folder / split / domain / "index.json"
    shards = read_index(path)
    column = f"ndarray:{manifest['dtype']}:{manifest['seq_len']}"
    for shard in shards:
        found = dict(zip(shard["column_names"], shard["column_encodings"], strict=False))
        if found != {COLUMN: column}:
            raise UserError(
                f"{path} describes columns {found}, not {COLUMN} of {column} as the manifest "
                f"says; {HOW_TO_MAKE} again"
            )
    rows, promised = sum(shard["samples"] for shard in shards), domains_with_rows(manifest, split)
    if rows != promised[domain]:
        raise UserError(
            f"{path} has {rows} rows, but the manifest {promised[domain]}; {HOW_TO_MAKE} again"
        )


def read_index(path: Path) -> list[dict[str, Any]]:
    """The shards that an `index.json` describes.

    Raises:
        UserError: the file is missing or no index.
    """
    try:
        shards = json.loads(path.read_bytes())["shards"]
        # What the callers read of each.
        _ = [
            (s["samples"], s["column_names"], s["column_encodings"], s["raw_data"]) for s in shards
        ]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {HOW_TO_MAKE} again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of shards ({error}); {HOW_TO_MAKE} again") from None
    return shards


def is_tokenizer_of(manifest: dict[str, Any], path: str | Path) -> bool:
    """Whether shards were made with a tokenizer: the file that was given, or that beside them.

    Raises:
        UserError: there is no such file.
    """
    made_with = manifest["tokenizer"]
    return tokenizer_sha256(path) in (made_with["sha256"], made_with.get("source_sha256"))


def tokenizer_sha256(path: str | Path) -> str:
    """SHA-256 of a tokenizer's file; of a folder's `tokenizer.model`, else `tokenizer.json`.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    candidates = [path / "tokenizer.model", path / "tokenizer.json"] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
    raise UserError(
        f"data.tokenizer={path}: no such tokenizer; give a tokenizer.model, a tokenizer.json, or "
        "the folder of one"
    )
