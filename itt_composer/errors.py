"""A user's mistake is told in one sentence and ends the command with exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


class UserError(Exception):
    """Something the user can put right: says what was wrong, where, and what to do."""


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print a `UserError` or `OSError` as one line on stderr instead of a traceback.

    Raises:
        typer.Exit: with code 1, after the line has been printed.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"cannot use {error.filename or 'a file'}: {error.strerror or error}"
    else:
        return
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
