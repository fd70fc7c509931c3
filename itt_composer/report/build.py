"""Makes the page and its figures from run folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from itt_composer.basics.files import write_whole
from itt_composer.basics.text import readable
from itt_composer.report import (
    costs,
    curves,
    elastic,
    gradient_figure,
    routing_map,
    thinking_figures,
    training_figure,
)
from itt_composer.report.axes import Units
from itt_composer.report.experiments import Experiment, group, incomparable
from itt_composer.report.figures import Figure, png, prints_of
from itt_composer.report.measured import (
    Measured,
    has_router,
    measuring_command,
    other_texts,
    place_in_list,
    read_gradients,
    read_perplexities,
    read_thinking,
    runs_of,
)
from itt_composer.report.page import Page, render
from itt_composer.report.runs import Run, continuations, read_runs, without_end
from itt_composer.report.summary import summarise
from itt_composer.results.gradients import GradientResults
from itt_composer.results.perplexity import PerplexityResults
from itt_composer.results.thinking import ThinkingResults

NOT_MEASURED = {
    "thinking": "Router weights, step encodings, token classes and the routing map",
    "gradients": "Gradient nuclear norms",
    "perplexity": "Perplexity at other ratios",
}


@dataclass
class PageReport:
    """A page, and the figures that exist in print only."""

    page: Page
    printed: Sequence[Figure]

    def write(self, path: Path) -> None:
        """Write the page whole; makes missing folders."""
        write_whole(path, render(self.page))

    def write_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG, and return the files."""
        written = []
        for figure in [*self.page.figures, *self.printed]:
            for wanted in prints_of(figure):
                written.append(folder / f"{wanted.name}.png")
                png(figure, wanted, written[-1])
        return written


def build(
    folders: Sequence[Path],
    perplexity_files: Sequence[Path],
    title: str,
    gradient_files: Sequence[Path] = (),
) -> PageReport:
    """Read runs and all that was measured on them.

    Args:
        folders: of runs.
        perplexity_files: results of perplexity suites besides those in the folders.
        title: of the page.
        gradient_files: results of gradient analyses besides those in the folders.

    Raises:
        UserError: a folder is not a run, or a named file holds no results.
    """
    runs = read_runs(folders)
    experiments = group(runs)
    thinking = read_thinking(experiments)
    gradients = read_gradients(experiments, gradient_files)
    perplexities = read_perplexities(experiments, perplexity_files)
    figures = _figures(experiments, Units(runs), thinking, gradients, perplexities)
    notes = [
        *continuations(runs),
        *without_end(runs),
        *map(_without_curves, (run for run in runs if not run.batches)),
        *thinking.notes,
        *gradients.notes,
        *perplexities.notes,
        *elastic.not_drawn(perplexities),
        *other_texts(perplexities),
        *routing_map.unprinted(thinking),
    ]
    is_there = {
        "thinking": bool(thinking.results),
        "gradients": bool(gradients.results),
        "perplexity": any(figure.name == "elastic" for figure in figures),
    }
    return PageReport(
        Page(
            title=readable(title),
            runs=len(runs),
            summary=summarise(experiments),
            figures=figures,
            maps=routing_map.content(thinking),
            map_caption=routing_map.MAP_CAPTION,
            warnings=readable([*incomparable(runs), *notes]),
            missing=_not_measured(experiments, is_there),
        ),
        routing_map.for_print(thinking),
    )


def _figures(
    experiments: Sequence[Experiment],
    units: Units,
    thinking: Measured[ThinkingResults],
    gradients: Measured[GradientResults],
    perplexities: Measured[PerplexityResults],
) -> list[Figure]:
    """Draw what can be drawn of these."""
    found = [
        curves.loss_curves(experiments, units),
        costs.ends(experiments, units),
        elastic.figure(perplexities, experiments),
        training_figure.training(experiments, units),
        thinking_figures.weights(thinking),
        thinking_figures.step_encoding_figure(thinking),
        thinking_figures.token_classes(thinking),
        thinking_figures.overlap(thinking),
        gradient_figure.gradient_figures(gradients),
    ]
    return [figure for figure in found if figure is not None]


def _without_curves(run: Run) -> str:
    file, why = run.path / "metrics.jsonl", "holds no metrics" + " yet" * (not run.is_finished)
    if not file.is_file():
        why = "does not exist, which loggers.json_lines writes"
        written = (run.recipe["loggers"].get("json_lines") or {}).get("path")
        if written and Path(written) != Path(run.recipe["run_folder"]) / file.name:
            why = f"does not exist; loggers.json_lines.path={written} was written instead, copy it"
    return f"{file} {why}: {run.name} has no curves and no FLOPs"


def _not_measured(
    experiments: Sequence[Experiment], is_there: dict[str, bool]
) -> list[tuple[str, str]]:
    """Return what no run has, with the command that measures it on a run that could have it."""
    finished = [run for run in runs_of(experiments) if run.is_finished]
    thinking = [run for run in finished if run.recipe["thinking"]["thinking"] == "itt"]
    fits = {
        "gradients": finished,
        "thinking": thinking,
        "perplexity": [run for run in thinking if has_router(run)],
    }
    lines = []
    for kind, what in NOT_MEASURED.items():
        fitting = fits[kind]
        if fitting and not is_there[kind]:
            run = min(fitting, key=place_in_list)
            lines.append((f"{what} of {run.name}", readable(measuring_command(kind, run))))
    return lines
