"""How far a conversion is: whole in a line of a terminal, and not slowed by its own start."""

import io
import re

import pytest
from rich.console import Console

from data_prep import progress
from data_prep.part_rows import Progress

NOTHING = Progress(0, 0, 0)


@pytest.fixture
def clock(monkeypatch):
    """The seconds of the clock, as a list of one."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_speed_and_time_left_count_from_the_first_work_done(clock):
    meter = progress._Meter(lambda: 15_000_000, Progress(1_000_000, 10, 0))
    clock[0] += 10  # workers start
    meter.add(NOTHING)
    assert meter.text() == "10 documents, 1.0 of 15.0 MB"
    meter.add(Progress(2_000_000, 30, 500_000))
    assert meter.text() == "40 documents, 3.0 of 15.0 MB"
    clock[0] += 2
    meter.add(Progress(8_000_000, 90, 2_000_000))
    assert meter.text() == (
        "100 documents, 9.0 of 15.0 MB, 3.0 MB/s, 0.75 M tokens/s, 0:00:02 left"
    )


@pytest.mark.parametrize("total", [15_000_000, 2_400_000_000_000])
def test_eighty_columns_hold_a_bar_and_all_of_the_text(clock, monkeypatch, total):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress.conversion_progress(lambda: total, NOTHING) as on_progress:
        on_progress(Progress(total // 10, 10**9, total // 40))
        clock[0] += 10_000 if total > 10**9 else 2
        on_progress(Progress(total // 2, 2 * 10**9, total // 8))
    frames = [line for line in screen.getvalue().split("\r") if " left" in line]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frames[-1])
    bar, _, state = shown.partition(" ")
    assert len(bar) >= 4
    assert set(bar) <= set("\u2501\u2578\u257a")
    assert re.fullmatch(
        r"\S+ of \S+ MB, \S+ MB/s, \S+ M tokens/s, \d+:\d\d:\d\d left", state.strip()
    )
