"""What a request for a macvlan or ipvlan network must say, and the options that it becomes. Such a network is a LAN
that is there already: its subnet and its gateway are the LAN's, so the subnet is never drawn from a pool and may be
one that the hosts route. Must not know devices: each host looks at its own (plan/parents.py).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from meshd.errors import BadRequest, Conflict
from meshd.model import Item, Network

MODES = {
    "macvlan": ("bridge", "private", "vepa", "passthru"),
    "ipvlan": ("l2", "l3", "l3s"),
}
"""The modes of each driver as ip-link(8) calls them, the default first."""

LAN_DRIVERS = tuple(MODES)
OWN_MAC_MODES = ("bridge", "private", "vepa")
"""Modes in which an endpoint has a MAC of its own; in the others its device has its parent's."""

SHIM_MODES = ("bridge", "vepa")
"""Modes of macvlan in which a device of the host's own reaches the endpoints on the same parent: by the kernel, or by a
switch that sends frames back. In private none is to, and passthru is for one device alone."""

ROUTED_MODES = ("l3", "l3s")
"""Modes without ARP: the default route names the device alone."""

PARENT = re.compile(r"[^\s/:%]{1,15}")  # dev_valid_name
VLAN = re.compile(r"(?P<base>.+)\.(?P<number>[0-9]{1,4})")
VLAN_MAX = 4094


def article(driver: str) -> str:
    """Put the right article before a driver's name."""
    return f"an {driver}" if driver[0] in "aeiou" else f"a {driver}"


def mode_of(network: Network) -> str:
    """Return the mode that a macvlan or ipvlan network's devices have."""
    return network.options.get("mode") or MODES[network.driver][0]


def parent_of(network: Network) -> str | None:
    """Return the parent that was named; None: each host takes its default route's device."""
    return network.options.get("parent")


def vlan_of(parent: str) -> tuple[str, int] | None:
    """Read ``eth0.10`` as (eth0, 10); None for a name that is no VLAN sub-interface's."""
    found = VLAN.fullmatch(parent)
    if found is None or not 1 <= int(found["number"]) <= VLAN_MAX:
        return None
    return found["base"], int(found["number"])


def plan_options(
    driver: str,
    parent: str | None,
    mode: str | None,
    subnets: Sequence[str],
    options: Mapping[str, str],
    networks: Iterable[Item],
) -> dict[str, str]:
    """Check what only these drivers know and return the network's options; for other drivers, ``options``.

    Raises BadRequest, or Conflict where the named parent is another network's in another mode.
    """
    if driver not in LAN_DRIVERS:
        for flag, value in (("parent", parent), ("mode", mode)):
            if value is not None:
                raise BadRequest(
                    f"{article(driver)} network has no {flag}",
                    f"leave --{flag} out, or use -d macvlan or -d ipvlan",
                )
        return dict(options)
    if mode is not None and mode not in MODES[driver]:
        raise BadRequest(f"{driver} has no mode {mode[:80]!r}", f"one of {', '.join(MODES[driver])}")
    if parent is not None and (not PARENT.fullmatch(parent) or parent in (".", "..")):
        raise BadRequest(
            f"parent {parent[:80]!r} cannot be an interface's name", "1 to 15 characters, no /, : or space"
        )
    if parent == "lo":
        raise BadRequest("parent lo is the loopback device, which is on no LAN", "name the network card")
    if not subnets:
        raise BadRequest(
            f"{article(driver)} network needs the LAN's own subnet",
            "--subnet, with --gateway for the LAN's router and --ip-range for the part that nobody else gives out",
        )
    mode = mode or MODES[driver][0]
    if parent is not None:
        _check_parent(driver, parent, mode, networks)
    told = {"mode": mode} | ({} if parent is None else {"parent": parent})
    return {**options, **told}


def _check_parent(driver: str, parent: str, mode: str, networks: Iterable[Item]) -> None:
    """One device carries one mode. What a network without a named parent uses is known on each host only."""
    for item in networks:
        other = item.body
        if not isinstance(other, Network) or other.driver not in LAN_DRIVERS or parent_of(other) != parent:
            continue
        if (other.driver, mode_of(other)) != (driver, mode):
            raise Conflict(
                f"parent {parent} is used in {other.driver} mode {mode_of(other)} by network {other.name}",
                "one device carries one mode: use the same, or another parent",
            )
