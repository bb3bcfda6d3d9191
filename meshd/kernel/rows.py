"""Forwarding and neighbour rows, hand-packed: the hot path (pyroute2's codec takes 100-340 us a row, this
one about 1). It decides how a row of plan/objects.py looks to the kernel; not which rows there are.

Layout: struct ndmsg of linux/neighbour.h. How each row is marked as ours (overlay.md, 2.5):

    remote MAC, vxlan device   NTF_SELF   | NTF_EXT_LEARNED, NUD_PERMANENT (vxlan takes no NUD_NOARP),
                               NDA_NH_ID (a group) or NDA_DST
    zero MAC, vxlan device     the same with NDA_DST, one for each host that gets a copy of what is for all
    remote MAC, bridge         NTF_MASTER | NTF_EXT_LEARNED, device = the vxlan port
    local MAC, bridge          NTF_MASTER, NUD_NOARP ("static"), device = the veth port; NUD_PERMANENT would
                               make it an address of the bridge itself
    neighbour on the bridge    NUD_PERMANENT, NTF_EXT_LEARNED: never aged, outside gc_thresh (e997f8a20a57).
                               NUD_NOARP would do, until the bridge loses its carrier for a moment: all but
                               permanent ones are dropped then (net/core/neighbour.c, neigh_carrier_down)

A MAC that moves between hosts keeps the bridge's marks of both kinds (replacing adds "static" or
"extern_learn" and takes neither off), so whether a bridge row is local is told by its device alone.
"""

import socket
import struct
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from meshd.kernel import frames
from meshd.plan.objects import FdbKey, FdbTarget, NeighKey

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
AF_BRIDGE = 7
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_MASTER, NTF_EXT_LEARNED = 0x02, 0x04, 0x10
NDA_DST, NDA_LLADDR, NDA_MASTER, NDA_NH_ID = 1, 2, 9, 13

_PUT = frames.REQUEST | frames.CREATE | frames.REPLACE
_CREATE = frames.REQUEST | frames.CREATE | frames.EXCL
_APPEND = frames.REQUEST | frames.CREATE | frames.APPEND
_NDMSG = struct.Struct("=BxHiHBB")  # family, ifindex, state, flags, type
_ROW = struct.Struct("=IHHIIBxxxiHBB")  # the same behind a message header
_ROW_BYTES = _ROW.size
_U32 = struct.Struct("=I")
_LLADDR = frames.ATTRIBUTE.pack(10, NDA_LLADDR)
_NH_ID = frames.ATTRIBUTE.pack(8, NDA_NH_ID)
_DST4 = frames.ATTRIBUTE.pack(8, NDA_DST)
_DST6 = frames.ATTRIBUTE.pack(20, NDA_DST)
_PAD2 = bytes(2)


def _head(kind: int, flags: int, length: int, family: int, ifindex: int, state: int, ntf: int) -> bytes:
    """Pack what comes before the attributes of a message of ``length`` bytes."""
    return _ROW.pack(length, kind, flags, 0, 0, family, ifindex, state, ntf, 0)


def _target(key: FdbKey, target: FdbTarget) -> tuple[int, int, bytes]:
    """Return (state, flags, trailing attributes) of an FDB row."""
    if key.where == "master":
        if target.local:
            return NUD_NOARP, NTF_MASTER, b""
        return NUD_NOARP, NTF_MASTER | NTF_EXT_LEARNED, b""
    if target.nhid is not None:
        return NUD_PERMANENT, NTF_SELF | NTF_EXT_LEARNED, _NH_ID + _U32.pack(target.nhid)
    tail = b"" if target.dst is None else (_DST4 if len(target.dst) == 4 else _DST6) + target.dst
    return NUD_PERMANENT, NTF_SELF | NTF_EXT_LEARNED, tail


def put_fdb(
    rows: Iterable[tuple[FdbKey, FdbTarget]], index: Mapping[str, int], *, replace: bool = False
) -> list[bytes]:
    """Pack create-or-replace requests. ``index``: ifindex by device name, complete for these rows.

    Without ``replace``, ``self`` rows are only created: vxlan cannot replace an address by a nexthop, and
    "replaces" a nexthop by an address, or another's row by ours, without doing it (drivers/net/vxlan,
    vxlan_fdb_update_existing). kernel/apply.py looks at what answers EEXIST.
    """
    messages: list[bytes] = []
    add = messages.append
    made: dict[tuple[str, str, int | None, bytes | None, bool, bool], tuple[bytes, bytes]] = {}
    dev, where, to, last = "", "", b"", None
    before = after = b""
    for key, target in rows:
        if target is not last or key.dev != dev or key.where != where or key.to != to:
            dev, where, to, last = key.dev, key.where, key.to, target
            variant = (dev, where, target.nhid, target.dst, target.local, bool(to))
            parts = made.get(variant)
            if parts is None:
                state, flags, tail = _target(key, target)
                length = _ROW_BYTES + 12 + len(tail)
                how = _APPEND if to else _PUT if replace or where == "master" else _CREATE
                head = _head(RTM_NEWNEIGH, how, length, AF_BRIDGE, index[dev], state, flags)
                parts = made[variant] = (head + _LLADDR, _PAD2 + tail)
            before, after = parts
        add(before + key.mac + after)
    return messages


