"""Prepares every command of this project while Python still imports it."""

import codecs
import ctypes
import io
import itertools
import signal
import sys
import threading
from pathlib import Path

# The exit code that a shell gives a process that SIGINT ends.
INTERRUPTED = 130
SIGNAL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG of prctl(2)
PACKAGES = ("itt_composer", "data_prep", "eval")
TRANSLITERATED = {
    **{"×": "x", "÷": "/", "±": "+-", "→": "->", "≤": "<=", "≥": ">=", "≈": "~", "…": "..."},
    **{"–": "-", "—": "-", "−": "-", "·": "-", "│": "|", "─": "-", "━": "=", "█": "#"},
    **{"φ": "phi", "ρ": "rho", "β": "beta", "Σ": "sum", "Δ": "delta", "“": '"', "”": '"', "’": "'"},
}


def prepare(is_command: bool | None = None) -> None:
    """Make a command end without a traceback by Ctrl-C, and print on any terminal.

    Until a command begins, Ctrl-C ends the process as it ends any other program. A command cannot
    import the package `kernels`, so that no model has code fetched. What an output
    cannot show (`PYTHONIOENCODING=ascii`) is transliterated or becomes "?".

    Args:
        is_command: whether this process runs one; None finds out. Other programs that import the
            package are left as they are.
    """
    if not (is_running_a_command() if is_command is None else is_command):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # transformers fetches compiled code with the package `kernels` for some kinds of models.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    codecs.register_error("transliterate", transliterate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="transliterate")


def is_running_a_command() -> bool:
    """Return whether this is `itt`, or `python -m` with a module of this project."""
    if Path(sys.argv[0]).name == "itt":
        return True
    options = sys.orig_argv
    modules = [name for flag, name in itertools.pairwise(options) if flag == "-m"]
    return bool(modules) and modules[0].split(".")[0] in PACKAGES


def end_with_parent(number: signal.Signals) -> None:
    """Make Linux send this process a signal when its parent ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_END, number)


def heed_interrupts() -> None:
    """Make Ctrl-C raise a KeyboardInterrupt again, where `prepare` has changed that."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def transliterate(error: UnicodeError) -> tuple[str, int]:
    """Handle an error for `codecs`: return what is printed instead and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(TRANSLITERATED.get(character, "?") for character in text), error.end
