"""One task on one model with one seed, the file that keeps its result, and a task over all runs."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, sanitize_list
from pydantic import ValidationError

from eval.suite import TaskSettings
from eval.task_figures import error_of, figure_of, has_figure
from itt_composer.basics.errors import UserError
from itt_composer.basics.files import json_text, numbers_only, write_json, write_whole
from itt_composer.paper.measurements import standard_error
from itt_composer.results.base import in_words
from itt_composer.results.tasks import TaskFigures, TaskMeasured, TaskRun

# Of each question: the prompts, the answers and what became of them, as lm-eval gives them.
Samples = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class TaskMeasurement:
    """One task on one model with one seed.

    Attributes:
        task: its name in lm-eval.
        settings: of the suite.
        model: path as the user named it.
        fewshot_seed: None where the task draws no examples.
        file: where its result is, or will be.
    """

    task: str
    settings: TaskSettings
    model: str
    fewshot_seed: int | None
    file: Path

    @property
    def samples(self) -> Path:
        """Where its prompts and answers are, or would be."""
        return self.file.with_suffix(".samples.jsonl")

    def read(self, with_samples: bool) -> TaskMeasured | None:
        """Read the result of an earlier run; None if there is none.

        Args:
            with_samples: a result without its prompts and answers is none.

        Raises:
            UserError: the file is damaged; names the first key that is wrong.
        """
        if not self.file.is_file() or (with_samples and not self.samples.is_file()):
            return None
        try:
            measured = TaskMeasured.model_validate(json.loads(self.file.read_bytes()))
        except ValidationError as error:
            why = in_words(error)
        except ValueError:
            why = "not JSON"
        else:
            if has_figure(measured.harness, self.task, self.settings.metric):
                return measured
            why = f"harness.results.{self.task} has no {self.settings.metric or 'metric'}"
        raise UserError(
            f"{self.file} is damaged ({why}); delete it, and the task is measured again"
        )

    def write(self, measured: TaskMeasured, samples: Samples) -> None:
        """Write the result, and before it the prompts and answers if there are any."""
        if samples:
            lines = [
                json_text(
                    numbers_only({"task": task, **_as_logged(sample)}),
                    str(self.samples),
                    default=handle_non_serializable,
                )
                for task, logged in samples.items()
                for sample in logged
            ]
            write_whole(self.samples, "\n".join(lines) + "\n")
        write_json(self.file, measured.given(), default=handle_non_serializable)


def summary_of(
    name: str, metric: str | None, finished: Sequence[tuple[TaskMeasurement, TaskMeasured]]
) -> TaskFigures:
    """Summarise the runs of a task.

    Args:
        name: of the task.
        metric: the one that is reported; None for the task's first.
        finished: its runs with their results, at least one.
    """
    runs = []
    for measurement, measured in finished:
        found, value = figure_of(measured.harness, name, metric)
        runs.append(
            TaskRun(
                model=measurement.model,
                fewshot_seed=measurement.fewshot_seed,
                value=value,
                stderr=error_of(measured.harness, name, found),
                requests=measured.requests,
                requests_cut=measured.requests_cut,
                seconds=measured.seconds,
                file=measurement.file.name,
            )
        )
    values = [run.value for run in runs]
    errors = [run.stderr for run in runs if run.stderr is not None]
    harness = measured.harness
    every = [measured for _, measured in finished]
    return TaskFigures(
        shots=max(shots for shots in harness["n-shot"].values() if shots is not None),
        metric=found,
        documents=sum(counts["effective"] for counts in harness["n-samples"].values()),
        questions_sha256=measured.questions_sha256,
        value=statistics.fmean(values),
        stderr=statistics.fmean(errors) if errors else None,
        standard_error=standard_error(values),
        notes=list(dict.fromkeys(note for one in every for note in one.notes)),
        warnings=list(dict.fromkeys(text for one in every for text in one.warnings)),
        runs=runs,
    )


def _as_logged(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample as `lm_eval --log_samples` writes it."""
    return {
        **sample,
        "resps": sanitize_list(sample["resps"]),
        "filtered_resps": sanitize_list(sample["filtered_resps"]),
        "arguments": {
            f"gen_args_{number}": {f"arg_{place}": part for place, part in enumerate(arguments)}
            for number, arguments in enumerate(sample["arguments"])
        },
        "target": str(sample["target"]),
    }
