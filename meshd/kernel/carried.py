"""What the host has on a device: addresses, routes of all tables, nexthop objects and lasting neighbours, as values
that can be put on another device and kept on disk. It decides what of a dump belongs to that, what each looks like on
the other device, and in which order they go; not when.

Left out is what the kernel makes by itself of an address: its rows of the local table, v6 multicast. Its prefix route
is not: whoever looks after addresses may have given it another metric. Layouts: linux/rtnetlink.h, if_addr.h,
nexthop.h, neighbour.h.
"""

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from meshd.errors import KernelError
from meshd.kernel import frames, netlink

NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWNEXTHOP, GETNEXTHOP = 104, 106

IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 4, 6, 8
IFA_RT_PRIORITY, IFA_PROTO = 9, 11
IFA_F_NODAD, IFA_F_OPTIMISTIC, IFA_F_TENTATIVE, IFA_F_PERMANENT = 0x02, 0x04, 0x40, 0x80
IFA_F_KEPT = (
    0x10 | 0x100 | 0x200 | 0x400
)  # HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN: what a user may ask
FOREVER = 0xFFFFFFFF

RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH = (
    1,
    2,
    4,
    5,
    6,
    7,
    8,
    9,
)
RTA_FLOW, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_PREF, RTA_ENCAP_TYPE, RTA_ENCAP = 11, 12, 15, 18, 20, 21, 22
RTA_EXPIRES, RTA_TTL_PROPAGATE, RTA_NH_ID = 23, 26, 30
RT_TABLE_LOCAL, RTPROT_KERNEL, RTM_F_CLONED, RTNH_F_ONLINK = 255, 2, 0x200, 4
CLOCK_TICKS_A_S = 100  # USER_HZ, the unit of rta_expires

NDA_DST, NDA_LLADDR, NDA_IFINDEX, NDA_PROTOCOL, NUD_PERMANENT = 1, 2, 8, 12, 0x80
NTF_KEPT = 0x10 | 0x80  # EXT_LEARNED, ROUTER
NHA_ID, NHA_OIF, NHA_GATEWAY, NHA_ENCAP_TYPE, NHA_ENCAP, NHA_FDB = 1, 5, 6, 7, 8, 11

_ADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, ifindex
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_HOP = struct.Struct("=HBBi")  # length, flags, weight less one, ifindex
_NEIGH = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
_NEXTHOP = struct.Struct("=BBBBI")  # family, scope, protocol, reserved, flags
_U32 = struct.Struct("=I")
_LIFETIMES = struct.Struct("=IIII")  # preferred, valid, and two stamps
_ROUTE_CACHE = struct.Struct("=IIi")  # references, last use, expires

_HEADS = {NEWADDR: _ADDR, NEWROUTE: _ROUTE, NEWNEIGH: _NEIGH, NEWNEXTHOP: _NEXTHOP}
_KEPT = {
    NEWADDR: (IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO),
    NEWROUTE: (
        RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_FLOW,
        RTA_TABLE, RTA_VIA, RTA_PREF, RTA_ENCAP_TYPE, RTA_ENCAP, RTA_EXPIRES, RTA_TTL_PROPAGATE,
    ),
    NEWNEIGH: (NDA_DST, NDA_LLADDR, NDA_PROTOCOL),
    NEWNEXTHOP: (NHA_ID, NHA_OIF, NHA_GATEWAY, NHA_ENCAP_TYPE, NHA_ENCAP),
}  # fmt: skip


class Device(NamedTuple):
    """A device as messages need it. ``number``: its ifindex."""

    number: int
    name: str


class Thing(NamedTuple):
    """One of them. ``head``: its message's fixed part; ``attrs``: the attributes that say what it is."""

    kind: int
    head: tuple[int, ...]
    attrs: tuple[tuple[int, bytes], ...]

    def get(self, attribute: int) -> bytes:
        """Return an attribute, b"" where there is none."""
        return dict(self.attrs).get(attribute, b"")


Key = tuple[object, ...]


