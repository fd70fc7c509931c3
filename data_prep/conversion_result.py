"""Describes a finished conversion: its manifest, and warnings of what is missing in it."""

from pathlib import Path

from data_prep.document_split import SPLITS
from data_prep.domains import MIXED, not_read_sentence
from data_prep.finished_streams import Stream
from data_prep.part_plan import Part
from data_prep.part_record import DonePart
from itt_composer.data.fingerprints import Fingerprint
from itt_composer.data.manifest import InputFile, Manifest, ShardSettings, StreamCounts

REJECTS = "rejects.jsonl"


def manifest_of(
    settings: ShardSettings,
    plan: dict[str, list[Part]],
    parts: dict[str, list[DonePart]],
    streams: dict[str, dict[str, Stream]],
    threshold: float,
    not_read: list[str],
) -> Manifest:
    """Describe a finished conversion.

    Args:
        settings: what the shards follow from.
        plan: parts that were planned, by source.
        parts: those that are used, in order, by source.
        streams: by split and domain.
        threshold: share of documents (0..1) that went into validation.
        not_read: files of the corpus that hold no documents.

    Returns:
        The manifest; of the files, it lists those of the streams.
    """
    used = [part for done in parts.values() for part in done]
    files: dict[str, Fingerprint] = {}
    for part in used:
        files |= part.files
    for split in SPLITS:
        for stream in streams[split].values():
            files |= stream.files
    return Manifest(
        **dict(settings),
        validation_threshold=threshold,
        inputs=_inputs(plan, used),
        splits={
            split: {domain: stream.counts for domain, stream in domains.items()}
            for split, domains in streams.items()
        },
        totals={
            split: StreamCounts.sum(stream.counts for stream in domains.values())
            for split, domains in streams.items()
        },
        rejects={
            _name(source): sum(len(part.record.rejects) for part in done)
            for source, done in parts.items()
        },
        special_token_names={
            _name(source): sum(part.record.special_tokens for part in done)
            for source, done in parts.items()
        },
        cut_files=sorted(name for part in used for name in part.record.cut_files),
        files=files,
        not_read=not_read,
    )


def _name(source: str) -> str:
    return "mixed" if source == MIXED else source


def _inputs(plan: dict[str, list[Part]], used: list[DonePart]) -> dict[str, InputFile]:
    """List the size of every input file and the SHA-256 of each of its pieces that was read."""
    read = {
        (piece["file"], piece["start"]): piece["sha256"]
        for part in used
        for piece in part.record.inputs
    }
    sizes: dict[str, int] = {}
    hashes: dict[str, list[str | None]] = {}
    pieces = [piece for parts in plan.values() for part in parts for piece in part.pieces]
    for piece in sorted(pieces, key=lambda piece: (piece.file, piece.start)):
        sizes[piece.file] = piece.end
        hashes.setdefault(piece.file, []).append(read.get((piece.file, piece.start)))
    return {file: InputFile(bytes=sizes[file], sha256=hashes[file]) for file in sizes}


def warnings(manifest: Manifest, root: Path) -> list[str]:
    """Say where there is less than was asked for, and which files of `root` were not read."""
    cut = [
        f"{name} could not be read to its end: what follows the line that {REJECTS} names is lost, "
        "however much it is"
        for name in manifest.cut_files
    ]
    not_read = not_read_sentence(root, manifest.not_read)
    return [*_shortfalls(manifest), *cut, *([not_read] if not_read else [])]


def _shortfalls(manifest: Manifest) -> list[str]:
    """Say of each stream that has less than was asked for, or no rows, how much it has."""
    found = dict.fromkeys(_empty_streams(manifest), "has no rows")
    budgets = {"train": manifest.train_tokens, "validation": manifest.validation_tokens}
    for split, tokens in budgets.items():
        shares = manifest.shares or {}
        for domain, share in shares.items():
            if tokens is None:
                continue
            asked = round(tokens * share / manifest.seq_len) * manifest.seq_len
            counts = manifest.splits[split].get(domain)
            there = counts.tokens if counts else 0
            if there < asked:
                found[f"{split}/{domain}"] = f"has {there:,} of {asked:,} tokens"
    return [f"{stream} {what}" for stream, what in found.items()]


def _empty_streams(manifest: Manifest) -> list[str]:
    asked = SPLITS if manifest.validation_share > 0 else ("train",)
    return [
        f"{split}/{domain}"
        for split in asked
        for domain, counts in manifest.splits[split].items()
        if counts.rows == 0
    ]
