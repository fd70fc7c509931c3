"""What a perplexity suite has measured, as tables: in the terminal, as Markdown and as CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from itt_composer.basics.files import write_json, write_whole
from itt_composer.basics.tables import Table, as_csv

FIGURES = ("tokens", "bytes", "loss", "perplexity", "bits_per_byte")
RULES = {"top_k": "top-k", "threshold": "threshold", "top_p": "top-p"}
FLOPS = ("paper_flops_per_token", "executed_flops_per_token")


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print how each setting thought, what that took and its perplexity; then that per domain."""
    for table in tables(results):
        table.print(console)


def write_results(results: dict[str, Any], output: Path) -> None:
    """Write the JSON, and beside it the same as Markdown and CSV."""
    pages = [table.markdown() for table in tables(results)]
    write_whole(output.with_suffix(".md"), "\n".join(pages))
    write_whole(output.with_suffix(".csv"), flat(results))
    write_json(output, results)


def tables(results: dict[str, Any]) -> list[Table]:
    """The table of settings and, where there are several domains, two of those."""
    suite, settings = results["suite"], results["settings"]
    title = f"{results['model']['name']}: {suite['split']} perplexity"
    routed = any(setting["router_selection"] for setting in settings)
    exits = any(setting["early_exit"] for setting in settings)
    ours = FLOPS[0] in settings[0]
    columns = ["select\nratios, %"]
    columns += ["\nrule", "took each\nstep, %"] if routed else []
    columns += ["early\nexit", "steps\nsaved", "perpl.\nadded"] if exits else []
    counts = ["paper", "executed"] if not exits else ["executed"]
    columns += [f"MFLOPs,\n{count}" for count in counts] if ours else []
    rows = []
    for setting in settings:
        cells = [percentages(setting["select_ratios"])]
        if routed:
            cells += [
                setting["router_selection"] or "–",
                percentages(mean_shares(setting), digits=0 if exits else 1),
            ]
        if exits:
            cells += [f"{setting['early_exit']:g}", *cost_of_exit(setting, settings)]
        if ours:
            cells += [f"{setting[f'{count}_flops_per_token'] / 1e6:,.2f}" for count in counts]
        rows.append([*cells, *perplexity_and_bits(setting)])
    found = [Table(title, [*columns, "perplex-\nity", "bits per\nbyte"], rows)]
    domains = list(settings[0]["domains"])
    if len(domains) > 1:
        kept = 2 if routed else 1
        for number, figure in enumerate(("perplexity", "bits per byte")):
            per_domain = [
                row[:kept]
                + [perplexity_and_bits(setting["domains"][name])[number] for name in domains]
                for row, setting in zip(rows, settings, strict=True)
            ]
            found.append(Table(f"{figure} per domain", columns[:kept] + domains, per_domain))
    return found


def flat(results: dict[str, Any]) -> str:
    """CSV: a line per setting and domain, "all" for the whole."""
    columns = ("select_ratios", "router_selection", "early_exit", "realised_shares", *FLOPS)
    lines = []
    for setting in results["settings"]:
        kind = [
            percentages(setting["select_ratios"]),
            setting["router_selection"],
            setting["early_exit"],
            percentages(mean_shares(setting), digits=2),
            *(setting.get(name) for name in FLOPS),
        ]
        for domain, figures in {"all": setting, **setting["domains"]}.items():
            lines.append([*kind, domain, *(figures[name] for name in FIGURES)])
    return as_csv((*columns, "domain", *FIGURES), lines)


def perplexity_and_bits(figures: dict[str, Any]) -> tuple[str, str]:
    """Both as shown; bits per byte are unknown where the tokenizer does not tell its bytes."""
    bits = figures["bits_per_byte"]
    return f"{figures['perplexity']:.2f}", "–" if bits is None else f"{bits:.4f}"


def mean_shares(setting: dict[str, Any]) -> list[float]:
    """The share that took each step, over the thinking layers."""
    return [sum(layers) / max(1, len(layers)) for layers in setting.get("realised_shares", [])]


def cost_of_exit(setting: dict[str, Any], settings: list[dict[str, Any]]) -> tuple[str, str]:
    """Thinking steps saved and perplexity added against the same setting without early exit."""
    kind = ("select_ratios", "router_selection")
    for other in settings:
        if other["early_exit"] == 0 and all(other[name] == setting[name] for name in kind):
            steps = sum(map(sum, other["realised_shares"]))
            saved = 1 - sum(map(sum, setting["realised_shares"])) / steps if steps else 0.0
            added = setting["perplexity"] / other["perplexity"] - 1
            return f"{100 * saved:.1f} %", f"{100 * added:+.2f} %"
    return "–", "–"


def percentages(shares: Sequence[float], digits: int = 0) -> str:
    """`70/50/50`, or `–` where there is no step."""
    return "/".join(f"{100 * share:.{digits}f}" for share in shares) or "–"
