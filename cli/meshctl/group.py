"""Command groups: a table of commands that are imported only when called, near matches for mistyped ones, and
``-o`` accepted after the subcommand too. Knows no particular command.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from meshctl.errors import WrongUsage
from meshctl.output import FORMATS, Invocation
from meshctl.report import near, report


class Group(click.Group):
    """A click group whose unknown commands are wrong usage with a near match for a hint."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("no_args_is_help", False)
        super().__init__(*args, **kwargs)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` starts with. Raises WrongUsage where there is none."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            meant = near(args[0], self.list_commands(ctx))
            hint = f"did you mean {ctx.command_path} {meant}?" if meant else f"{ctx.command_path} --help"
            raise WrongUsage(f"no such command: {ctx.command_path} {args[0] or repr('')}", hint)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """The root: ``table`` maps a command's name to ``("module:attribute", "short help")``.

    Help is in the table so that ``--help`` imports no command. Every failure leaves through report.py.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return accept_output(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list of ``--help`` from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any
    ) -> NoReturn:
        """Run one command line and exit with its status; nothing is ever reported by click itself."""
        extra.pop("standalone_mode", None)
        try:
            status = super().main(args, prog_name or self.name, standalone_mode=False, **extra)
        except BaseException as error:
            raise SystemExit(report(error)) from None
        raise SystemExit(status if isinstance(status, int) else 0)


def accept_output(command: click.Command) -> click.Command:
    """Give ``command``, or every command of a group, the ``-o`` option, once. Returns ``command``."""
    if isinstance(command, click.Group):
        command.no_args_is_help = False
        for inner in command.commands.values():
            accept_output(inner)
    elif not any("-o" in param.opts for param in command.params):
        command.params.append(_output_option())
    return command


def _output_option() -> click.Option:
    return click.Option(
        ["-o", "--output"],
        type=click.Choice(FORMATS),
        expose_value=False,
        callback=_set_output,
        help="How to print.",
    )


def _set_output(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
    invocation = ctx.find_object(Invocation)
    if value is not None and invocation is not None:
        invocation.output = value
