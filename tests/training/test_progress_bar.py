"""The terminal during training: whole lines, one bar below them, and nothing else."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import threading

from terminal import Screen

WIDTH = 80
LINES = (
    r"batch \d+ · \d+ % · loss [\d.]+ · lr \d.\de-\d\d · [\d,]+ tokens/s · \d+ s left",
    r"batch \d+ · validation loss [\d.]+ · perplexity [\d.]+( by thresholds)?",
    r"calibrating the thresholds on 8 validation rows",
    r"calibrated in \d+ s",
)
BAR = re.compile(r"(training|batch \d+|validating|calibrating) [━╸╺ ]+ +\d+% [\d:-]+ *")


@contextlib.contextmanager
def terminal(monkeypatch):
    """Make stdout and stderr a terminal of 80 columns; a list that holds, after it, what it got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    received = []

    has_ended = threading.Event()

    poll = select.poll()  # `select` knows no descriptor above 1,023, and a whole run has more
    poll.register(master, select.POLLIN)

    def is_readable(milliseconds):
        return any(event & select.POLLIN for _, event in poll.poll(milliseconds))

    def drain():
        # To the last byte; not to the end of the file, as multiprocessing keeps stderr open.
        while is_readable(100) or not has_ended.is_set():
            if is_readable(0):
                received.append(os.read(master, 65_536))

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with monkeypatch.context() as patch, os.fdopen(slave, "w", encoding="utf-8") as stream:
            patch.setenv("COLUMNS", str(WIDTH))
            patch.setenv("TERM", "xterm")
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            yield received
            stream.flush()
    finally:
        has_ended.set()
        reader.join()
        os.close(master)


def test_lines_and_bar_respect_each_other_in_a_terminal_of_80_columns(
    small_recipe, make_trainer, monkeypatch
):
    monkeypatch.setattr("itt_composer.training.watching.progress_bar.REFRESH_SECONDS", 0.0)
    recipe = small_recipe(
        "callbacks.console_lines.interval=2ba",
        "train.calibration_rows=8",
    )
    with terminal(monkeypatch) as received:
        trainer, _ = make_trainer(recipe)
        trainer.fit()
        trainer.close()
        print("after it")
    stream = b"".join(received).decode()
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
    printed, other = lines[:-1], lines[-1]
    assert other == "after it"
    printed = [line for line in printed if "Warning" not in line and "warn(" not in line]
    for line in printed:
        assert any(re.fullmatch(form, line) for form in LINES), lines
    assert len(printed) == 5 + 4 + 2


def test_a_run_without_a_terminal_ends_without_an_empty_line(small_recipe, make_trainer, capfd):
    trainer, _ = make_trainer(small_recipe("train.max_duration=2ba"))
    trainer.fit()
    trainer.close()
    assert "\n\n" not in "\n" + capfd.readouterr().err
