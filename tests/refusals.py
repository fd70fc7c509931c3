"""How a command refuses: one sentence on stderr, and nothing else."""

from typer.testing import Result


def assert_refused(result: Result, sentence: str) -> None:
    """Check that a command failed by one line on stderr that holds `sentence`."""
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
