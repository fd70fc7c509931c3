"""Makes the paper's elastic table (Table 2) from perplexities of one model at many ratios."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from itt_composer.basics.tables import GAP, Section, Table
from itt_composer.paper import figures as paper
from itt_composer.paper.accuracy_table import flops_text, label_of
from itt_composer.paper.measurements import text_label
from itt_composer.recipe.description import GEOMETRY_FIELDS, kind_label, kind_of
from itt_composer.results.perplexity import PerplexityResults, Setting
from itt_composer.results.perplexity_report import RULES, percentages

TOKENS = 4096  # of the forward pass that TFLOPs are counted of


@dataclass
class ElasticLine:
    """A setting, or a model beside the elastic one.

    Attributes:
        label: its ratios, or the model's kind.
        reported: in the paper.
        measured: settings of results, by rule.
    """

    label: str
    reported: paper.ElasticRow | None
    measured: dict[str | None, Setting]


def is_sweep(result: PerplexityResults) -> bool:
    """Say whether an ITT was measured at several ratios, without early exit."""
    ratios = {tuple(setting.select_ratios) for setting in _without_exit(result)}
    return kind_of(result.model.given()) == "itt" and len(ratios) > 1


def section(
    result: PerplexityResults, others: Sequence[PerplexityResults], name: str, compared: bool
) -> Section:
    """Make the elastic table of one model.

    Args:
        result: of its sweep.
        others: perplexity results; those of the dense and the Loop model of the same geometry
            stand beside it.
        name: of the section's files.
        compared: take differences although it is not the paper's model.
    """
    asked = _without_exit(result)
    measured = {setting.router_selection for setting in asked}
    rules: list[str | None] = [rule for rule in RULES if rule in measured]
    rules = rules or [None]  # without a router
    compared = compared or paper.is_elastic(result.model.given())
    title = f"Table 2, elastic thinking: {label_of(result.model)} on {text_label(result)}"
    table = Table(title, _columns(rules, compared))
    compared_lines, notes = beside(result, others, rules[0])
    lines = [*settings_of(asked), *compared_lines]
    records = []
    for line in lines:
        own = [_elastic_record(label_of(result.model), line, rule, compared) for rule in rules]
        table.rows.append(_elastic_cells(line, own, compared))
        records += own
    table.notes = [*_notes(lines, compared), *notes]
    return Section(name, table, records)


def _columns(rules: Sequence[str | None], compared: bool) -> list[str]:
    columns = ["ratios, %", "TFLOPs,\npaper", "TFLOPs,\nours", "TFLOPs,\nexecuted"]
    columns.append("perplexity,\npaper")
    for rule in rules:
        by = RULES[rule] if rule else None
        columns.append(f"perplexity,\nours, {by}" if by else "perplexity,\nours")
        if compared:
            columns.append(f"difference,\n{by}" if by else "difference")
    return columns


def _elastic_record(
    model: str, line: ElasticLine, rule: str | None, compared: bool
) -> dict[str, Any]:
    reported, setting, difference = line.reported, line.measured.get(rule), None
    if compared and setting and reported:
        difference = setting.perplexity - reported.perplexity
    return {
        "model": model,
        "setting": line.label,
        "rule": rule,
        "tflops_in_paper": reported.tflops if reported else None,
        "tflops": in_tflops(setting.paper_flops_per_token) if setting else None,
        "executed_tflops": in_tflops(setting.executed_flops_per_token) if setting else None,
        "paper": reported.perplexity if reported else None,
        "ours": setting.perplexity if setting else None,
        "bits_per_byte": setting.bits_per_byte if setting else None,
        "difference": difference,
    }


def _elastic_cells(
    line: ElasticLine, records: Sequence[dict[str, Any]], compared: bool
) -> list[str]:
    """Return a row of the table, given its records by every rule."""
    first, measured = records[0], next(iter(line.measured.values()), None)
    cells = [
        line.label,
        flops_text(first["tflops_in_paper"]),
        flops_text(in_tflops(measured.paper_flops_per_token) if measured else None),
        flops_text(first["executed_tflops"]),
        GAP if first["paper"] is None else f"{first['paper']:.2f}",
    ]
    for record in records:
        ours, difference = record["ours"], record["difference"]
        cells.append(GAP if ours is None else f"{ours:.2f}")
        cells += [GAP if difference is None else f"{difference:+.2f}"] if compared else []
    return cells


def _without_exit(result: PerplexityResults) -> list[Setting]:
    return [setting for setting in result.settings if not setting.early_exit]


def settings_of(asked: Sequence[Setting]) -> list[ElasticLine]:
    """Return the paper's sixteen settings in its order, then the others that were measured."""
    reported = {row.select_ratios: row for row in paper.elastic() if row.select_ratios}
    measured: dict[tuple[float, ...], dict[str | None, Setting]] = {}
    for setting in asked:
        ratios = tuple(setting.select_ratios)
        measured.setdefault(ratios, {})[setting.router_selection] = setting
    return [
        ElasticLine(percentages(ratios), reported.get(ratios), measured.get(ratios, {}))
        for ratios in dict.fromkeys([*reported, *measured])
    ]


def beside(
    result: PerplexityResults, others: Sequence[PerplexityResults], rule: str | None
) -> tuple[list[ElasticLine], list[str]]:
    """Return the models that the paper puts beside its own, of this geometry and on this text.

    They have no rule of their own, and stand under the first. Where several runs fit, the first is
    taken, and notes name the others.
    """
    lines, notes = [], []
    for row in paper.elastic():
        if row.select_ratios:
            continue
        line = ElasticLine(row.model.split("-")[0], row, {})
        like = [
            other
            for other in others
            if kind_label(other.model.given()) == line.label and _is_like(other, result)
        ]
        if like:
            line.measured = {rule: like[0].settings[0]}
        notes += [
            f"{line.label} is {like[0].model.path}, not {other.model.path}" for other in like[1:]
        ]
        lines.append(line)
    return lines, notes


def _is_like(other: PerplexityResults, result: PerplexityResults) -> bool:
    return other.text_sha256 == result.text_sha256 and all(
        getattr(other.model, name) == getattr(result.model, name)
        for name in (*GEOMETRY_FIELDS, "dtype")
    )


def in_tflops(per_token: float | None) -> float | None:
    """Return TFLOPs of a forward pass over 4,096 tokens in rows of the shards' length.

    Args:
        per_token: FLOPs; None where they are not counted.
    """
    return None if per_token is None else per_token * TOKENS / 1e12


def _notes(lines: Sequence[ElasticLine], compared: bool) -> list[str]:
    missing = [line.label for line in lines if not line.measured]
    notes = [f"no result for {', '.join(missing)}"] if missing else []
    if not compared:
        notes.append(
            "not the paper's elastic model (162M, trained at 70/70/70): its perplexities do not "
            "compare with these"
        )
    return notes
