"""The rooms of the house: a room imports only rooms below it, and torch stays out of the lowest."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# From the top down. A file of `itt_composer` itself (`train.py`) is a command.
ROOMS = (
    "cli",
    "serving",
    "report",
    "analysis",
    "paper",
    "training",
    "results",
    "runs",
    "data",
    "models",
    "recipe",
    "basics",
)
HEAVY = {"torch", "composer", "streaming", "transformers"}
# Imports that go up, as "file: module". May only shrink.
ALLOWED: set[str] = set()


def imports_of(file: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in it; those for type checking count, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def height(module: str) -> int:
    """Of a module of `itt_composer`; the package itself, which only prepares, is at the bottom."""
    room = module.split(".")[1]
    if room in ROOMS:
        return len(ROOMS) - ROOMS.index(room)
    return len(ROOMS) if (REPOSITORY / f"itt_composer/{room}.py").is_file() else 0


def files() -> list[Path]:
    return sorted((REPOSITORY / "itt_composer").rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def test_every_room_is_known():
    folders = {file.parent for file in files()} - {REPOSITORY / "itt_composer"}
    assert {folder.relative_to(REPOSITORY).parts[1] for folder in folders} == set(ROOMS)


def test_imports_only_go_down():
    up = set()
    for file in files():
        if file.parent == REPOSITORY / "itt_composer":
            continue
        own = name_of(file)
        for module in imports_of(file):
            package = module.split(".")[0]
            is_up = package in ("eval", "data_prep") or (
                package == "itt_composer" and height(f"{module}.") > height(f"{own}.")
            )
            if is_up:
                up.add(f"{file.relative_to(REPOSITORY)}: {module}")
    assert up == ALLOWED


def test_the_lowest_rooms_import_no_torch():
    low = [
        file for file in files() if height(f"{name_of(file)}.") <= height("itt_composer.recipe.")
    ]
    found = {
        f"{file.relative_to(REPOSITORY)}: {module}"
        for file in low
        for module in imports_of(file)
        if module.split(".")[0] in HEAVY
    }
    assert not found


def test_commands_of_data_and_evaluation_stay_above():
    for package in ("data_prep", "eval"):
        other = {"data_prep": "eval", "eval": "data_prep"}[package]
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            assert not {module for module in imports_of(file) if module.split(".")[0] == other}


def test_the_page_on_the_architecture_lists_the_rooms_and_what_they_import():
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.partition("## Rooms of itt_composer")[2].partition("\n## ")[0]
    listed = {
        room: set(re.findall(r"`(\w+)`", imports))
        for room, imports in re.findall(r"^\| `(\w+)/` \|.*\|([^|]*)\|$", section, re.MULTILINE)
    }
    imported = {
        room: {
            module.split(".")[1]
            for file in (REPOSITORY / "itt_composer" / room).rglob("*.py")
            for module in imports_of(file)
            if module.startswith("itt_composer.")
        }
        & (set(ROOMS) - {room})
        for room in ROOMS
    }
    assert tuple(listed) == ROOMS
    assert listed == imported, "mend the last column of the table in docs/architecture.md"
