"""`stats`: what a converted folder holds, read from its manifest alone."""

from pathlib import Path

from itt_composer.basics.tables import Table
from itt_composer.data.fingerprints import StoredPart
from itt_composer.data.manifest import Manifest, StreamCounts


class StreamStats(StoredPart):
    """One domain of a split, or the whole split.

    `characters_per_token` is None without tokens; `share` is the fraction (0..1) of the split's
    tokens in rows.
    """

    documents: int
    rows: int
    tokens: int
    characters_per_token: float | None
    share: float


class Stats(StoredPart):
    """What a converted folder holds.

    `rejects` counts by domain the lines that were skipped, `special_token_names` the names of
    special tokens in documents, which are what `special_tokens` says: "text" or "token".
    """

    seq_len: int
    vocab_size: int
    splits: dict[str, dict[str, StreamStats]]
    totals: dict[str, StreamStats]
    rejects: dict[str, int]
    special_tokens: str
    special_token_names: dict[str, int]


def count_shards(out: str | Path) -> Stats:
    """Count documents, rows and tokens per split and domain.

    Raises:
        UserError: as `Manifest.read`.
    """
    return stats_of(Manifest.read(out))


def stats_of(manifest: Manifest) -> Stats:
    """Count them from a manifest that was read."""
    totals = {
        split: StreamCounts.sum(domains.values()) for split, domains in manifest.splits.items()
    }
    return Stats(
        seq_len=manifest.seq_len,
        vocab_size=manifest.vocab_size,
        splits={
            split: {name: _stats(counts, totals[split]) for name, counts in domains.items()}
            for split, domains in manifest.splits.items()
        },
        totals={split: _stats(total, total) for split, total in totals.items()},
        rejects=manifest.rejects,
        special_tokens=manifest.special_tokens,
        special_token_names=manifest.special_token_names,
    )


def tables_of_stats(stats: Stats) -> list[Table]:
    """Make a table per split: a row per domain and one for all of them."""
    return [_table(stats, split) for split in stats.splits]


def notes(stats: Stats) -> list[str]:
    """Write a line on rejected lines and one on names of special tokens, where there are any."""
    became = {
        "text": "kept as text, as in prompts (--special-tokens token makes them tokens)",
        "token": "taken as tokens, as in prompts",
    }[stats.special_tokens]
    lines = [
        ("rejected lines", stats.rejects, ""),
        ("names of special tokens in documents", stats.special_token_names, f"; {became}"),
    ]
    return [
        f"{what}: {', '.join(f'{domain} {n:,}' for domain, n in counts.items() if n)}{end}"
        for what, counts, end in lines
        if any(counts.values())
    ]


def _stats(counts: StreamCounts, total: StreamCounts) -> StreamStats:
    # The characters of dropped and unused ids are counted too.
    encoded = counts.tokens + counts.dropped_tokens + counts.unused_tokens
    return StreamStats(
        documents=counts.documents,
        rows=counts.rows,
        tokens=counts.tokens,
        characters_per_token=counts.characters / encoded if encoded else None,
        share=counts.tokens / total.tokens if total.tokens else 0.0,
    )


def _table(stats: Stats, split: str) -> Table:
    figures = ["documents", "rows", "tokens", "characters\nper token", "share\nof tokens"]
    counted = {**stats.splits[split], "all": stats.totals[split]}
    rows = [[name, *_cells(counts)] for name, counts in counted.items()]
    return Table(split, ["domain", *figures], rows)


def _cells(counts: StreamStats) -> list[str]:
    characters = counts.characters_per_token
    return [
        f"{counts.documents:,}",
        f"{counts.rows:,}",
        f"{counts.tokens:,}",
        "–" if characters is None else f"{characters:.2f}",
        f"{counts.share:.1%}",
    ]
