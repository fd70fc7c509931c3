"""What was measured on a run's model after training: files that other commands write beside it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.result_files import read_results
from itt_composer.errors import UserError
from itt_composer.report.experiments import Experiment
from itt_composer.report.runs import Run

FORMAT = 1
COMMANDS = {
    "thinking": "python -m itt_composer.analysis tokens {run}",
    "gradients": "python -m itt_composer.analysis gradients {run} --problems AQUA.jsonl",
    "perplexity": (
        "python -m eval eval/suites/elastic.yaml model={run}/model data={data} "
        "output={run}/perplexity.json"
    ),
}
NEEDED = {
    "thinking": ("data", "steps", "step_encodings", "texts"),
    "gradients": ("problems", "projections", "layers", "easy", "hard"),
}


@dataclass
class Measured:
    """Results of one kind, each with the name it has on the page.

    Attributes:
        results: (name, content), in the order of the experiments.
        notes: sentences on files that could not be used.
    """

    results: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def command(kind: str, run: Run) -> str:
    """What makes the file of a kind for a run."""
    return COMMANDS[kind].format(run=run.path, data=run.recipe["data"]["local"])


def read_analysis(experiments: Sequence[Experiment], kind: str) -> Measured:
    """`RUN/analysis/<kind>.json` of every run that has one."""
    found = Measured()
    for experiment, run in _runs(experiments):
        file = run.path / "analysis" / f"{kind}.json"
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_bytes())
            is_known = content.get("kind") == kind and content.get("format") == FORMAT
        except (ValueError, AttributeError):
            is_known, content = False, {}
        if is_known and content.keys() >= set(NEEDED[kind]):
            found.results.append((name_of(experiment, run), content))
        else:
            again = command(kind, run)
            found.notes.append(f"{file} is damaged or of another version; measure again: {again}")
    return found


def read_perplexities(experiments: Sequence[Experiment], files: Sequence[Path]) -> Measured:
    """`RUN/perplexity.json` of every run that has one, and the files that were named.

    Raises:
        UserError: a file that was named is not there or holds no perplexities.
    """
    found = Measured()
    for experiment, run in _runs(experiments):
        file = run.path / "perplexity.json"
        if file.is_file():
            try:
                results = read_results([file]).perplexities
            except UserError as error:
                found.notes.append(f"{error}: {command('perplexity', run)}")
                continue
            found.results += [(name_of(experiment, run), result) for result in results]
    for file in files:
        results = read_results([file]).perplexities
        if not results:
            raise UserError(
                f"--perplexity {file} holds no perplexities; name a JSON file that "
                "python -m eval eval/suites/elastic.yaml has written"
            )
        found.results += [
            (str(result["model"].get("name", file.stem)), result) for result in results
        ]
    return found


def name_of(experiment: Experiment, run: Run) -> str:
    """The experiment's label, with the run's name where there are several."""
    return f"{experiment.label} ({run.name})" if len(experiment.runs) > 1 else experiment.label


def _runs(experiments: Sequence[Experiment]) -> list[tuple[Experiment, Run]]:
    return [(experiment, run) for experiment in experiments for run in experiment.runs]
