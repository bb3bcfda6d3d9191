"""The command table of meshctl. Decides which module answers to which word; every rule is in those modules.

Only click and this table are imported before the command is known: `meshctl members` is run by people and by
health checks, and click alone takes half of the time it may take.
"""

import click

from meshctl.errors import WrongUsage
from meshctl.group import LazyGroup
from meshctl.output import FORMATS, Invocation

DEFAULT_SOCKET = "/run/meshd/api.sock"

COMMANDS: dict[str, tuple[str, str]] = {
    "install": ("meshctl.install:install", "Install units and settings for a meshd that pip installed."),
    "uninstall": ("meshctl.install:uninstall", "Take away what install wrote."),
    "init": ("meshctl.setup:init", "Make this host the first of a cluster."),
    "token": ("meshctl.setup:token", "Print what further hosts join with. It is a secret."),
    "join": ("meshctl.setup:join", "Make this host a member of a cluster."),
    "status": ("meshctl.cluster:status", "This host, the cluster and the kernel in short."),
    "members": ("meshctl.cluster:members", "The cluster's hosts as this one sees them."),
    "reload": ("meshctl.lifecycle:reload", "Have the daemon read its configuration anew."),
    "drain": ("meshctl.lifecycle:drain", "Let this host take no new endpoints."),
    "undrain": ("meshctl.lifecycle:undrain", "Let this host take new endpoints again."),
    "leave": ("meshctl.lifecycle:leave", "Take this host out of the cluster."),
    "forget": (
        "meshctl.lifecycle:forget",
        "Give up a host that is off for good: its addresses go to others.",
    ),
    "network": ("meshctl.network:network", "Create, list, inspect and remove networks."),
    "attach": ("meshctl.attach:attach", "Give a network namespace an endpoint on a network."),
    "detach": ("meshctl.attach:detach", "Take an endpoint away again."),
    "run": ("meshctl.run:run", "Run a command in a fresh namespace on a network."),
    "docker": ("meshctl.docker:docker", "Make Docker networks that are networks of the cluster."),
    "endpoint": ("meshctl.endpoint:endpoint", "List and inspect endpoints."),
    "bridge": ("meshctl.bridge:bridge", "Bridges that are the LAN itself, and their ports."),
    "diff": ("meshctl.cluster:diff", "Compare desired against kernel state."),
    "events": ("meshctl.cluster:events", "What happened lately; --follow for what happens."),
    "metrics": ("meshctl.cluster:metrics", "The daemon's counters, in Prometheus' text format."),
    "completion": (
        "meshctl.completion:completion",
        "Print what bash, zsh or fish completes command lines with.",
    ),
    "cni": ("meshctl.cni:cni", "The plugin for container runtimes that speak CNI."),
    "lab": ("meshctl.lab:lab", "Hosts in namespaces on this machine."),
    "version": ("meshctl.cluster:version", "Versions of meshctl and of the daemon."),
}


@click.command(
    "meshctl", cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--socket",
    metavar="PATH",
    envvar="MESHD_SOCKET",
    show_envvar=True,
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The daemon's API.",
)
@click.option(
    "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print."
)
@click.pass_context
def cli(ctx: click.Context, socket: str, output: str) -> None:
    """Networks for containers and processes across hosts, without a central store.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 daemon not reachable. Errors are lines "error: ..." and
    "hint: ..." on standard error.
    """
    if not socket:
        raise WrongUsage("--socket: must not be empty", "meshctl --help")
    ctx.obj = Invocation(socket, "json" if output == "json" else "table")


def main() -> None:
    """Run meshctl on sys.argv and exit."""
    cli.main(prog_name="meshctl")


if __name__ == "__main__":
    main()
