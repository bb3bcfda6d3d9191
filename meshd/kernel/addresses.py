"""Addresses of devices, hand-packed. It decides how an address on one of our bridges looks to the kernel and
how it is known to be ours; not which addresses there are.

Layout: struct ifaddrmsg of linux/if_addr.h. Ours carry IFA_PROTO = ROUTE_PROTOCOL (kernel >= 5.18); where the
kernel reports no protocol for any address, all on our bridges count as ours.
"""

import socket
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from meshd.config import ROUTE_PROTOCOL
from meshd.kernel import frames
from meshd.plan.objects import Addr

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x02, 0x20, 0x40
SCOPE_GLOBAL, SCOPE_LINK = 0, 253

_IFADDRMSG = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, ifindex
_U32 = struct.Struct("=I")
_PROTO = frames.attribute(IFA_PROTO, bytes((ROUTE_PROTOCOL,)))
_NODAD = frames.attribute(IFA_FLAGS, _U32.pack(IFA_F_NODAD))


def _message(kind: int, flags: int, addr: Addr, index: Mapping[str, int], more: bytes) -> bytes:
    family = socket.AF_INET if len(addr.ip) == 4 else socket.AF_INET6
    body = _IFADDRMSG.pack(family, addr.prefix, 0, SCOPE_GLOBAL, index[addr.dev])
    body += frames.attribute(IFA_LOCAL, addr.ip) + frames.attribute(IFA_ADDRESS, addr.ip)
    return frames.request(kind, flags, body + more)


def put(addrs: Iterable[Addr], index: Mapping[str, int]) -> list[bytes]:
    """Pack create-or-replace requests. v6 without duplicate detection: the gateway's address is the same on
    every host on purpose."""
    how = frames.CREATE | frames.REPLACE
    return [
        _message(RTM_NEWADDR, how, addr, index, _PROTO + (_NODAD if len(addr.ip) == 16 else b""))
        for addr in addrs
    ]


def delete(addrs: Iterable[Addr], index: Mapping[str, int]) -> list[bytes]:
    """Pack delete requests."""
    return [_message(RTM_DELADDR, 0, addr, index, b"") for addr in addrs]


def dump_request(family: int = socket.AF_UNSPEC) -> bytes:
    """Pack the dump request."""
    return frames.request(RTM_GETADDR, 0, _IFADDRMSG.pack(family, 0, 0, 0, 0))


class Seen(NamedTuple):
    """An address as the kernel tells it. ``protocol`` None where the kernel does not say."""

    ifindex: int
    ip: bytes
    prefix: int
    scope: int
    flags: int
    protocol: int | None


def parse(chunks: Iterable[bytes]) -> list[Seen]:
    """Read a dump."""
    return [
        parse_event(chunk, start, end)
        for chunk in chunks
        for kind, _, start, end in frames.split(chunk)
        if kind == RTM_NEWADDR
    ]


def parse_event(chunk: bytes, start: int, end: int) -> Seen:
    """Read one message, header included."""
    _, prefix, flags, scope, index = _IFADDRMSG.unpack_from(chunk, start + frames.HEADER_BYTES)
    found = frames.attributes(chunk, start + frames.HEADER_BYTES + _IFADDRMSG.size, end)
    ip = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or b""
    if IFA_FLAGS in found:
        (flags,) = _U32.unpack(found[IFA_FLAGS])
    protocol = found[IFA_PROTO][0] if IFA_PROTO in found else None
    return Seen(index, ip, prefix, scope, flags, protocol)
