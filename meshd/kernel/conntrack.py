"""Connections that the kernel remembers (conntrack), by ctnetlink: found and forgotten. Which are to be is
plan/tracked.py's.

One dump of all, whose buffers are searched for the bytes in question before anything is read; where there are many
connections, dumps with a filter (kernel 5.8; older ones answer with everything). The kernel's filter takes an IPv6
address for its opposite (ctnetlink_filter_match_tuple() compares with !ipv6_addr_cmp()), so it is never given one. Deleted by original tuple and id, so that a connection which took the place of
another meanwhile stays. Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import struct
from collections.abc import Callable, Collection, Iterator, Set
from typing import NamedTuple

from meshd.config import CONNTRACK_ALL_MAX, CONNTRACK_FILTERS_MAX
from meshd.errors import KernelError
from meshd.kernel import frames, netlink
from meshd.kernel.frames import attribute, attributes
from meshd.plan.tracked import Doubt, Published, Tracked, is_stale

SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET_STATS = 0, 1, 2, 5
CTA_STATS_GLOBAL_ENTRIES = 1
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE, CTA_FILTER = 1, 2, 12, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_SRC, CTA_IP_DST = {4: 1, 16: 3}, {4: 2, 16: 4}
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
FILTER_SRC, FILTER_DST, FILTER_PROTOCOL, FILTER_DST_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5
NESTED = 0x8000
AF_INET, AF_INET6 = 2, 10

_NFGENMSG = struct.Struct("=BBH")
_BODY_AT = frames.HEADER_BYTES + _NFGENMSG.size
_FLAGS = struct.Struct("=I")
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


class _Entry(NamedTuple):
    """One of the kernel's: what it is, and what names it in a request to delete it."""

    tracked: Tracked
    family: int
    name: bytes


class Conntrack:
    """The connections of one namespace. Blocking; one thread at a time."""

    def __init__(self) -> None:
        self._netlink: netlink.Netlink | None = None

    def close(self) -> None:
        """Close the socket."""
        if self._netlink is not None:
            self._netlink.close()

    def forget(self, changed: Doubt, local: Callable[[], Set[bytes]]) -> int:
        """Delete what ``changed`` has made untrue; return how many. ``local``: asked for this host's addresses, if
        they matter. A kernel without ctnetlink tells nothing and forgets nothing. Raises KernelError."""
        if not changed.published and not changed.given_up:
            return 0
        count = self._count()
        if count == 0:
            return 0
        here = local() if any(one.address is None for one in changed.published) else frozenset()
        stale = {
            entry.name: entry
            for request, marks in _requests(changed, count)
            for entry in self._dump(request, marks)
            if is_stale(entry.tracked, changed, here)
        }
        if not stale:
            return 0
        deletes = [_request(IPCTNL_MSG_CT_DELETE, entry.family, name) for name, entry in stale.items()]
        for error in self._socket().transact(deletes):
            if error is not None and error.errno != errno.ENOENT:
                raise KernelError("forgetting connections", errno=error.errno, words=error.words)
        return len(stale)

    def _socket(self) -> netlink.Netlink:
        if self._netlink is None:
            try:
                self._netlink = netlink.Netlink(netlink.NETLINK_NETFILTER)
            except OSError as error:
                raise KernelError("conntrack", errno=error.errno or 0, words=str(error)) from None
        return self._netlink

    def _count(self) -> int | None:
        """Return how many there are in this namespace, or None where the kernel does not tell."""
        (answer,) = self._socket().get([_request(IPCTNL_MSG_CT_GET_STATS, 0, b"")])
        if isinstance(answer, KernelError):
            return None
        said = attributes(answer, _BODY_AT, len(answer)).get(CTA_STATS_GLOBAL_ENTRIES)
        return None if said is None else int.from_bytes(said, "big")

    def _dump(self, request: bytes, marks: Collection[bytes]) -> Iterator[_Entry]:
        """Yield what a dump answers, by buffers: those that contain one of ``marks``."""
        try:
            chunks = self._socket().dump(request)
        except KernelError as error:
            if error.errno in _ABSENT:
                return
            raise
        for chunk in chunks:
            if not any(mark in chunk for mark in marks):
                continue
            for kind, _, start, end in frames.split(chunk):
                if kind == SUBSYSTEM << 8 | IPCTNL_MSG_CT_NEW:
                    entry = _entry(chunk, start, end)
                    if entry is not None:
                        yield entry


