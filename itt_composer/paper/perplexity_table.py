"""Perplexity of every measured model on a text, each as it thinks by itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itt_composer.basics.tables import Section, Table
from itt_composer.paper.accuracy_table import GAP
from itt_composer.paper.measurements import precision_label, text_label
from itt_composer.recipe.description import kind_label
from itt_composer.results.perplexity_report import RULES, percentages


def section(results: Sequence[Mapping[str, Any]], name: str) -> Section:
    """A line for each model, a column for each rule; without routers a figure is of every rule.

    Args:
        results: of models on one text, merged.
        name: of the section's files.
    """
    lines = [line for result in results for line in lines_of(result)]
    rules: list[str | None] = [
        rule for rule in RULES if any(rule in by_rule for _, by_rule in lines)
    ]
    rules = rules or [None]
    columns = ["\nmodel", "\nkind", "select\nratios"]
    for figure in ("perplexity", "bits/byte"):
        columns += [f"{figure},\n{RULES[rule]}" if rule else f"\n{figure}" for rule in rules]
    table = Table(f"Perplexity on {text_label(results[0])}", columns, text_columns=3)
    for cells, by_rule in lines:
        shown = [by_rule.get(rule, by_rule.get(None)) for rule in rules]
        perplexities = [f"{one['perplexity']:.2f}" if one else GAP for one in shown]
        bits = [one["bits_per_byte"] if one else None for one in shown]
        in_bytes = [GAP if value is None else f"{value:.4f}" for value in bits]
        table.rows.append([*cells, *perplexities, *in_bytes])
    records = [record for result in results for record in records_of(result)]
    return Section(name, table, records)


def lines_of(result: Mapping[str, Any]) -> list[tuple[list[str], dict[str | None, dict]]]:
    """For each of a model's settings: name, kind and ratios; and what was measured, by rule."""
    model = result["model"]
    lines: dict[str, dict[str | None, dict]] = {}
    for setting in own_settings(result):
        ratios, exit_at = percentages(setting["select_ratios"]), setting["early_exit"]
        told = f"{ratios}, exit {exit_at:g}" if exit_at else ratios
        lines.setdefault(told, {})[setting["router_selection"]] = setting
    kind = kind_label(model) + precision_label(model)
    return [([model["name"], kind, told], by_rule) for told, by_rule in lines.items()]


def records_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same for programs, one for each rule."""
    model, suite = result["model"], result["suite"]
    return [
        {
            "model": model["name"],
            "kind": kind_label(model),
            "dtype": model.get("dtype"),
            "select_ratios": "/".join(f"{100 * r:.0f}" for r in setting["select_ratios"]) or None,
            "early_exit": setting["early_exit"],
            "rule": setting["router_selection"],
            "shards": Path(suite["data"]).name,
            "split": suite["split"],
            "text_sha256": result["text_sha256"],
            "tokens": setting["tokens"],
            "perplexity": setting["perplexity"],
            "bits_per_byte": setting["bits_per_byte"],
        }
        for setting in own_settings(result)
    ]


def own_settings(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those at the model's own ratios and without early exit; all, where it was never so."""
    own = result["model"].get("select_ratios", [])
    found = [
        setting
        for setting in result["settings"]
        if setting["select_ratios"] == own and not setting["early_exit"]
    ]
    return found or list(result["settings"])
