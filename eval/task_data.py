"""Finds the data of lm-eval's tasks: on the hub, or in a plain folder without network.

A folder holds `<leaf task>/<split>.parquet` or `.jsonl`, as `itt eval fetch` writes it.
Tasks stay the harness's own: small files that include theirs replace nothing but the data.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from eval.leaf_tasks import (
    OWN_TASKS,
    SPLIT_KEYS,
    LeafTask,
    check_names,
    leaf_tasks,
    task_manager,
)
from eval.suite import TaskSettings, training_suite
from eval.task_columns import columns_of
from itt_composer.basics.errors import UserError
from itt_composer.data.columns import FORMATS, check_file, read_rows
from itt_composer.recipe.components import LmEvalSettings

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.tasks import TaskManager

DATA_KEYS = {
    "custom_dataset",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "fewshot_config",
    *SPLIT_KEYS,
}
NAMED = 3  # of many


class OpenTasks:
    """The harness's tasks with their data at hand.

    Attributes:
        manager: what lm-eval loads tasks from.
    """

    def __init__(
        self,
        manager: "TaskManager",
        leaves: Mapping[str, list[LeafTask]],
        files: Mapping[str, Mapping[str, Path]],
    ):
        self.manager = manager
        self._leaves = leaves
        self._files = files

    def leaves(self, name: str) -> list[str]:
        """Return the names of the leaf tasks of a task that was opened."""
        return [leaf.name for leaf in self._leaves[name]]

    def leaf_tasks(self, name: str) -> list[LeafTask]:
        """Return its leaf tasks with their definitions."""
        return self._leaves[name]

    def fingerprint(self, name: str) -> str:
        """Hash what decides the documents and prompts of a task.

        That is lm-eval's version, the definitions of the leaf tasks, and with a data folder the
        content of every file used.
        """
        leaves = self._leaves[name]
        own = sorted(OWN_TASKS.glob("*.*")) if any(map(_is_own, leaves)) else []
        described = {
            "lm_eval": version("lm_eval"),
            "tasks": {leaf.name: leaf.config for leaf in leaves},
            "own": {file.name: _sha256(file) for file in own},
            "data": {
                f"{leaf.name}/{split}": _sha256(file)
                for leaf in leaves
                for split, file in self._files.get(leaf.name, {}).items()
            },
        }
        text = json.dumps(described, sort_keys=True, default=str, ensure_ascii=False)
        for folder in (_harness_tasks(), OWN_TASKS):  # functions are named by where they stand
            for place in (folder, folder.resolve()):  # of which links may lead to one
                text = text.replace(str(place), "")
        return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def open_tasks(tasks: Mapping[str, TaskSettings], data_dir: str | None) -> Iterator[OpenTasks]:
    """Open the harness's tasks, with the data of `tasks` from a folder if one is named.

    Args:
        tasks: names in lm-eval (tasks, groups, tags), with their shots.
        data_dir: folder of `<leaf task>/<split>.parquet` or `.jsonl`; None leaves the hub.

    Raises:
        UserError: a task is unknown; a file is missing or malformed; there are too few examples
            for the shots; a task's data cannot come from a folder.
    """
    manager = task_manager()
    check_names(manager, tasks)
    leaves = {name: leaf_tasks(manager, name) for name in tasks}
    with _without_advice():
        if data_dir is None:
            yield OpenTasks(manager, leaves, {})
            return
        files = _find_files(leaves, tasks, Path(data_dir))
        for name, settings in tasks.items():
            for leaf in leaves[name]:
                _check_leaf_rows(name, leaf, leaf.shots(settings), files[leaf.name])
        with (
            TemporaryDirectory(prefix="tasks-") as folder,
            _redirected(manager, Path(folder), leaves, files),
        ):
            yield OpenTasks(manager, leaves, files)


def check_present(tasks: Mapping[str, TaskSettings], data_dir: str | None) -> None:
    """Refuse tasks that do not exist or whose files are missing, all at once, without torch.

    Raises:
        UserError: a sentence for each.
    """
    manager = task_manager()
    check_names(manager, tasks)
    if data_dir is not None:
        leaves = {name: leaf_tasks(manager, name) for name in tasks}
        _find_files(leaves, tasks, Path(data_dir))


def check_training_tasks(settings: LmEvalSettings) -> None:
    """Do the same for the callback `lm_eval` of a recipe.

    Raises:
        UserError: a sentence for each, or the suite does not exist.
    """
    suite = training_suite(settings.suite, settings.only, settings.limit, settings.data_dir)
    check_present(suite.selected_tasks(), suite.data_dir)


def load_files(data_files: Mapping[str, str], **_: Any) -> "DatasetDict":
    """Load the files of a redirected task, instead of a dataset of the hub.

    Args:
        data_files: the checked file of each split.

    Raises:
        UserError: a column holds values of several types.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    splits = DatasetDict()
    for split, file in data_files.items():
        rows = read_rows(Path(file))
        try:
            splits[split] = Dataset(rows) if isinstance(rows, pa.Table) else Dataset.from_dict(rows)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file}: a column holds values of several types: {reason}") from None
    return splits


