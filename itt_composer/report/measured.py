"""What was measured on a run's model after training: files that other commands write beside it."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.paper import GEOMETRY_FIELDS
from eval.perplexity_report import percentages
from eval.result_files import read_results
from itt_composer.errors import UserError
from itt_composer.report.experiments import Experiment
from itt_composer.report.runs import Run

FORMAT = 1
COMMANDS = {
    "thinking": ["python", "-m", "itt_composer.analysis", "tokens", "{run}"],
    "gradients": [
        *("python", "-m", "itt_composer.analysis", "gradients", "{run}"),
        *("--problems", "AQUA.jsonl"),
    ],
    "perplexity": [
        *("python", "-m", "eval", "eval/suites/elastic.yaml", "model={run}", "data={data}"),
        *("{settings}", "output={run}/perplexity.json"),
    ],
}
ELASTIC_STEPS = 4  # whose ratios eval/suites/elastic.yaml has
NEEDED = {
    "thinking": ("data", "steps", "step_encodings", "texts"),
    "gradients": ("problems", "projections", "layers", "easy", "hard"),
}


@dataclass
class Measured:
    """Results of one kind, each with the name it has on the page.

    Attributes:
        results: (name, content), in the order of the experiments; of `thinking` by `place_in_list`.
        notes: sentences on files that could not be used.
    """

    results: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def that(self, draw: Callable[["Measured"], Any]) -> "Measured":
        """Only the results that can be drawn: whatever else is in a file was changed by hand."""
        kept = Measured(notes=list(self.notes))
        for name, content in self.results:
            try:
                draw(Measured([(name, content)]))
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                kind = content.get("kind")
                kept.notes.append(
                    f"the {kind} results of {name} are damaged ({type(error).__name__}: {error}); "
                    "measure them again"
                )
            else:
                kept.results.append((name, content))
        return kept


def command(kind: str, run: Run) -> str:
    """What makes the file of a kind for a run, as a shell takes it."""
    steps = run.recipe["thinking"].get("thinking_steps") or 1
    ratios = [",".join([ratio] * (steps - 1)) for ratio in ("0.9", "0.7", "0.5", "0.3", "0")]
    settings = f"select_ratios=[null,{','.join(f'[{ratio}]' for ratio in ratios)}]"
    values = {
        "run": run.path,
        "data": run.recipe["data"]["local"],
        "settings": "" if steps == ELASTIC_STEPS else settings,
    }
    words = [word.format(**values) for word in COMMANDS[kind]]
    return shlex.join(word for word in words if word)


def read_analysis(experiments: Sequence[Experiment], kind: str) -> Measured:
    """`RUN/analysis/<kind>.json` of every run that has one; those of routers and steps first."""
    found = Measured()
    pairs = _runs(experiments)
    if kind == "thinking":
        pairs.sort(key=lambda pair: place_in_list(pair[1]))
    for experiment, run in pairs:
        file = run.path / "analysis" / f"{kind}.json"
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_bytes())
            is_known = content.get("kind") == kind and content.get("format") == FORMAT
        except (ValueError, AttributeError):
            is_known, content = False, {}
        again = command(kind, run)
        if not is_known or not content.keys() >= set(NEEDED[kind]):
            found.notes.append(f"{file} is damaged or of another version; measure again: {again}")
        elif _is_of_another_model(content, run):
            found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
        elif content.get("steps") == []:  # a dense model has nothing to show
            if run.recipe["thinking"]["thinking"] == "itt":
                found.notes.append(f"{file} is of ratios at which no step is taken: {again}")
        else:
            name = name_of(experiment, run) + _otherwise(content, run)
            found.notes += _of_the_way(file, content.get("trained_batches"), run, again)
            found.results.append((name, content))
    return found


def _measured_another_model(result: dict[str, Any], run: Run) -> bool:
    """Whether perplexities are of another geometry or other thinking layers than the run's."""
    told, own = result["model"], run.description
    fields = (*GEOMETRY_FIELDS, "thinking", "thinking_steps", "thinking_layers")
    return any(told[name] != own[name] for name in fields if name in told and name in own)


def _is_of_another_model(content: dict[str, Any], run: Run) -> bool:
    """Whether an analysis has layers or steps that the run's model has not."""
    thinking = run.recipe["thinking"]
    layers = {*range(run.recipe["model"]["num_hidden_layers"])}
    try:
        seen = {one["layer"] for one in content.get("steps", [])} | {*content.get("layers", [])}
        steps = {one["step"] for one in content.get("steps", [])}
    except (KeyError, TypeError):
        return False  # damaged, as drawing it will tell
    return not (seen <= layers and steps <= {*range(thinking.get("thinking_steps") or 1)})


def _of_the_way(file: Path, trained: int | None, run: Run, again: str) -> list[str]:
    """A sentence where a result is of weights from before the run's end, or from now."""
    end = run.summary["batches"] if run.summary is not None else None
    if trained is None or trained == end:
        return []
    of = f"of {end:,}" if end is not None else "of a run in progress"
    return [f"{file} is of the weights after {trained:,} batches {of}; measure again: {again}"]


def _otherwise(content: dict[str, Any], run: Run) -> str:
    """What a name says of an analysis that was not at the settings of training."""
    thinking = run.recipe["thinking"]
    words = []
    for key, told in (("select_ratios", percentages), ("router_selection", str)):
        own, seen = thinking.get(key), content.get(key)
        if own and seen and own != seen:
            words.append(told(seen).replace("_", "-"))
    return f", at {', '.join(words)}" if words else ""


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
                again = command("perplexity", run)
                found.notes.append(f"{error}; it was not drawn; measure again: {again}")
                continue
            if any(_measured_another_model(result, run) for result in results):
                again = command("perplexity", run)
                found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
                continue
            for result in results:
                trained, again = result["model"].get("trained_batches"), command("perplexity", run)
                found.notes += _of_the_way(file, trained, run, again)
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


def place_in_list(run: Run) -> tuple:
    """First what has most to show: routers, more steps, a finished run."""
    steps = run.recipe["thinking"].get("thinking_steps") or 1
    return not has_router(run), -steps, not run.is_finished


def has_router(run: Run) -> bool:
    """Whether its ratios can be anything between 0 and 1."""
    return run.recipe["thinking"].get("adaptive_routing") is True


def name_of(experiment: Experiment, run: Run) -> str:
    """The experiment's label, with the run's name where there are several."""
    return f"{experiment.label} ({run.name})" if len(experiment.runs) > 1 else experiment.label


def _runs(experiments: Sequence[Experiment]) -> list[tuple[Experiment, Run]]:
    return [(experiment, run) for experiment in experiments for run in experiment.runs]
