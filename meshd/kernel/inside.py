"""What a short-lived root caller does in a container's namespace, packed for it: the CNI executable sends these messages
one by one and knows none of them (cli/meshcni/plugin.py). Decides bytes and their order, and reads what the caller saw
there; not which address or route an endpoint has. Has no socket: the daemon never enters that namespace.

Layouts: linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h. `meshctl attach` does the same with cli/meshctl/plumb.py.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from meshd.kernel import addresses, frames, linkdump, shaping

RTM_NEWLINK, RTM_NEWROUTE = 16, 24
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_AF_SPEC, IFLA_NET_NS_FD = 1, 3, 4, 26, 28
IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE = 8, 1
NLA_F_NESTED = 0x8000
IFF_UP = 0x1
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1
SCOPE_GLOBAL, SCOPE_LINK = 0, 253

_RTMSG = struct.Struct(
    "=BBBBBBBBI"
)  # family, dst length, src length, tos, table, protocol, scope, type, flags
_U32 = struct.Struct("=I")
_INDEX_OF_LINK = (
    frames.HEADER_BYTES + 4
)  # where ifinfomsg has the interface's number; ifaddrmsg has it there too


class Step(NamedTuple):
    """One message. ``inside``: in the container's namespace, else in the host's. ``index_at``, ``namespace_at``: where
    the caller writes the number of the interface that it was last told of, and of the namespace's open file; 0 for
    nowhere. ``what``: for the error, should the kernel refuse; ``optional``: then it is none. Without a message: IPv6 is
    turned on for the interface, which runtimes turn off by default."""

    inside: bool
    what: str
    message: bytes
    index_at: int = 0
    namespace_at: int = 0
    optional: bool = False


class Route(NamedTuple):
    """A route of an endpoint. ``via``: packed, or None for what the device itself reaches. ``metric``: None for the
    kernel's default."""

    dst: ipaddress.IPv4Network | ipaddress.IPv6Network
    via: bytes | None
    metric: int | None = None


class Default(NamedTuple):
    """A default route seen inside."""

    family: int
    ifindex: int
    via: bytes
    metric: int


class Seen(NamedTuple):
    """What the caller saw in the namespace: the interface asked for (``ifindex`` 0: there is none), its addresses as
    (packed, prefix length), and every default route of the main table."""

    ifindex: int
    mac: bytes
    up: bool
    addresses: frozenset[tuple[bytes, int]]
    defaults: tuple[Default, ...]


def seen(link: bytes, addrs: bytes, routes: bytes) -> Seen:
    """Read the kernel's answers: to a question about one link (empty: there is none), and two dumps."""
    index, mac, up = 0, b"", False
    for kind, _, start, end in frames.split(link):
        if kind == RTM_NEWLINK:
            _, _, index, flags, _ = linkdump.IFINFOMSG.unpack_from(link, start + frames.HEADER_BYTES)
            found = frames.attributes(link, start + frames.HEADER_BYTES + linkdump.IFINFOMSG.size, end)
            mac, up = found.get(IFLA_ADDRESS, b""), bool(flags & IFF_UP)
    here = frozenset((a.ip, a.prefix) for a in addresses.parse([addrs]) if a.ifindex == index)
    return Seen(index, mac, up, here, tuple(_defaults(routes)))


def _defaults(dump: bytes) -> Iterator[Default]:
    for kind, _, start, end in frames.split(dump):
        if kind != RTM_NEWROUTE:
            continue
        body = start + frames.HEADER_BYTES
        family, length, _, _, table, _, _, form, _ = _RTMSG.unpack_from(dump, body)
        found = frames.attributes(dump, body + _RTMSG.size, end)
        if RTA_TABLE in found:
            (table,) = _U32.unpack(found[RTA_TABLE])
        if length or table != RT_TABLE_MAIN or form != RTN_UNICAST:
            continue
        index, metric = (_U32.unpack(found.get(k, bytes(4)))[0] for k in (RTA_OIF, RTA_PRIORITY))
        yield Default(family, index, found.get(RTA_GATEWAY, b""), metric)


def ranked(routes: Sequence[Route], there: Seen) -> list[Route]:
    """Leave out default routes that this interface has, and give the others their metric: of several networks the one
    attached first is the way out, each later one takes over when those before it go."""
    found: list[Route] = []
    for route in routes:
        if route.dst.prefixlen:
            found.append(route)
            continue
        family = socket.AF_INET if route.dst.version == 4 else socket.AF_INET6
        others = [default for default in there.defaults if default.family == family]
        if there.ifindex and any(other.ifindex == there.ifindex for other in others):
            continue
        found.append(route._replace(metric=max((other.metric + 1 for other in others), default=None)))
    return found


