"""Makes the paper's Table 3 from perplexities: ITT×4 and what it loses without its parts."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from itt_composer.basics.tables import GAP, Section, Table
from itt_composer.paper import figures as paper
from itt_composer.paper.accuracy_table import flops_text
from itt_composer.paper.elastic_table import in_tflops
from itt_composer.paper.measurements import (
    experiments_of,
    own_names,
    precision_label,
    standard_error,
    text_label,
)
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.results.perplexity import PerplexityResults, Setting
from itt_composer.results.perplexity_report import RULES

# The rows whose router is trained by top-k; the other two have one way to pick tokens each.
OF_ONE_RULE = {"top-p": "top_p", "without routing": None}


@dataclass
class AblationLine:
    """Repeats of one ablation.

    Attributes:
        row: of the paper's table.
        results: each of other weights; empty where there are none.
        measured: the setting of each that counts.
        label: the row, and the model's name where several have the row.
    """

    row: str
    results: list[PerplexityResults] = field(default_factory=list)
    measured: list[Setting] = field(default_factory=list)
    label: str = ""

    @property
    def mean(self) -> float | None:
        """Mean perplexity over the results."""
        values = [setting.perplexity for setting in self.measured]
        return statistics.fmean(values) if values else None


@dataclass
class AblationGroup:
    """Ablations of one size on one text, in one precision.

    Attributes:
        size: "162M" is the paper's.
        text: and the precision, for the title.
        lines: by experiment.
        rule: by which the rows that were trained by top-k are compared.
        notes: below the table.
    """

    size: str
    text: str
    lines: dict[str, AblationLine] = field(default_factory=dict)
    rule: str = "top_k"
    notes: list[str] = field(default_factory=list)

    def rule_of(self, row: str) -> str | None:
        """Return the rule by which a row's models are measured."""
        return OF_ONE_RULE.get(row, self.rule)

    def of_row(self, row: str) -> list[AblationLine]:
        """Return the experiments of a row that were measured by its rule."""
        return [line for line in self.lines.values() if line.row == row and line.measured]

    def change(self, line: AblationLine) -> float | None:
        """Return the relative change of perplexity against ITT×4, the first of several."""
        whole = next((one.mean for one in self.of_row(paper.NOT_ABLATED)), None)
        return None if line.mean is None or whole is None else line.mean / whole - 1


def groups_of(results: Sequence[PerplexityResults]) -> list[AblationGroup]:
    """Group the results of Table 3's models by their geometry, their precision and the text.

    Args:
        results: of perplexity suites, merged.
    """
    groups: dict[tuple, AblationGroup] = {}
    experiments = experiments_of([result.model for result in results])
    for experiment, result in zip(experiments, results, strict=True):
        model, described = result.model, result.model.given()
        name = paper.ablation_of(described)
        if name is None:
            continue
        geometry = (getattr(model, name) for name in GEOMETRY_FIELDS)
        key = (*geometry, precision_label(model), result.text_sha256)
        size = paper.size_of(described) or f"{model.parameters / 1e6:.1f}M"
        text = text_label(result) + precision_label(model)
        lines = groups.setdefault(key, AblationGroup(size, text)).lines
        lines.setdefault(experiment, AblationLine(name)).results.append(result)
    for group in groups.values():
        _take_one_rule(group)
        _label_lines(group)
    return [
        group for group in groups.values() if any(line.measured for line in group.lines.values())
    ]


def _take_one_rule(group: AblationGroup) -> None:
    """Take top-k where any model was measured by it, else thresholds; note what that leaves out.

    A model that was trained by top-k is saved to route by thresholds.
    """
    routed = [line for line in group.lines.values() if line.row not in OF_ONE_RULE]
    by_top_k = [_own(result, group.rule) for line in routed for result in line.results]
    if routed and not any(by_top_k):
        group.rule = "threshold"
    for line in group.lines.values():
        rule = group.rule_of(line.row)
        for result in line.results:
            setting = _own(result, rule)
            if setting is not None:
                line.measured.append(setting)
                continue
            by = f" by {RULES[rule]}, as this column is" if rule else ""
            group.notes.append(
                f"{result.model.path} ({line.row}) was not measured at its own ratios{by}, "
                "and is left out"
            )


