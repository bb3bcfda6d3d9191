"""What the kernel says of its devices, as values. Read by hand: 15 us a device where pyroute2's decoder takes
380, and the whole machine's devices are read at each compare. It must not know which devices should be there.

Attribute numbers: linux/if_link.h.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from meshd.kernel import frames
from meshd.plan import names
from meshd.plan.objects import GUEST_KINDS, Link, LinkKind, Port, Vxlan, guest

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFF_UP = 0x1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_PROTINFO = 1, 3, 4, 5, 10, 12
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 18, 20, 26, 29, 37
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 1, 4, 15, 17
AF_INET, AF_INET6, IFLA_INET_CONF = 2, 10, 1
IPV4_DEVCONF_ROUTE_LOCALNET = 26  # linux/ip.h; the dump's array starts with number 1
NARROW = {8: 2, 18: 2, 19: 1}
"""plan.objects.Link.narrow in the kernel's terms, IPV4_DEVCONF_* -> value: loose rp_filter, since answers take the
other of two devices; arp_announce and arp_ignore, since Linux answers for every address it has on any device."""

OUR_KINDS = ("bridge", "vxlan", "veth", "macvlan", "ipvlan")

_U16 = struct.Struct("=H")
IFINFOMSG = struct.Struct("=BxHiII")  # family, device type, ifindex, flags, change
_BODY = frames.HEADER_BYTES + IFINFOMSG.size
_NO_STATS = frames.attribute(IFLA_EXT_MASK, struct.pack("=I", 1 << 3))  # RTEXT_FILTER_SKIP_STATS
PORT_FLAGS = {
    "hairpin": 4, "learning": 8, "flood": 9, "mcast_flood": 27, "bcast_flood": 30, "neigh_suppress": 32, "isolated": 33, "locked": 39,
}  # fmt: skip
"""Field of plan.objects.Port -> IFLA_BRPORT_*."""
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_MODES = {number: mode for mode, number in MACVLAN_MODES.items()}
IFLA_MACVLAN_MODE = 1


class Seen(NamedTuple):
    """A device as the kernel tells it. Indices are 0 where there is none; ``elsewhere``: the device that
    ``peer`` names is in another namespace; ``inet6``: IPv6 runs on it; ``inet``: its IPv4 settings, an int32 each."""

    ifindex: int
    name: str
    alias: str
    kind: str
    up: bool
    mtu: int
    mac: bytes
    master: int
    peer: int
    elsewhere: bool
    inet6: bool
    inet: bytes
    data: dict[int, bytes]
    port: dict[int, bytes] | None

    def knob(self, number_: int) -> int:
        """Return an IPV4_DEVCONF_* of the device; 0 where the kernel does not tell it."""
        return number(self.inet[4 * number_ - 4 : 4 * number_])

    @property
    def localnet(self) -> bool:
        """Tell whether packets from 127.0.0.0/8 may be routed to it."""
        return self.knob(IPV4_DEVCONF_ROUTE_LOCALNET) != 0


def dump_request() -> bytes:
    """Pack the dump request for all devices."""
    return frames.request(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATS)


def dump_kind(kind: str) -> bytes:
    """Pack the dump request for devices of a kind. Kernels that cannot filter answer with all."""
    info = frames.attribute(IFLA_LINKINFO, frames.attribute(IFLA_INFO_KIND, kind.encode() + b"\0"))
    return frames.request(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, 0, 0, 0) + _NO_STATS + info)


def get_request(name: str) -> bytes:
    """Pack the request for one device by name."""
    body = IFINFOMSG.pack(0, 0, 0, 0, 0) + frames.attribute(IFLA_IFNAME, name.encode() + b"\0") + _NO_STATS
    return frames.request(RTM_GETLINK, 0, body)


def get_numbered(index: int) -> bytes:
    """Pack the request for one device by ifindex."""
    return frames.request(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, index, 0, 0) + _NO_STATS)


def index_of(message: bytes) -> int:
    """Read the ifindex alone of one RTM_NEWLINK message, header included."""
    return int(IFINFOMSG.unpack_from(message, frames.HEADER_BYTES)[2])


def parse(chunk: bytes, start: int, end: int) -> Seen:
    """Read one RTM_NEWLINK message, header included."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(chunk, start + frames.HEADER_BYTES)
    found = frames.attributes(chunk, start + _BODY, end)
    info = _nested(found.get(IFLA_LINKINFO))
    families = _nested(found.get(IFLA_AF_SPEC))
    port = info.get(IFLA_INFO_SLAVE_DATA) if _text(info.get(IFLA_INFO_SLAVE_KIND)) == "bridge" else None
    return Seen(
        ifindex=index,
        name=_text(found.get(IFLA_IFNAME)),
        alias=_text(found.get(IFLA_IFALIAS)),
        kind=_text(info.get(IFLA_INFO_KIND)),
        up=bool(flags & IFF_UP),
        mtu=number(found.get(IFLA_MTU)),
        mac=found.get(IFLA_ADDRESS, b""),
        master=number(found.get(IFLA_MASTER)),
        peer=number(found.get(IFLA_LINK)),
        elsewhere=IFLA_LINK_NETNSID in found,
        inet6=AF_INET6 in families,
        inet=_nested(families.get(AF_INET)).get(IFLA_INET_CONF, b""),
        data=_nested(info.get(IFLA_INFO_DATA)),
        port=None if port is None else _nested(port),
    )


