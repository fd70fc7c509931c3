"""What a benchmark ran on and how it was called, for the head of its table."""

import os
import platform
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def machine() -> str:
    """Name the processor, its cores and the memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    return f"{', '.join(names) or platform.machine()}, {cores} cores, {memory:.0f} GiB"


def command_line() -> str:
    """Give the command line of this process."""
    return " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