def _label_lines(group: AblationGroup) -> None:
    for row in paper.ablations():
        lines = group.of_row(row)
        for line in lines:
            line.label = row
        for by in ("name", "path"):
            counts = Counter(line.label for line in lines)
            for line in lines:
                if counts[line.label] > 1:
                    models = (result.model for result in line.results)
                    line.label = f"{row} ({own_names(models, by)})"
        if row == paper.NOT_ABLATED and len(lines) > 1:
            group.notes.append(f"changes are against {lines[0].label}, the first of {len(lines)}")


def _own(result: PerplexityResults, rule: str | None) -> Setting | None:
    """Return the setting of training: the model's ratios, no early exit, by that rule."""
    own = (
        setting
        for setting in result.settings
        if setting.select_ratios == result.model.select_ratios
        and setting.router_selection == rule
        and not setting.early_exit
    )
    return next(own, None)


def section(group: AblationGroup, name: str, compared: bool) -> Section:
    """Make Table 3 for the models of one size.

    Args:
        group: of them.
        name: of the section's files.
        compared: take differences although the models are not of the paper's size.
    """
    compared = compared or group.size == "162M"
    columns = ["ablation", "measured\nby", "TFLOPs,\npaper", "TFLOPs,\nours"]
    columns += ["perplexity,\npaper", "perplexity,\nours"] + (["\ndifference"] if compared else [])
    columns += ["change,\npaper", "change,\nours"]
    title = f"Table 3, ablations of ITT×4: {group.size} on {group.text}"
    table = Table(title, columns, text_columns=2)
    records = []
    for row in paper.ablations().values():
        for line in group.of_row(row.name) or [AblationLine(row.name, label=row.name)]:
            records.append(_record(group, line, row, compared))
            table.rows.append(_cells(line.label, records[-1], compared))
    missing = [row for row in paper.ablations() if not group.of_row(row)]
    table.notes = group.notes + ([f"no result for {', '.join(missing)}"] if missing else [])
    return Section(name, table, records)


def _record(
    group: AblationGroup, line: AblationLine, row: paper.AblationRow, compared: bool
) -> dict[str, Any]:
    values = [setting.perplexity for setting in line.measured]
    rule = RULES.get(group.rule_of(row.name) or "", "every token")
    flops = line.measured[0].paper_flops_per_token if values else None
    whole = paper.ablations()[paper.NOT_ABLATED].perplexity
    return {
        "size": group.size,
        "text": group.text,
        "ablation": row.name,
        "model": line.label if values else None,
        "rule": rule if values else None,
        "tflops_in_paper": row.tflops,
        "tflops": in_tflops(flops),
        "paper": row.perplexity,
        "ours": line.mean,
        "standard_error": standard_error(values),
        "runs": len(values),
        "difference": line.mean - row.perplexity if compared and line.mean is not None else None,
        "change_in_paper": row.perplexity / whole - 1,
        "change": group.change(line),
    }


def _cells(label: str, record: Mapping[str, Any], compared: bool) -> list[str]:
    ours, error, difference = (record[name] for name in ("ours", "standard_error", "difference"))
    text, change = GAP if ours is None else f"{ours:.2f}", record["change"]
    cells = [
        label,
        record["rule"] or GAP,
        flops_text(record["tflops_in_paper"]),
        flops_text(record["tflops"]),
        f"{record['paper']:.2f}",
        text if error is None else f"{text}±{error:.2f}",
    ]
    cells += [GAP if difference is None else f"{difference:+.2f}"] if compared else []
    return [
        *cells,
        f"{100 * record['change_in_paper']:+.1f} %",
        GAP if change is None else f"{100 * change:+.1f} %",
    ]
