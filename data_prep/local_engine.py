"""Converts the parts of a corpus on this machine, on all its cores."""

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, takewhile
from math import inf
from pathlib import Path
from typing import Any

from data_prep.budgets import Budgets
from data_prep.output import Output
from data_prep.part_plan import Part
from data_prep.part_record import DonePart, Kept
from data_prep.part_rows import Progress, Settings
from data_prep.part_shards import store_part
from data_prep.rejects import RejectLimit
from data_prep.unfinished_conversion import UnfinishedConversion
from data_prep.workers import Workers

TOKENS_PER_BYTE = 0.25  # a guess, until a domain has its first rows
UPLOADS = 4  # at a time


class LocalEngine:
    """Lets workers convert parts until everything, or every budget, is done.

    Args:
        plan: parts by source.
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
        state: UnfinishedConversion,
        output: Output,
        reject_limit: RejectLimit,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.budgets = budgets
        self.state = state
        self.output = output
        self.reject_limit = reject_limit
        self.done = state.done(plan, settings.root)
        self.taken = {source: set(done) for source, done in self.done.items()}
        self.settled: set[tuple[str, int]] = set()  # their rows are final
        self.cut: set[tuple[str, int]] = set()  # converted again, up to a budget's end
        self.total_bytes = self.input_bytes()

    def done_before(self) -> Progress:
        """Count what earlier runs have done."""
        parts = [
            (self.plan[s][i], p.record) for s, done in self.done.items() for i, p in done.items()
        ]
        counts = [c for _, r in parts for splits in r.domains.values() for c in splits.values()]
        return Progress(
            sum(part.input_bytes for part, _ in parts),
            sum(count.documents for count in counts),
            sum(count.tokens for count in counts),
        )

    def input_bytes(self) -> int:
        """Estimate how many bytes of the input will have been read at the end.

        A part is read as a whole, however few of its rows a budget takes.
        """
        return sum(
            part.input_bytes
            for source, parts in self.plan.items()
            for part in (*(parts[index] for index in self.taken[source]), *self._wanted(source))
        )

    def run(self, workers: Workers) -> dict[str, list[DonePart]]:
        """Convert, and return the parts that are used, in order, by source.

        Raises:
            UserError: bad input, or too many bad lines.
            OSError: the disk is full, or the object store cannot be reached.
        """
        self._check_rejects()  # of earlier runs, which may have had another limit
        futures: set[Future[Any]] = set()
        with ThreadPoolExecutor(UPLOADS) as uploads:
            for source in self.plan:
                futures |= self._settle(source, workers, uploads)
            while True:
                while len(futures) <= (0 if workers.count == 1 else workers.count):
                    part = self._next()
                    if part is None:
                        break
                    self.taken[part.source].add(part.index)
                    self.total_bytes = self.input_bytes()
                    futures.add(self._submit(workers, part, None))
                if not futures:
                    break
                for future in workers.wait(futures):
                    futures.remove(future)
                    result = future.result()
                    if isinstance(result, DonePart):
                        futures |= self._add(result, workers, uploads)
        return {source: self._used_only(source) for source in self.plan}

    def _submit(self, workers: Workers, part: Part, limits: Kept | None) -> "Future[DonePart]":
        work = self.state.work / f"{part.source}.{part.name}"
        record_file = self.state.record_file(part)
        folder: Path = self.state.folder
        return workers.submit(store_part, part, self.settings, folder, record_file, work, limits)

    def _add(
        self, done: DonePart, workers: Workers, uploads: ThreadPoolExecutor
    ) -> "set[Future[Any]]":
        record = done.record
        self.done[record.source][record.index] = done
        self._check_rejects()
        return self._settle(record.source, workers, uploads)

    def _check_rejects(self) -> None:
        records = [part.record for parts in self.done.values() for part in parts.values()]
        finished = sum(self.plan[r.source][r.index].input_bytes for r in records)
        self.total_bytes = self.input_bytes()
        self.reject_limit.check(records, finished / max(1, self.total_bytes))

    def _next(self) -> Part | None:
        """Choose the largest part that may start; in a source with a train budget, the next."""
        candidates = []
        for source in self.plan:
            wanted = self._wanted(source)
            if wanted and self.budgets.train_rows(source) is not None:
                candidates.append(wanted[0])
            elif wanted:
                candidates.append(max(wanted, key=lambda part: part.input_bytes))
        return max(candidates, key=lambda part: part.input_bytes, default=None)

    def _wanted(self, source: str) -> list[Part]:
        """List the parts to start: all, or as many as very likely fill the train budgets."""
        parts = [part for part in self.plan[source] if part.index not in self.taken[source]]
        missing = self._text_missing(source)
        text = accumulate((part.text_bytes for part in parts), initial=0)
        return [part for part, before in zip(parts, text, strict=False) if before < missing]

    def _text_missing(self, source: str) -> float:
        """Estimate the bytes of text that the train budgets still need."""
        wanted = self.budgets.train_rows(source)
        if wanted is None:
            return inf
        done, planned = self.done[source], self.plan[source]
        size = sum(planned[index].text_bytes for index in done)
        in_hand = sum(planned[i].text_bytes for i in self.taken[source] - done.keys())
        missing = [0.0]
        for domain, limit in wanted.items():
            rows = sum(part.record.rows("train", domain) for part in done.values())
            if rows < limit:
                share = limit / sum(wanted.values())
                guess = TOKENS_PER_BYTE / self.settings.shards.seq_len * share
                missing.append((limit - rows) / (rows / size if rows else guess) - in_hand)
        return max(missing)

    def _used(self, source: str) -> list[DonePart]:
        """List the finished parts without a gap, up to the one that fills the train budgets."""
        done = self.done[source]
        without_gap = [done[i] for i in takewhile(done.__contains__, range(len(self.plan[source])))]
        needed = self.budgets.parts_needed(source, (part.record for part in without_gap))
        return without_gap[:needed]

    def _settle(
        self, source: str, workers: Workers, uploads: ThreadPoolExecutor
    ) -> "set[Future[Any]]":
        """Upload the parts whose rows are final; have those at a budget's end cut to size."""
        futures: set[Future[Any]] = set()
        limited = self.budgets.is_limited(source)
        parts = self._used(source) if limited else list(self.done[source].values())
        shared_out = self.budgets.shared_out([part.record for part in parts])
        for done, rows in zip(parts, shared_out, strict=True):
            key = (source, done.record.index)
            part = self.plan[source][done.record.index]
            if done.kept == rows and key not in self.settled:
                self.settled.add(key)
                if self.output.is_remote and not done.uploaded:
                    record_file = self.state.record_file(part)
                    futures.add(uploads.submit(self.output.upload, done, record_file))
            elif done.kept != rows and _keeps_all_or_nothing(done.kept, rows):
                self.state.drop_rows(done, rows, self.state.record_file(part))
                return futures | self._settle(source, workers, uploads)
            elif done.kept != rows and key not in self.cut:
                self.cut.add(key)
                futures.add(self._submit(workers, part, rows))
        return futures

    def _used_only(self, source: str) -> list[DonePart]:
        """List the parts that are used; remove what was converted beyond the budget."""
        used = self._used(source)
        for index in self.done[source].keys() - {part.record.index for part in used}:
            part = self.plan[source][index]
            self.state.forget(self.done[source][index], self.state.record_file(part))
        return used


def _keeps_all_or_nothing(there: Kept, kept: Kept) -> bool:
    """Return whether each stream of a part keeps all of its rows or none."""
    return all(
        kept.get(domain, {}).get(split, 0) in (0, rows)
        for domain, splits in there.items()
        for split, rows in splits.items()
    )