def parse_all(chunks: Iterable[bytes]) -> list[Seen]:
    """Read a dump."""
    return [parse(chunk, start, end) for chunk, start, end in messages(chunks)]


def messages(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield where in a dump each device is: buffer, start and end."""
    for chunk in chunks:
        for kind, _, start, end in frames.split(chunk):
            if kind == RTM_NEWLINK:
                yield chunk, start, end


def alias_bytes(head: str) -> bytes:
    """Return the bytes that a message has only where a device's alias begins with ``head``."""
    return _U16.pack(IFLA_IFALIAS) + head.encode()


def parse_port(chunk: bytes, start: int, end: int) -> tuple[int, dict[int, bytes]]:
    """Read (ifindex, port attributes) of an AF_BRIDGE link event: what a bridge says of its port."""
    index = IFINFOMSG.unpack_from(chunk, start + frames.HEADER_BYTES)[2]
    return index, _nested(frames.attributes(chunk, start + _BODY, end).get(IFLA_PROTINFO))


def to_guest(seen: Seen, mark: str) -> Link | None:
    """Say that an endpoint's macvlan or ipvlan device is there; None for all others. Its name here and there is
    the container's business, so the mark tells whose it is."""
    endpoint = names.alias_endpoint(seen.alias, mark) if seen.kind in GUEST_KINDS else None
    return None if endpoint is None else guest(names.guest(endpoint), cast("LinkKind", seen.kind), seen.alias)


def to_link(seen: Seen, master: str | None, parent: str | None = None) -> Link | None:
    """Say it in plan.objects' terms; None for a kind that is never ours. ``master``: name of the device
    that it is a port of; ``parent``: of the one that a macvlan is on."""
    if seen.kind not in OUR_KINDS:
        return None
    port = None
    if seen.port is not None:
        port = Port(**{field: number(seen.port.get(at)) == 1 for field, at in PORT_FLAGS.items()})
    vxlan = None
    if seen.kind == "vxlan":
        local = seen.data.get(IFLA_VXLAN_LOCAL) or seen.data.get(IFLA_VXLAN_LOCAL6) or b""
        udp_port = int.from_bytes(seen.data.get(IFLA_VXLAN_PORT, b""), "big")
        vxlan = Vxlan(vni=number(seen.data.get(IFLA_VXLAN_ID)), local=local, port=udp_port)
    return Link(
        name=seen.name,
        kind=cast("LinkKind", seen.kind),
        alias=seen.alias,
        mtu=seen.mtu,
        mac=seen.mac,
        master=master,
        port=port,
        vxlan=vxlan,
        up=seen.up,
        narrow=all(seen.knob(at) == value for at, value in NARROW.items()),
        parent=parent if seen.kind == "macvlan" else None,
        mode=_MODES.get(number(seen.data.get(IFLA_MACVLAN_MODE))) if seen.kind == "macvlan" else None,
        localnet=seen.localnet and (seen.kind == "bridge" or seen.name.startswith(names.HOST)),
    )


def _nested(value: bytes | None) -> dict[int, bytes]:
    return frames.attributes(value, 0, len(value)) if value else {}


def number(value: bytes | None) -> int:
    """Read an attribute that is an unsigned integer; 0 where it is missing."""
    return int.from_bytes(value, "little" if LITTLE else "big") if value else 0


def _text(value: bytes | None) -> str:
    return value.rstrip(b"\0").decode(errors="replace") if value else ""


LITTLE = struct.pack("=H", 1) == b"\x01\0"
