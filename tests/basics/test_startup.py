"""Every way in: help, Ctrl-C, and outputs that cannot show every sign."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from itt_composer.basics import startup
from itt_composer.basics.errors import errors_as_sentences
from itt_composer.cli.app import COMMANDS

REPOSITORY = Path(__file__).parents[2]
ITT = Path(sys.executable).with_name("itt")
# Runs the help of every module in one process, as `python -m` would.
HELP = """
import runpy, sys
from itt_composer.basics import startup
startup.prepare(is_command=True)
for words in sys.argv[1:]:
    module, *command = words.split()
    sys.argv = [module, *command, "--help"]
    try:
        if module.endswith(".py"):
            sys.path[0] = module.rpartition("/")[0]
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("ended", words, code, flush=True)
print("φ × ρ → … \\ud83d 漢")
"""


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def test_every_command_has_help_that_any_terminal_shows():
    modules = [*(f"itt_composer {name}" for name in COMMANDS), "itt_composer"]
    modules += ["itt_composer.train", "data_prep", "eval"]
    benchmarks = {file.stem for file in (REPOSITORY / "benchmarks").glob("*.py")} - {"machine"}
    modules += [f"benchmarks.{name}" for name in sorted(benchmarks)]
    ways_in = [*modules, "docs/figures/annealing.py"]
    result = python("-c", HELP, *ways_in)
    ended = [line for line in result.stdout.splitlines() if line.startswith("ended ")]
    assert ended == [f"ended {name} 0" for name in ways_in], result.stderr
    assert result.stdout.splitlines()[-1] == "phi x rho -> ... ? ?"
    assert "Traceback" not in result.stderr


def test_a_table_in_ascii_and_a_front_door():
    result = python("-m", "itt_composer", "recipes", "itt_x4_162m")
    assert result.returncode == 0, result.stderr
    assert "itt_x4_162m" in result.stdout
    unknown = python("-m", "itt_composer", "trian")
    assert unknown.returncode == 2
    assert "There is no command 'trian'; did you mean train?" in unknown.stderr
    listed = subprocess.run([ITT, "--help"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines() if line[:1] == " "} == set(COMMANDS)
    bare = subprocess.run([ITT], capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stdout) == (2, listed)


def test_the_list_of_commands_imports_none_of_them():
    result = python("-X", "importtime", "-m", "itt_composer", "--help")
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "typer" in modules
    assert not modules & {"torch", "transformers", "pydantic", "omegaconf", "data_prep", "eval"}


@pytest.mark.parametrize("script", ["experiment.sh", "forward_sigterm.sh", "setup.sh"])
def test_scripts_say_how_to_call_them(script):
    asked = subprocess.run(
        ["bash", REPOSITORY / "scripts" / script, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert len(asked.stdout.splitlines()) > 3
    assert "set -" not in asked.stdout


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(130)])
def test_ctrl_c_is_one_line_and_130(end, capsys):
    with pytest.raises(typer.Exit) as caught, errors_as_sentences("the folder is as it was"):
        raise end
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "ended by Ctrl-C; the folder is as it was\n"
    with pytest.raises(SystemExit, match="2"), errors_as_sentences():
        raise SystemExit(2)


@pytest.mark.parametrize(
    ("started_as", "is_ours"),
    [
        (["python", "-m", "itt_composer.train", "-m"], True),
        (["python", "-u", "-m", "data_prep", "convert"], True),
        (["python", "-m", "pytest", "-m", "itt_composer"], False),
        (["python", "my_own.py"], False),
    ],
)
def test_only_commands_of_this_project_end_silently_while_they_are_imported(
    started_as, is_ours, monkeypatch
):
    monkeypatch.setattr(sys, "orig_argv", started_as)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr)]
    try:
        startup.prepare()
        expected = signal.SIG_DFL if is_ours else signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is expected
        startup.heed_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
        for stream, errors in streams:
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors=errors)
