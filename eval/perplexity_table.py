"""Perplexity of every measured model, each as it thinks by itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import paper
from eval.accuracy_table import GAP
from eval.perplexity_report import RULES
from eval.rendering import Section, Table


def section(results: Sequence[Mapping[str, Any]]) -> Section:
    """A line for each result and rule; only rows of the same shards can be compared."""
    columns = ["model", "\nkind", "select\nratios", "\nrule", "\nshards"]
    columns += ["\ntokens", "\nperplexity", "bits per\nbyte"]
    table = Table("Perplexity", columns, text_columns=5)
    records = []
    for result in results:
        model, suite = result["model"], result["suite"]
        for setting in own_settings(result):
            rule, bits = setting["router_selection"], setting["bits_per_byte"]
            ratios = "/".join(f"{100 * ratio:.0f}" for ratio in setting["select_ratios"])
            record = {
                "model": model["name"],
                "kind": paper.kind_label(model),
                "select_ratios": ratios or None,
                "rule": rule,
                "shards": Path(suite["data"]).name,
                "tokens": setting["tokens"],
                "perplexity": setting["perplexity"],
                "bits_per_byte": bits,
            }
            records.append(record)
            table.rows.append(
                [
                    *(record["model"], record["kind"], ratios or GAP, RULES.get(rule, GAP)),
                    *(record["shards"], f"{setting['tokens']:,}", f"{setting['perplexity']:.2f}"),
                    GAP if bits is None else f"{bits:.4f}",
                ]
            )
    return Section("perplexity", table, records)


def own_settings(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those at the model's own ratios and without early exit; all, where it was never so."""
    own = result["model"].get("select_ratios", [])
    found = [
        setting
        for setting in result["settings"]
        if setting["select_ratios"] == own and not setting["early_exit"]
    ]
    return found or list(result["settings"])
