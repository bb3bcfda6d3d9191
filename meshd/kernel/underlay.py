"""What carries the overlay: this host's address, the device that has it, its MTU, and what the host routes
itself, so that no pool is laid over it. It decides which address that is when nobody says.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from meshd.config import MTU_DEFAULT
from meshd.errors import ConfigError
from meshd.kernel import addresses, frames, linkdump, netlink, offload
from meshd.plan import names

RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTA_DST, RTA_OIF, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE = 1, 4, 6, 7, 9, 15
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, ifindex
_UNUSABLE = addresses.IFA_F_TEMPORARY | addresses.IFA_F_DEPRECATED | addresses.IFA_F_TENTATIVE


class Underlay(msgspec.Struct, frozen=True):
    """``address``: text; ``mtu``: bytes, of ``device``, or where that is lo, of the way out; ``routes``: prefixes as text, sorted;
    ``cards``: the devices that packets leave by and those that these stand on (offload.stack)."""

    address: str
    device: str
    mtu: int
    routes: tuple[str, ...]
    cards: tuple[str, ...] = ()


class Route(NamedTuple):
    """A unicast route of the main table. ``devices``: ifindexes; ``source``: packed, if it prefers one."""

    dst: bytes
    prefix: int
    devices: tuple[int, ...]
    metric: int
    source: bytes | None


def read_underlay(link: netlink.Netlink, bind: str | None, mark: str, family: int = 0) -> Underlay:
    """Find the underlay. ``bind``: the address from the operator's file; None takes the source address of
    the default route, v4 before v6, or of ``family`` (4 or 6) alone. ``mark``: names.cluster_mark; another cluster's
    networks count as the host's. Raises ConfigError when no device has it, KernelError."""
    devices = {seen.ifindex: seen for seen in linkdump.parse_all(link.dump(linkdump.dump_request()))}
    held = addresses.parse(link.dump(addresses.dump_request()))
    routes = {family: read_routes(link, family) for family in (socket.AF_INET, socket.AF_INET6)}
    if bind is None:
        sources = (
            _default_source(routes[FAMILIES[wanted]], held) for wanted in ((family,) if family else (4, 6))
        )
        ip = next((source for source in sources if source), None)
        if ip is None:
            kind = f" IPv{family}" if family else ""
            raise ConfigError(
                f"gossip.bind: this host has no{kind} default route to take its address from",
                "set gossip.bind to the address that the other hosts reach this one at",
            )
    else:
        ip = ipaddress.ip_address(bind).packed
    holder = next((devices[a.ifindex] for a in held if a.ip == ip and a.ifindex in devices), None)
    if holder is None:
        raise ConfigError(
            f"gossip.bind: no interface of this host has {bind}", "see `ip address` for those it has"
        )
    ours = {
        index
        for index, seen in devices.items()
        if names.alias_network(seen.alias, mark) is not None and not names.is_lan_bridge(seen.alias)
    }
    loopback = {index for index, seen in devices.items() if seen.name == "lo"}
    prefixes = _own_prefixes([*routes[socket.AF_INET], *routes[socket.AF_INET6]], ours | loopback)
    mtu, leave_by = holder.mtu, [holder.ifindex]
    if holder.ifindex in loopback:  # an address that a routing daemon announces: packets leave elsewhere
        out = [r for r in routes[socket.AF_INET if len(ip) == 4 else socket.AF_INET6] if r.prefix == 0]
        leave_by = [i for r in out for i in r.devices if i in devices]
        mtu = min((devices[i].mtu for i in leave_by), default=MTU_DEFAULT)
    cards = offload.stack(devices.values(), leave_by)
    return Underlay(str(ipaddress.ip_address(ip)), holder.name, mtu, prefixes, tuple(cards))


def _default_source(routes: Iterable[Route], held: Iterable[addresses.Seen]) -> bytes | None:
    """Choose as the kernel does: the default route of least metric, its preferred source or else the first
    global address of its device."""
    for route in sorted((r for r in routes if r.prefix == 0), key=lambda r: r.metric):
        if route.source:
            return route.source
        for address in held:
            fits = address.scope == addresses.SCOPE_GLOBAL and not address.flags & _UNUSABLE
            if fits and address.ifindex in route.devices and len(address.ip) == len(route.dst):
                return address.ip
    return None


def _own_prefixes(routes: Iterable[Route], excluded: set[int]) -> tuple[str, ...]:
    """List what the host routes itself, without what is everybody's and what is meshd's."""
    networks = {
        ipaddress.ip_network((route.dst, route.prefix), strict=False)
        for route in routes
        if route.prefix and not (route.devices and set(route.devices) <= excluded)
    }
    kept = [n for n in networks if not (n.is_link_local or n.is_multicast or n.is_loopback)]
    return tuple(
        str(n) for n in sorted(kept, key=lambda n: (n.version, n.network_address.packed, n.prefixlen))
    )


def read_routes(link: netlink.Netlink, family: int) -> list[Route]:
    """Dump the main table's unicast routes."""
    body = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    found: list[Route] = []
    for chunk in link.dump(frames.request(RTM_GETROUTE, 0, body)):
        for kind, _, start, end in frames.split(chunk):
            if kind == RTM_NEWROUTE:
                route = _parse(chunk, start + frames.HEADER_BYTES, end)
                if route is not None:
                    found.append(route)
    return found


def _parse(chunk: bytes, start: int, end: int) -> Route | None:
    family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(chunk, start)
    found = frames.attributes(chunk, start + _RTMSG.size, end)
    if RTA_TABLE in found:
        (table,) = struct.unpack("=I", found[RTA_TABLE])
    if table != RT_TABLE_MAIN or kind != RTN_UNICAST:
        return None
    devices = [struct.unpack("=i", found[RTA_OIF])[0]] if RTA_OIF in found else []
    paths = found.get(RTA_MULTIPATH, b"")
    while len(paths) >= _NEXTHOP.size:
        length, _, _, device = _NEXTHOP.unpack_from(paths)
        devices.append(device)
        paths = paths[max((length + 3) & ~3, _NEXTHOP.size) :]
    metric = struct.unpack("=I", found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
    unspecified = bytes(4 if family == socket.AF_INET else 16)
    return Route(found.get(RTA_DST, unspecified), prefix, tuple(devices), metric, found.get(RTA_PREFSRC))