def read(link: netlink.Netlink, index: int) -> list[Thing]:
    """Read what is on a device, addresses first. Raises KernelError."""
    u32 = _U32.pack(index)
    asked = [frames.request(GETADDR, 0, _ADDR.pack(0, 0, 0, 0, index))]
    asked += [
        frames.request(GETROUTE, 0, _ROUTE.pack(family, *[0] * 8) + frames.attribute(RTA_OIF, u32))
        for family in (socket.AF_INET, socket.AF_INET6)
    ]
    found: list[Thing] = []
    for request in [*asked, frames.request(GETNEXTHOP, 0, _NEXTHOP.pack(*[0] * 5) + frames.attribute(NHA_OIF, u32)),
                    frames.request(GETNEIGH, 0, _NEIGH.pack(*[0] * 5) + frames.attribute(NDA_IFINDEX, u32))]:  # fmt: skip
        try:
            chunks = link.dump(request)
        except KernelError:
            if frames.HEADER.unpack_from(request)[1] != GETNEXTHOP:
                raise
            chunks = []  # a kernel before 5.3 has none
        for chunk in chunks:
            for kind, _, start, end in frames.split(chunk):
                if kind in _HEADS:
                    found += _parse(kind, chunk, start + frames.HEADER_BYTES, end, index)
    return found


def _parse(kind: int, chunk: bytes, start: int, end: int, index: int) -> Iterator[Thing]:
    """Read one message; nothing where it is not about the device, or the kernel's own doing."""
    head = _HEADS[kind].unpack_from(chunk, start)
    said = frames.attributes(chunk, start + _HEADS[kind].size, end)
    yield from _READERS[kind](head, said, index)


def _address(head: tuple[int, ...], said: dict[int, bytes], index: int) -> Iterator[Thing]:
    if head[4] == index:
        yield _thing(NEWADDR, head, said)


def _neighbour(head: tuple[int, ...], said: dict[int, bytes], index: int) -> Iterator[Thing]:
    family, ifindex, state, flags, kind = head
    dst = said.get(NDA_DST, b"")
    if ifindex != index or not state & NUD_PERMANENT or family not in (socket.AF_INET, socket.AF_INET6):
        return
    if len(dst) in (4, 16) and not ipaddress.ip_address(dst).is_multicast:
        yield _thing(NEWNEIGH, (family, 0, NUD_PERMANENT, flags & NTF_KEPT, kind), said)


def _nexthop(head: tuple[int, ...], said: dict[int, bytes], index: int) -> Iterator[Thing]:
    if said.get(NHA_OIF) == _U32.pack(index) and NHA_FDB not in said:
        family, _, protocol, _, flags = head
        yield _thing(NEWNEXTHOP, (family, 0, protocol, 0, flags & RTNH_F_ONLINK), said)


