"""``meshctl bridge``: bridges for what is to be on the LAN itself, and the network cards that are their ports. Knows
none of the rules about them.
"""

from typing import Any

import click

from meshctl.client import Client
from meshctl.group import Group
from meshctl.output import Invocation
from meshctl.params import DURATION, IFNAME, WORD
from meshctl.report import warn
from meshctl.table import table

HEAD = ("NAME", "STATE", "MAC", "MTU", "PORTS", "OTHERS")


@click.group(cls=Group)
def bridge() -> None:
    """Bridges of this host that are the LAN itself, for virtual machines and macvlan networks."""


@bridge.command()
@click.argument("name", type=IFNAME)
@click.pass_obj
def create(invocation: Invocation, name: str) -> None:
    """Make the bridge NAME on this host, without ports."""
    _, made = Client(invocation.socket).post("bridges", body={"name": name})
    invocation.emit(made, lambda: _rows([made]))


@bridge.command("ls")
@click.pass_obj
def list_bridges(invocation: Invocation) -> None:
    """List the bridges that meshd made on this host, with their ports."""
    found = Client(invocation.socket).get("bridges")
    invocation.emit(found, lambda: _rows(found))


@bridge.command()
@click.argument("name", type=WORD)
@click.pass_obj
def rm(invocation: Invocation, name: str) -> None:
    """Remove a bridge that has no ports."""
    answer = Client(invocation.socket).delete("bridges", name)
    invocation.emit(answer, list)


@bridge.group(cls=Group)
def port() -> None:
    """Have a network card join a bridge or leave it, with its addresses and routes."""


@port.command()
@click.argument("bridge", metavar="BRIDGE", type=WORD)
@click.argument("interface", metavar="IF", type=WORD)
@click.option(
    "--confirm-within",
    "within_s",
    type=DURATION,
    default="60s",
    show_default=True,
    help="The card goes back by itself after this, unless `meshctl bridge confirm` comes first.",
)
@click.pass_obj
def add(invocation: Invocation, bridge: str, interface: str, within_s: float) -> None:
    """Make the card IF a port of BRIDGE, which gets its MAC, addresses and routes. Connections go on."""
    wanted = {"bridge": bridge, "interface": interface, "confirm_within_s": within_s}
    _, made = Client(invocation.socket).post("bridges", "ports", body=wanted)
    for line in made.get("warnings") or []:
        warn(line)
    warn(f"{interface} goes back in {within_s:g} s unless `meshctl bridge confirm` comes first")
    invocation.emit(made, lambda: _rows([made]))


@port.command("rm")
@click.argument("bridge", metavar="BRIDGE", type=WORD)
@click.argument("interface", metavar="IF", type=WORD)
@click.pass_obj
def remove(invocation: Invocation, bridge: str, interface: str) -> None:
    """Take the card IF out of BRIDGE, with its addresses and routes. Connections go on."""
    answer = Client(invocation.socket).delete("bridges", "ports", interface, bridge=bridge)
    invocation.emit(answer, list)


@bridge.command()
@click.pass_obj
def confirm(invocation: Invocation) -> None:
    """Keep the port that was added last: this host is still reached."""
    _, kept = Client(invocation.socket).post("bridges", "confirm")
    invocation.emit(kept, lambda: _rows([kept]))


def _rows(bridges: list[dict[str, Any]]) -> list[str]:
    return table(
        HEAD,
        [
            [b.get("name"), b.get("state"), b.get("mac"), b.get("mtu"), _ports(b), b.get("others")]
            for b in bridges
        ],
    )


def _ports(found: dict[str, Any]) -> list[str]:
    told = []
    for port in found.get("ports") or []:
        left = port.get("seconds_left")
        state = f" ({port.get('state')}, back in {left:.0f} s)" if left is not None else ""
        missing = " (missing)" if port.get("state") == "missing" else ""
        told.append(f"{port.get('name')}{state or missing}")
    return told
