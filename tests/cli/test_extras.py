"""A command whose packages are not installed says which to install."""

import subprocess
import sys
from pathlib import Path

import pytest

from itt_composer.cli.extras import EXTRAS, what_to_install

REPOSITORY = Path(__file__).parents[2]
# Python takes a module that is None for one that is not there.
WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from itt_composer.__main__ import main"


def run_without(package, *arguments):
    command = [sys.executable, "-c", f"{WITHOUT}; main()", package, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("package", "command", "words"),
    [
        ("altair", ["report", "runs/none"], "pip install 'itt-composer[report]'"),
        ("lm_eval", ["eval", "fetch", "runs/none"], "pip install 'itt-composer[eval]'"),
        ("data_prep", ["convert", "x", "--out", "y"], "a part of the repository (data_prep/)"),
    ],
)
def test_a_missing_package_is_one_sentence(package, command, words):
    result = run_without(package, *command)
    assert result.returncode == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_extra_that_brings_packages_of_its_own_is_one_of_pyproject():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in text for extra in EXTRAS)


def test_a_part_of_a_package_counts_and_one_that_no_extra_brings_does_not():
    found = what_to_install(ModuleNotFoundError(name="streaming.base.world"))
    assert "the package streaming" in found
    assert "itt-composer[data]" in found
    assert what_to_install(ModuleNotFoundError(name="numpy")) is None
