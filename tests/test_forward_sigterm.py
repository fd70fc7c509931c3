"""The script that passes a scheduler's SIGTERM and Ctrl-C on to the ranks, past their launcher."""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "forward_sigterm.sh"
WAIT = "echo started; while :; do sleep 0.05; done"
RANK = f'trap "echo saved; exit 75" TERM; trap "echo saved; exit 0" INT; {WAIT}'
# Ends when its rank has; SIGTERM would end it at once.
LAUNCHER = f"bash -c '{RANK}' & wait; exit 75"


def test_ranks_are_signalled_and_the_launcher_is_waited_for():
    command = ["bash", str(SCRIPT), "bash", "-c", LAUNCHER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 75


@pytest.mark.parametrize(("asked", "code"), [(True, 75), (False, 241)])
def test_ranks_that_a_sigterm_ends_before_they_can_save_are_started_again(asked, code):
    launcher = "sleep 30 & echo started; wait $!; exit 241" if asked else "echo started; exit 241"
    command = ["bash", str(SCRIPT), "bash", "-c", launcher]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    if asked:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_launcher_that_has_no_ranks_yet_is_ended_itself(number, code):
    command = ["bash", str(SCRIPT), "bash", "-c", "echo started; exec sleep 60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    errors = process.communicate(timeout=20)[1]
    assert errors.count("ended while no rank was at work") == 1
    assert "usage" not in errors
    assert process.returncode == code


def test_ctrl_c_in_a_terminal_comes_to_the_ranks_and_not_to_the_launcher():
    launcher = f"trap 'echo traceback' INT; bash -c '{RANK}'; exit $?"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", str(SCRIPT), "bash", "-c", launcher])
    printed = b""
    while True:
        try:
            printed += os.read(terminal, 1024)
        except OSError:  # the other end is closed
            break
        if printed == b"started\r\n":
            os.write(terminal, b"\x03")
    assert printed.replace(b"^C", b"") == b"started\r\nsaved\r\n"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_the_script_says_how_to_call_it():
    asked = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "scripts/forward_sigterm.sh composer -n 8 -m itt_composer.train RECIPE" in asked.stdout
