"""Shows how far a suite of tasks is: a line for each finished task and, on a terminal, a bar."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from itt_composer.basics.processes import is_first_rank

if TYPE_CHECKING:  # these import lm-eval
    from eval.measurement import TaskMeasurement
    from itt_composer.results.tasks import TaskMeasured


class TaskProgress:
    """Prints on stderr, from rank 0 alone."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, quiet=not is_first_rank(), soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._number = self._total = 0
        self._warned: set[str] = set()

    def __enter__(self) -> "TaskProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def start(self, measurement: "TaskMeasurement", number: int, total: int) -> None:
        """Show that a task begins."""
        self._number, self._total = number, total
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(f"{number} of {total}: {measurement.task}", total=None)

    def go_on(self, done: float, total: float) -> None:
        """Show that so much of the task's work is done."""
        if self._bar.task_ids:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def end(
        self, measurement: "TaskMeasurement", model: str, text: str, measured: "TaskMeasured"
    ) -> None:
        """Print that a task is finished, with its notes, and each warning once.

        Args:
            measurement: what was measured, or found finished.
            model: to add to the task's name.
            text: its figure.
            measured: its result.
        """
        seed = measurement.fewshot_seed
        name = measurement.task + (f" (seed {seed})" if seed is not None else "")
        self._console.print(
            f"{self._number} of {self._total}: {name}{model}: {text}", highlight=False
        )
        for note in measured.notes:
            self._console.print(f"  {note}", highlight=False, markup=False)
        for warning in measured.warnings:
            if warning not in self._warned:
                self._console.print(f"  lm-eval warns: {warning}", highlight=False, markup=False)
                self._warned.add(warning)
