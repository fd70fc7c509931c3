"""Lines that were left out: how many may be, and the file that lists them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.documents import where
from data_prep.part_record import PartRecord
from itt_composer.basics.errors import UserError


@dataclass(frozen=True)
class RejectLimit:
    """Stops a run in which too many lines are bad.

    Attributes:
        share: most lines that may be rejected, of all lines; None where none may be, so that
            there are some only if an earlier run skipped them.
    """

    share: float | None

    def check(self, records: list[PartRecord], done: float) -> None:
        """Refuse rejects that pass the limit even if all that is still to come is good.

        Args:
            records: of the parts that are done.
            done: share of the input that they are.

        Raises:
            UserError: names the numbers and the first of the rejected lines.
        """
        rejects = sum(len(record.rejects) for record in records)
        lines = max(rejects, sum(record.lines for record in records))
        if not rejects:
            return
        first = next(reject for record in records for reject in record.rejects)
        sentence = f"{where(first.file, first.line)}{first.reason}"
        if self.share is None:
            raise UserError(
                f"{sentence}; an earlier run left it out under --on-bad-line skip: give that "
                "again, or mend the file"
            )
        if rejects > self.share * lines / min(1.0, max(done, 1e-9)):
            raise UserError(
                f"{rejects:,} of {lines:,} lines so far are bad, more than --max-reject-share "
                f"{self.share} admits; the first: {sentence}"
            )


def rejects_as_jsonl(records: Iterable[PartRecord]) -> str:
    """Write one JSON object per rejected line: file, line, reason."""
    rejects = [reject._asdict() for record in records for reject in record.rejects]
    return "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
