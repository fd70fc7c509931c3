"""Converts the parts of a corpus on this machine, on all its cores."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_prep.budgets import Budgets
from data_prep.conversion import Progress, Settings
from data_prep.output import LocalOutput, RemoteOutput
from data_prep.part_store import DonePart, store_part
from data_prep.parts import Part
from data_prep.rejects import RejectLimit
from data_prep.split import SPLITS
from data_prep.state import State
from data_prep.workers import Workers

TOKENS_PER_BYTE = 0.25  # a guess, until the first part of a domain is done
UPLOADS = 4  # at a time


class LocalEngine:
    """Has workers convert parts until everything, or every budget, is done.

    Args:
        plan: parts by domain.
        settings: the conversion's.
        budgets: rows wanted.
        state: of the unfinished output.
        output: where finished parts go.
        reject_limit: stops the run when it is passed.
    """

    def __init__(
        self,
        plan: dict[str, list[Part]],
        settings: Settings,
        budgets: Budgets,
        state: State,
        output: LocalOutput | RemoteOutput,
        reject_limit: RejectLimit,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.budgets = budgets
        self.state = state
        self.output = output
        self.reject_limit = reject_limit
        self.done = state.done(plan, settings.root)
        self.taken = {domain: set(done) for domain, done in self.done.items()}
        self.settled: set[tuple[str, int]] = set()  # their rows are final
        self.cut: set[tuple[str, int]] = set()  # being converted again, up to a budget's end

    def done_before(self) -> Progress:
        """What earlier runs have done."""
        parts = [
            (self.plan[d][i], p.record) for d, done in self.done.items() for i, p in done.items()
        ]
        return Progress(
            sum(part.input_bytes for part, _ in parts),
            sum(record.splits[split].documents for _, record in parts for split in SPLITS),
            sum(record.splits[split].tokens for _, record in parts for split in SPLITS),
        )

    def input_bytes(self) -> int:
        """Bytes of the input that will be read, about."""
        return sum(
            int(min(sum(part.input_bytes for part in parts), self._bytes_wanted(domain)))
            for domain, parts in self.plan.items()
        )

    def run(self, workers: Workers) -> dict[str, list[DonePart]]:
        """Convert; give the parts that are used, in order, by domain.

        Raises:
            UserError: bad input, or too many bad lines.
            OSError: the disk is full, or the object store cannot be reached.
        """
        self._check_rejects()  # of earlier runs, which may have had another limit
        futures: set[Future[Any]] = set()
        with ThreadPoolExecutor(UPLOADS) as uploads:
            for domain in self.plan:
                futures |= self._settle(domain, workers, uploads)
            while True:
                while len(futures) <= (0 if workers.count == 1 else workers.count):
                    part = self._next()
                    if part is None:
                        break
                    self.taken[part.domain].add(part.index)
                    futures.add(self._submit(workers, part, None))
                if not futures:
                    break
                for future in workers.wait(futures):
                    futures.remove(future)
                    result = future.result()
                    if isinstance(result, DonePart):
                        futures |= self._add(result, workers, uploads)
        return {domain: self._used_only(domain) for domain in self.plan}

    def _submit(
        self, workers: Workers, part: Part, limits: dict[str, int] | None
    ) -> "Future[DonePart]":
        work = self.state.work / f"{part.domain}.{part.name}"
        record_file = self.state.record_file(part)
        folder: Path = self.state.folder
        return workers.submit(store_part, part, self.settings, folder, record_file, work, limits)

    def _add(
        self, done: DonePart, workers: Workers, uploads: ThreadPoolExecutor
    ) -> "set[Future[Any]]":
        record = done.record
        self.done[record.domain][record.index] = done
        self._check_rejects()
        return self._settle(record.domain, workers, uploads)

    def _check_rejects(self) -> None:
        records = [part.record for parts in self.done.values() for part in parts.values()]
        finished = sum(self.plan[r.domain][r.index].input_bytes for r in records)
        self.reject_limit.check(records, finished / max(1, self.input_bytes()))

    def _next(self) -> Part | None:
        """The largest part that may be begun; in a domain with a train budget, the next."""
        candidates = []
        for domain, parts in self.plan.items():
            remaining = [part for part in parts if part.index not in self.taken[domain]]
            if remaining and self.budgets.limit("train", domain) is None:
                candidates.append(max(remaining, key=lambda part: part.input_bytes))
            elif remaining and not self._expects_enough(domain):
                candidates.append(remaining[0])
        return max(candidates, key=lambda part: part.input_bytes, default=None)

    def _expects_enough(self, domain: str) -> bool:
        """Whether the parts done and in hand very likely fill the train budget."""
        done = self.done[domain]
        rows = sum(part.record.splits["train"].rows for part in done.values())
        in_hand = [self.plan[domain][index] for index in self.taken[domain] - done.keys()]
        guess = sum(part.input_bytes for part in in_hand) * self._rows_per_byte(domain)
        return self.budgets.is_filled("train", domain, int(rows + guess))

    def _rows_per_byte(self, domain: str) -> float:
        done = self.done[domain]
        rows = sum(part.record.splits["train"].rows for part in done.values())
        size = sum(self.plan[domain][index].input_bytes for index in done)
        return rows / size if rows else TOKENS_PER_BYTE / self.settings.shards.seq_len

    def _bytes_wanted(self, domain: str) -> float:
        limit = self.budgets.limit("train", domain)
        return float("inf") if limit is None else limit / self._rows_per_byte(domain)

    def _used(self, domain: str) -> list[DonePart]:
        """Parts from the first on without a gap, up to the one that fills the train budget."""
        used: list[DonePart] = []
        rows = 0
        for part in self.plan[domain]:
            if part.index not in self.done[domain] or self.budgets.is_filled("train", domain, rows):
                break
            used.append(self.done[domain][part.index])
            rows += used[-1].record.splits["train"].rows
        return used

    def _settle(
        self, domain: str, workers: Workers, uploads: ThreadPoolExecutor
    ) -> "set[Future[Any]]":
        """Upload the parts whose rows are final; have the one at a budget's end cut to size."""
        futures: set[Future[Any]] = set()
        limited = any(self.budgets.limit(split, domain) is not None for split in SPLITS)
        parts = self._used(domain) if limited else list(self.done[domain].values())
        limits = self.budgets.limits([part.record for part in parts])
        for done, rows in zip(parts, limits, strict=True):
            key = (domain, done.record.index)
            part = self.plan[domain][done.record.index]
            if done.kept == rows and key not in self.settled:
                self.settled.add(key)
                if self.output.is_remote and not done.uploaded:
                    record_file = self.state.record_file(part)
                    futures.add(uploads.submit(self.output.upload, done, record_file))
            elif done.kept != rows and all(rows[s] in (0, done.kept[s]) for s in SPLITS):
                self.state.drop_rows(done, rows, self.state.record_file(part))
                return futures | self._settle(domain, workers, uploads)
            elif done.kept != rows and key not in self.cut:
                self.cut.add(key)
                futures.add(self._submit(workers, part, rows))
        return futures

    def _used_only(self, domain: str) -> list[DonePart]:
        """The used parts; what was converted beyond the budget is removed."""
        used = self._used(domain)
        for index in self.done[domain].keys() - {part.record.index for part in used}:
            part = self.plan[domain][index]
            self.state.forget(self.done[domain][index], self.state.record_file(part))
        return used
