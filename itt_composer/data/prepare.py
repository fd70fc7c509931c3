"""Before training starts: fetch what describes the shards, check it, check the shards."""

import os
from collections.abc import Callable
from pathlib import Path

from composer.utils import dist

from itt_composer.basics.errors import UserError
from itt_composer.data.integrity import (
    Record,
    expected_files,
    find_damage,
    read_record,
    unread_bytes,
    write_record,
)
from itt_composer.data.manifest import Manifest
from itt_composer.data.remote import fetch_descriptions
from itt_composer.data.shards import check_shards_of
from itt_composer.data.shared_memory import SHARED_MEMORY, free_bytes
from itt_composer.recipe.schema import DataRecipe

WORTH_A_LINE = 1_000_000_000  # bytes to hash
BYTES_PER_ROW = 8  # its number, in shared memory


def prepare_shards(data: DataRecipe, vocab_size: int, batch_size: int) -> None:
    """Make sure that every node has shards to train on; all ranks call it, before a model is built.

    With `data.remote`, the first rank of each node fetches manifest, indexes and tokenizer; what
    is damaged in the cache is removed, to be downloaded again.

    Args:
        data: the recipe's data section.
        vocab_size: ids of the model.
        batch_size: rows of one training step, over all ranks.

    Raises:
        UserError: on every rank alike: shards that cannot be had, do not fit or are damaged.
    """
    local, remote = Path(data.local), data.remote

    def fetch() -> None:
        if remote is not None and dist.get_local_rank() == 0:
            fetch_descriptions(remote, local, data.domains, data.download_timeout)

    _together(fetch)
    _together(lambda: check_shards_of(data, vocab_size, batch_size))
    _together(lambda: check_shared_memory(Manifest.read(local), data.domains))
    check_files(local, Manifest.read(local).streams(data.domains), data.validate_hash, remote)


def check_shared_memory(manifest: Manifest, domains: dict[str, float] | None) -> None:
    """Refuse shared memory too small for the order of an epoch: writing there would kill the run.

    Args:
        manifest: of the shards.
        domains: shares by name, or None for every domain there is.

    Raises:
        UserError: says how much there is and how much it takes.
    """
    present = manifest.rows("train")
    needed = BYTES_PER_ROW * sum(present[domain] for domain in domains or present)
    free = free_bytes()
    if needed > free:
        raise UserError(
            f"{SHARED_MEMORY} has {free / 1e6:,.0f} MB free, but the order of an epoch takes "
            f"{needed / 1e6:,.0f} MB; give the container more shared memory (docker --shm-size, "
            "on Kubernetes an emptyDir of medium Memory)"
        )


def check_files(
    local: Path,
    streams: list[tuple[str, str]],
    validate_hash: bool,
    remote: str | None = None,
) -> None:
    """Check sizes and SHA-256, the files shared out over the ranks of a node; all ranks call it.

    Args:
        local: the folder of shards.
        streams: (split, domain) of those that will be read.
        validate_hash: whether to read the files, not their sizes alone.
        remote: from where what is missing will be downloaded, or None.

    Raises:
        UserError: on every rank alike: the first file that is missing or damaged.
    """
    manifest, record = Manifest.read(local), read_record(local)
    expected = expected_files(local, manifest, streams)
    if remote is not None:
        expected = {name: file._replace(required=False) for name, file in expected.items()}
    to_read = unread_bytes(local, expected, record) if validate_hash else 0
    if to_read > WORTH_A_LINE and dist.get_global_rank() == 0:
        print(f"checking {to_read / 1e9:,.0f} GB of shards in {local}", flush=True)
    ranks = dist.get_local_world_size()
    own = {name: expected[name] for name in sorted(expected)[dist.get_local_rank() :: ranks]}
    threads = max(1, (os.cpu_count() or 1) // ranks)
    damage, whole = find_damage(local, own, validate_hash, record, threads)
    if remote is not None:
        for name, what in damage.items():
            (local / name).unlink(missing_ok=True)
            print(f"{local / name} {what}: removed, to be downloaded again", flush=True)
    reports = dist.all_gather_object((dist.get_node_rank(), damage, whole))
    if dist.get_local_rank() == 0 and validate_hash:
        # What the record says of streams that other runs read stays.
        merged: Record = {name: entry for name, entry in record.items() if name not in expected}
        for node, _, files in reports:
            if node == dist.get_node_rank():
                merged |= files
        if merged != record:
            write_record(local, merged)
    damaged = {name: what for _, found, _ in reports for name, what in found.items()}
    if damaged and remote is None:
        name, what = min(damaged.items())
        more = f" ({len(damaged)} files are damaged)" if len(damaged) > 1 else ""
        raise UserError(
            f"{local / name} {what}{more}; convert again, or copy it again from where it was made"
        )


def _together(work: Callable[[], None]) -> None:
    """Run a step on every rank; what fails on one fails on all, with the same sentence.

    Raises:
        UserError: that of the first rank that met one.
    """
    sentence = None
    try:
        work()
    except UserError as error:
        sentence = str(error)
    for met in dist.all_gather_object(sentence):
        if met is not None:
            raise UserError(met)
