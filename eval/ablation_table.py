"""The paper's Table 3 from perplexity results: ITT×4 and what it loses without its parts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval import paper
from eval.accuracy_table import GAP, flops_text
from eval.elastic_table import in_tflops
from eval.measurements import of_other_batches, precision_label, setting_at, text_label
from eval.perplexity_report import RULES
from eval.rendering import Section, Table

# The rows whose router is trained by top-k; the other two have one way to pick tokens each.
OF_ONE_RULE = {"top-p": "top_p", "without routing": None}


@dataclass
class Group:
    """Ablations of one size on one text, in one precision.

    Attributes:
        size: "162M" is the paper's.
        text: and the precision, for the title.
        results: of each row, each of other weights.
        rule: by which the rows that were trained by top-k are compared.
        notes: below the table.
    """

    size: str
    text: str
    results: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    rule: str = "top_k"
    notes: list[str] = field(default_factory=list)

    def measured(self, name: str) -> list[dict[str, Any]]:
        """The settings of a row that count, one for each result."""
        rule = OF_ONE_RULE.get(name, self.rule)
        found = [_own(result, rule) for result in self.results.get(name, [])]
        return [setting for setting in found if setting is not None]

    def mean(self, name: str) -> float | None:
        """Over the results of a row."""
        values = [setting["perplexity"] for setting in self.measured(name)]
        return statistics.fmean(values) if values else None

    def change(self, name: str) -> float | None:
        """Relative change of perplexity against ITT×4."""
        own, whole = self.mean(name), self.mean(paper.NOT_ABLATED)
        return None if own is None or whole is None else own / whole - 1


def groups_of(results: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The results that are of Table 3, by the models' geometry, their precision and the text.

    Args:
        results: of perplexity suites, merged.
    """
    groups: dict[tuple, Group] = {}
    for result in results:
        model = result["model"]
        name = paper.ablation_of(model)
        if name is None:
            continue
        geometry = (model[field] for field in paper.GEOMETRY_FIELDS)
        key = (*geometry, precision_label(model), result["text_sha256"])
        size = paper.size_of(model) or f"{model['parameters'] / 1e6:.1f}M"
        text = text_label(result) + precision_label(model)
        groups.setdefault(key, Group(size, text)).results.setdefault(name, []).append(result)
    for group in groups.values():
        _take_one_rule(group)
    return [group for group in groups.values() if any(map(group.measured, group.results))]


def _take_one_rule(group: Group) -> None:
    """Top-k where any model was measured by it, else thresholds; notes name what that leaves out.

    A model that was trained by top-k is saved to route by thresholds.
    """
    routed = [name for name in group.results if name not in OF_ONE_RULE]
    if routed and not any(map(group.measured, routed)):
        group.rule = "threshold"
    for name, results in group.results.items():
        rule = OF_ONE_RULE.get(name, group.rule)
        counted = [result["model"] for result in results if _own(result, rule) is not None]
        group.notes += of_other_batches(name, (model["trained_batches"] for model in counted))
        for result in results:
            if _own(result, rule) is None:
                by = f" by {RULES[rule]}, as this column is" if rule else ""
                group.notes.append(
                    f"{result['model']['path']} ({name}) was not measured at its own ratios{by}, "
                    "and is left out"
                )


def _own(result: Mapping[str, Any], rule: str | None) -> dict[str, Any] | None:
    """As in training: the model's ratios, no early exit, by that rule."""
    own = [
        setting
        for setting in result["settings"]
        if setting["select_ratios"] == result["model"]["select_ratios"]
        and not setting["early_exit"]
    ]
    return setting_at(own, [rule])


def section(group: Group, name: str, compared: bool) -> Section:
    """Table 3 for the models of one size.

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
    whole = paper.ablations()[paper.NOT_ABLATED].perplexity
    records = []
    for row in paper.ablations().values():
        measured, ours = group.measured(row.name), group.mean(row.name)
        values = [setting["perplexity"] for setting in measured]
        tflops = in_tflops(measured[0], "paper") if measured else None
        rule = RULES.get(OF_ONE_RULE.get(row.name, group.rule) or "", "every token")
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        difference = ours - row.perplexity if compared and ours is not None else None
        change, reported_change = group.change(row.name), row.perplexity / whole - 1
        text = GAP if ours is None else f"{ours:.2f}"
        cells = [
            row.name,
            rule if values else GAP,
            flops_text(row.tflops),
            flops_text(tflops),
            f"{row.perplexity:.2f}",
            text if error is None else f"{text}±{error:.2f}",
        ]
        cells += [GAP if difference is None else f"{difference:+.2f}"] if compared else []
        cells += [
            f"{100 * reported_change:+.1f} %",
            GAP if change is None else f"{100 * change:+.1f} %",
        ]
        table.rows.append(cells)
        records.append(
            {
                "size": group.size,
                "text": group.text,
                "ablation": row.name,
                "rule": rule if values else None,
                "tflops_in_paper": row.tflops,
                "tflops": tflops,
                "paper": row.perplexity,
                "ours": ours,
                "standard_error": error,
                "runs": len(values),
                "difference": difference,
                "change_in_paper": reported_change,
                "change": change,
            }
        )
    missing = [row for row in paper.ablations() if not group.measured(row)]
    table.notes = group.notes + ([f"no result for {', '.join(missing)}"] if missing else [])
    return Section(name, table, records)
