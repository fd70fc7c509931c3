"""The results of analyses as tables."""

from typing import Any

from itt_composer.analysis.token_classes import KINDS
from itt_composer.basics.tables import Table


def gradient_tables(result: dict[str, Any], name: str) -> list[Table]:
    """Mean ± deviation of the nuclear norms, a row per layer.

    Args:
        result: of `gradients.json`.
        name: of the model.
    """
    how, projections = result["problems"], result["projections"]
    counts = {group: result[group]["problems"] for group in ("easy", "hard")}
    table = Table(
        "Gradient nuclear norm: mean ± standard deviation over the problems",
        ["layer", *(f"{group}\n{each}" for group in counts for each in projections)],
    )
    for place, layer in enumerate(result["layers"]):
        thinks = " (thinks)" if layer in result["thinking_layers"] else ""
        cells = [
            _with_deviation(result[group]["mean"][each][place], result[group]["std"][each][place])
            for group in counts
            for each in projections
        ]
        table.rows.append([f"{layer}{thinks}", *cells])
    learnt = how["fine_tuned_on"]
    behind = f" behind the {learnt} that the model was fine-tuned on" if learnt else ""
    table.notes = [
        f"{name}: {how['measured']} problems of {how['file']}{behind}: "
        f"{counts['easy']} answered correctly (easy), {counts['hard']} not (hard); "
        f"accuracy {100 * how['accuracy']:.1f} %, by chance {100 * how['chance']:.1f} %",
        f"answered: {_listed(how['answered'])}; correct: {_listed(how['correct'])}",
    ]
    if how["cut"] or how["fine_tuning_cut"]:
        table.notes.append(
            f"{how['cut']} of the {how['measured']} and {how['fine_tuning_cut']} of those that the "
            "model was fine-tuned on were longer than it takes, and lost the question's beginning"
        )
    return [table]


def thinking_tables(result: dict[str, Any], name: str) -> list[Table]:
    """Shares and weights by layer and step, kinds of tokens, φ, and norms of states.

    Args:
        result: of `thinking.json`.
        name: of the model.
    """
    norms = Table("Mean norm of the tokens' states behind each layer", ["layer", "norm"])
    for norm in result["state_norms"]:
        norms.rows.append([str(norm["layer"]), _number(norm["mean"])])
    if not result["steps"]:
        norms.notes = [f"{name}: the model takes no thinking steps"]
        return [norms]
    data = result["data"]
    figures = ("share", "weight_mean", "weight_std", "selected_weight_mean", "overlap", "union")
    shares = Table(
        "Which tokens think",
        ["layer", "step", *(figure.replace("_", "\n") for figure in figures)],
        notes=[f"{name}: {data['rows']} {data['split']} rows, {data['tokens']:,} tokens"],
    )
    kinds = Table("Share of the tokens of a kind that take the step, %", ["layer", "step", *KINDS])
    for step in result["steps"]:
        place = [str(step["layer"]), str(step["step"])]
        shares.rows.append([*place, *(_number(step[figure]) for figure in figures)])
        shown = [step["classes"][kind]["share"] for kind in KINDS]
        kinds.rows.append([*place, *(_number(share, 100, 1) for share in shown)])
    columns = ("mean", "std", "min", "max")
    encodings = Table("Thinking Step Encoding φ", ["layer", "step", *columns])
    for encoding in result["step_encodings"]:
        place = [str(encoding["layer"]), str(encoding["step"])]
        encodings.rows.append([*place, *(_number(encoding[column]) for column in columns)])
    return [shares, kinds, *([encodings] if encodings.rows else []), norms]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{letter} {count}" for letter, count in counts.items())


def _with_deviation(mean: float | None, deviation: float | None) -> str:
    return "–" if mean is None else f"{mean:.3g} ± {deviation:.2g}"


def _number(value: float | None, times: float = 1, digits: int = 3) -> str:
    return "–" if value is None else f"{times * value:.{digits}f}"
