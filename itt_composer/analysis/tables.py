"""Shows the results of analyses as tables."""

from itt_composer.analysis.token_classes import KINDS
from itt_composer.basics.tables import GAP, Table, shown
from itt_composer.results.gradients import MeasuredGradients
from itt_composer.results.thinking import StateNorm, StepEncoding, ThinkingResults

STEP_COLUMNS = ("share", "weight_mean", "weight_std", "selected_weight_mean", "overlap", "union")


def gradient_tables(result: MeasuredGradients, name: str) -> list[Table]:
    """Show mean ± deviation of the nuclear norms, a row for each layer.

    Args:
        result: of the analysis.
        name: of the model.
    """
    how, groups = result.problems, {"easy": result.easy, "hard": result.hard}
    table = Table(
        "Gradient nuclear norm: mean ± standard deviation over the problems",
        ["layer", *(f"{group}\n{each}" for group in groups for each in result.projections)],
    )
    for place, layer in enumerate(result.layers):
        thinks = " (thinks)" if layer in result.thinking_layers else ""
        cells = [
            _with_deviation(group.mean[each][place], group.std[each][place])
            for group in groups.values()
            for each in result.projections
        ]
        table.rows.append([f"{layer}{thinks}", *cells])
    learnt = how.fine_tuned_on
    after = f" after the {learnt} that the model was fine-tuned on" if learnt else ""
    table.notes = [
        f"{name}: {how.measured} problems of {how.file}{after}: "
        f"{result.easy.problems} answered correctly (easy), {result.hard.problems} not (hard); "
        f"accuracy {100 * how.accuracy:.1f} %, by chance {100 * how.chance:.1f} %",
        f"answered: {_listed(how.answered)}; correct: {_listed(how.correct)}",
    ]
    if how.cut or how.fine_tuning_cut:
        table.notes.append(
            f"{how.cut} of the {how.measured} and {how.fine_tuning_cut} of those that the "
            "model was fine-tuned on were longer than it takes, and lost the question's beginning"
        )
    return [table]


def thinking_tables(result: ThinkingResults, name: str) -> list[Table]:
    """Show shares and weights by layer and step, kinds of tokens, φ, and norms of states.

    Args:
        result: of the analysis.
        name: of the model.
    """
    norms = _norms(result.state_norms)
    if not result.steps:
        norms.notes = [f"{name}: the model takes no thinking steps"]
        return [norms]
    data = result.data
    shares = Table(
        "Which tokens think",
        ["layer", "step", *(figure.replace("_", "\n") for figure in STEP_COLUMNS)],
        notes=[f"{name}: {data.rows} {data.split} rows, {data.tokens:,} tokens"],
    )
    kinds = Table("Share of the tokens of a kind that take the step, %", ["layer", "step", *KINDS])
    for step in result.steps:
        place = [str(step.layer), str(step.step)]
        shares.rows.append([*place, *(shown(getattr(step, figure), 3) for figure in STEP_COLUMNS)])
        shares_of = [step.classes[kind].share for kind in KINDS]
        in_percent = [None if share is None else 100 * share for share in shares_of]
        kinds.rows.append([*place, *(shown(share, 1) for share in in_percent)])
    encodings = _encodings(result.step_encodings)
    return [shares, kinds, *([encodings] if encodings.rows else []), norms]


def _norms(norms: list[StateNorm]) -> Table:
    table = Table("Mean norm of the tokens' states after each layer", ["layer", "norm"])
    table.rows = [[str(norm.layer), shown(norm.mean, 3)] for norm in norms]
    return table


def _encodings(encodings: list[StepEncoding]) -> Table:
    columns = ("mean", "std", "min", "max")
    table = Table("Thinking Step Encoding φ", ["layer", "step", *columns])
    for one in encodings:
        cells = [shown(getattr(one, column), 3) for column in columns]
        table.rows.append([str(one.layer), str(one.step), *cells])
    return table


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{letter} {count}" for letter, count in counts.items())


def _with_deviation(mean: float | None, deviation: float | None) -> str:
    return GAP if mean is None else f"{mean:.3g} ± {deviation:.2g}"
