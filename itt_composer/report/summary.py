"""Makes the table of a report: for each experiment what it is, reached and took."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from itt_composer.basics.losses import perplexity
from itt_composer.basics.tables import GAP, Table
from itt_composer.report.axes import flops_unit
from itt_composer.report.experiments import Experiment, differing_settings
from itt_composer.report.runs import Run, config_of
from itt_composer.results.perplexity_report import percentages

DIVERGED = 100.0  # nats per token: a run with more has diverged
PAPERS_COST = "paper's\nMFLOPs\nper token"
DETAILS = ("params", PAPERS_COST)  # columns that a terminal has no room for
BRIEF_WIDTH = 80  # of a terminal


@dataclass
class Cell:
    """A figure: the mean over seeds, and the range from the least to the greatest."""

    text: str
    spread: str = ""


@dataclass
class Line:
    """An experiment in the table, with the label that it has in the figures."""

    label: str
    state: str
    cells: list[Cell]


@dataclass
class Summary:
    """The whole table, for the page, the terminal and Markdown.

    Attributes:
        settings: those of the columns that hold a setting which differs between experiments.
    """

    columns: list[str]
    lines: list[Line]
    notes: list[str]
    settings: Sequence[str] = ()

    def table(self) -> Table:
        """Make the table for Markdown."""
        rows = [
            [
                _with_state(line),
                *(
                    f"{cell.text} ({cell.spread})" if cell.spread else cell.text
                    for cell in line.cells
                ),
            ]
            for line in self.lines
        ]
        return Table("Runs", ["run", *self.columns], rows, notes=self.notes)

    def brief(self) -> Table:
        """Make the table for a terminal, with fewer columns and, for several seeds, means only."""
        kept = [number for number, column in enumerate(self.columns) if column not in DETAILS]
        left_out: list[str] = []
        for column in [*reversed(self.settings), "training\ntime", "seeds", "ratios, %"]:
            if self._width(kept) > BRIEF_WIDTH:
                kept.remove(self.columns.index(column))
                left_out.insert(0, column.replace("\n", " "))
        rows = [
            [_with_state(line), *(line.cells[number].text for number in kept)]
            for line in self.lines
        ]
        has_spread = any(cell.spread for line in self.lines for cell in line.cells)
        title = "Runs (means over seeds)" if has_spread else "Runs"
        notes = [f"On the page, too: {'; '.join(left_out)}."] if left_out else []
        return Table(title, ["run", *(self.columns[number] for number in kept)], rows, notes=notes)

    def _width(self, kept: Sequence[int]) -> int:
        """Count the letters of a line with these columns."""
        widths = [max((len(_with_state(line)) for line in self.lines), default=0)]
        for number in kept:
            heads = map(len, self.columns[number].split("\n"))
            widths.append(max(*heads, *(len(line.cells[number].text) for line in self.lines)))
        return sum(widths) + 2 * len(kept)


def summarise(experiments: Sequence[Experiment]) -> Summary:
    """Make the table of all experiments."""
    runs = [run for experiment in experiments for run in experiment.counted]
    most = max((flops for run in runs if (flops := total_flops(run)) is not None), default=0.0)
    unit = flops_unit(most)
    settings = differing_settings(experiments)
    columns = [
        "validation\nperplexity",
        "by\nthresholds",
        "model",
        "ratios, %",
        *settings,
        "seeds",
        "params",
        "tokens",
        f"executed\n{unit.name}",
        PAPERS_COST,
        "training\ntime",
    ]
    lines = [
        _line(experiment, [cells[place] for cells in settings.values()], unit.size)
        for place, experiment in enumerate(experiments)
    ]
    has_several = any(len(experiment.counted) > 1 for experiment in experiments)
    notes = [
        "Validation perplexity: at the end of training (of a run in progress as last measured), on "
        "the rows that training evaluates on, by the routing rule of training; by "
        "thresholds: with the causal rule that models are used with. Executed: FLOPs of the whole "
        "training, forward and backward, at the ratios in force in each batch. Paper's: of one "
        "forward pass, as its tables count them."
    ]
    if has_several:
        notes.append(
            "For several seeds: the mean, and the range from the least to the greatest; “2 of 3” "
            "where one has no such figure, as the perplexity of a run that diverged."
        )
    if any(run.recipe["thinking"].get("router_selection") == "top_p" for run in runs):
        notes.append(
            "Under top-p the tokens of a step depend on the data, and the FLOPs take ρ for their "
            "share."
        )
    return Summary(columns, lines, notes, list(settings))


def total_flops(run: Run) -> float | None:
    """Return executed training FLOPs so far; None where the log lacks some or all of the run."""
    if not run.flops or (run.summary is not None and run.batches[-1] < run.summary.batches):
        return None
    return run.flops[-1]


def validation_loss(run: Run) -> float | None:
    """Return the validation loss at the end, or the last one so far, nats per token."""
    if run.summary is not None:
        return run.summary.validation_loss
    return run.validations[-1].loss if run.validations else None


def loss_by_threshold(run: Run) -> float | None:
    """Return the same by thresholds; None for a model without a router."""
    if run.summary is not None:
        return run.summary.validation_loss_by_threshold
    return run.validations[-1].by_threshold if run.validations else None


def trained_tokens(run: Run) -> int:
    """Return how many tokens a run was trained on so far."""
    if run.summary is not None:
        return run.summary.tokens
    return run.tokens[-1] if run.tokens else 0


def seconds(run: Run) -> float | None:
    """Return the training time so far, without evaluations; None where it was not logged."""
    if run.summary is not None:
        return run.summary.train_seconds
    return 3600 * run.hours[-1] if run.hours and not math.isnan(run.hours[-1]) else None


def _line(experiment: Experiment, settings: Sequence[str], flops_size: float) -> Line:
    from itt_composer.models.flops import dense_parameters, paper_tflops, thinking_parameters

    runs, first = experiment.counted, experiment.runs[0]
    config, seq_len = config_of(first), first.recipe["data"]["seq_len"]
    parameters = dense_parameters(config) + thinking_parameters(config)
    return Line(
        experiment.label,
        _state(experiment),
        [
            _cell(runs, lambda run: _in_perplexity(validation_loss(run)), "{:.2f}".format),
            _cell(runs, lambda run: _in_perplexity(loss_by_threshold(run)), "{:.2f}".format),
            Cell(first.kind),
            Cell(percentages(first.recipe["thinking"].get("select_ratios") or [])),
            *map(Cell, settings),
            Cell(str(len({run.seeds for run in runs}))),
            Cell(f"{parameters / 1e6:,.2f} M"),
            _cell(runs, trained_tokens, counted),
            _cell(runs, total_flops, lambda flops: f"{flops / flops_size:,.2f}"),
            Cell(f"{paper_tflops(config, seq_len) * 1e6 / seq_len:,.2f}"),
            _cell(runs, seconds, duration),
        ],
    )


def _with_state(line: Line) -> str:
    return f"{line.label} ({line.state})" if line.state else line.label


def _state(experiment: Experiment) -> str:
    unfinished = [run for run in experiment.runs if not run.is_finished]
    if not unfinished:
        return ""
    if len(unfinished) < len(experiment.runs):
        return f"{len(unfinished)} more in progress"
    known = [run.progress for run in unfinished if run.progress is not None]
    return f"in progress, {100 * mean(known):.0f} %" if known else "in progress"


def _cell(
    runs: Sequence[Run], figure: Callable[[Run], float | None], shown: Callable[[float], str]
) -> Cell:
    values = [value for run in runs if (value := figure(run)) is not None]
    if not values:
        return Cell(GAP)
    low, high = shown(min(values)), shown(max(values))
    of = f" ({len(values)} of {len(runs)})" if len(values) < len(runs) else ""
    return Cell(shown(mean(values)) + of, "" if low == high else f"{low}–{high}")


def _in_perplexity(loss: float | None) -> float | None:
    return None if loss is None or not loss < DIVERGED else perplexity(loss)


def counted(tokens: float) -> str:
    """Return `2.05 M`, `50 B`."""
    tokens = float(f"{tokens:.3g}")
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{name}"
    return f"{tokens:.0f}"


def duration(seconds: float) -> str:
    """Return `52 s`, `6 min`, `13 h 05 min`."""
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
