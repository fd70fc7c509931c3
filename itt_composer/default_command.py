"""Command lines with a command whose name may be left out."""

from typing import ClassVar

from typer.core import TyperGroup


class DefaultCommand(TyperGroup):
    """Arguments mean the command `default`, unless they begin with the name of another."""

    default: ClassVar[str]

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)
