"""The result of a task suite, and the file of each finished task beside it."""

from typing import Any, ClassVar

from pydantic import model_validator

from itt_composer.results.base import ResultFile, ResultPart
from itt_composer.results.model import MeasuredModel

# Metrics that are fractions of 1, and shown in percent.
SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1")
# What lm-eval's `evaluate` returns.
HarnessResults = dict[str, Any]


class TaskAnswers(ResultPart):
    """What a model answered to one task with one seed.

    Attributes:
        format: that of the whole suite's result.
        harness: what lm-eval returned.
        questions_sha256: of the questions and answers that were asked.
        requests: how many likelihoods and generations were asked for.
        requests_cut: how many of them lost their first tokens.
        notes: sentences on what the figure is of.
        warnings: lm-eval's.
    """

    format: int
    harness: HarnessResults
    questions_sha256: str
    requests: int
    requests_cut: int
    notes: list[str]
    warnings: list[str]

    @model_validator(mode="after")
    def _has_figures(self) -> "TaskAnswers":
        for key in ("results", "n-shot", "n-samples"):
            if not isinstance(self.harness.get(key), dict):
                raise ValueError(f"harness.{key} is not a mapping")
        return self


class TaskMeasured(TaskAnswers):
    """The file of a finished task.

    Attributes:
        model: that was asked.
        seconds: that it took.
    """

    model: MeasuredModel
    seconds: float


class TaskRun(ResultPart):
    """A task's figure of one model and one few-shot seed.

    Attributes:
        model: its path.
        fewshot_seed: None where the task draws no examples.
        value: by the task's metric; a fraction of 1 where the metric is.
        stderr: lm-eval's standard error; None where it gives none.
        requests, requests_cut, seconds: see `TaskAnswers` and `TaskMeasured`.
        file: its name in the folder `tasks/`.
    """

    model: str
    fewshot_seed: int | None
    value: float
    stderr: float | None
    requests: int
    requests_cut: int
    seconds: float
    file: str


class TaskFigures(ResultPart):
    """A task over all runs.

    Attributes:
        shots: examples before each question.
        metric: as lm-eval names it.
        documents: questions asked.
        questions_sha256: see `TaskAnswers`.
        value: mean over the runs.
        stderr: lm-eval's standard error, mean over the runs.
        standard_error: over the runs; None for a single one.
        notes, warnings: of all runs, each once.
        runs: one for each model and seed.
    """

    shots: int
    metric: str
    documents: int
    questions_sha256: str
    value: float
    stderr: float | None
    standard_error: float | None
    notes: list[str]
    warnings: list[str]
    runs: list[TaskRun]


class TaskLimit(ResultPart):
    """A task's settings in the suite; only the limit is read back."""

    limit: int | float | None = None


class SuiteOfTasks(ResultPart):
    """The suite's settings; those that nobody reads back are kept undeclared.

    Attributes:
        tasks: by their names in lm-eval; one that is None was left out.
        fewshot_seeds: each drew other examples.
        limit: documents of each task, or the share of them; None for all.
        log_samples: whether prompts and answers were kept.
        compare_with: row of the paper's Table 1, or None.
    """

    tasks: dict[str, TaskLimit | None]
    fewshot_seeds: list[int]
    limit: int | float | None = None
    log_samples: bool = False
    compare_with: str | None = None


class TaskResults(ResultFile):
    """The whole file."""

    KIND: ClassVar[str] = "tasks"
    FORMAT: ClassVar[int] = 2
    MADE_BY: ClassVar[str] = "a task suite"

    suite: SuiteOfTasks
    models: list[MeasuredModel]
    tasks: dict[str, TaskFigures]

    @model_validator(mode="after")
    def _describes_every_model(self) -> "TaskResults":
        paths = {model.path for model in self.models}
        for name, figures in self.tasks.items():
            for number, run in enumerate(figures.runs):
                if run.model not in paths:
                    raise ValueError(
                        f"tasks.{name}.runs.{number}.model={run.model!r} is none of its models"
                    )
        return self