def _route(head: tuple[int, ...], said: dict[int, bytes], index: int) -> Iterator[Thing]:
    family, *_, flags = head
    protocol = head[5]
    table = _U32.unpack(said[RTA_TABLE])[0] if RTA_TABLE in said else head[4]
    if flags & RTM_F_CLONED or RTA_NH_ID in said or (table == RT_TABLE_LOCAL and protocol == RTPROT_KERNEL):
        return  # what goes by a nexthop object follows that
    head = (*head[:8], flags & RTNH_F_ONLINK)
    if RTA_CACHEINFO in said and len(said[RTA_CACHEINFO]) >= _ROUTE_CACHE.size:
        _, _, expires = _ROUTE_CACHE.unpack_from(said[RTA_CACHEINFO])
        if expires > 0:
            said = {**said, RTA_EXPIRES: _U32.pack(max(1, expires // CLOCK_TICKS_A_S))}
    if RTA_MULTIPATH not in said:
        if said.get(RTA_OIF) == _U32.pack(index):
            yield _thing(NEWROUTE, head, said)
        return
    hops = list(_hops(said[RTA_MULTIPATH]))
    ours = [hop for hop in hops if hop[2] == index]
    if not ours:
        return
    if family == socket.AF_INET:  # one route with all its ways; for v6 each way is one of its own
        yield _thing(NEWROUTE, head, {**said, RTA_MULTIPATH: _pack_hops(hops)})
        return
    for hop in ours:
        yield _thing(NEWROUTE, head, {**said, RTA_MULTIPATH: _pack_hops([hop])})


_READERS: dict[int, Callable[[tuple[int, ...], dict[int, bytes], int], Iterator[Thing]]] = {
    NEWADDR: _address,
    NEWROUTE: _route,
    NEWNEIGH: _neighbour,
    NEWNEXTHOP: _nexthop,
}


def _thing(kind: int, head: tuple[int, ...], said: dict[int, bytes]) -> Thing:
    return Thing(kind, head, tuple((at, said[at]) for at in _KEPT[kind] if at in said))


def _hops(paths: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Walk a multipath attribute: flags that a user may set, weight less one, ifindex, the hop's attributes."""
    while len(paths) >= _HOP.size:
        length, flags, weight, index = _HOP.unpack_from(paths)
        yield flags & RTNH_F_ONLINK, weight, index, paths[_HOP.size : length]
        paths = paths[max((length + 3) & ~3, _HOP.size) :]


def _pack_hops(hops: Iterable[tuple[int, int, int, bytes]]) -> bytes:
    packed = b""
    for flags, weight, index, attrs in hops:
        packed += _HOP.pack(_HOP.size + len(attrs), flags, weight, index) + attrs + bytes(-len(attrs) % 4)
    return packed


def key(thing: Thing) -> Key:
    """Tell things apart, whatever device they are on and whatever of them may change in time."""
    if thing.kind == NEWADDR:
        return NEWADDR, thing.head[1], thing.get(IFA_LOCAL) or thing.get(IFA_ADDRESS)
    if thing.kind == NEWNEIGH:
        return NEWNEIGH, thing.get(NDA_DST)
    if thing.kind == NEWNEXTHOP:
        return NEWNEXTHOP, thing.get(NHA_ID)
    ways = tuple(attrs for _, _, _, attrs in _hops(thing.get(RTA_MULTIPATH)))
    what = (thing.get(RTA_DST), thing.get(RTA_TABLE), thing.get(RTA_PRIORITY), thing.get(RTA_GATEWAY))
    return NEWROUTE, thing.head[:4], thing.head[7], what, ways


def is_link_local(thing: Thing) -> bool:
    """Tell an address, or a route to one, that each IPv6 device has of its own."""
    if thing.kind not in (NEWADDR, NEWROUTE) or thing.head[0] != socket.AF_INET6:
        return False
    ip = thing.get(IFA_ADDRESS) if thing.kind == NEWADDR else thing.get(RTA_DST)
    return len(ip) == 16 and ip[0] == 0xFE and ip[1] & 0xC0 == 0x80


def ordered(things: Iterable[Thing]) -> list[Thing]:
    """Put each after what it needs."""
    return sorted(things, key=_rank)


def is_v6_address(thing: Thing) -> bool:
    """Tell an IPv6 address from all else."""
    return thing.kind == NEWADDR and thing.head[0] == socket.AF_INET6


def address_of(thing: Thing) -> bytes:
    """Return an address's packed form."""
    return thing.get(IFA_LOCAL) or thing.get(IFA_ADDRESS)


def local_v6(link: netlink.Netlink, index: int) -> set[bytes]:
    """Return the v6 addresses, packed, that packets are taken for on a device: those with a local route."""
    body = _ROUTE.pack(socket.AF_INET6, *[0] * 8) + frames.attribute(RTA_OIF, _U32.pack(index))
    found = set()
    for chunk in link.dump(frames.request(GETROUTE, 0, body)):
        for kind, _, start, end in frames.split(chunk):
            if kind == NEWROUTE:
                head = _ROUTE.unpack_from(chunk, start + frames.HEADER_BYTES)
                said = frames.attributes(chunk, start + frames.HEADER_BYTES + _ROUTE.size, end)
                if head[7] == RTN_LOCAL and said.get(RTA_OIF) == _U32.pack(index):
                    found.add(said.get(RTA_DST, b""))
    return found


RTN_LOCAL = 2


def neighbours(link: netlink.Netlink, index: int) -> list[Thing]:
    """Read the neighbours that the kernel has learnt on a device, as they would be told to another: to be asked
    again, but used until then. Raises KernelError."""
    found = []
    only = frames.attribute(NDA_IFINDEX, _U32.pack(index))
    for chunk in link.dump(frames.request(GETNEIGH, 0, _NEIGH.pack(*[0] * 5) + only)):
        for kind, _, start, end in frames.split(chunk):
            if kind != NEWNEIGH:
                continue
            family, ifindex, state, flags, sort = _NEIGH.unpack_from(chunk, start + frames.HEADER_BYTES)
            if ifindex == index and state & NUD_LEARNT and family in (socket.AF_INET, socket.AF_INET6):
                said = frames.attributes(chunk, start + frames.HEADER_BYTES + _NEIGH.size, end)
                head = (family, 0, NUD_STALE, flags & NTF_ROUTER, sort)
                found.append(
                    Thing(NEWNEIGH, head, tuple((at, said[at]) for at in (NDA_DST, NDA_LLADDR) if at in said))
                )
    return found


NUD_STALE, NUD_LEARNT = 0x04, 0x02 | 0x04 | 0x08 | 0x10  # REACHABLE, STALE, DELAY, PROBE
NTF_ROUTER = 0x80


def put(things: Iterable[Thing], source: Device, target: Device) -> list[bytes]:
    """Encode what puts things of ``source`` on ``target``: each after what it needs."""
    return [_put(thing, source, target) for thing in ordered(things)]


def drop(things: Iterable[Thing], device: Device) -> list[bytes]:
    """Encode what takes things off a device, in reverse. A nexthop object is not taken off: it was moved."""
    return [_drop(thing, device) for thing in reversed(ordered(things)) if thing.kind != NEWNEXTHOP]


def _rank(thing: Thing) -> int:
    """Order: addresses, nexthop objects, what is reached directly, what is reached by a gateway, neighbours."""
    if thing.kind != NEWROUTE:
        return {NEWADDR: 0, NEWNEXTHOP: 1, NEWNEIGH: 4}[thing.kind]
    return 3 if thing.get(RTA_GATEWAY) or thing.get(RTA_VIA) or thing.get(RTA_MULTIPATH) else 2


def _put(thing: Thing, source: Device, target: Device) -> bytes:
    attrs = dict(thing.attrs)
    if thing.kind == NEWADDR:
        return _put_address(thing, attrs, source, target)
    flags = frames.CREATE | (frames.APPEND if thing.kind == NEWROUTE else frames.REPLACE)
    return _message(thing, thing.kind, flags, source, target)


def _put_address(thing: Thing, attrs: dict[int, bytes], source: Device, target: Device) -> bytes:
    """An address of v6 is not asked for again on the LAN (NODAD): it is this host's already, and would be of no use
    for a second; one that was still being asked for is."""
    family, prefix, low_flags, scope, _ = thing.head
    said = _U32.unpack(attrs[IFA_FLAGS])[0] if IFA_FLAGS in attrs else low_flags
    flags = said & IFA_F_KEPT
    if family == socket.AF_INET6 and (not said & IFA_F_TENTATIVE or said & IFA_F_OPTIMISTIC):
        flags |= IFA_F_NODAD
    attrs[IFA_FLAGS] = _U32.pack(flags)
    if IFA_LABEL in attrs:
        label = attrs[IFA_LABEL].rstrip(b"\0").decode(errors="replace")
        if label == source.name or label.startswith(f"{source.name}:"):
            moved = target.name + label[len(source.name) :]
            label = moved if len(moved) <= LABEL_MAX_CHARS else target.name
        attrs[IFA_LABEL] = label.encode() + b"\0"
    body = _ADDR.pack(family, prefix, 0, scope, target.number)
    return frames.request(NEWADDR, frames.CREATE | frames.REPLACE, body + _join(attrs))


LABEL_MAX_CHARS = 15


def _drop(thing: Thing, device: Device) -> bytes:
    if thing.kind == NEWADDR:
        family, prefix, _, scope, _ = thing.head
        attrs = {at: value for at, value in thing.attrs if at in (IFA_ADDRESS, IFA_LOCAL)}
        return frames.request(DELADDR, 0, _ADDR.pack(family, prefix, 0, scope, device.number) + _join(attrs))
    if thing.kind == NEWNEIGH:
        family = thing.head[0]
        body = _NEIGH.pack(family, device.number, 0, 0, 0) + frames.attribute(NDA_DST, thing.get(NDA_DST))
        return frames.request(DELNEIGH, 0, body)
    return _message(thing, DELROUTE, 0, device, device)


def _message(thing: Thing, kind: int, flags: int, source: Device, target: Device) -> bytes:
    """Encode a route, nexthop object or neighbour with ``target`` in place of ``source``."""
    attrs = dict(thing.attrs)
    head = thing.head
    if thing.kind == NEWNEIGH:
        head = (head[0], target.number, *head[2:])
    elif thing.kind == NEWNEXTHOP:
        attrs[NHA_OIF] = _U32.pack(target.number)
    else:
        if RTA_OIF in attrs:
            attrs[RTA_OIF] = _U32.pack(target.number)
        if RTA_MULTIPATH in attrs:
            hops = [
                (bits, weight, target.number if index == source.number else index, rest)
                for bits, weight, index, rest in _hops(attrs[RTA_MULTIPATH])
            ]
            attrs[RTA_MULTIPATH] = _pack_hops(hops)
        if kind == DELROUTE:
            attrs.pop(RTA_EXPIRES, None)
    return frames.request(kind, flags, _HEADS[thing.kind].pack(*head) + _join(attrs))


def _join(attrs: dict[int, bytes]) -> bytes:
    return b"".join(frames.attribute(at, value) for at, value in attrs.items())


def aged(things: Iterable[Thing], seconds: int) -> list[Thing]:
    """Return things as they would be after a time: with shorter lifetimes, the expired left out."""
    kept = []
    for thing in things:
        attrs = dict(thing.attrs)
        if thing.kind == NEWADDR and IFA_CACHEINFO in attrs:
            preferred, valid, *stamps = _LIFETIMES.unpack_from(attrs[IFA_CACHEINFO])
            if valid != FOREVER:
                if valid <= seconds:
                    continue
                valid -= seconds
                preferred = preferred if preferred == FOREVER else max(0, preferred - seconds)
                attrs[IFA_CACHEINFO] = _LIFETIMES.pack(min(preferred, valid), valid, *stamps)
        elif thing.kind == NEWROUTE and RTA_EXPIRES in attrs:
            (left,) = _U32.unpack(attrs[RTA_EXPIRES])
            if left <= seconds:
                continue
            attrs[RTA_EXPIRES] = _U32.pack(left - seconds)
        kept.append(Thing(thing.kind, thing.head, tuple(attrs.items())))
    return kept


def leased(things: Iterable[Thing]) -> list[str]:
    """Return the addresses that somebody renews: those of v4 that expire, as text."""
    v4 = [thing for thing in things if thing.kind == NEWADDR and thing.head[0] == socket.AF_INET]
    return [
        str(ipaddress.ip_address(thing.get(IFA_LOCAL)))
        for thing in v4
        if thing.get(IFA_CACHEINFO) and _LIFETIMES.unpack_from(thing.get(IFA_CACHEINFO))[1] != FOREVER
    ]


def advertised(things: Iterable[Thing]) -> bool:
    """Tell whether a route among them is from a router's advertisement, which must go on being heard."""
    return any(thing.kind == NEWROUTE and thing.head[5] == RTPROT_RA for thing in things)


RTPROT_RA = 9


def of(thing: Thing, source: Device, target: Device) -> Thing:
    """Say a thing of ``source`` as it would be read on ``target``: ways of a route that name the device."""
    if not thing.get(RTA_MULTIPATH) or thing.kind != NEWROUTE or source.number == target.number:
        return thing
    hops = [
        (flags, weight, target.number if index == source.number else index, rest)
        for flags, weight, index, rest in _hops(thing.get(RTA_MULTIPATH))
    ]
    attrs = {**dict(thing.attrs), RTA_MULTIPATH: _pack_hops(hops)}
    return Thing(thing.kind, thing.head, tuple(attrs.items()))


def pack(things: Iterable[Thing]) -> bytes:
    """Encode for the disk: netlink messages, one after the other."""
    return b"".join(
        frames.request(thing.kind, 0, _HEADS[thing.kind].pack(*thing.head) + _join(dict(thing.attrs)))
        for thing in things
    )


def unpack(data: bytes) -> list[Thing]:
    """Decode what ``pack`` made."""
    found = []
    for kind, _, start, end in frames.split(data):
        if kind in _HEADS:
            head = _HEADS[kind].unpack_from(data, start + frames.HEADER_BYTES)
            said = frames.attributes(data, start + frames.HEADER_BYTES + _HEADS[kind].size, end)
            found.append(_thing(kind, head, said))
    return found


def text(thing: Thing) -> str:
    """Say it as ip(8) would."""
    if thing.kind == NEWADDR:
        ip = thing.get(IFA_LOCAL) or thing.get(IFA_ADDRESS)
        return f"address {ipaddress.ip_address(ip)}/{thing.head[1]}"
    if thing.kind == NEWNEIGH:
        return f"neighbour {ipaddress.ip_address(thing.get(NDA_DST))}"
    if thing.kind == NEWNEXTHOP:
        return f"nexthop id {_U32.unpack(thing.get(NHA_ID))[0]}"
    dst = f"{ipaddress.ip_address(thing.get(RTA_DST))}/{thing.head[1]}" if thing.get(RTA_DST) else "default"
    table = _U32.unpack(thing.get(RTA_TABLE))[0] if thing.get(RTA_TABLE) else thing.head[4]
    return f"route {dst} table {table}"
