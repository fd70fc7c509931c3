"""Reads what other commands measured on a run's model after training."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from itt_composer.basics.errors import UserError
from itt_composer.basics.text import readable
from itt_composer.paper.measurements import CountedOnce
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.report.experiments import Experiment
from itt_composer.report.runs import Run
from itt_composer.results.base import AnalysisFile, ResultError, ResultFile, read_result
from itt_composer.results.gradients import GradientResults
from itt_composer.results.perplexity import PerplexityResults
from itt_composer.results.perplexity_report import percentages
from itt_composer.results.thinking import ThinkingResults

COMMANDS = {
    "thinking": ["itt", "analyse", "tokens", "{run}"],
    "gradients": ["itt", "analyse", "gradients", "{run}", "--problems", "AQUA.jsonl"],
    "perplexity": [
        *("itt", "eval", "eval/suites/elastic.yaml", "model={run}", "data={data}"),
        *("{settings}", "output={run}/perplexity.json"),
    ],
}
ELASTIC_STEPS = 4  # whose ratios eval/suites/elastic.yaml has
NAME_ANOTHER = "name a JSON file that {} has written"
AnyMeasured = TypeVar("AnyMeasured", bound=ResultFile)
AnyAnalysis = TypeVar("AnyAnalysis", bound=AnalysisFile)


@dataclass
class Measured(Generic[AnyMeasured]):
    """Results of one kind, each with the name it has on the page.

    Attributes:
        results: (name, content), in the order of the experiments, or by `place_in_list`.
        notes: sentences on files that could not be used.
        files: of the results, resolved.
    """

    results: list[tuple[str, AnyMeasured]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)

    def add(self, name: str, file: Path, content: AnyMeasured) -> None:
        """Add a result under a name that no other has; a file counts once."""
        if file.resolve() not in self.files:
            self.files.add(file.resolve())
            is_taken = any(name == other for other, _ in self.results)
            self.results.append((readable(f"{name} ({file})") if is_taken else name, content))


def command(kind: str, run: Run) -> str:
    """Return the command that measures something of a run, quoted for a shell."""
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


def read_thinking(experiments: Sequence[Experiment]) -> Measured[ThinkingResults]:
    """Read `RUN/analysis/thinking.json` of every run that has one, sorted by `place_in_list`."""
    found: Measured[ThinkingResults] = Measured()
    for run in sorted(runs_of(experiments), key=place_in_list):
        file, again = run.path / "analysis" / "thinking.json", command("thinking", run)
        content = _analysis(found, file, ThinkingResults, again)
        if content is None:
            continue
        layers = {step.layer for step in content.steps}
        if _is_of_another_model(run, layers, {step.step for step in content.steps}):
            found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
        elif content.steps:
            found.notes += _of_the_way(file, content.trained_batches, run, again)
            found.add(run.name + _otherwise(content, run), file, content)
        elif run.recipe["thinking"]["thinking"] == "itt":  # a dense model has nothing to show
            found.notes.append(f"{file} is of ratios at which no step is taken: {again}")
    return found


def read_gradients(
    experiments: Sequence[Experiment], files: Sequence[Path]
) -> Measured[GradientResults]:
    """Read `RUN/analysis/gradients.json` of every run that has one, and the files that were named.

    Raises:
        UserError: a file that was named holds no gradients.
    """
    found: Measured[GradientResults] = Measured()
    for run in runs_of(experiments):
        file, again = run.path / "analysis" / "gradients.json", command("gradients", run)
        content = _analysis(found, file, GradientResults, again)
        if content is None:
            continue
        if _is_of_another_model(run, set(content.layers), set()):
            found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
        else:
            found.notes += _of_the_way(file, content.trained_batches, run, again)
            found.add(run.name, file, content)
    for file in files:
        advice = NAME_ANOTHER.format("`itt analyse gradients`")
        try:
            content = read_result(file, GradientResults, advice=advice)
        except ResultError as error:
            raise UserError(f"--gradients {error}") from None
        found.add(readable(file.stem), file, content)
    return found


def _analysis(
    found: Measured, file: Path, kind: type[AnyAnalysis], again: str
) -> AnyAnalysis | None:
    """Read a run's analysis; None where it has none, or with a note where it cannot be read."""
    if not file.is_file():
        return None
    try:
        return read_result(file, kind, advice=again)
    except ResultError as error:
        found.notes.append(f"{file} {error.why}; measure again: {again}")
        return None


