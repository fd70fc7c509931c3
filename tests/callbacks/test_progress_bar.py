"""The terminal during training: whole lines, one bar below them, and nothing else."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import warnings

import pytest
from terminal import Screen

WIDTH = 80
LINES = (
    r"batch \d+ · \d+ % · loss [\d.]+ · lr \d.\de-\d\d · [\d,]+ tokens/s · \d+ s left",
    r"batch \d+ · validation loss [\d.]+ · perplexity [\d.]+( by thresholds)?",
    r"calibrating the thresholds on 8 validation rows",
    r"calibrated in \d+ s",
)
BAR = re.compile(r"(training|batch \d+|validating|calibrating) [━╸╺ ]+ +\d+% [\d:-]+ *")


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout and stderr a terminal of 80 columns; a function gives what it was sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm")
    streams = [os.fdopen(os.dup(slave), "w", encoding="utf-8") for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    os.close(slave)
    received = []

    def drain():
        while True:
            try:
                received.append(os.read(master, 65_536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=drain)
    reader.start()

    def sent():
        for stream in streams:
            stream.close()
        reader.join()
        return b"".join(received).decode()

    yield sent
    sent()
    os.close(master)


def test_lines_and_bar_respect_each_other_in_a_terminal_of_80_columns(
    small_recipe, make_trainer, terminal, monkeypatch
):
    monkeypatch.setattr("itt_composer.callbacks.progress_bar.REFRESH_SECONDS", 0.0)
    recipe = small_recipe(
        "callbacks.console_lines.interval=2ba",
        "train.calibration_rows=8",
        "run_name=a name that is shown nowhere",
    )
    trainer, _ = make_trainer(recipe)
    trainer.fit()
    warnings.warn("a line of another one", stacklevel=1)
    print("after it")
    stream = terminal()
    assert "Config" not in stream
    screen, bars = Screen(WIDTH), set()
    for part in re.split(r"(?=\r)", stream):
        screen.feed(part)
        *above, last = [line for line in screen.lines if line.strip()] or [""]
        assert not any(BAR.match(line) for line in above), screen.lines
        if match := BAR.fullmatch(last):
            bars.add(match[1])
            assert len(last.rstrip()) <= WIDTH
    assert bars >= {"training", "batch 5", "validating", "calibrating"}
    lines = [line for line in screen.lines if line.strip()]
    told, other = lines[:-1], lines[-1]
    assert other == "after it"
    told = [line for line in told if "Warning" not in line and "warn(" not in line]
    for line in told:
        assert any(re.fullmatch(form, line) for form in LINES), lines
    assert len(told) == 5 + 4 + 2
