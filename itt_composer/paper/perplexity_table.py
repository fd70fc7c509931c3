"""Lists the perplexity of every measured model on a text, each as it thinks by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itt_composer.basics.tables import GAP, Section, Table
from itt_composer.paper.measurements import precision_label, text_label
from itt_composer.recipe.description import kind_label
from itt_composer.results.perplexity import PerplexityResults, Setting
from itt_composer.results.perplexity_report import RULES, percentages

ByRule = dict[str | None, Setting]


def section(results: Sequence[PerplexityResults], name: str) -> Section:
    """Make a line for each model and a column for each rule.

    A model without a router has the same figure under every rule.

    Args:
        results: of models on one text, merged.
        name: of the section's files.
    """
    lines = [line for result in results for line in model_lines(result)]
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
        perplexities = [f"{one.perplexity:.2f}" if one else GAP for one in shown]
        bits = [one.bits_per_byte if one else None for one in shown]
        in_bytes = [GAP if value is None else f"{value:.4f}" for value in bits]
        table.rows.append([*cells, *perplexities, *in_bytes])
    records = [record for result in results for record in model_records(result)]
    return Section(name, table, records)


def model_lines(result: PerplexityResults) -> list[tuple[list[str], ByRule]]:
    """Return name, kind and ratios of each of a model's settings, with its figures by rule."""
    lines: dict[str, ByRule] = {}
    for setting in own_settings(result):
        label, exit_at = percentages(setting.select_ratios), setting.early_exit
        label += f", exit {exit_at:g}" if exit_at else ""
        lines.setdefault(label, {})[setting.router_selection] = setting
    model = result.model
    kind = kind_label(model.given()) + precision_label(model)
    return [([model.name, kind, label], by_rule) for label, by_rule in lines.items()]


def model_records(result: PerplexityResults) -> list[dict[str, Any]]:
    """Return the same for programs, a record for each setting."""
    model, suite = result.model, result.suite
    return [
        {
            "model": model.name,
            "kind": kind_label(model.given()),
            "dtype": model.dtype,
            "select_ratios": percentages(setting.select_ratios) if setting.select_ratios else None,
            "early_exit": setting.early_exit,
            "rule": setting.router_selection,
            "shards": Path(suite.data).name,
            "split": suite.split,
            "text_sha256": result.text_sha256,
            "tokens": setting.tokens,
            "perplexity": setting.perplexity,
            "bits_per_byte": setting.bits_per_byte,
        }
        for setting in own_settings(result)
    ]


def own_settings(result: PerplexityResults) -> list[Setting]:
    """Return the settings at the model's own ratios without early exit; all if there are none."""
    own = result.model.select_ratios or []
    found = [
        setting
        for setting in result.settings
        if setting.select_ratios == own and not setting.early_exit
    ]
    return found or result.settings