def plumb(
    made: str,
    ifname: str,
    mtu: int,
    addrs: Sequence[tuple[bytes, int]],
    routes: Sequence[Route],
    *,
    moved: bool,
) -> list[Step]:
    """Take the link ``made`` into the namespace unless it was ``moved`` before, call it ``ifname`` and configure it.
    ``mtu`` in bytes; ``addrs``: (packed, prefix length). Each step may be repeated."""
    steps: list[Step] = []
    if not moved:
        what = f"{made} cannot be moved into the namespace as {ifname}"
        steps += [Step(False, what, linkdump.get_request(made)), _move(what, ifname, mtu)]
    steps.append(Step(True, f"{ifname} cannot be found in the namespace", linkdump.get_request(ifname)))
    if any(len(ip) == 16 for ip, _ in addrs):
        steps.append(Step(True, f"IPv6 cannot be turned on for {ifname}", b""))
    else:
        steps.append(_without_link_local())
    steps += [_address(ifname, ip, prefix) for ip, prefix in addrs]
    steps.append(Step(True, f"{ifname} cannot be set up", _link(IFF_UP, b""), _INDEX_OF_LINK))
    named = frames.attribute(IFLA_IFNAME, b"lo\0")
    steps.append(Step(True, "lo cannot be set up", _link(IFF_UP, named)))
    return steps + [_route(ifname, route) for route in routes]


def shape(host_if: str, ifname: str, ingress: tuple[int, int], egress: tuple[int, int]) -> list[Step]:
    """Limit what goes into the container (on the host's end) and out of it (inside), each (bit/s, burst in bits); a
    rate of 0 limits nothing. After ``plumb``."""
    steps: list[Step] = []
    if egress[0]:
        steps.append(
            Step(True, f"{ifname} cannot be limited", shaping.limit(*egress), shaping.INDEX_AT),
        )
    if ingress[0]:
        steps += [
            Step(False, f"{host_if} cannot be found", linkdump.get_request(host_if)),
            Step(False, f"{host_if} cannot be limited", shaping.limit(*ingress), shaping.INDEX_AT),
        ]
    return steps


def _link(flags: int, more: bytes) -> bytes:
    """Pack a change of a link whose number the caller fills in, or that ``more`` names."""
    return frames.request(RTM_NEWLINK, frames.ACK, linkdump.IFINFOMSG.pack(0, 0, 0, flags, flags) + more)


def _move(what: str, ifname: str, mtu: int) -> Step:
    """Move, name and size a link in one message, so that a caller that dies leaves it whole on one side."""
    more = frames.attribute(IFLA_IFNAME, ifname.encode() + b"\0") + frames.attribute(IFLA_MTU, _U32.pack(mtu))
    message = _link(0, more + frames.attribute(IFLA_NET_NS_FD, bytes(4)))
    return Step(False, what, message, _INDEX_OF_LINK, len(message) - 4)


def _without_link_local() -> Step:
    """Keep the kernel from giving the link an IPv6 address of its own; without IPv6 there is nothing to keep it from."""
    mode = frames.attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_NONE]))
    family = frames.attribute(socket.AF_INET6 | NLA_F_NESTED, mode)
    message = _link(0, frames.attribute(IFLA_AF_SPEC | NLA_F_NESTED, family))
    return Step(True, "", message, _INDEX_OF_LINK, optional=True)


def _address(ifname: str, ip: bytes, prefix: int) -> Step:
    """v6 without duplicate detection (RFC 4862): no address is given twice, and it must be usable at once."""
    family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
    body = struct.pack("=BBBBi", family, prefix, 0, SCOPE_GLOBAL, 0)
    body += frames.attribute(addresses.IFA_LOCAL, ip) + frames.attribute(addresses.IFA_ADDRESS, ip)
    if family == socket.AF_INET6:
        body += frames.attribute(addresses.IFA_FLAGS, _U32.pack(addresses.IFA_F_NODAD))
    message = frames.request(addresses.RTM_NEWADDR, frames.ACK | frames.CREATE | frames.REPLACE, body)
    return Step(True, f"{ifname} cannot have the address {ipaddress.ip_address(ip)}", message, _INDEX_OF_LINK)


def _route(ifname: str, route: Route) -> Step:
    """Add a route: ``ranked`` has left out what is there."""
    v4 = route.dst.version == 4
    scope = SCOPE_LINK if route.via is None and v4 else SCOPE_GLOBAL
    family = socket.AF_INET if v4 else socket.AF_INET6
    body = _RTMSG.pack(family, route.dst.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0)
    body += frames.attribute(RTA_OIF, bytes(4))
    index_at = frames.HEADER_BYTES + len(body) - 4
    if route.dst.prefixlen:
        body += frames.attribute(RTA_DST, route.dst.network_address.packed)
    if route.via is not None:
        body += frames.attribute(RTA_GATEWAY, route.via)
    if route.metric is not None:
        body += frames.attribute(RTA_PRIORITY, _U32.pack(route.metric))
    message = frames.request(RTM_NEWROUTE, frames.ACK | frames.CREATE | frames.EXCL, body)
    return Step(True, f"{ifname} cannot have the route {route.dst}", message, index_at)
