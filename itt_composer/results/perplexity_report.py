"""The results of a perplexity suite as tables: in the terminal, as Markdown and as CSV."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from itt_composer.basics.files import write_json, write_whole
from itt_composer.basics.tables import Table, as_csv
from itt_composer.results.perplexity import PerplexityFigures, PerplexityResults, Setting

FIGURES = ("tokens", "bytes", "loss", "perplexity", "bits_per_byte")
RULES = {"top_k": "top-k", "threshold": "threshold", "top_p": "top-p"}
FLOPS = ("paper_flops_per_token", "executed_flops_per_token")


def print_results(results: PerplexityResults, console: Console) -> None:
    """Print each setting with its FLOPs and perplexity, then the figures of each domain."""
    for table in tables(results):
        table.print(console)


def write_results(results: PerplexityResults, output: Path) -> None:
    """Write the JSON and, beside it, the same as Markdown and CSV."""
    pages = [table.markdown() for table in tables(results)]
    write_whole(output.with_suffix(".md"), "\n".join(pages))
    write_whole(output.with_suffix(".csv"), flat(results))
    write_json(output, results.content())


def tables(results: PerplexityResults) -> list[Table]:
    """Return the table of settings and, for several domains, two with a column for each."""
    settings = results.settings
    is_routed = any(setting.router_selection for setting in settings)
    columns, rows = _ways(settings, is_routed)
    title = f"{results.model.name}: {results.suite.split} perplexity"
    figures = [[*row, *perplexity_and_bits(own)] for row, own in zip(rows, settings, strict=True)]
    found = [Table(title, [*columns, "perplex-\nity", "bits per\nbyte"], figures)]
    domains = list(settings[0].domains)
    if len(domains) > 1:
        kept = 2 if is_routed else 1
        for number, figure in enumerate(("perplexity", "bits per byte")):
            per_domain = [
                row[:kept]
                + [perplexity_and_bits(setting.domains[name])[number] for name in domains]
                for row, setting in zip(rows, settings, strict=True)
            ]
            found.append(Table(f"{figure} per domain", columns[:kept] + domains, per_domain))
    return found


def _ways(settings: Sequence[Setting], is_routed: bool) -> tuple[list[str], list[list[str]]]:
    """Return the columns on how each setting thought and what that took, and their cells."""
    has_exits = any(setting.early_exit for setting in settings)
    is_counted = settings[0].executed_flops_per_token is not None
    columns = ["select\nratios, %"]
    columns += ["\nrule", "took each\nstep, %"] if is_routed else []
    columns += ["early\nexit", "steps\nsaved", "perpl.\nadded"] if has_exits else []
    counts = ["executed"] if has_exits else ["paper", "executed"]
    columns += [f"MFLOPs,\n{count}" for count in counts] if is_counted else []
    rows = []
    for setting in settings:
        cells = [percentages(setting.select_ratios)]
        if is_routed:
            shares = percentages(mean_shares(setting), digits=0 if has_exits else 1)
            cells += [setting.router_selection or "–", shares]
        if has_exits:
            cells += [f"{setting.early_exit:g}", *cost_of_exit(setting, settings)]
        if is_counted:
            flops = [getattr(setting, f"{count}_flops_per_token") for count in counts]
            cells += [f"{value / 1e6:,.2f}" for value in flops]
        rows.append(cells)
    return columns, rows


def flat(results: PerplexityResults) -> str:
    """Return CSV with a line for each setting and domain; "all" is the whole split."""
    columns = ("select_ratios", "router_selection", "early_exit", "realised_shares", *FLOPS)
    lines = []
    for setting in results.settings:
        kind = [
            percentages(setting.select_ratios),
            setting.router_selection,
            setting.early_exit,
            percentages(mean_shares(setting), digits=2),
            *(getattr(setting, name) for name in FLOPS),
        ]
        for domain, figures in {"all": setting, **setting.domains}.items():
            lines.append([*kind, domain, *(getattr(figures, name) for name in FIGURES)])
    return as_csv((*columns, "domain", *FIGURES), lines)


def perplexity_and_bits(figures: PerplexityFigures) -> tuple[str, str]:
    """Return both as shown; "–" for bits where the tokenizer does not give its tokens' bytes."""
    bits = figures.bits_per_byte
    return f"{figures.perplexity:.2f}", "–" if bits is None else f"{bits:.4f}"


def mean_shares(setting: Setting) -> list[float]:
    """Return the share of the tokens that took each step, averaged over the thinking layers."""
    return [sum(layers) / max(1, len(layers)) for layers in setting.realised_shares]


def cost_of_exit(setting: Setting, settings: Sequence[Setting]) -> tuple[str, str]:
    """Return thinking steps saved and perplexity added against the setting without early exit."""
    for other in settings:
        if (
            other.early_exit == 0
            and other.select_ratios == setting.select_ratios
            and other.router_selection == setting.router_selection
        ):
            steps = sum(map(sum, other.realised_shares))
            saved = 1 - sum(map(sum, setting.realised_shares)) / steps if steps else 0.0
            added = setting.perplexity / other.perplexity - 1
            return f"{100 * saved:.1f} %", f"{100 * added:+.2f} %"
    return "–", "–"


def percentages(shares: Sequence[float], digits: int = 0) -> str:
    """Return `70/50/50`, or `–` where there is no step."""
    return "/".join(f"{100 * share:.{digits}f}" for share in shares) or "–"
