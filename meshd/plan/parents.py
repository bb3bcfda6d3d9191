"""Whether a device may carry a macvlan or ipvlan network's endpoints on this host, and what else an operator should
be told of it. One table; it knows the device as the kernel tells it, and must not know who asks.
"""

import ipaddress
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from meshd.errors import Conflict, Unavailable
from meshd.model import Network
from meshd.state.lan import mode_of

MODULES = {"macvlan": "CONFIG_MACVLAN", "ipvlan": "CONFIG_IPVLAN", "vlan": "CONFIG_VLAN_8021Q"}
FEATURES = {"macvlan": "macvlan", "ipvlan": "ipvlan", "vlan": "802.1Q VLAN devices"}
"""How a device kind is called towards people, and the kernel's setting that brings it."""


class Parent(msgspec.Struct, frozen=True):
    """A device of this host. ``master``: the device that it is a port of, or ""; ``mtu`` bytes; ``addresses``: its
    own with prefix length, as text. ``missing``: there is no such device, and nothing else here means anything."""

    name: str
    missing: bool = False
    index: int = 0
    up: bool = True
    loopback: bool = False
    master: str = ""
    master_kind: str = ""
    mtu: int = 0
    mac: bytes = b""
    promiscuous: bool = False
    wireless: bool = False
    addresses: tuple[str, ...] = ()


class Other(NamedTuple):
    """Another network that has endpoints on the same device of this host."""

    name: str
    driver: str
    mode: str


class Asked(NamedTuple):
    """What is to be put on the device. ``occupied``: an endpoint of the network is on it already."""

    network: Network
    parent: Parent
    others: Sequence[Other]
    occupied: bool


class Rule(NamedTuple):
    """``broken``: returns the words of what is wrong, or ""."""

    broken: Callable[[Asked], str]
    hint: str


def _missing(asked: Asked) -> str:
    return "does not exist on this host" if asked.parent.missing else ""


def _loopback(asked: Asked) -> str:
    return "is the loopback device, which is on no LAN" if asked.parent.loopback else ""


def _port(asked: Asked) -> str:
    parent = asked.parent
    return f"is a port of {parent.master_kind or 'device'} {parent.master}" if parent.master else ""


def _down(asked: Asked) -> str:
    return "" if asked.parent.up else "is down"


def _other_mode(asked: Asked) -> str:
    mine = (asked.network.driver, mode_of(asked.network))
    for other in asked.others:
        if (other.driver, other.mode) != mine or mine[1] == "passthru":
            return f"is used in {other.driver} mode {other.mode} by network {other.name}"
    return ""


def _passthru(asked: Asked) -> str:
    alone = mode_of(asked.network) == "passthru"
    return (
        "carries an endpoint in mode passthru already, and takes one only" if alone and asked.occupied else ""
    )


def _narrow(asked: Asked) -> str:
    mtu, room = asked.network.mtu, asked.parent.mtu
    return f"has an MTU of {room} bytes, less than the network's {mtu}" if mtu > room else ""


def _elsewhere(asked: Asked) -> str:
    """A device without addresses of a family says nothing about which subnets are on its LAN."""
    if asked.network.options.get("check-subnet") == "no":
        return ""
    held = [ipaddress.ip_interface(text) for text in asked.parent.addresses]
    for subnet in asked.network.subnets:
        prefix = ipaddress.ip_network(subnet.cidr)
        same = [mine for mine in held if mine.version == prefix.version and not mine.is_link_local]
        if same and not any(mine.network.overlaps(prefix) for mine in same):
            return f"is on another LAN than {prefix}: it has {', '.join(map(str, same))}"
    return ""


RULES: tuple[Rule, ...] = (
    Rule(_missing, "see `ip link` for those it has; --parent names one on all hosts"),
    Rule(_loopback, "name the network card with --parent"),
    Rule(_port, "name the bridge or bond itself as the parent"),
    Rule(_down, "ip link set it up"),
    Rule(_other_mode, "one device carries one mode: use the same, or another parent"),
    Rule(_passthru, "use mode bridge, or one parent for each endpoint"),
    Rule(_narrow, "raise it, or make the network with a smaller --mtu"),
    Rule(_elsewhere, "use the LAN's own subnet; --opt check-subnet=no where the LAN carries both"),
)
"""In the order in which they are asked; the first that is broken is the answer."""


def check(asked: Asked) -> None:
    """Refuse a device that cannot carry the network. Raises Conflict: nothing was changed."""
    for rule in RULES:
        words = rule.broken(asked)
        if words:
            raise Conflict(f"parent {asked.parent.name} of network {asked.network.name} {words}", rule.hint)


def warnings(parent: Parent, driver: str) -> list[str]:
    """Say what will work badly or surprise, a line each."""
    told = []
    if parent.wireless and driver == "macvlan":
        told.append(
            f"parent {parent.name} is wireless: access points drop frames from a MAC that did not associate, so "
            "macvlan endpoints are likely not to be heard; ipvlan is"
        )
    if parent.promiscuous:
        told.append(
            f"parent {parent.name} is promiscuous: something on this host captures or bridges what endpoints send"
        )
    return told


def missing_feature(kind: str) -> Unavailable:
    """Say that the kernel cannot make devices of a kind."""
    return Unavailable(
        f"this host's kernel has no {FEATURES[kind]} ({MODULES[kind]}); nothing was changed",
        "use a kernel that has it" + (", or -d macvlan" if kind == "ipvlan" else ""),
    )


def check_carrier(carrier: Parent, network: str, wanted: str) -> None:
    """Refuse to make the VLAN sub-interface ``wanted`` on a device. Raises Conflict: nothing was changed."""
    wrong = (
        "does not exist on this host"
        if carrier.missing
        else "is the loopback device"
        if carrier.loopback
        else ""
    )
    if not wrong and not carrier.up:
        wrong = "is down"
    if wrong:
        raise Conflict(
            f"parent {wanted} of network {network} does not exist on this host, and cannot be made: "
            f"{carrier.name} {wrong}",
            "see `ip link`",
        )
