"""The script that passes a scheduler's SIGTERM on to the ranks, past their launcher."""

import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "forward_sigterm.sh"
RANK = 'trap "echo saved; exit 75" TERM; echo started; while :; do sleep 0.05; done'
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
