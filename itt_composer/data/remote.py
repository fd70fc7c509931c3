"""What a run needs from an object store before it streams: manifest, indexes, tokenizer."""

import contextlib
from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import DamageError, Fingerprint
from itt_composer.data.index import INDEX
from itt_composer.data.manifest import MANIFEST, Manifest


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
    manifest = Manifest.parse(content, f"{remote}/{MANIFEST}")
    cached = local / MANIFEST
    if cached.is_file() and cached.read_bytes() != content:
        fresh.unlink()
        raise UserError(
            f"data.local={local} is the cache of other shards than data.remote={remote} holds; "
            "choose another data.local or delete it"
        )
    for name, file in _small_files(manifest, domains).items():
        path = local / name
        with contextlib.suppress(DamageError):
            file.check(path)
            continue
        download(remote, name, path, timeout)
        try:
            file.check(path)
        except DamageError as damage:
            path.unlink(missing_ok=True)
            raise UserError(f"{remote}/{name} {damage} in {MANIFEST}; upload it again") from None
    fresh.replace(cached)  # last: it makes the cache usable


def download(remote: str, name: str, path: Path, timeout: float) -> None:
    """Download one file, in place of whatever lies there.

    Raises:
        UserError: no such store, bucket or file, no credentials, no network, a full disk.
    """
    from streaming.base.storage import CloudDownloader

    path.unlink(missing_ok=True)
    try:
        CloudDownloader.direct_download(f"{remote}/{name}", str(path), timeout)
    except Exception as error:  # every store raises its own kinds
        raise UserError(
            f"data.remote={remote}: {name} cannot be downloaded ({reason(error)}); check the "
            "address, the credentials and the network"
        ) from None


def reason(error: BaseException) -> str:
    """Describe an exception of a library in a few words on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")


def _small_files(manifest: Manifest, domains: dict[str, float] | None) -> dict[str, Fingerprint]:
    """Select what the manifest lists of the tokenizer, and the indexes of the streams in use."""
    indexes = {f"{split}/{domain}/{INDEX}" for split, domain in manifest.streams(domains)}
    return {
        name: file
        for name, file in manifest.files.items()
        if name in indexes or name.startswith("tokenizer/")
    }
