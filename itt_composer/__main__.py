"""`python -m itt_composer NAME …` is `itt NAME …`."""

from itt_composer.cli.app import app


def main() -> None:
    """Run the command that the first word names, or list all."""
    app(prog_name="itt")


if __name__ == "__main__":
    main()
