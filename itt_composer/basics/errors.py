"""Reports a user's mistake (exit code 1) and Ctrl-C (130) as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from itt_composer.basics.startup import INTERRUPTED, heed_interrupts


class UserError(Exception):
    """Something the user can put right: says what was wrong, where, and what to do."""


class LoaderError(UserError):
    """Something that only one rank meets in the middle of training, such as a damaged download."""


class FieldError(ValueError):
    """A setting that is impossible, or several that contradict each other.

    Whoever knows where each setting came from names the source of the one that was set last.

    Attributes:
        fields: names of the settings; the sentence begins with the first of them.
    """

    def __init__(self, sentence: str, *fields: str):
        super().__init__(sentence)
        self.fields = fields


class Mistakes:
    """Collects the mistakes of several checks, so that a user sees all of them at once.

    Example:
        >>> mistakes = Mistakes()
        >>> with mistakes:
        ...     check_this()
        >>> with mistakes:
        ...     check_that()
        >>> mistakes.report()
    """

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, UserError):
            self._sentences += str(error).splitlines()
        return isinstance(error, UserError)

    def report(self) -> None:
        """Raise what was found.

        Raises:
            UserError: one line for each sentence, if there is any.
        """
        if self._sentences:
            raise UserError("\n".join(dict.fromkeys(self._sentences)))


@contextmanager
def errors_as_sentences(interrupted: str = "nothing was written") -> Iterator[None]:
    """Print a `UserError`, an `OSError` or Ctrl-C as one line on stderr instead of a traceback.

    Args:
        interrupted: printed after Ctrl-C: what became of the work, or how to go on with it; may
            be empty.

    Raises:
        typer.Exit: with code 1, or 130 after Ctrl-C, after the line has been printed.
    """
    heed_interrupts()
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        # Once Composer is imported, Ctrl-C is a SystemExit.
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        typer.echo("; ".join(filter(None, ["ended by Ctrl-C", interrupted])), err=True)
        raise typer.Exit(INTERRUPTED) from None
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"cannot use {error.filename or 'a file'}: {error.strerror or error}"
    else:
        return
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
