"""What was measured on a run's model after training: files that other commands write beside it."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.basics.text import readable
from itt_composer.paper.measurements import CountedOnce
from itt_composer.recipe.description import GEOMETRY_FIELDS
from itt_composer.report.experiments import Experiment
from itt_composer.report.runs import Run
from itt_composer.results.files import read_results
from itt_composer.results.perplexity_report import percentages

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
        files: that the results are of, resolved.
    """

    results: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)

    def add(self, name: str, file: Path, content: dict[str, Any]) -> None:
        """Add a result under a name that no other has; a file counts once."""
        if file.resolve() not in self.files:
            self.files.add(file.resolve())
            is_taken = any(name == other for other, _ in self.results)
            self.results.append((readable(f"{name} ({file})") if is_taken else name, content))

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
    runs = runs_of(experiments)
    if kind == "thinking":
        runs.sort(key=place_in_list)
    for run in runs:
        file = run.path / "analysis" / f"{kind}.json"
        if not file.is_file():
            continue
        content, again = _analysis_in(file, kind), command(kind, run)
        if content is None:
            found.notes.append(f"{file} is damaged or of another version; measure again: {again}")
        elif _is_of_another_model(content, run):
            found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
        elif content.get("steps") == []:  # a dense model has nothing to show
            if run.recipe["thinking"]["thinking"] == "itt":
                found.notes.append(f"{file} is of ratios at which no step is taken: {again}")
        else:
            name = run.name + _otherwise(content, run)
            found.notes += _of_the_way(file, content.get("trained_batches"), run, again)
            found.add(name, file, content)
    return found


def read_gradients(experiments: Sequence[Experiment], files: Sequence[Path]) -> Measured:
    """`RUN/analysis/gradients.json` of every run that has one, and the files that were named.

    Raises:
        UserError: a file that was named holds no gradients.
    """
    found = read_analysis(experiments, "gradients")
    for file in files:
        content = _analysis_in(file, "gradients")
        if content is None:
            raise UserError(
                f"--gradients {file} is damaged or holds no gradient norms; name a JSON file that "
                "itt analyse gradients has written"
            )
        found.add(readable(file.stem), file, content)
    return found


def _analysis_in(file: Path, kind: str) -> dict[str, Any] | None:
    """What an analysis has written; None if it is damaged, of another kind or another version."""
    try:
        content = readable(json.loads(file.read_bytes()))
    except ValueError:
        return None
    is_known = (
        isinstance(content, dict)
        and (content.get("kind"), content.get("format")) == (kind, FORMAT)
        and content.keys() >= set(NEEDED[kind])
        and _is_well_formed(content, content)
    )
    return content if is_known else None


def _is_well_formed(content: dict[str, Any], model: Any) -> bool:
    """Whether what a result says of its text, its settings and its model is of the right types."""
    ratios, settings = content.get("select_ratios") or [], content.get("settings", [{}])
    return (
        isinstance(model, dict)
        and isinstance(model.get("name", ""), str)
        and isinstance(model.get("trained_batches"), (int, NoneType))
        and isinstance(content.get("suite", {}), dict)
        and isinstance(settings, list)
        and settings != []
        and all(isinstance(setting, dict) for setting in settings)
        and isinstance(content.get("router_selection"), (str, NoneType))
        and isinstance(ratios, list)
        and all(isinstance(ratio, (int, float)) for ratio in ratios)
    )


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
    end = run.summary.batches if run.summary is not None else None
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
    found, once = Measured(), CountedOnce()

    def add(name: str, file: Path, result: dict[str, Any]) -> None:
        if file.resolve() in found.files:
            return
        new = once.new_settings(result)
        if new:
            found.add(name, file, {**result, "settings": new})
        else:
            found.notes.append(f"{file} holds no measurement that is not drawn already")

    for run in runs_of(experiments):
        file, again = run.path / "perplexity.json", command("perplexity", run)
        if not file.is_file():
            continue
        try:
            result = _perplexities_in(file)
        except UserError as error:
            found.notes.append(f"{error}; it was not drawn; measure again: {again}")
            continue
        if _measured_another_model(result, run):
            found.notes.append(f"{file} is of another model than {run.name}; measure: {again}")
        else:
            found.notes += _of_the_way(file, result["model"].get("trained_batches"), run, again)
            add(run.name, file, result)
    for file in files:
        result = _perplexities_in(file)
        add(result["model"].get("name", readable(file.stem)), file, result)
    found.notes += once.notes
    return found


def _perplexities_in(file: Path) -> dict[str, Any]:
    """What a perplexity suite has written.

    Raises:
        UserError: it is not there, damaged, of another kind or of another version.
    """
    results = readable(read_results([file]).perplexities)
    if not results:
        raise UserError(
            f"{file} holds no perplexities; name a JSON file that "
            "itt eval eval/suites/elastic.yaml has written"
        )
    if not _is_well_formed(results[0], results[0]["model"]):
        raise UserError(f"{file} is damaged; measure it again")
    return results[0]


def other_texts(perplexities: Measured) -> list[str]:
    """A sentence for each text that models were measured on besides that of the first model."""
    sentences: dict[str, str] = {}
    first = None
    for name, result in perplexities.results:
        setting, suite = result["settings"][0], result["suite"]
        text = result["text_sha256"]
        on = f"{setting.get('tokens')} tokens of {suite.get('data')} ({suite.get('split')})"
        first = first or (text, name, on)
        if text != first[0]:
            sentences.setdefault(
                text,
                f"{first[1]} was measured on {first[2]}, {name} on {on}: their perplexities are "
                "of other text or other tokens, and do not compare",
            )
    return list(sentences.values())


def place_in_list(run: Run) -> tuple:
    """First what has most to show: routers, more steps, a finished run."""
    steps = run.recipe["thinking"].get("thinking_steps") or 1
    return not has_router(run), -steps, not run.is_finished


def has_router(run: Run) -> bool:
    """Whether its ratios can be anything between 0 and 1."""
    return run.recipe["thinking"].get("adaptive_routing") is True


def runs_of(experiments: Sequence[Experiment]) -> list[Run]:
    """All runs, in the order of the experiments."""
    return [run for experiment in experiments for run in experiment.runs]