def _requests(changed: Doubt, count: int | None) -> list[tuple[bytes, Collection[bytes]]]:
    """Return the dumps that together have all that may be stale, and the bytes that it contains."""
    v4 = sorted(ip for ip in changed.given_up if len(ip) == 4)
    v6 = sorted(changed.given_up - set(v4))
    filters = len(changed.published) + 2 * len(v4) + bool(v6)
    if filters > CONNTRACK_FILTERS_MAX or (count is not None and count <= CONNTRACK_ALL_MAX):
        return [(_request(IPCTNL_MSG_CT_GET, 0, b""), [*changed.given_up, *map(_dport, changed.published)])]
    asked: list[tuple[bytes, Collection[bytes]]] = [(_to(one), (_dport(one),)) for one in changed.published]
    for ip in v4:
        from_it = _nested(CTA_TUPLE_IP, attribute(CTA_IP_SRC[4], ip))
        asked += [
            (_filtered(AF_INET, which, from_it, FILTER_SRC), (ip,))
            for which in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
        ]
    if v6:
        asked.append((_request(IPCTNL_MSG_CT_GET, AF_INET6, b""), v6))
    return asked


def _dport(one: Published) -> bytes:
    return attribute(CTA_PROTO_DST_PORT, one.dport.to_bytes(2, "big"))


def _to(one: Published) -> bytes:
    """Ask for connections to a published port."""
    flags = FILTER_PROTOCOL | FILTER_DST_PORT
    to_it = _nested(CTA_TUPLE_PROTO, attribute(CTA_PROTO_NUM, bytes((one.protocol,))) + _dport(one))
    if one.address is not None and len(one.address) == 4:
        flags |= FILTER_DST
        to_it += _nested(CTA_TUPLE_IP, attribute(CTA_IP_DST[4], one.address))
    return _filtered(AF_INET if len(one.ip) == 4 else AF_INET6, CTA_TUPLE_ORIG, to_it, flags)


def _filtered(family: int, which: int, tuple_: bytes, flags: int) -> bytes:
    """Ask for connections whose original or reply tuple is so, in what ``flags`` name."""
    of = CTA_FILTER_ORIG_FLAGS if which == CTA_TUPLE_ORIG else CTA_FILTER_REPLY_FLAGS
    body = _nested(which, tuple_) + _nested(CTA_FILTER, attribute(of, _FLAGS.pack(flags)))
    return _request(IPCTNL_MSG_CT_GET, family, body)


def _request(kind: int, family: int, body: bytes) -> bytes:
    return frames.request(SUBSYSTEM << 8 | kind, 0, _NFGENMSG.pack(family, 0, 0) + body)


def _nested(kind: int, body: bytes) -> bytes:
    return attribute(kind | NESTED, body)


def _entry(chunk: bytes, start: int, end: int) -> _Entry | None:
    """Read one; None if it is not of IP. Of ICMP the ports are 0."""
    family = chunk[start + frames.HEADER_BYTES]
    said = attributes(chunk, start + _BODY_AT, end)
    original, reply = (said.get(which, b"") for which in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
    one, other = (_tuple(packed) for packed in (original, reply))
    if one is None or other is None:
        return None
    name = _nested(CTA_TUPLE_ORIG, original)
    name += b"".join(attribute(kind, said[kind]) for kind in (CTA_ID, CTA_ZONE) if kind in said)
    protocol, src, dst, _, dport = one
    _, from_, _, from_port, _ = other
    return _Entry(Tracked(protocol, src, dst, dport, from_, from_port), family, name)


def _tuple(packed: bytes) -> tuple[int, bytes, bytes, int, int] | None:
    """Read (protocol, source, destination, source port, destination port)."""
    parts = attributes(packed, 0, len(packed))
    ip, proto = (parts.get(kind, b"") for kind in (CTA_TUPLE_IP, CTA_TUPLE_PROTO))
    addresses, ports = attributes(ip, 0, len(ip)), attributes(proto, 0, len(proto))
    src = addresses.get(CTA_IP_SRC[4]) or addresses.get(CTA_IP_SRC[16])
    dst = addresses.get(CTA_IP_DST[4]) or addresses.get(CTA_IP_DST[16])
    if src is None or dst is None or CTA_PROTO_NUM not in ports:
        return None
    sport, dport = (
        int.from_bytes(ports.get(kind, b""), "big") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT)
    )
    return ports[CTA_PROTO_NUM][0], src, dst, sport, dport
