"""`python -m itt_composer NAME …` is `itt NAME …`."""

import sys

from itt_composer.cli.app import app
from itt_composer.cli.extras import what_to_install


def main() -> None:
    """Run the command that the first word names, or list all."""
    try:
        app(prog_name="itt")
    except ModuleNotFoundError as error:
        sentence = what_to_install(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
