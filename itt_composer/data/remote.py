"""What a run needs from an object store before it streams: manifest, indexes, tokenizer."""

from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.data.integrity import sha256_of
from itt_composer.data.shards import parse_manifest, streams_in_use

MANIFEST = "manifest.json"


def fetch_descriptions(
    remote: str, local: Path, domains: dict[str, float] | None, timeout: float
) -> None:
    """Download everything but the shards; files that are there and whole are kept.

    Args:
        remote: address of the folder that `convert` wrote or uploaded.
        local: the cache.
        domains: shares by name, or None for every domain there is.
        timeout: seconds for one file.

    Raises:
        UserError: a file cannot be downloaded or is damaged, or the cache is of other shards.
    """
    try:
        local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.local={local} cannot be made: {error.strerror}") from None
    fresh = local / f"{MANIFEST}.new"
    download(remote, MANIFEST, fresh, timeout)
    content = fresh.read_bytes()
    manifest = parse_manifest(content, f"{remote}/{MANIFEST}")
    cached = local / MANIFEST
    if cached.is_file() and cached.read_bytes() != content:
        fresh.unlink()
        raise UserError(
            f"data.local={local} is the cache of other shards than data.remote={remote} holds; "
            "choose another data.local or delete it"
        )
    for name, file in _small_files(manifest, domains).items():
        path = local / name
        if path.is_file() and sha256_of(path) == file["sha256"]:
            continue
        download(remote, name, path, timeout)
        if sha256_of(path) != file["sha256"]:
            path.unlink()
            raise UserError(
                f"{remote}/{name} does not match its SHA-256 in {MANIFEST}; upload it again"
            )
    fresh.replace(cached)  # last: with it the cache is usable


def download(remote: str, name: str, path: Path, timeout: float) -> None:
    """Download one file, in place of whatever lies there.

    Raises:
        UserError: no such store, bucket or file, no credentials, no network, a full disk.
    """
    from streaming.base.storage import CloudDownloader

    path.unlink(missing_ok=True)
    try:
        CloudDownloader.direct_download(f"{remote}/{name}", str(path), timeout)
    except Exception as error:  # every store has its own kinds
        raise UserError(
            f"data.remote={remote}: {name} cannot be downloaded ({reason(error)}); check the "
            "address, the credentials and the network"
        ) from None


def reason(error: BaseException) -> str:
    """An exception of a library in a few words on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")


def _small_files(
    manifest: dict[str, Any], domains: dict[str, float] | None
) -> dict[str, dict[str, Any]]:
    """Entries of the manifest's `files`: indexes of the streams in use and the tokenizer's."""
    indexes = {
        f"{split}/{domain}/index.json" for split, domain in streams_in_use(manifest, domains)
    }
    return {
        name: file
        for name, file in manifest["files"].items()
        if name in indexes or name.startswith("tokenizer/")
    }
