"""Token budgets: how much of each domain is wanted, and which rows of which parts that takes."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path

import numpy as np

from data_prep.document_split import SPLITS
from data_prep.domains import MIXED, PAPER_SHARES, domain_name
from data_prep.part_record import Kept, PartRecord
from itt_composer.basics.errors import UserError
from itt_composer.recipe.layers import read_yaml

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmbt]?)", re.IGNORECASE)


def parse_count(text: str) -> int:
    """Read a number of tokens: "2M", "50B", "1.5b", "300000".

    Raises:
        ValueError: the text is not a number, or not a whole positive one.
    """
    match = COUNT.fullmatch(text.replace("_", "").replace(",", ""))
    count = float(match[1]) * UNITS[match[2].lower()] if match else 0
    if count < 1 or count != int(count):
        raise ValueError(f"{text!r} is not a number of tokens; give one like 300000, 2M or 50B")
    return int(count)


def read_shares(file: Path | None, domains: list[str]) -> dict[str, float]:
    """Read the share of each domain in a budget; they add up to 1.

    Args:
        file: a YAML mapping of domains to shares, or a data recipe with `data.domains`; None for
            the shares of the paper.
        domains: the domains there are.

    Raises:
        UserError: the file is not such a mapping, or a domain has no share.
    """
    source = str(file) if file else "the paper's domains"
    shares = PAPER_SHARES if file is None else _shares_of(file)
    if missing := [domain for domain in domains if domain not in shares]:
        raise UserError(
            f"{source} give no share for the domain {missing[0]}: name the shares of "
            f"{', '.join(domains)} in a YAML file and give it with --shares"
        )
    total = sum(shares.values())
    return {domain: round(share / total, 12) for domain, share in shares.items()}


def _shares_of(file: Path) -> dict[str, float]:
    content = read_yaml(file)
    data = content.get("data", content)
    shares = data.get("domains", data) if hasattr(data, "get") else {}
    named = {domain_name(str(n)): share for n, share in (shares or {}).items() if share is not None}
    for name, share in named.items():
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not (is_number and 0 < share < inf):
            raise UserError(f"{file}: the share of {name} must be a positive number, not {share!r}")
    if not named:
        raise UserError(f"{file} names no shares: give lines like `cc: 0.67`")
    return named


@dataclass(frozen=True)
class Budgets:
    """Rows that are wanted, by split and domain; an absent split or domain has no limit."""

    rows: dict[str, dict[str, int]]

    @classmethod
    def of(
        cls,
        train_tokens: int | None,
        validation_tokens: int | None,
        shares: dict[str, float],
        seq_len: int,
    ) -> "Budgets":
        """Divide tokens by shares, rounded to whole rows."""
        asked = {"train": train_tokens, "validation": validation_tokens}
        return cls(
            {
                split: {domain: round(tokens * s / seq_len) for domain, s in shares.items()}
                for split, tokens in asked.items()
                if tokens is not None
            }
        )

    def known_domains(self) -> frozenset[str] | None:
        """Return the domains that have a share, or None where nothing is limited."""
        return frozenset().union(*self.rows.values()) if self.rows else None

    def limit(self, split: str, domain: str) -> int | None:
        """Return how many rows are wanted, or None for all there are."""
        return self.rows.get(split, {}).get(domain)

    def is_filled(self, split: str, domain: str, rows: int) -> bool:
        """Whether that many rows are enough."""
        limit = self.limit(split, domain)
        return limit is not None and rows >= limit

    def train_rows(self, source: str) -> dict[str, int] | None:
        """Return the training rows wanted of a source, by domain; None for all there are."""
        rows = self.rows.get("train", {})
        wanted = rows if source == MIXED else {d: n for d, n in rows.items() if d == source}
        return wanted or None

    def parts_needed(self, source: str, records: Iterable[PartRecord]) -> int:
        """Count the parts of a source, from the first on, that its training budgets take."""
        wanted = self.train_rows(source)
        rows: Counter[str] = Counter()
        count = 0
        for record in records:
            if wanted is not None and all(rows[domain] >= n for domain, n in wanted.items()):
                break
            rows.update({domain: record.rows("train", domain) for domain in record.domains})
            count += 1
        return count

    def is_limited(self, source: str) -> bool:
        """Whether a budget may leave rows of a source out."""
        if source == MIXED:
            return bool(self.rows)
        return any(self.limit(split, source) is not None for split in SPLITS)

    def shared_out(self, records: list[PartRecord]) -> list[Kept]:
        """Share out the budgets: rows to keep of each part of a source, in the order of the parts.

        A domain takes nothing, and is not in what is kept, of the parts after the one that fills
        its training budget.
        """
        kept: list[Kept] = []
        used: Counter[tuple[str, str]] = Counter()
        for record in records:
            rows: Kept = {}
            for domain, splits in record.domains.items():
                if self.is_filled("train", domain, used["train", domain]):
                    continue
                rows[domain] = {}
                for split in SPLITS:
                    limit, there = self.limit(split, domain), splits[split].rows
                    left = there if limit is None else min(there, limit - used[split, domain])
                    rows[domain][split] = left
                    used[split, domain] += left
            kept.append(rows)
        return kept


def validation_share_needed(wanted: int, available: float, lengths: np.ndarray) -> float:
    """Choose a share of a domain's documents that very likely holds the validation tokens wanted.

    Documents are taken by a hash, so the tokens of a share scatter, the more the longer the
    documents: by sqrt(wanted · L) for documents of L tokens as a token sees them. Three times
    that, and three such documents, are added.

    Args:
        wanted: validation tokens.
        available: tokens of the domain, about.
        lengths: (documents,), tokens of a sample of documents.
    """
    if not len(lengths) or available <= 0:
        return 1.0
    typical = float(np.square(lengths, dtype=float).sum() / max(1, lengths.sum()))
    return min(1.0, (1.1 * wanted + 3 * sqrt(wanted * typical) + 3 * typical) / available)
