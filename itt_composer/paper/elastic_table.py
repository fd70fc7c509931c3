"""The paper's elastic table (Table 2) from perplexity results of one model at many ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itt_composer.basics.tables import Section, Table
from itt_composer.paper import figures as paper
from itt_composer.paper.accuracy_table import GAP, flops_text, label_of
from itt_composer.paper.measurements import text_label
from itt_composer.recipe.description import GEOMETRY_FIELDS, kind_label, kind_of
from itt_composer.results.perplexity_report import RULES, percentages

TOKENS = 4096  # of the forward pass that TFLOPs are counted of


@dataclass
class Line:
    """A setting, or a model beside the elastic one.

    Attributes:
        label: its ratios, or the model's kind.
        reported: in the paper.
        measured: settings of results, by rule.
    """

    label: str
    reported: paper.ElasticRow | None
    measured: dict[str | None, dict[str, Any]]


def is_sweep(result: Mapping[str, Any]) -> bool:
    """Whether an ITT was measured at several ratios, without early exit."""
    ratios = {tuple(setting["select_ratios"]) for setting in _without_exit(result)}
    return kind_of(result["model"]) == "itt" and len(ratios) > 1


def section(
    result: Mapping[str, Any], others: Sequence[Mapping[str, Any]], name: str, compared: bool
) -> Section:
    """The elastic table of one model.

    Args:
        result: of its sweep.
        others: perplexity results, among them perhaps those of the dense and the Loop model of
            the same geometry.
        name: of the section's files.
        compared: take differences although it is not the paper's model.
    """
    model = result["model"]
    asked = _without_exit(result)
    measured = {setting["router_selection"] for setting in asked}
    rules: list[str | None] = [rule for rule in RULES if rule in measured]
    rules = rules or [None]  # without a router
    compared = compared or paper.is_elastic(model)
    columns = ["ratios, %", "TFLOPs,\npaper", "TFLOPs,\nours", "TFLOPs,\nexecuted"]
    columns.append("perplexity,\npaper")
    for rule in rules:
        by = RULES[rule] if rule else None
        columns.append(f"perplexity,\nours, {by}" if by else "perplexity,\nours")
        if compared:
            columns.append(f"difference,\n{by}" if by else "difference")
    title = f"Table 2, elastic thinking: {label_of(model)} on {text_label(result)}"
    table = Table(title, columns)
    records = []
    compared_lines, notes = beside(result, others, rules[0])
    lines = [*settings_of(asked), *compared_lines]
    for line in lines:
        reported, first = line.reported, next(iter(line.measured.values()), None)
        cells = [
            line.label,
            flops_text(reported.tflops if reported else None),
            flops_text(in_tflops(first, "paper")),
            flops_text(in_tflops(line.measured.get(rules[0]), "executed")),
            f"{reported.perplexity:.2f}" if reported else GAP,
        ]
        for rule in rules:
            setting = line.measured.get(rule)
            difference = _difference(setting, reported) if compared else None
            cells.append(f"{setting['perplexity']:.2f}" if setting else GAP)
            cells += [GAP if difference is None else f"{difference:+.2f}"] if compared else []
            records.append(
                {
                    "model": label_of(model),
                    "setting": line.label,
                    "rule": rule,
                    "tflops_in_paper": reported.tflops if reported else None,
                    "tflops": in_tflops(setting, "paper"),
                    "executed_tflops": in_tflops(setting, "executed"),
                    "paper": reported.perplexity if reported else None,
                    "ours": setting["perplexity"] if setting else None,
                    "bits_per_byte": setting["bits_per_byte"] if setting else None,
                    "difference": difference,
                }
            )
        table.rows.append(cells)
    table.notes = [*_notes(lines, compared), *notes]
    return Section(name, table, records)


def _without_exit(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [setting for setting in result["settings"] if not setting["early_exit"]]


def settings_of(asked: Sequence[dict[str, Any]]) -> list[Line]:
    """The paper's sixteen settings in its order, then what was measured besides."""
    reported = {row.select_ratios: row for row in paper.elastic() if row.select_ratios}
    measured: dict[tuple[float, ...], dict[str | None, dict[str, Any]]] = {}
    for setting in asked:
        ratios = tuple(setting["select_ratios"])
        measured.setdefault(ratios, {})[setting["router_selection"]] = setting
    return [
        Line(
            percentages(ratios),
            reported.get(ratios),
            measured.get(ratios, {}),
        )
        for ratios in dict.fromkeys([*reported, *measured])
    ]


def beside(
    result: Mapping[str, Any], others: Sequence[Mapping[str, Any]], rule: str | None
) -> tuple[list[Line], list[str]]:
    """The models that the paper puts beside its own, of this one's geometry and on its text.

    They have no rule of their own, and stand under the first. Of several runs the first is taken,
    and notes name the others.
    """
    lines, notes = [], []
    for row in paper.elastic():
        if row.select_ratios:
            continue
        line = Line(row.model.split("-")[0], row, {})
        like = [
            other
            for other in others
            if kind_label(other["model"]) == line.label and _is_like(other, result)
        ]
        if like:
            line.measured = {rule: like[0]["settings"][0]}
        notes += [
            f"{line.label} is {like[0]['model']['path']}, not {other['model']['path']}"
            for other in like[1:]
        ]
        lines.append(line)
    return lines, notes


def _is_like(other: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    own, model = result["model"], other["model"]
    return other["text_sha256"] == result["text_sha256"] and all(
        model.get(name) == own.get(name) for name in (*GEOMETRY_FIELDS, "dtype")
    )


def in_tflops(setting: Mapping[str, Any] | None, count: str) -> float | None:
    """Of a forward pass over 4,096 tokens in rows of the shards' length.

    Args:
        setting: of a result, or None.
        count: "paper" or "executed".
    """
    per_token = setting.get(f"{count}_flops_per_token") if setting else None
    return None if per_token is None else per_token * TOKENS / 1e12


def _difference(
    setting: Mapping[str, Any] | None, reported: paper.ElasticRow | None
) -> float | None:
    return setting["perplexity"] - reported.perplexity if setting and reported else None


def _notes(lines: Sequence[Line], compared: bool) -> list[str]:
    missing = [line.label for line in lines if not line.measured]
    notes = [f"no result for {', '.join(missing)}"] if missing else []
    if not compared:
        notes.append(
            "not the paper's elastic model (162M, trained at 70/70/70): its perplexities are no "
            "measure of these"
        )
    return notes
