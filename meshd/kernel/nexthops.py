"""FDB nexthop objects and groups, hand-packed: one nexthop for each remote host, one group around it that
the host's FDB rows name, so that a host's address change is one message (overlay.md, 2.5). It must not know
which hosts there are.

Layout: struct nhmsg of linux/nexthop.h. Ours carry ROUTE_PROTOCOL.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator

from meshd.config import NEXTHOP_BASE, ROUTE_PROTOCOL, VXLAN_PORT
from meshd.errors import KernelError
from meshd.kernel import frames, netlink
from meshd.plan.objects import Nexthop

RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
NHA_ID, NHA_GROUP, NHA_GATEWAY, NHA_FDB = 1, 2, 6, 11

_NHMSG = struct.Struct("=BBBBI")  # family, scope, protocol, reserved, flags
_GROUP_ENTRY = struct.Struct("=IBBH")  # id, weight - 1, weight's high byte, reserved
_U32 = struct.Struct("=I")
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT}
_PROBE_ID = NEXTHOP_BASE - 1
_PROBE_IDS_OTHERS = NEXTHOP_BASE - (1 << 24)  # two for each other port, so that no two daemons share one
_PROBE_GATEWAY = bytes((192, 0, 2, 1))  # TEST-NET-1; a nexthop that nothing refers to sends nothing


def put(nexthop: Nexthop) -> bytes:
    """Pack a create-or-replace request."""
    body = frames.attribute(NHA_ID, _U32.pack(nexthop.id))
    family = socket.AF_UNSPEC
    if nexthop.via is not None:
        family = socket.AF_INET if len(nexthop.via) == 4 else socket.AF_INET6
        body += frames.attribute(NHA_GATEWAY, nexthop.via)
    else:
        entries = b"".join(_GROUP_ENTRY.pack(member, 0, 0, 0) for member in nexthop.group)
        body += frames.attribute(NHA_GROUP, entries)
    body += frames.attribute(NHA_FDB, b"")
    header = _NHMSG.pack(family, 0, ROUTE_PROTOCOL, 0, 0)
    return frames.request(RTM_NEWNEXTHOP, frames.CREATE | frames.REPLACE, header + body)


def delete(number: int) -> bytes:
    """Pack a delete request; the kernel also drops the FDB rows that use it."""
    body = _NHMSG.pack(0, 0, 0, 0, 0) + frames.attribute(NHA_ID, _U32.pack(number))
    return frames.request(RTM_DELNEXTHOP, 0, body)


def dump_request() -> bytes:
    """Pack the dump request."""
    return frames.request(RTM_GETNEXTHOP, 0, _NHMSG.pack(0, 0, 0, 0, 0))


def parse(chunks: Iterable[bytes]) -> Iterator[tuple[Nexthop, int, bool]]:
    """Walk a dump: (nexthop, protocol, whether it is an FDB nexthop)."""
    for chunk in chunks:
        for kind, _, start, end in frames.split(chunk):
            if kind != RTM_NEWNEXTHOP:
                continue
            protocol = chunk[start + frames.HEADER_BYTES + 2]
            found = frames.attributes(chunk, start + frames.HEADER_BYTES + _NHMSG.size, end)
            if NHA_ID not in found:
                continue
            group = tuple(entry[0] for entry in _GROUP_ENTRY.iter_unpack(found.get(NHA_GROUP, b"")))
            number = _U32.unpack(found[NHA_ID])[0]
            yield Nexthop(number, found.get(NHA_GATEWAY), group), protocol, NHA_FDB in found


def read(link: netlink.Netlink) -> list[tuple[Nexthop, int, bool]]:
    """Dump all nexthops; none where the kernel has no nexthop objects (< 5.3). Raises KernelError."""
    try:
        return list(parse(link.dump(dump_request())))
    except KernelError as error:
        if error.errno in _UNSUPPORTED:
            return []
        raise


def supports_fdb_nexthops(link: netlink.Netlink, vxlan_port: int = VXLAN_PORT) -> bool:
    """Find out whether FDB rows can name nexthop groups (>= 5.8), by making and deleting one of each."""
    single = _PROBE_ID if vxlan_port == VXLAN_PORT else _PROBE_IDS_OTHERS + 2 * vxlan_port + 1
    group = single - 1
    probes = (Nexthop(single, via=_PROBE_GATEWAY), Nexthop(group, group=(single,)))
    answers = link.transact([*(put(probe) for probe in probes), delete(group), delete(single)])
    refused = [answer for answer in answers[:2] if answer is not None]
    for answer in refused:
        if answer.errno not in _UNSUPPORTED:
            raise answer
    return not refused
