"""The set-up script's promises, the Makefile's help, and the lock against pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCKS = {"": "requirements.lock", "floor": "requirements.floor.lock"}
PYTHONS = {"": ["3.11", "3.12", "3.13"], "floor": ["3.10", "3.11", "3.12"]}


def pins(which):
    """A package can have several, each with the marker of the Pythons or systems it is for."""
    lock = (REPO / LOCKS[which]).read_text()
    return [Requirement(line) for line in re.findall(r"^(\S+==.+?) \\$", lock, re.MULTILINE)]


@pytest.fixture
def checkout(tmp_path):
    """What the set-up reads of a fresh clone."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "Makefile", "pyproject.toml", *LOCKS.values()):
        shutil.copy(REPO / name, folder / name)
    return folder


TOOLS = "awk bash cat comm df dirname grep make mkdir printenv rm sed sort tee tr"


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with the ordinary tools and no Python; tests add interpreters to it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS.split():
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def add_python(folder, name, script):
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def set_up(checkout, path, **env):
    # Only what is named: a developer's PYTHON or proxy must not decide a test.
    return subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=checkout,
        env={"PATH": str(path), "HOME": str(checkout), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_refused(result, *words):
    assert result.returncode != 0
    sentence = result.stderr
    assert sentence.startswith("set-up: ")
    assert sentence.count("\n") == 1, sentence
    for word in words:
        assert word in sentence


def test_no_python_is_one_sentence(checkout, bare_path):
    assert_refused(set_up(checkout, bare_path), "3.10 to 3.13", "found none", "PYTHON=")


def test_unsupported_pythons_are_named_and_shims_that_do_not_run_are_skipped(checkout, bare_path):
    add_python(bare_path, "python3", "echo 3.9.18")
    add_python(bare_path, "python", "echo 3.14.0")
    add_python(bare_path, "python3.12", "echo 'version 3.12 is not installed' >&2; exit 127")
    assert_refused(set_up(checkout, bare_path), "found only 3.9.18 3.14.0")


def test_python_3_10_is_taken_with_the_oldest_versions_where_it_is_the_only_one(
    checkout, bare_path
):
    add_python(bare_path, "python3.10", 'case "$*" in *venv*) exit 1;; *) echo 3.10.13;; esac')
    assert_refused(set_up(checkout, bare_path), "Python 3.10.13 comes without venv")
    add_python(bare_path, "python3", 'case "$*" in *"-m venv"*) exit 1;; *) echo 3.10.13;; esac')
    result = set_up(checkout, bare_path, ITT_SETUP_DISK_GB="0")
    assert "Python 3.10 cannot have today's torch: taking the oldest versions" in result.stdout
    assert_refused(result, "python3 cannot make a virtual environment")
    add_python(bare_path, "python3.12", 'case "$*" in *"-m venv"*) exit 1;; *) echo 3.12.1;; esac')
    result = set_up(checkout, bare_path, ITT_SETUP_DISK_GB="0")
    assert "oldest versions" not in result.stdout
    assert "Python 3.12.1" in result.stdout


def test_an_unknown_set_is_one_sentence(checkout, bare_path):
    assert_refused(set_up(checkout, bare_path, SET="roof"), "there is no SET=roof", "SET=floor")


def test_the_python_asked_for_is_not_replaced_by_another(checkout, bare_path):
    add_python(bare_path, "python3", f'exec "{sys.executable}" "$@"')
    assert_refused(set_up(checkout, bare_path, PYTHON="/nowhere/python3.12"), "/nowhere/python3.12")


def test_a_python_without_venv_names_the_package_to_install(checkout, bare_path):
    add_python(bare_path, "python3", 'case "$*" in *ensurepip*) exit 1;; *) echo 3.11.2;; esac')
    assert_refused(set_up(checkout, bare_path), "3.11.2", "apt install python3.11-venv")


def test_too_little_disk_is_refused_before_anything_is_made(checkout, bare_path):
    result = set_up(checkout, bare_path, PYTHON=sys.executable, ITT_SETUP_DISK_GB="1000000")
    assert_refused(result, "needs 1000000 GB of free disk space")
    assert not (checkout / ".venv").exists()


def test_an_unreachable_index_is_one_sentence_and_leaves_nothing_half_done(checkout, bare_path):
    # Port 9 of this machine: refused at once. An empty pip configuration offers no other source.
    index = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    result = set_up(checkout, bare_path, PYTHON=sys.executable, ITT_SETUP_DISK_GB="0", **index)
    assert_refused(result, "cannot be reached", "PIP_INDEX_URL")
    assert "unfinished" not in (checkout / ".venv/setup.state").read_text()


@pytest.fixture
def finished(checkout):
    """A .venv as a successful set-up leaves it, without the packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    made_from = [f"{checkout}\n"]
    made_from += [(checkout / name).read_text() for name in ("pyproject.toml", "requirements.lock")]
    (checkout / ".venv/setup.state").write_text("".join(made_from))
    return checkout


def test_an_unchanged_lock_starts_at_once(finished, bare_path):
    result = set_up(finished, bare_path)  # no Python on PATH: it does not even look for one
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_touching_the_lock_changes_nothing(finished, bare_path):
    (finished / "requirements.lock").touch()
    assert set_up(finished, bare_path).returncode == 0


def test_a_python_that_cannot_run_is_refused_beside_a_venv_of_another(finished, bare_path):
    assert_refused(set_up(finished, bare_path, PYTHON="/nowhere/python3.12"), "/nowhere/python3.12")
    assert (finished / ".venv").exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda venv: (venv / "bin/python").unlink(), "its Python is gone"),
        (lambda venv: venv.parent.rename(venv.parent.parent / "moved"), "made in another folder"),
        (lambda venv: (venv / "setup.state").write_text("unfinished\n"), "was interrupted"),
    ],
)
def test_a_venv_that_cannot_be_trusted_is_made_anew(finished, bare_path, spoil, reason):
    spoil(finished / ".venv")
    checkout = finished if finished.exists() else finished.parent / "moved"
    # Stopped by the disk check, after the decision and before the packages.
    result = set_up(checkout, bare_path, PYTHON=sys.executable, ITT_SETUP_DISK_GB="1000000")
    assert reason in result.stdout
    assert_refused(result, "disk space")


def test_make_passes_the_sentence_and_the_failure_on(checkout, bare_path):
    result = subprocess.run(
        ["make", "test", "PYTHON=/nowhere/python"],
        cwd=checkout,
        env={"PATH": str(bare_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "set-up: PYTHON=/nowhere/python is not a working Python" in result.stderr
    assert "Traceback" not in result.stderr


def test_make_help_lists_every_target():
    makefile = (REPO / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    assert set(targets) == set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    printed = subprocess.run(["make"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  make (\S+) +\S+", printed, re.MULTILINE)
    assert sorted(listed) == sorted(targets)


def test_pre_commit_runs_what_make_check_runs():
    command = ["make", "--dry-run", "--no-print-directory", "check"]
    printed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    commands = {line for line in printed.splitlines() if ".venv/bin/" in line}
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["entry"].removeprefix("env ") for hook in hooks} == commands


def requirements(which):
    """What pyproject.toml asks for; today's set puts its overrides in the place of others."""
    extras = PROJECT["optional-dependencies"].values()
    wanted = PROJECT["dependencies"] + [line for extra in extras for line in extra]
    wanted = [each for each in map(Requirement, wanted) if each.name != PROJECT["name"]]
    if which == "":
        overrides = [*map(Requirement, PYPROJECT["tool"]["uv"]["override-dependencies"])]
        names = {each.name for each in overrides}
        wanted = [each for each in wanted if each.name not in names] + overrides
    return wanted


@pytest.mark.parametrize(
    ("which", "python"), [(which, python) for which in PYTHONS for python in PYTHONS[which]]
)
def test_the_lock_satisfies_pyproject(which, python):
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    pinned = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins(which)
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    for requirement in requirements(which):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{LOCKS[which]} lacks {requirement}: run `make lock`"
        assert requirement.specifier.contains(version), (
            f"{LOCKS[which]} pins {version} where pyproject.toml asks for {requirement}: "
            "run `make lock`"
        )


def test_what_runs_a_model_admits_both_sets():
    for which in LOCKS:
        pinned = {pin.name: next(iter(pin.specifier)).version for pin in pins(which)}
        for requirement in map(Requirement, PROJECT["dependencies"]):
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("which", LOCKS)
def test_a_lock_names_no_host_and_hashes_every_package(which):
    lock = (REPO / LOCKS[which]).read_text()
    assert "://" not in lock
    assert " @ " not in lock
    options = re.findall(r"^\s*--([^\s=]+)", lock, re.MULTILINE)
    assert set(options) == {"hash"}
    pins_with_hash = re.findall(r"^\S+==.+\\\n +--hash=sha256:", lock, re.MULTILINE)
    assert len(pins_with_hash) == len(pins(which)) == len(re.findall(r"^\S*==", lock, re.MULTILINE))
