"""Knows lm-eval's tasks and ours: which there are, and what a group or tag consists of."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.suite import TaskSettings
from itt_composer.basics.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

OWN_TASKS = Path(__file__).parent / "tasks"
SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True, eq=False)
class LeafTask:
    """One task of the harness that is not a group of others.

    Attributes:
        name: its name, which is also that of its data folder.
        config: its YAML, functions by their names, with what groups around it set.
        set_by_groups: the keys that groups set.
        file: the YAML; None for tasks that are defined within a group.
        in_python: whether it is a Python class, which may load what it likes.
    """

    name: str
    config: Mapping[str, Any]
    set_by_groups: frozenset[str]
    file: Path | None
    in_python: bool

    def shots(self, settings: TaskSettings) -> int:
        """Return how many examples stand before each question."""
        return self.config.get("num_fewshot") or 0 if settings.shots is None else settings.shots

    @property
    def evaluated_split(self) -> str | None:
        """The split that questions come from."""
        return self.config.get("test_split") or self.config.get("validation_split")

    @property
    def fewshot_split(self) -> str | None:
        """The split that examples come from; None if they stand in the task's definition."""
        fewshot = self.config.get("fewshot_config") or {}
        named = fewshot.get("split") or self.config.get("fewshot_split")
        if named or fewshot.get("samples") is not None:
            return named
        splits = (self.config.get(key) for key in SPLIT_KEYS)
        return next((split for split in splits if split), None)

    @property
    def examples_leave_out_the_question(self) -> bool:
        """Whether the harness draws one more example, to drop the question itself."""
        fewshot = self.config.get("fewshot_config") or {}
        named = fewshot.get("split") or self.config.get("fewshot_split")
        return named == self.config.get("test_split")

    def needed_splits(self, shots: int) -> list[str]:
        """Return the splits that the task needs; the one that is evaluated comes first."""
        fewshot = self.config.get("fewshot_config") or {}
        # The harness looks into a split that `fewshot_config` names even without shots.
        examples = self.fewshot_split if shots else fewshot.get("split")
        return [split for split in dict.fromkeys((self.evaluated_split, examples)) if split]


@cache
def task_manager() -> "TaskManager":
    """Return the harness's tasks and ours; made once, as it reads 14,000 files in five seconds."""
    from lm_eval.tasks import TaskManager

    with _silent("lm_eval.tasks._index"):
        return TaskManager(include_path=str(OWN_TASKS))


def check_names(manager: "TaskManager", names: Mapping[str, Any] | list[str]) -> None:
    """Refuse tasks that do not exist.

    Raises:
        UserError: one sentence for each, with the nearest names.
    """
    sentences = []
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks`"
            sentences.append(f"{name}: lm-eval has no such task; {hint}")
    if sentences:
        raise UserError("\n".join(sentences))


def leaf_tasks(manager: "TaskManager", name: str) -> list[LeafTask]:
    """Return what a task, group or tag consists of, as the harness would load it."""
    leaves = _leaves_of(manager, name, {}, "")
    return list({leaf.name: leaf for leaf in leaves}.values())


def _leaves_of(
    manager: "TaskManager", name: str, overrides: Mapping[str, Any], group: str
) -> Iterator[LeafTask]:
    """Yield the leaf tasks of a name, in the harness's order."""
    entry = manager.task_index.get(name)
    if entry is None:
        yield LeafTask(f"{group}::{name}", overrides, frozenset(overrides), None, False)
    elif entry.kind.name == "GROUP":
        yield from _leaves_of_group(manager, name, entry.cfg or {}, overrides)
    elif entry.kind.name == "TAG":
        for task in sorted(entry.tags & manager.task_index.keys()):
            yield from _leaves_of(manager, task, overrides, group)
    else:
        config = {**(entry.cfg or {}), **overrides}
        in_python = entry.kind.name == "PY_TASK"
        yield LeafTask(name, config, frozenset(overrides), entry.yaml_path, in_python)


def _leaves_of_group(
    manager: "TaskManager", name: str, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Iterator[LeafTask]:
    """Yield the leaf tasks of a group; what it sets beside its members holds for all of them."""
    from dataclasses import fields

    from lm_eval.config.group import GroupConfig

    of_groups = {field.name for field in fields(GroupConfig)}
    shared = {key: value for key, value in config.items() if key not in of_groups}
    overrides = {**shared, **overrides}
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, str):
            yield from _leaves_of(manager, member, overrides, name)
        elif "group" not in member:
            yield from _leaves_of(manager, member["task"], {**overrides, **member}, name)
        elif member["group"] in manager.task_index:
            rest = {key: value for key, value in member.items() if key != "group"}
            yield from _leaves_of(manager, member["group"], {**overrides, **rest}, name)
        else:
            yield from _leaves_of_group(manager, f"{name}::{member['group']}", member, overrides)


@contextmanager
def _silent(logger_name: str) -> Iterator[None]:
    """Silence a logger's warnings: our tasks replace the harness's on purpose."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
