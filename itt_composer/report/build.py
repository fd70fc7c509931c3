"""From run folders to the page and its figures."""

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
    command,
    has_router,
    other_texts,
    place_in_list,
    read_analysis,
    read_gradients,
    read_perplexities,
    runs_of,
)
from itt_composer.report.page import Page, render
from itt_composer.report.runs import Run, continuations, read_runs, without_end
from itt_composer.report.summary import summarise

MISSING = {
    "thinking": "Router weights, step encodings, token classes and the routing map",
    "gradients": "Gradient nuclear norms",
    "perplexity": "Perplexity at other ratios",
}


@dataclass
class Report:
    """A page, and the figures that exist in print only."""

    page: Page
    printed: Sequence[Figure]

    def write(self, path: Path) -> None:
        """Write the page whole; makes missing folders."""
        write_whole(path, render(self.page))

    def write_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG and give their places."""
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
) -> Report:
    """Read runs and all that was measured on them.

    Args:
        folders: of runs.
        perplexity_files: results of perplexity suites besides those in the folders.
        title: of the page.
        gradient_files: results of gradient analyses besides those in the folders.

    Raises:
        UserError: a folder that is no run, or a file that holds no results.
    """
    runs = read_runs(folders)
    experiments = group(runs)
    units = Units(runs)
    thinking = read_analysis(experiments, "thinking").that(_draws_thinking)
    gradients = read_gradients(experiments, gradient_files).that(gradient_figure.gradients)
    perplexities = read_perplexities(experiments, perplexity_files).that(
        lambda one: elastic.figure(one, experiments)
    )
    elastic_figure = elastic.figure(perplexities, experiments)
    found = [
        curves.loss_curves(experiments, units),
        costs.ends(experiments, units),
        elastic_figure,
        training_figure.training(experiments, units),
        thinking_figures.weights(thinking),
        thinking_figures.step_encodings(thinking),
        thinking_figures.token_classes(thinking),
        thinking_figures.overlap(thinking),
        gradient_figure.gradients(gradients),
    ]
    figures = [figure for figure in found if figure is not None]
    without_curves = [
        f"{run.path / 'metrics.jsonl'} {_why_no_metrics(run)}: {run.name} has no curves and no "
        "FLOPs"
        for run in runs
        if not run.batches
    ]
    told = [note for one in (thinking, gradients, perplexities) for note in one.notes]
    notes = [
        *continuations(runs),
        *without_end(runs),
        *without_curves,
        *told,
        *elastic.not_drawn(perplexities),
        *other_texts(perplexities),
        *routing_map.unprinted(thinking),
    ]
    is_there = {
        "thinking": bool(thinking.results),
        "gradients": bool(gradients.results),
        "perplexity": elastic_figure is not None,
    }
    return Report(
        Page(
            title=readable(title),
            runs=len(runs),
            summary=summarise(experiments),
            figures=figures,
            maps=routing_map.content(thinking),
            map_caption=routing_map.CAPTION,
            warnings=readable([*incomparable(runs), *notes]),
            missing=_missing(experiments, is_there),
        ),
        routing_map.for_print(thinking),
    )


def _why_no_metrics(run: Run) -> str:
    if not (run.path / "metrics.jsonl").is_file():
        return "is not there, which loggers.json_lines writes"
    return "holds no metrics" + " yet" * (not run.is_finished)


def _draws_thinking(measured: Measured) -> None:
    for draw in (
        *(thinking_figures.weights, thinking_figures.step_encodings),
        *(thinking_figures.token_classes, thinking_figures.overlap),
        *(routing_map.content, routing_map.for_print),
    ):
        draw(measured)


def _missing(experiments: Sequence[Experiment], is_there: dict[str, bool]) -> list[tuple[str, str]]:
    """What no run has, and the command that makes it for one whose model has it."""
    finished = [run for run in runs_of(experiments) if run.is_finished]
    thinking = [run for run in finished if run.recipe["thinking"]["thinking"] == "itt"]
    fits = {
        "gradients": finished,
        "thinking": thinking,
        "perplexity": [run for run in thinking if has_router(run)],
    }
    lines = []
    for kind, what in MISSING.items():
        fitting = fits[kind]
        if fitting and not is_there[kind]:
            run = min(fitting, key=place_in_list)
            lines.append((f"{what} of {run.name}", readable(command(kind, run))))
    return lines