def del_fdb(keys: Iterable[FdbKey], index: Mapping[str, int]) -> list[bytes]:
    """Pack delete requests."""
    messages: list[bytes] = []
    made: dict[tuple[str, str], bytes] = {}
    for key in keys:
        if key.to:
            length = _ROW_BYTES + 12 + 4 + len(key.to)
            one = _head(RTM_DELNEIGH, frames.REQUEST, length, AF_BRIDGE, index[key.dev], 0, NTF_SELF)
            tail = (_DST4 if len(key.to) == 4 else _DST6) + key.to
            messages.append(one + _LLADDR + key.mac + _PAD2 + tail)
            continue
        head = made.get((key.dev, key.where))
        if head is None:
            flags = NTF_MASTER if key.where == "master" else NTF_SELF
            head = _head(RTM_DELNEIGH, frames.REQUEST, _ROW_BYTES + 12, AF_BRIDGE, index[key.dev], 0, flags)
            head = made[key.dev, key.where] = head + _LLADDR
        messages.append(head + key.mac + _PAD2)
    return messages


def get_fdb(keys: Iterable[FdbKey], index: Mapping[str, int]) -> list[bytes]:
    """Pack requests for single ``self`` rows (kernel >= 5.0)."""
    return [
        _head(RTM_GETNEIGH, frames.REQUEST, _ROW_BYTES + 12, AF_BRIDGE, index[key.dev], 0, NTF_SELF)
        + (_LLADDR + key.mac + _PAD2)
        for key in keys
    ]


def put_neigh(rows: Iterable[tuple[NeighKey, bytes]], index: Mapping[str, int]) -> list[bytes]:
    """Pack create-or-replace requests for (key, 6-byte MAC)."""
    messages: list[bytes] = []
    made: dict[tuple[str, int], bytes] = {}
    for key, mac in rows:
        size = len(key.ip)
        head = made.get((key.dev, size))
        if head is None:
            family = socket.AF_INET if size == 4 else socket.AF_INET6
            length = _ROW_BYTES + 4 + size + 12
            head = _head(RTM_NEWNEIGH, _PUT, length, family, index[key.dev], NUD_PERMANENT, NTF_EXT_LEARNED)
            head = made[key.dev, size] = head + (_DST4 if size == 4 else _DST6)
        messages.append(head + key.ip + _LLADDR + mac + _PAD2)
    return messages


def del_neigh(keys: Iterable[NeighKey], index: Mapping[str, int]) -> list[bytes]:
    """Pack delete requests."""
    messages: list[bytes] = []
    for key in keys:
        size = len(key.ip)
        family = socket.AF_INET if size == 4 else socket.AF_INET6
        head = _head(RTM_DELNEIGH, frames.REQUEST, _ROW_BYTES + 4 + size, family, index[key.dev], 0, 0)
        messages.append(head + (_DST4 if size == 4 else _DST6) + key.ip)
    return messages


def dump_request(family: int) -> bytes:
    """Pack the dump request for AF_BRIDGE (FDB), AF_INET or AF_INET6."""
    return frames.request(RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0, 0))


class Row(NamedTuple):
    """One row as the kernel tells it, in a dump or an event. ``mac`` b"" and ``dst`` None where it has none.

    ``master``: ifindex of the bridge whose row it is, 0 for the device's own.
    """

    kind: int
    family: int
    ifindex: int
    state: int
    flags: int
    mac: bytes
    dst: bytes | None
    nhid: int | None
    master: int


def parse(chunk: bytes, only: Container[int] | None = None) -> Iterator[Row]:
    """Walk a received buffer. ``only``: ifindexes to look at; others are skipped before being parsed."""
    unpack_row, unpack_attribute, unpack_u32 = (
        _ROW.unpack_from,
        frames.ATTRIBUTE.unpack_from,
        _U32.unpack_from,
    )
    offset, size = 0, len(chunk)
    while offset + _ROW_BYTES <= size:
        length, kind, _, _, _, family, ifindex, state, flags, _ = unpack_row(chunk, offset)
        if length < frames.HEADER_BYTES:
            return
        end = offset + length
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH) and (only is None or ifindex in only):
            mac, dst, nhid, master = b"", None, None, 0
            at = offset + _ROW_BYTES
            while at + 4 <= end:
                length, attribute = unpack_attribute(chunk, at)
                if length < 4:
                    break
                if attribute == NDA_LLADDR:
                    mac = chunk[at + 4 : at + length]
                elif attribute == NDA_DST:
                    dst = chunk[at + 4 : at + length]
                elif attribute == NDA_NH_ID:
                    (nhid,) = unpack_u32(chunk, at + 4)
                elif attribute == NDA_MASTER:
                    (master,) = unpack_u32(chunk, at + 4)
                at += (length + 3) & ~3
            yield Row(kind, family, ifindex, state, flags, mac, dst, nhid, master)
        offset = (end + 3) & ~3
