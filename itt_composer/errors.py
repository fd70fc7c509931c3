"""A user's mistake is told in one sentence and ends the command with exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


class UserError(Exception):
    """Something the user can put right: says what was wrong, where, and what to do."""


class Mistakes:
    """Lets several checks speak before the command ends, so that a user has all of it at once.

    Example:
        >>> mistakes = Mistakes()
        >>> with mistakes:
        ...     check_this()
        >>> with mistakes:
        ...     check_that()
        >>> mistakes.tell()
    """

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self._sentences += str(error).splitlines()
        return isinstance(error, UserError)

    def tell(self) -> None:
        """End with what was found.

        Raises:
            UserError: one line for each sentence, if there is any.
        """
        if self._sentences:
            raise UserError("\n".join(dict.fromkeys(self._sentences)))


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
