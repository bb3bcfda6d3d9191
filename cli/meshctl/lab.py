"""``meshctl lab``: hosts in namespaces on this machine, real daemons. Decides the words of the command line and
what they print; labcluster.py does the work.
"""

import os
import shutil
from pathlib import Path

import click

from meshctl.errors import Failed, WrongUsage
from meshctl.group import Group
from meshctl.labcluster import DEFAULT_DIR, HOSTS_MAX, Lab
from meshctl.output import Invocation
from meshctl.params import Folder
from meshctl.process import EXIT_NOT_FOUND
from meshctl.report import say
from meshctl.table import table

directory_option = click.option(
    "--dir",
    "directory",
    type=Folder(file_okay=False, resolve_path=True, path_type=Path),
    default=DEFAULT_DIR,
    show_default=True,
    help="Where the hosts' files are; one lab for each.",
)


@click.group(cls=Group)
def lab() -> None:
    """Hosts in namespaces on this machine, each with a real meshd: to try things, and for tests."""


@lab.command()
@click.option("--hosts", type=click.IntRange(1, HOSTS_MAX), default=3, show_default=True, help="How many.")
@directory_option
@click.pass_obj
def up(invocation: Invocation, hosts: int, directory: Path) -> None:
    """Bring up hosts on one LAN, form a cluster of them, and leave it running."""
    Lab.up(hosts, directory)
    _print(invocation, directory)


@lab.command()
@directory_option
@click.pass_obj
def status(invocation: Invocation, directory: Path) -> None:
    """Show the hosts of the lab."""
    _print(invocation, directory)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@directory_option
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(ctx: click.Context, directory: Path, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST, with MESHD_SOCKET set to its daemon. Its exit status is the command's."""
    chosen = Lab.load(directory).host(host)
    environment = chosen.environment()
    # click keeps a "--" that follows an argument where options after arguments are not looked for
    typed = command[1:] if command[0] == "--" else command
    if not typed:
        raise WrongUsage("missing command: nothing follows --", "meshctl lab exec HOST -- COMMAND...")
    if shutil.which(typed[0], path=environment["PATH"]) is None:
        say(f"command not found: {typed[0]}")
        ctx.exit(EXIT_NOT_FOUND)
    argv = chosen.argv(*typed)
    os.execvpe(argv[0], argv, environment)  # noqa: S606  # the command takes over this process


@lab.command()
@directory_option
@click.argument("host")
def kill(directory: Path, host: str) -> None:
    """Kill HOST's daemon with SIGKILL."""
    chosen = Lab.load(directory).host(host)
    if not chosen.alive:
        raise Failed(f"meshd does not run on {host}", f"meshctl lab start {host}")
    chosen.kill()


@lab.command()
@directory_option
@click.argument("host")
def start(directory: Path, host: str) -> None:
    """Start HOST's daemon again and wait until it is ready."""
    Lab.load(directory).host(host).start()


@lab.command()
@directory_option
def down(directory: Path) -> None:
    """Stop the daemons and remove everything the lab made. No lab is no error."""
    if (directory / "lab.json").exists():
        Lab.load(directory).down()


def _print(invocation: Invocation, directory: Path) -> None:
    rows = [
        {
            "host": host.name,
            "ns": host.ns,
            "address": host.address,
            "pid": host.pid,
            "alive": host.alive,
            "socket": str(host.socket),
        }
        for host in Lab.load(directory).hosts
    ]
    invocation.emit(rows, lambda: table(list(rows[0]), [list(row.values()) for row in rows]))