def _find_files(
    leaves: Mapping[str, list[LeafTask]], tasks: Mapping[str, TaskSettings], data_dir: Path
) -> dict[str, dict[str, Path]]:
    """Return every file that is needed, by leaf task and split.

    Raises:
        UserError: see `open_tasks`.
    """
    if not data_dir.is_dir():
        raise UserError(
            f"data_dir={data_dir} is not a folder; fill one with `itt eval fetch {data_dir}`"
        )
    files: dict[str, dict[str, Path]] = {}
    sentences: list[str] = []
    for name, settings in tasks.items():
        missing: dict[str, list[str]] = {"questions": [], "examples": []}
        for leaf in leaves[name]:
            check_redirectable(leaf)
            found = files.setdefault(leaf.name, {})
            for number, split in enumerate(leaf.needed_splits(leaf.shots(settings))):
                file = find_file(data_dir, leaf.name, split)
                if file is None:
                    missing["examples" if number else "questions"].append(f"{leaf.name}/{split}")
                else:
                    found[split] = file
        sentences += _missing_files(name, missing, data_dir)
    if sentences:
        raise UserError("\n".join(sentences))
    return files


def find_file(data_dir: Path, task: str, split: str) -> Path | None:
    """Return the file of a leaf task's split; None if there is none."""
    candidates = (data_dir / task / f"{split}{suffix}" for suffix in FORMATS)
    return next((file for file in candidates if file.is_file()), None)


def check_redirectable(leaf: LeafTask) -> None:
    """Refuse a task whose data cannot come from a folder.

    Raises:
        UserError: why.
    """
    advice = "leave it out, or run it without data_dir"
    if leaf.in_python:
        raise UserError(f"{leaf.name} is a Python class that loads its data itself; {advice}")
    if leaf.file is None or leaf.set_by_groups & DATA_KEYS:
        raise UserError(f"{leaf.name} gets its data from the group that it is in; {advice}")
    if leaf.evaluated_split is None:
        raise UserError(f"{leaf.name} names no split to evaluate; {advice}")


def _missing_files(name: str, missing: Mapping[str, list[str]], data_dir: Path) -> list[str]:
    """Write one sentence for missing questions of a task, and one for missing examples."""
    fetch = f"run `itt eval fetch {data_dir} {name}` where there is a network"
    purposes = {
        "questions": f"the questions of {name}; {fetch}, or leave it out by tasks.{name}=null",
        "examples": f"the examples before questions of {name}; {fetch}, "
        f"or ask without by tasks.{name}.shots=0",
    }
    sentences = []
    for purpose, wanted in missing.items():
        if wanted:
            paths = listed([f"{path}.parquet (or .jsonl)" for path in wanted])
            sentences.append(f"data_dir={data_dir} has no {paths} with {purposes[purpose]}")
    return sentences


def listed(names: list[str]) -> str:
    """Return `a, b, c and 54 more`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _check_leaf_rows(name: str, leaf: LeafTask, shots: int, files: Mapping[str, Path]) -> None:
    """Check a leaf task's rows, and that there are as many examples as the harness draws."""
    columns = columns_of(leaf.name, leaf.config)
    rows = {split: check_file(file, columns) for split, file in files.items()}
    if not shots or leaf.fewshot_split is None:
        return
    needed = shots + leaf.examples_leave_out_the_question
    if rows[leaf.fewshot_split] < needed:
        raise UserError(
            f"{files[leaf.fewshot_split]} has {rows[leaf.fewshot_split]} rows, but {shots} shots "
            f"of {leaf.name} need {needed}; give it more, or set tasks.{name}.shots"
        )


@contextmanager
def _redirected(
    manager: "TaskManager",
    folder: Path,
    leaves: Mapping[str, list[LeafTask]],
    files: Mapping[str, Mapping[str, Path]],
) -> Iterator[None]:
    """Let the manager find leaf tasks whose data are files, until the context ends."""
    from lm_eval.tasks import TaskManager

    flat = {leaf.name: leaf for members in leaves.values() for leaf in members}
    for number, (name, leaf) in enumerate(flat.items()):
        (folder / f"{number}.yaml").write_text(_redirection(leaf, files[name]), encoding="utf-8")
    redirected = TaskManager(include_path=str(folder), include_defaults=False).task_index
    originals = {name: manager.task_index[name] for name in flat}
    manager.task_index.update(redirected)
    try:
        yield
    finally:
        manager.task_index.update(originals)


def _redirection(leaf: LeafTask, files: Mapping[str, Path]) -> str:
    """Write a task file that includes the harness's and replaces where the data comes from."""
    unused = [key for key in SPLIT_KEYS if leaf.config.get(key) not in files]
    content = {
        "include": str(leaf.file),
        "tag": None,  # else the tag would hold this task alone
        "dataset_kwargs": {
            "data_files": {split: str(file.absolute()) for split, file in files.items()}
        },
        # The harness reads every split that is named, if only to list examples.
        **dict.fromkeys(unused),
    }
    function = f"custom_dataset: !function {__name__}.{load_files.__name__}\n"
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True) + function


def _harness_tasks() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__path__[0])


def _is_own(leaf: LeafTask) -> bool:
    return leaf.file is not None and leaf.file.is_relative_to(OWN_TASKS)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Drop the advice that the harness logs for every task with a `custom_dataset`."""

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "Custom kwargs can be passed" not in str(record.msg)

    logger = logging.getLogger("lm_eval.api.task")
    logger.addFilter(is_no_advice)
    try:
        yield
    finally:
        logger.removeFilter(is_no_advice)
