"""``meshctl network``: asks the daemon for networks. Knows none of the rules about them."""

from typing import Any

import click

from meshctl.client import Client
from meshctl.group import Group
from meshctl.output import Invocation
from meshctl.params import CIDR, DRIVERS, IP, KEY_VALUE, ON_THE_LAN, WORD
from meshctl.report import warn
from meshctl.table import moment, pairs, table

HEAD = ("NAME", "DRIVER", "SCOPE", "VNI", "SUBNETS", "GATEWAYS", "MTU", "INTERNAL", "ENDPOINTS")


@click.group(cls=Group)
def network() -> None:
    """Create, list, inspect, change and remove networks."""


@network.command()
@click.argument("name", type=WORD)
@click.option(
    "-d", "--driver", type=click.Choice(DRIVERS), default="overlay", show_default=True, help="Its kind."
)
@click.option(
    "--subnet", "subnets", type=CIDR, multiple=True, help="Its addresses; several.  [default: one, drawn]"
)
@click.option("--gateway", "gateways", type=IP, multiple=True, help="The gateway's address in a subnet.")
@click.option(
    "--ip-range",
    "ip_range",
    type=CIDR,
    multiple=True,
    help="Draw addresses from this part; --ip may name others.",
)
@click.option("--exclude", type=IP, multiple=True, help="Never give this address out.")
@click.option("--ipv6", is_flag=True, help="Have an IPv6 subnet as well.")
@click.option("--internal", is_flag=True, help="No way out of the network.")
@click.option("--host-access", is_flag=True, help="Each host with an endpoint gets an address there itself.")
@click.option("--broadcast", is_flag=True, help="Carry broadcast and multicast to all endpoints.")
@click.option("--mtu", type=click.IntRange(1, 65535), help="Bytes.  [default: what the underlay carries]")
@click.option("--vni", type=click.IntRange(1, 2**24 - 1), help="VXLAN network identifier.  [default: drawn]")
@click.option(
    "--parent",
    type=WORD,
    metavar="IF",
    help="The LAN's interface (macvlan, ipvlan).  [default: the default route's]",
)
@click.option(
    "--mode", type=WORD, metavar="MODE", help="macvlan: bridge, private, vepa, passthru; ipvlan: l2, l3, l3s."
)
@click.option("--opt", "options", type=KEY_VALUE, multiple=True, help="Driver option.")
@click.option(
    "--label", "labels", type=KEY_VALUE, multiple=True, help="For people and programs; meshd ignores it."
)
@click.pass_obj
def create(invocation: Invocation, /, **wanted: Any) -> None:
    """Create the network NAME: an overlay for the cluster, a bridge on this host, or one that is the LAN itself."""
    wanted.update(options=dict(wanted["options"]), labels=dict(wanted["labels"]))
    for flag in ("parent", "mode"):
        if wanted[flag] is None:
            del wanted[flag]
    _, made = Client(invocation.socket).post("networks", body=wanted)
    if wanted["driver"] in ON_THE_LAN and not wanted["host_access"]:
        remedy = (
            "; --host-access gives each host a device of its own there"
            if wanted["driver"] == "macvlan"
            else ""
        )
        warn(
            f"a host and its own endpoints on {wanted['name']} do not reach each other: the kernel keeps them "
            f"apart{remedy}"
        )
    invocation.emit(made, lambda: _rows([made]))


@network.command("ls")
@click.pass_obj
def list_networks(invocation: Invocation) -> None:
    """List the networks that this host knows."""
    found = Client(invocation.socket).get("networks")
    invocation.emit(found, lambda: _rows(found))


@network.command()
@click.argument("name", type=WORD)
@click.pass_obj
def inspect(invocation: Invocation, name: str) -> None:
    """Show all of one network, and who owns which block of its addresses."""
    found = Client(invocation.socket).get("networks", name)
    invocation.emit(found, lambda: _inspect_lines(found))


@network.command()
@click.argument("name", type=WORD)
@click.option(
    "--add-subnet",
    "add_subnets",
    type=CIDR,
    multiple=True,
    help="More addresses; twice for an IPv4 and an IPv6 subnet that go together.",
)
@click.option("--gateway", "gateways", type=IP, multiple=True, help="The gateway's address in a new subnet.")
@click.option("--label", "labels", type=KEY_VALUE, multiple=True, help="Set a label.")
@click.option("--label-rm", "remove_labels", metavar="KEY", multiple=True, help="Remove a label.")
@click.pass_obj
def update(invocation: Invocation, /, name: str, **wanted: Any) -> None:
    """Change the network NAME: give it more addresses, or other labels."""
    if not any(wanted.values()):
        raise click.UsageError("nothing to change: give --add-subnet, --label or --label-rm")
    wanted["labels"] = dict(wanted["labels"])
    found = Client(invocation.socket).patch("networks", name, body=wanted)
    invocation.emit(found, lambda: _rows([found]))


@network.command()
@click.argument("name", type=WORD)
@click.pass_obj
def rm(invocation: Invocation, name: str) -> None:
    """Remove a network that has no endpoints."""
    answer = Client(invocation.socket).delete("networks", name)
    invocation.emit(answer, list)


def _rows(networks: list[dict[str, Any]]) -> list[str]:
    # vni 0 is what a network without VXLAN has
    rows = [[found.get(column.lower()) if column != "VNI" else found.get("vni") or None for column in HEAD]
            for found in networks]  # fmt: skip
    return table(HEAD, rows)


def _inspect_lines(found: dict[str, Any]) -> list[str]:
    blocks = found.get("blocks") or []
    told = {**found, "created": moment(found.get("created") or None)}  # 0: it was always there
    lines = pairs((name.replace("_", " "), value) for name, value in told.items() if name != "blocks")
    if blocks:
        lines += [
            "",
            *table(
                ("BLOCK", "OWNER", "FREE"), [[b.get("block"), b.get("owner"), b.get("free")] for b in blocks]
            ),
        ]
    return lines
