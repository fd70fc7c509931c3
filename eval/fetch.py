"""`itt eval fetch DIR`: stores the data of tasks in a folder, for machines without network.

Loads each task as the harness does and writes the splits that it needs to
`DIR/<leaf task>/<split>.parquet`; `data_dir=DIR` runs a suite from there.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from omegaconf import OmegaConf
from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress

from eval.leaf_tasks import LeafTask, check_names, leaf_tasks, task_manager
from eval.suite import ELEVEN_TASKS, TaskSettings
from eval.task_columns import columns_of
from eval.task_data import check_redirectable, find_file, listed
from itt_composer.basics.errors import UserError, errors_as_sentences
from itt_composer.basics.files import whole_file
from itt_composer.data.columns import check_file
from itt_composer.recipe.layers import read_yaml, validate

if TYPE_CHECKING:
    from datasets import DatasetDict


class _Tasks(BaseModel):
    tasks: dict[str, TaskSettings | None]


@dataclass(frozen=True)
class Fetched:
    """The files of one leaf task.

    Attributes:
        written: files that were fetched.
        kept: files that existed already.
        failure: why some are missing, or None.
    """

    written: list[Path]
    kept: list[Path]
    failure: str | None = None


def fetch_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", help="Tasks to fetch, with their examples."),
    ] = None,
    suite: Annotated[
        Path, typer.Option(help="Suite whose tasks are fetched if you name none.")
    ] = ELEVEN_TASKS,
) -> None:
    """Store the data of tasks in a folder, so that `data_dir=DIR` needs no network."""
    kept = f"what {folder} holds is whole and kept, and the same command goes on"
    with errors_as_sentences(kept):
        # Whoever names a task may want other shots than a suite has.
        tasks = {name: TaskSettings(shots=1) for name in names} if names else tasks_of(suite)
        folder.mkdir(parents=True, exist_ok=True)
        manager = task_manager()
        check_names(manager, tasks)
        leaves = {name: leaf_tasks(manager, name) for name in tasks}
        failures: list[str] = []
        unreachable: dict[str, str] = {}
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            shown = bar.add_task("", total=sum(map(len, leaves.values())))
            for name, members in leaves.items():
                outcomes: dict[LeafTask, Fetched] = {}
                for leaf in members:
                    bar.update(shown, description=leaf.name)
                    shots = leaf.shots(tasks[name])
                    outcomes[leaf] = fetch(leaf, shots, folder, unreachable)
                    bar.advance(shown)
                typer.echo(summary(name, outcomes.values()))
                failures += failure_sentences(outcomes)
        if failures:
            raise UserError(
                "\n".join([*failures, "files that were fetched stay; run this again for the rest"])
            )


def tasks_of(suite: Path) -> Mapping[str, TaskSettings]:
    """Read the tasks of a suite's file.

    Raises:
        UserError: the file cannot be read, or has no tasks.
    """
    tasks = read_yaml(suite).get("tasks")
    if tasks is None:
        raise UserError(f"{suite}: names no tasks; give another suite, or the tasks' names")
    layer = (str(suite), OmegaConf.create({"tasks": tasks}))
    checked = validate(_Tasks, [layer]).tasks.items()
    return {name: settings for name, settings in checked if settings is not None}


def fetch(leaf: LeafTask, shots: int, folder: Path, unreachable: dict[str, str]) -> Fetched:
    """Write the files of a leaf task that are missing or not whole.

    Args:
        leaf: whose data.
        shots: examples before each question; more than 0 needs their split, too.
        folder: `<leaf task>/<split>.parquet` are written into it.
        unreachable: datasets that the network does not reach, with the failure, so as not to ask
            again; a new one is added. (An attempt takes half a minute, and MMLU has 57 tasks.)
    """
    kept: list[Path] = []
    written: list[Path] = []
    dataset = dataset_of(leaf)
    try:
        check_redirectable(leaf)
        missing = []
        for split in leaf.needed_splits(shots):
            file = find_file(folder, leaf.name, split)
            if file is not None and is_whole(file, leaf):
                kept.append(file)
            else:
                missing.append(split)
        if missing and dataset in unreachable:
            return Fetched(written, kept, unreachable[dataset])
        if missing:
            written.extend(write_splits(leaf, missing, folder / leaf.name))
    except ConnectionError as error:
        unreachable[dataset] = reason_of(error)
        return Fetched(written, kept, unreachable[dataset])
    except Exception as error:  # whatever else the hub's libraries raise
        return Fetched(written, kept, reason_of(error))
    return Fetched(written, kept)


def dataset_of(leaf: LeafTask) -> str:
    """Return the name of a task's dataset on the hub."""
    return leaf.config.get("dataset_path") or "its data"


def write_splits(leaf: LeafTask, splits: Iterable[str], folder: Path) -> Iterator[Path]:
    """Write splits of a task's dataset, check each, and yield the files."""
    dataset = load_dataset_of(leaf)
    for split in splits:
        file = folder / f"{split}.parquet"
        with whole_file(file) as partial:
            dataset[split].to_parquet(partial)
            check_file(partial, columns_of(leaf.name, leaf.config))
        yield file


def load_dataset_of(leaf: LeafTask) -> "DatasetDict":
    """Load the dataset that lm-eval's `ConfigurableTask.download` would load."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars, logging
    from lm_eval.tasks._yaml_loader import load_yaml

    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.set_verbosity_error()  # of the client, which reports every attempt
    assert leaf.file is not None
    config = load_yaml(leaf.file)  # with functions, which the index has by name only
    options = config.get("dataset_kwargs") or {}
    if callable(config.get("custom_dataset")):
        return config["custom_dataset"](**config.get("metadata") or {}, **options)
    options.pop("trust_remote_code", None)
    return datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), **options)


def is_whole(file: Path, leaf: LeafTask) -> bool:
    """Say whether a file holds what the task reads."""
    try:
        check_file(file, columns_of(leaf.name, leaf.config))
    except UserError:
        return False
    return True


def reason_of(error: BaseException) -> str:
    """Write an exception's first two lines as one; the hub's errors say little in the first."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        return reason_of(error.__cause__)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def summary(name: str, outcomes: Iterable[Fetched]) -> str:
    """Return `mmlu: files fetched: 100, kept: 14`."""
    outcomes = list(outcomes)
    written = sum(len(outcome.written) for outcome in outcomes)
    kept = sum(len(outcome.kept) for outcome in outcomes)
    return f"{name}: files fetched: {written}, kept: {kept}"


def failure_sentences(outcomes: Mapping[LeafTask, Fetched]) -> list[str]:
    """Write one sentence for all tasks of a dataset that failed for one reason."""
    failed: dict[tuple[str, str], list[str]] = {}
    for leaf, outcome in outcomes.items():
        if outcome.failure is not None:
            failed.setdefault((dataset_of(leaf), outcome.failure), []).append(leaf.name)
    return [
        f"{listed(names)}: {dataset} could not be fetched: {failure}"
        for (dataset, failure), names in failed.items()
    ]