def _measured_another_model(result: PerplexityResults, run: Run) -> bool:
    """Say whether perplexities are of another geometry or other thinking layers than the run's."""
    model, own = result.model.given(), run.description
    fields = (*GEOMETRY_FIELDS, "thinking", "thinking_steps", "thinking_layers")
    return any(model[name] != own[name] for name in fields if name in model and name in own)


def _is_of_another_model(run: Run, layers: set[int], steps: set[int]) -> bool:
    """Say whether an analysis has layers or steps that the run's model does not have."""
    own_steps = range(run.recipe["thinking"].get("thinking_steps") or 1)
    own_layers = range(run.recipe["model"]["num_hidden_layers"])
    return not (layers <= {*own_layers} and steps <= {*own_steps})


def _of_the_way(file: Path, trained: int | None, run: Run, again: str) -> list[str]:
    """Write a sentence where a result is of weights from before the run's end, or from now."""
    end = run.summary.batches if run.summary is not None else None
    if trained is None or trained == end:
        return []
    of = f"of {end:,}" if end is not None else "of a run in progress"
    return [f"{file} is of the weights after {trained:,} batches {of}; measure again: {again}"]


def _otherwise(content: ThinkingResults, run: Run) -> str:
    """Return what to add to the name of an analysis at other settings than those of training."""
    thinking, words = run.recipe["thinking"], []
    ratios, rule = thinking.get("select_ratios"), thinking.get("router_selection")
    if ratios and content.select_ratios and ratios != content.select_ratios:
        words.append(percentages(content.select_ratios))
    if rule and content.router_selection and rule != content.router_selection:
        words.append(content.router_selection.replace("_", "-"))
    return f", at {', '.join(words)}" if words else ""


def read_perplexities(
    experiments: Sequence[Experiment], files: Sequence[Path]
) -> Measured[PerplexityResults]:
    """Read `RUN/perplexity.json` of every run that has one, and the files that were named.

    Raises:
        UserError: a file that was named does not exist or holds no perplexities.
    """
    found: Measured[PerplexityResults] = Measured()
    once = CountedOnce()

    def add(name: str, file: Path, result: PerplexityResults) -> None:
        if file.resolve() in found.files:
            return
        new = once.new_settings(result)
        if new:
            found.add(name, file, result.model_copy(update={"settings": new}))
        else:
            found.notes.append(f"{file} holds no measurement that is not drawn already")

    for run in runs_of(experiments):
        file, again = run.path / "perplexity.json", command("perplexity", run)
        if not file.is_file():
            continue
        try:
            result = read_result(file, PerplexityResults, advice=again)
        except ResultError as error:
            found.notes.append(f"{file} {error.why}, and was not drawn; measure again: {again}")
            continue
        if _measured_another_model(result, run):
            found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
        else:
            found.notes += _of_the_way(file, result.model.trained_batches, run, again)
            add(run.name, file, result)
    advice = NAME_ANOTHER.format("`itt eval eval/suites/elastic.yaml`")
    for file in files:
        if not file.is_file():
            raise UserError(f"--perplexity {file} does not exist; {advice}")
        result = read_result(file, PerplexityResults, advice=advice)
        add(result.model.name, file, result)
    found.notes += once.notes
    return found


def other_texts(perplexities: Measured[PerplexityResults]) -> list[str]:
    """Write a sentence for each text that models were measured on besides the first model's."""
    sentences: dict[str, str] = {}
    first = None
    for name, result in perplexities.results:
        suite, text = result.suite, result.text_sha256
        on = f"{result.settings[0].tokens} tokens of {suite.data} ({suite.split})"
        first = first or (text, name, on)
        if text != first[0]:
            sentences.setdefault(
                text,
                f"{first[1]} was measured on {first[2]}, {name} on {on}: their perplexities are "
                "of other text or other tokens, and do not compare",
            )
    return list(sentences.values())


def place_in_list(run: Run) -> tuple:
    """Return a key that sorts what has most to show first: routers, many steps, finished runs."""
    steps = run.recipe["thinking"].get("thinking_steps") or 1
    return not has_router(run), -steps, not run.is_finished


def has_router(run: Run) -> bool:
    """Say whether its ratios can be anything between 0 and 1."""
    return run.recipe["thinking"].get("adaptive_routing") is True


def runs_of(experiments: Sequence[Experiment]) -> list[Run]:
    """Return all runs, in the order of the experiments."""
    return [run for experiment in experiments for run in experiment.runs]
