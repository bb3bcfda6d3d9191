"""What an operator's bridge is in the kernel, what it may be called, and which device may be a port of it. Knows
devices as the kernel tells them; must not know who asks, nor how addresses move.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from meshd.errors import BadRequest, Conflict
from meshd.model import Bridge
from meshd.plan import names
from meshd.plan.objects import Link

IFNAME_BYTES = 15  # IFNAMSIZ - 1
RESERVED = ("lo", "all", "default", ".", "..")
"""What is the kernel's: its loopback device, and folders of /proc/sys/net/ipv4/conf beside those of devices."""


class Card(msgspec.Struct, frozen=True):
    """A device of this host. ``missing``: there is none of that name, and nothing else here means anything.

    ``kind``: what the kernel calls it, "" for hardware. ``master``: the device that it is a port of. ``alias``: its
    IFLA_IFALIAS. ``above``: macvlan and ipvlan devices on it; ``ports``: devices whose master it is. ``mtu`` bytes.
    ``accept_ra``: whether a router's advertisements are taken there, forwarding considered.
    """

    name: str
    missing: bool = False
    index: int = 0
    kind: str = ""
    alias: str = ""
    up: bool = False
    carrier: bool = False
    loopback: bool = False
    ethernet: bool = True
    wireless: bool = False
    master: str = ""
    master_kind: str = ""
    mtu: int = 0
    mac: bytes = b""
    above: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    accept_ra: bool = False


class Belongings(msgspec.Struct, frozen=True):
    """What the host has on a device. ``packed``: kernel/carried.py's; ``count``: without what every device has;
    ``fits``: it moves in one batch; ``leased``: v4 addresses that expire; ``advertised``: it has a route from a router's
    advertisement."""

    packed: bytes = b""
    count: int = 0
    fits: bool = True
    leased: tuple[str, ...] = ()
    advertised: bool = False


class Move(msgspec.Struct, frozen=True):
    """A card's way into a bridge or out of it. ``mac``: what the bridge is to have then.

    ``carried``, ``before``: what card and bridge had before the card joined, when its ifindex was ``index``,
    ``elapsed_s`` seconds ago; ``others``: what the bridge's other ports brought. ``restore``: what has been lost of it is
    put back.
    """

    card: str
    bridge: str
    mac: bytes
    index: int = 0
    carried: bytes = b""
    before: bytes = b""
    others: bytes = b""
    elapsed_s: int = 0
    restore: bool = False


def lan_link(cluster: str, bridge_id: bytes, bridge: Bridge) -> Link:
    """Return the device. ``cluster``: names.cluster_mark."""
    alias = names.lan_bridge_alias(cluster, bridge_id)
    return Link(bridge.name, "bridge", alias, mtu=0, mac=bridge.mac)


def check_name(name: str) -> None:
    """Refuse what a bridge cannot be called. Raises BadRequest."""
    odd = any(c in "/:%" or c.isspace() or not c.isprintable() for c in name)
    if odd or name in ("", *RESERVED) or len(name.encode()) > IFNAME_BYTES:
        raise BadRequest(
            f"bridge: {name[:64]!r} cannot be an interface's name",
            "1 to 15 bytes, no /, :, % or space; e.g. br0",
        )
    if names.is_ours(name) or name.startswith(names.BRIDGE):  # rules for our bridges name them all by that
        raise BadRequest(f"bridge: {name!r} is named as meshd names its own devices", "choose another name")


class Rule(NamedTuple):
    """``broken``: returns the words of what is wrong with a card, or ""."""

    broken: Callable[[Card], str]
    hint: str


RULES: tuple[Rule, ...] = (
    Rule(
        lambda card: "does not exist on this host" if card.missing else "", "see `ip link` for those it has"
    ),
    Rule(
        lambda card: "is the loopback device, which is on no LAN" if card.loopback else "",
        "name a network card",
    ),
    Rule(
        lambda card: "is a device of meshd's own" if card.alias.startswith(f"{names.MARK}:") else "",
        "name a network card",
    ),
    Rule(
        lambda card: (
            f"is a port of {card.master_kind or 'device'} {card.master} already" if card.master else ""
        ),
        "take it out there first, or add that device itself if it is a bond or team",
    ),
    Rule(
        lambda card: "is a bridge itself, and bridges do not nest" if card.kind == "bridge" else "",
        "name a network card",
    ),
    Rule(lambda card: "is no Ethernet device" if not card.ethernet else "", "name a network card"),
    Rule(
        lambda card: (
            "is wireless: access points take only frames from the MAC that associated"
            if card.wireless
            else ""
        ),
        "use a wired card; or give endpoints an overlay or bridge network",
    ),
    Rule(
        lambda card: f"is the parent of {', '.join(card.above)}" if card.above else "",
        "remove those first; a macvlan network with --parent BRIDGE does the same on the bridge",
    ),
    Rule(lambda card: "is down" if not card.up else "", "ip link set it up"),
)
"""In the order in which they are asked; the first that is broken is the answer."""


def check_port(card: Card, bridge: str) -> None:
    """Refuse a device that cannot be a port. Raises Conflict: nothing was changed."""
    for rule in RULES:
        words = rule.broken(card)
        if words:
            raise Conflict(
                f"{card.name} cannot be a port of {bridge}: it {words}; nothing was changed", rule.hint
            )
