"""The paper's Table 3 from perplexity results: ITT×4 and what it loses without its parts."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval import paper
from eval.accuracy_table import GAP, flops_text
from eval.elastic_table import in_tflops
from eval.perplexity_report import RULES
from eval.rendering import Section, Table


@dataclass
class Group:
    """Ablations of one size.

    Attributes:
        size: "162M" is the paper's.
        perplexities: of each row, one for each result.
        tflops: of each row, by the paper's count.
        rules: by which each row was measured.
        notes: below the table.
    """

    size: str
    perplexities: dict[str, list[float]] = field(default_factory=dict)
    tflops: dict[str, float | None] = field(default_factory=dict)
    rules: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def mean(self, name: str) -> float | None:
        """Over the results of a row."""
        values = self.perplexities.get(name)
        return statistics.fmean(values) if values else None

    def change(self, name: str) -> float | None:
        """Relative change of perplexity against ITT×4."""
        own, whole = self.mean(name), self.mean(paper.NOT_ABLATED)
        return None if own is None or whole is None else own / whole - 1


def groups_of(results: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The results that are of Table 3, by the models' geometry."""
    groups: dict[tuple, Group] = {}
    for result in results:
        model = result["model"]
        name = paper.ablation_of(model)
        if name is None:
            continue
        key = tuple(model[field] for field in paper.GEOMETRY_FIELDS)
        size = paper.size_of(model) or f"{model['parameters'] / 1e6:.1f}M"
        group = groups.setdefault(key, Group(size))
        setting = own_setting(result)
        if setting is None:
            group.notes.append(f"{model['path']} was not measured at its own ratios")
            continue
        group.perplexities.setdefault(name, []).append(setting["perplexity"])
        group.tflops[name] = in_tflops(setting, "paper")
        rule = RULES.get(setting["router_selection"], "every token")
        group.rules.setdefault(name, set()).add(rule)
    return [group for group in groups.values() if group.perplexities]


def own_setting(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """As in training: the model's ratios, no early exit, by top-k where that was measured.

    A model that was trained by top-k is saved to route by thresholds.
    """
    model = result["model"]
    found = [
        setting
        for setting in result["settings"]
        if setting["select_ratios"] == model["select_ratios"] and not setting["early_exit"]
    ]
    rules = ["top_k"] if model["router_selection"] == "threshold" else []
    rules.append(model["router_selection"])
    by_rule = [s for rule in rules for s in found if s["router_selection"] == rule]
    return next(iter([*by_rule, *found]), None)


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
    table = Table(f"Table 3, ablations of ITT×4: {group.size}", columns, text_columns=2)
    whole = paper.ablations()[paper.NOT_ABLATED].perplexity
    records = []
    for row in paper.ablations().values():
        values, ours = group.perplexities.get(row.name, []), group.mean(row.name)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        difference = ours - row.perplexity if compared and ours is not None else None
        change, reported_change = group.change(row.name), row.perplexity / whole - 1
        text = GAP if ours is None else f"{ours:.2f}"
        cells = [
            row.name,
            ", ".join(sorted(group.rules.get(row.name, ()))) or GAP,
            flops_text(row.tflops),
            flops_text(group.tflops.get(row.name)),
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
                "ablation": row.name,
                "rule": cells[1] if values else None,
                "tflops_in_paper": row.tflops,
                "tflops": group.tflops.get(row.name),
                "paper": row.perplexity,
                "ours": ours,
                "standard_error": error,
                "runs": len(values),
                "difference": difference,
                "change_in_paper": reported_change,
                "change": change,
            }
        )
    missing = [row for row in paper.ablations() if row not in group.perplexities]
    table.notes = group.notes + ([f"no result for {', '.join(missing)}"] if missing else [])
    return Section(name, table, records)
