"""Asks tasks of lm-eval during training, of the model as it is at that moment."""

import contextlib
import sys
from collections.abc import Iterator

from composer.core import Callback, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import dist, reproducibility

from eval.harness import measure
from eval.language_model import EvaluatedLM
from eval.suite import training_suite
from eval.task_data import OpenTasks, open_tasks
from eval.task_figures import figure_of
from itt_composer.models.modeling import IttForCausalLM
from itt_composer.runs.loading import load_tokenizer
from itt_composer.training.sharding import whole_model_everywhere
from itt_composer.training.watching.intervals import BatchInterval
from itt_composer.training.watching.progress_bar import progress_of


@contextlib.contextmanager
def causal(model: IttForCausalLM) -> Iterator[None]:
    """Let the model route by thresholds, where it has any, and not learn: for likelihoods."""
    selection, was_training = model.config.router_selection, model.training
    model.eval()
    if model.has_thresholds:
        model.set_router_selection("threshold")
    try:
        yield
    finally:
        model.config.router_selection = selection
        model.train(was_training)


class TaskEvaluation(Callback):
    """Logs `lm_eval/<task>/<metric>` after those evaluations of the run that are due.

    Every rank answers a share of the questions. Training goes on as if nothing had been asked:
    random states are restored.

    Args:
        suite: YAML of the tasks; None takes the eleven tasks.
        eval_interval: batches from one to the next ("5000ba"), a multiple of the run's own; the
            run's last evaluation is always one.
        only: names of the tasks that are run; None for all.
        limit: documents of each task, or the share of them (0.1); None for all.
        data_dir: folder of the tasks' data; None loads from the hub.
        tokenizer: its folder.

    Raises:
        UserError: the suite, a task or the tokenizer does not exist; in training: the model
            computes NaN.
    """

    def __init__(
        self,
        suite: str | None,
        eval_interval: str,
        only: list[str] | None,
        limit: float | None,
        data_dir: str | None,
        tokenizer: str,
    ):
        self._suite = training_suite(suite, only, limit, data_dir)
        self._interval = BatchInterval(eval_interval)
        self._tokenizer = tokenizer
        self._open = contextlib.ExitStack()
        self._source: OpenTasks | None = None
        self._printed: set[str] = set()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Find the data before hours of training."""
        if self._source is None:
            tasks = open_tasks(self._suite.selected_tasks(), self._suite.data_dir)
            self._source = self._open.enter_context(tasks)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        elapsed = state.get_elapsed_duration()
        is_end = elapsed is not None and elapsed >= 1
        if self._source is not None and (is_end or self._interval.is_due(state)):
            figures = self._evaluate(state, self._source)
            logger.log_metrics(figures)
            if dist.get_global_rank() == 0:
                named = (f"{name.split('/')[1]} {value:.4f}" for name, value in figures.items())
                batch = state.timestamp.batch.value
                print(f"batch {batch:,} · {' · '.join(named)}", file=sys.stdout, flush=True)

    def close(self, state: State, logger: Logger) -> None:
        self._open.close()

    def _evaluate(self, state: State, source: OpenTasks) -> dict[str, float]:
        random_state = reproducibility.get_rng_state()
        figures: dict[str, float] = {}
        model = whole_model_everywhere(state.model)
        with causal(model), get_precision_context(state.precision, state.precision_config):
            lm = EvaluatedLM(
                model, load_tokenizer(self._tokenizer), progress_of(state, "evaluating tasks")
            )
            for name, settings in self._suite.selected_tasks().items():
                measured = measure(self._suite, name, settings, source, lm)
                metric, value = figure_of(measured.harness, name, settings.metric)
                figures[f"lm_eval/{name}/{metric}"] = value
                notes = [f"{name}: {note}" for note in measured.notes]
                self._print_once([*notes, *(f"lm-eval warns: {w}" for w in measured.warnings)])
        reproducibility.load_rng_state(random_state)
        return figures

    def _print_once(self, notes: list[str]) -> None:
        """Print each note on the figures the first time that it applies."""
        if dist.get_global_rank() == 0:
            for note in dict.fromkeys(note for note in notes if note not in self._printed):
                print(note, file=sys.stdout, flush=True)
        self._printed.update(notes)
