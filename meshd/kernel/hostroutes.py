"""Routes to single addresses and subnets, hand-packed. It decides how such a route of ours looks to the kernel and how it is known
to be ours; not which there are.

Layout: struct rtmsg of linux/rtnetlink.h. Ours are in the main table with protocol ROUTE_PROTOCOL and metric
ROUTE_METRIC, which nobody else uses: replacing ours then replaces nobody's.
"""

import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from meshd.config import ROUTE_METRIC, ROUTE_PROTOCOL
from meshd.kernel import frames
from meshd.plan.objects import Route

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 6, 7, 15
RT_TABLE_MAIN, RTN_UNICAST, RT_SCOPE_LINK = 254, 1, 253

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_U32 = struct.Struct("=I")


def _message(kind: int, flags: int, route: Route, index: Mapping[str, int]) -> bytes:
    family = socket.AF_INET if len(route.ip) == 4 else socket.AF_INET6
    body = _RTMSG.pack(
        family,
        route.prefix or 8 * len(route.ip),
        0,
        0,
        RT_TABLE_MAIN,
        ROUTE_PROTOCOL,
        RT_SCOPE_LINK,
        RTN_UNICAST,
        0,
    )
    body += frames.attribute(RTA_DST, route.ip) + frames.attribute(RTA_OIF, _U32.pack(index[route.dev]))
    body += frames.attribute(RTA_PRIORITY, _U32.pack(ROUTE_METRIC))
    return frames.request(kind, flags, body + frames.attribute(RTA_PREFSRC, route.source))


def put(routes: Iterable[Route], index: Mapping[str, int]) -> list[bytes]:
    """Pack create-or-replace requests."""
    return [_message(RTM_NEWROUTE, frames.CREATE | frames.REPLACE, route, index) for route in routes]


def delete(routes: Iterable[Route], index: Mapping[str, int]) -> list[bytes]:
    """Pack delete requests."""
    return [_message(RTM_DELROUTE, 0, route, index) for route in routes]


def dump_request(family: int) -> bytes:
    """Pack the dump request."""
    return frames.request(RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0))


def parse_event(chunk: bytes, start: int, end: int) -> int:
    """Read the event of a route that came, changed or went; return the ifindex of its device, 0 where it has not our
    protocol number."""
    at = start + frames.HEADER_BYTES
    if _RTMSG.unpack_from(chunk, at)[5] != ROUTE_PROTOCOL:
        return 0
    return int.from_bytes(frames.attributes(chunk, at + _RTMSG.size, end).get(RTA_OIF, b""), sys.byteorder)


class Seen(NamedTuple):
    """A route as the kernel tells it; ``source`` b"" where it prefers none."""

    ifindex: int
    ip: bytes
    prefix: int
    source: bytes
    protocol: int


def parse(chunks: Iterable[bytes]) -> list[Seen]:
    """Read a dump: unicast routes of the main table by one device."""
    found: list[Seen] = []
    for chunk in chunks:
        for kind, _, start, end in frames.split(chunk):
            if kind != RTM_NEWROUTE:
                continue
            at = start + frames.HEADER_BYTES
            _, prefix, _, _, table, protocol, _, type_, _ = _RTMSG.unpack_from(chunk, at)
            if table != RT_TABLE_MAIN or type_ != RTN_UNICAST:
                continue
            said = frames.attributes(chunk, at + _RTMSG.size, end)
            if RTA_OIF in said and RTA_DST in said:
                (device,) = _U32.unpack(said[RTA_OIF])
                found.append(Seen(device, said[RTA_DST], prefix, said.get(RTA_PREFSRC, b""), protocol))
    return found
