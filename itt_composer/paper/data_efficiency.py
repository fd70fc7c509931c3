"""Computes data efficiency: the share of tokens at which a model reaches the dense one's loss.

It is read from the loss logs of runs that differ only in how they think. In the paper ITT×4 reaches
the final loss of LLaMA-162M with 56.8 % of the training tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from itt_composer.basics.errors import UserError
from itt_composer.basics.tables import GAP, Section, Table
from itt_composer.paper import figures as paper
from itt_composer.recipe.changes import changes, is_free
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.results.files import LossLog
from itt_composer.runs.folder import RunFolder

# Settings in which compared runs may differ: how they think, and what follows from that.
MAY_DIFFER = (
    *("run_name", "parts.*", "thinking.*", "model.attn_implementation"),
    *("algorithms.capacity_annealing*", "train.calibration_rows", "train.eval_interval"),
)


@dataclass(frozen=True)
class Efficiency:
    """A run beside the dense one.

    Attributes:
        label: of the run.
        reference: of the dense run.
        final_loss: of the run, nats per token.
        target: the dense run's final loss.
        share: of the dense run's tokens at which the run has reached the target; None if never.
        is_bound: the run was there at its first validation already, so `share` is an upper bound.
        paper: the share it reports for this pair.
        warnings: other differences between the two runs.
    """

    label: str
    reference: str
    final_loss: float
    target: float
    share: float | None
    is_bound: bool
    paper: float | None
    warnings: tuple[str, ...]


COLUMNS = [
    "run",
    "dense run",
    "its final\nloss",
    "own final\nloss",
    "share of its\ntokens",
    "paper",
]


def section(runs: Sequence[LossLog]) -> Section:
    """Make the table of the runs' data efficiency.

    Raises:
        UserError: as `data_efficiency`.
    """
    table = Table("Data efficiency: tokens to the dense run's final loss", COLUMNS, text_columns=2)
    counted: list[LossLog] = []
    for run in runs:
        if not math.isfinite(run.losses[-1][1]):
            table.notes.append(
                f"{run.label} diverged: its last loss is not a number; it is left out"
            )
        elif all((run.recipe, run.losses) != (other.recipe, other.losses) for other in counted):
            counted.append(run)  # a copy of a run counts once
    found = data_efficiency(counted)
    for line in found:
        share = "not reached" if line.share is None else f"{100 * line.share:.1f} %"
        table.rows.append(
            [
                line.label,
                line.reference,
                f"{line.target:.4f}",
                f"{line.final_loss:.4f}",
                f"≤ {share}" if line.is_bound else share,
                GAP if line.paper is None else f"{100 * line.paper:.1f} %",
            ]
        )
        table.notes += [f"warning: {line.label}: {warning}" for warning in line.warnings]
    return Section("data_efficiency", table, [asdict(line) for line in found])


def tokens_to_reach(losses: Sequence[tuple[int, float]], target: float) -> float | None:
    """Return when a loss first reaches the target, in tokens, interpolated between validations.

    Args:
        losses: (tokens, nats per token), ascending.
        target: in nats per token.

    Returns:
        None if it never is; the tokens of the first validation if it is there already.
    """
    if losses and losses[0][1] <= target:
        return float(losses[0][0])
    for (before, higher), (after, lower) in pairwise(losses):
        if lower <= target:
            return before + (after - before) * (higher - target) / (higher - lower)
    return None


def data_efficiency(runs: Sequence[LossLog]) -> list[Efficiency]:
    """Compare every thinking run with the most similar dense run of its geometry.

    Raises:
        UserError: there is no dense run, none of a run's geometry and text, or no other run.
    """
    dense = [run for run in runs if run.recipe["thinking"]["thinking"] == "dense"]
    if not dense:
        raise UserError(
            "there is no dense run among the run folders; data efficiency is against the final "
            "loss of one, so name the run of the same model with thinking: dense"
        )
    if len(dense) == len(runs):
        raise UserError(
            "there are only dense runs among the run folders; name a run that thinks as well"
        )
    return [_beside(run, _reference(run, dense)) for run in runs if run not in dense]


def _geometry(run: LossLog) -> tuple:
    return tuple(run.recipe["model"].get(name) for name in GEOMETRY_FIELDS)


def _reference(run: LossLog, dense: Sequence[LossLog]) -> LossLog:
    alike = [other for other in dense if _geometry(other) == _geometry(run)]
    if not alike:
        raise UserError(
            f"no dense run among the run folders has the geometry of {run.path}; name one that has"
        )
    same = [other for other in alike if not (run.text and other.text) or run.text == other.text]
    if not same:
        raise UserError(
            f"no dense run of the geometry of {run.path} was validated on the same rows with the "
            "same tokenizer; name one that was"
        )
    return min(same, key=lambda other: len(_unlike_settings(run, other)))


def _beside(run: LossLog, dense: LossLog) -> Efficiency:
    total, target = dense.losses[-1]
    tokens = tokens_to_reach(run.losses, target)
    is_the_papers = (
        paper.row_of(run.description) == "ITT×4-162M"
        and paper.row_of(dense.description) == "LLaMA-162M"
    )
    return Efficiency(
        label=run.label,
        reference=dense.label,
        final_loss=run.losses[-1][1],
        target=target,
        share=None if tokens is None else tokens / total,
        is_bound=tokens == run.losses[0][0],
        paper=paper.DATA_EFFICIENCY if is_the_papers else None,
        warnings=tuple(_warnings(run, dense)),
    )


def _unlike_settings(run: LossLog, dense: LossLog) -> list[str]:
    """Name the settings of data and schedule that differ."""
    return [
        f"{key} is {new} in {run.path.name}, {old} in {dense.path.name}"
        for key, (old, new) in changes(dense.recipe, run.recipe).items()
        if not is_free(key) and not any(fnmatchcase(key, pattern) for pattern in MAY_DIFFER)
    ]


def _warnings(run: LossLog, dense: LossLog) -> list[str]:
    """Name what makes the comparison unfair."""
    unfinished = [
        f"{log.path.name} is not finished, and its last validation is taken"
        for log in (dense, run)
        if not RunFolder(log.path).has_ended()
    ]
    return _unlike_settings(run, dense) + unfinished
