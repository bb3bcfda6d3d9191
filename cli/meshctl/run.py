"""run: a command in a fresh namespace on a network. Decides the order: namespace, endpoint, command, and the
endpoint away again whatever became of the command. Prints nothing of its own on standard output.
"""

import contextlib
from typing import Any

import click
from click.core import ParameterSource

from meshctl.attach import DEFAULT_NETWORK, endpoint_options, put_in, take_out
from meshctl.client import Client
from meshctl.errors import CommandError, Failed, WrongUsage
from meshctl.netns import opened
from meshctl.output import Invocation
from meshctl.params import WORD
from meshctl.plumb import loopback_up
from meshctl.process import Child, signals_held, signals_raised
from meshctl.report import say

COMMAND_LINE = "meshctl.run:argv"
WITHOUT_ENDPOINT = {
    "none": "on network none a process has its loopback alone, nothing that others could reach",
    "host": "on network host a process has this host's own interfaces, addresses and ports: it listens on a port "
    "itself, and nothing stands between that could be published or named",
}
USAGE = "meshctl run [NETWORK] [OPTIONS] -- COMMAND..."


class RunCommand(click.Command):
    """A command whose arguments after ``--`` are another's: click alone would lose where they begin."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what follows ``--``; parse the rest. Raises WrongUsage where nothing follows."""
        dashes = args.index("--") if "--" in args else len(args)
        argv = args[dashes + 1 :]
        if not argv and not set(args) & set(ctx.help_option_names):
            raise WrongUsage("missing command: nothing follows --", USAGE)
        ctx.meta[COMMAND_LINE] = argv
        return super().parse_args(ctx, args[:dashes])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show ``-- COMMAND...`` in the usage line."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


@click.command(cls=RunCommand)
@click.argument("network", type=WORD, default=DEFAULT_NETWORK)
@endpoint_options
@click.pass_context
def run(ctx: click.Context, /, network: str, **wanted: Any) -> None:
    """Run COMMAND in a fresh network namespace on NETWORK (default: bridge), and exit with its status.

    The namespace has no name and ends with the command; so does its endpoint. On "none" it has its loopback alone,
    up; on "host" COMMAND runs in this host's own namespace.
    """
    invocation: Invocation = ctx.obj
    if network in WITHOUT_ENDPOINT:
        ctx.exit(run_without(network, ctx, wanted, ctx.meta[COMMAND_LINE]))
    ctx.exit(run_on(Client(invocation.socket), network, wanted, ctx.meta[COMMAND_LINE]))


def run_on(client: Client, network: str, wanted: dict[str, Any], argv: list[str]) -> int:
    """Return the command's exit status: 128 + N where signal N killed it, 127 or 126 where it could not be run."""
    endpoint: dict[str, Any] | None = None
    with contextlib.ExitStack() as held:
        with signals_raised():
            child = Child(argv)
            try:
                with opened(child.namespace) as namespace:
                    endpoint = put_in(client, namespace, network, wanted)
                held.enter_context(signals_held())
            except BaseException:
                child.abandon()
                if endpoint is not None:
                    _detach(client, endpoint["id"])
                raise
        try:
            return child.run()
        except Failed as error:
            say(error.what, error.hint)
            return error.status
        finally:
            _detach(client, endpoint["id"])


def run_without(network: str, ctx: click.Context, wanted: dict[str, Any], argv: list[str]) -> int:
    """Run on ``none`` or ``host``, which takes no daemon. Raises WrongUsage for a flag of an endpoint."""
    for name in wanted:
        if ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT):
            flag = next(p.opts[-1] for p in ctx.command.params if p.name == name)
            raise WrongUsage(f"{flag} cannot be met: {WITHOUT_ENDPOINT[network]}", f"leave {flag} out")
    with signals_raised():
        child = Child(argv, fresh=network == "none")
        try:
            if network == "none":
                with opened(child.namespace) as namespace:
                    loopback_up(namespace)
        except BaseException:
            child.abandon()
            raise
    with signals_held():
        try:
            return child.run()
        except Failed as error:
            say(error.what, error.hint)
            return error.status


def _detach(client: Client, endpoint: str) -> None:
    """Remove the endpoint. A failure is said and does not hide the command's status: the daemon releases by itself
    what was in a namespace that went away.
    """
    try:
        take_out(client, endpoint)
    except CommandError as error:
        say(f"endpoint {endpoint} was not detached: {error.what}", error.hint)
