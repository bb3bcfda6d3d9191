"""How a ``Link`` is said to the kernel: the requests that make, adjust and delete a device. It must not know
what is there (links.py asks) nor send anything.

A device comes about in three steps, because the kernel applies only part of the attributes while it creates
one (net/core/rtnetlink.c, rtnl_newlink_create): *new* (name, kind, MAC, MTU, master), *settle* (our alias, no
IPv6 link-local address, port flags), *up*, which is last since a device that comes up before it is told not to
generates an address.

Packed by hand is what each endpoint needs (8 us a message, pyroute2 takes 150-200); what a network needs once, its
device's own attributes, goes through pyroute2's message class.
"""

import functools
import ipaddress
import struct
from collections.abc import Mapping
from typing import Any

from meshd.config import VXLAN_TTL
from meshd.kernel import frames
from meshd.kernel.codec import link_message
from meshd.kernel.linkdump import (
    AF_INET,
    AF_INET6,
    IFINFOMSG,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INET_CONF,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_VXLAN_LOCAL,
    IFLA_VXLAN_LOCAL6,
    IPV4_DEVCONF_ROUTE_LOCALNET,
    NARROW,
    PORT_FLAGS,
    RTM_DELLINK,
    RTM_NEWLINK,
    Seen,
    to_link,
)
from meshd.plan.objects import Link, Port, Vxlan

ADDR_GEN_MODE_NONE, IFLA_INET6_ADDR_GEN_MODE = 1, 8
IFLA_NET_NS_PID, IFLA_GROUP, VETH_INFO_PEER = 19, 27, 1
IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 5, 23
VXLAN_DF_SET = 1

_Attrs = list[tuple[str, Any]]
_U32 = struct.Struct("=I")
_NEW = frames.CREATE | frames.EXCL
_NO_LINK_LOCAL = frames.attribute(
    IFLA_AF_SPEC,
    frames.attribute(AF_INET6, frames.attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE]))),
)
_BRIDGE = frames.attribute(IFLA_INFO_KIND, b"bridge\0") + frames.attribute(
    IFLA_INFO_DATA,
    frames.attribute(IFLA_BR_STP_STATE, bytes(4)) + frames.attribute(IFLA_BR_MCAST_SNOOPING, bytes(1)),
)


def create(link: Link, master: int, *, inet6: bool, df: bool = True, parent: int = 0) -> list[bytes]:
    """Encode the three steps. ``master``: ifindex or 0; ``inet6``: the kernel has IPv6; ``df``: set the outer
    don't-fragment bit; ``parent``: ifindex of what a macvlan is on."""
    messages = [_new(link, master, _data(link, df), parent), *_settle(link, 0, inet6)]
    return [*messages, localnet(link.name, on=True)] if link.localnet else messages


def create_pair(
    link: Link, master: int, peer: str, peer_mac: bytes, peer_mtu: int, pid: int = 0, *, inet6: bool
) -> list[bytes]:
    """Encode the three steps of a veth pair's one end; the other is born in the first, and stays down. ``pid``: a
    process in whose namespace it is born, which takes the kernel a tenth of the time of moving it there."""
    other = _named(peer) + _mtu(peer_mtu)
    if pid:
        other += frames.attribute(IFLA_NET_NS_PID, _U32.pack(pid))
    if peer_mac:
        other += frames.attribute(IFLA_ADDRESS, peer_mac)
    data = frames.attribute(VETH_INFO_PEER, IFINFOMSG.pack(0, 0, 0, 0, 0) + other)
    info = frames.attribute(IFLA_INFO_KIND, b"veth\0") + frames.attribute(IFLA_INFO_DATA, data)
    new = _named(link.name) + (_mtu(link.mtu) if link.mtu else b"") + frames.attribute(IFLA_LINKINFO, info)
    if link.mac is not None:
        new += frames.attribute(IFLA_ADDRESS, link.mac)
    if master:
        new += frames.attribute(IFLA_MASTER, _U32.pack(master))
    return [_change(new, flags=_NEW), *_settle(link, 0, inet6)]


def adjust(link: Link, seen: Seen, master: int, *, inet6: bool) -> list[bytes]:
    """Encode what brings an existing device to ``link``. Its master comes first: port flags go to the bridge
    that it then has."""
    first = b""
    if seen.master != master:
        first += frames.attribute(IFLA_MASTER, _U32.pack(master))
    if link.mac is not None and seen.mac != link.mac:
        first += frames.attribute(IFLA_ADDRESS, link.mac)
    if link.vxlan is not None and _own_address(seen) != link.vxlan.local:
        at = IFLA_VXLAN_LOCAL if len(link.vxlan.local) == 4 else IFLA_VXLAN_LOCAL6
        data = frames.attribute(IFLA_INFO_DATA, frames.attribute(at, link.vxlan.local))
        first += frames.attribute(IFLA_LINKINFO, frames.attribute(IFLA_INFO_KIND, b"vxlan\0") + data)
    messages = [_change(first, seen.ifindex)] if first else []
    messages += _settle(link, seen.ifindex, inet6)
    have = to_link(seen, None)
    if have is not None and link.localnet != have.localnet:
        messages.append(localnet(link.name, on=link.localnet))
    return messages


def localnet(name: str, *, on: bool) -> bytes:
    """Encode whether packets from 127.0.0.0/8 may be routed to a device: the knob route_localnet."""
    return _inet(name, {IPV4_DEVCONF_ROUTE_LOCALNET: on})


def mark(name: str, alias: str) -> bytes:
    """Encode our mark alone, for a device that is settled later."""
    return _change(_named(name) + _alias(alias))


def delete(index: int) -> bytes:
    """Encode a deletion by ifindex."""
    return _change(b"", index, kind=RTM_DELLINK)


def doom(index: int, group: int) -> bytes:
    """Encode that a device is of the group that is about to be deleted."""
    return _change(frames.attribute(IFLA_GROUP, _U32.pack(group)), index)


def delete_doomed(group: int) -> bytes:
    """Encode the deletion of that group. The kernel waits once for all of it until nobody uses the devices any more,
    which is what takes so long to delete one."""
    return _change(frames.attribute(IFLA_GROUP, _U32.pack(group)), kind=RTM_DELLINK)


def delete_named(name: str) -> bytes:
    """Encode a deletion by name."""
    return _change(_named(name), kind=RTM_DELLINK)


def rename(index: int, name: str) -> bytes:
    """Encode another name for the device of that ifindex."""
    return _change(_named(name), index)


def rename_down(index: int, name: str) -> list[bytes]:
    """Encode the same for a kernel that renames only what is down."""
    return [_change(b"", index, up=False), rename(index, name), _change(b"", index, up=True)]


def _change(
    attributes: bytes, index: int = 0, *, up: bool | None = None, kind: int = RTM_NEWLINK, flags: int = 0
) -> bytes:
    """Pack a request about the device of that ifindex or, if 0, of the name in ``attributes``. ``up``: None leaves it as
    it is."""
    head = IFINFOMSG.pack(0, 0, index, int(up or False), int(up is not None))
    return frames.request(kind, flags, head + attributes)


def _named(name: str) -> bytes:
    return frames.attribute(IFLA_IFNAME, name.encode() + b"\0")


def _mtu(mtu: int) -> bytes:
    return frames.attribute(IFLA_MTU, _U32.pack(mtu))


def _alias(alias: str) -> bytes:
    return frames.attribute(IFLA_IFALIAS, alias.encode() + b"\0")


def _new(link: Link, master: int, data: _Attrs, parent: int = 0) -> bytes:
    info: _Attrs = [("IFLA_INFO_KIND", link.kind)]
    if data:
        info.append(("IFLA_INFO_DATA", {"attrs": data}))
    # A bridge whose MTU was never *changed* follows its ports' (net/bridge/br_if.c, br_mtu_auto_adjust);
    # one that is created a byte off and then set keeps ours.
    mtu = link.mtu - 1 if link.kind == "bridge" else link.mtu
    attrs: _Attrs = [("IFLA_IFNAME", link.name), ("IFLA_LINKINFO", {"attrs": info})]
    if link.mtu:
        attrs.insert(1, ("IFLA_MTU", mtu))
    if link.mac is not None:
        attrs.append(("IFLA_ADDRESS", link.mac.hex(":")))
    if master:
        attrs.append(("IFLA_MASTER", master))
    if parent:
        attrs.append(("IFLA_LINK", parent))
    return link_message(RTM_NEWLINK, frames.REQUEST | frames.CREATE | frames.EXCL, attrs)


def _settle(link: Link, index: int, inet6: bool) -> list[bytes]:
    """Encode *settle* and *up*, for the device of that ifindex or, if 0, of that name."""
    name = b"" if index else _named(link.name)
    more = (_mtu(link.mtu) if link.mtu else b"") + _alias(link.alias) + (_NO_LINK_LOCAL if inet6 else b"")
    info = _BRIDGE if link.kind == "bridge" else b""
    if link.port is not None and link.master is not None:
        info += _port(link.port)
    if info:
        more += frames.attribute(IFLA_LINKINFO, info)
    return [
        _change(name + more, index),
        *([_inet(link.name, NARROW)] if link.narrow else []),
        _change(name, index, up=link.up),
    ]


def _inet(name: str, knobs: Mapping[int, int]) -> bytes:
    """Encode IPv4 settings of a device, IPV4_DEVCONF_* -> value: by netlink, since /proc/sys is read-only to the
    daemon."""
    values = b"".join(frames.attribute(at, struct.pack("=I", value)) for at, value in knobs.items())
    inet = frames.attribute(AF_INET, frames.attribute(IFLA_INET_CONF, values))
    return _change(_named(name) + frames.attribute(IFLA_AF_SPEC, inet))


def _data(link: Link, df: bool) -> _Attrs:
    """List a kind's own attributes (design.md, section 7)."""
    if link.kind == "bridge":
        return [("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0)]
    if link.mode is not None:
        return [("IFLA_MACVLAN_MODE", link.mode)]
    return [] if link.vxlan is None else _vxlan(link.vxlan, df)


def _local(vxlan: Vxlan) -> tuple[str, str]:
    """Name the source address of the device's packets: all of a vxlan device that the kernel changes in place."""
    name = "IFLA_VXLAN_LOCAL" if len(vxlan.local) == 4 else "IFLA_VXLAN_LOCAL6"
    return name, str(ipaddress.ip_address(vxlan.local))


def _own_address(seen: Seen) -> bytes:
    """Return the packed source address that a vxlan device has."""
    have = to_link(seen, None)
    return have.vxlan.local if have is not None and have.vxlan is not None else b""


def _vxlan(vxlan: Vxlan, df: bool) -> _Attrs:
    attrs: _Attrs = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        _local(vxlan),
        ("IFLA_VXLAN_PORT", vxlan.port),
        ("IFLA_VXLAN_TTL", VXLAN_TTL),
        ("IFLA_VXLAN_LEARNING", 0),
        ("IFLA_VXLAN_PROXY", 0),
        ("IFLA_VXLAN_L2MISS", 0),
        ("IFLA_VXLAN_L3MISS", 0),
        ("IFLA_VXLAN_UDP_CSUM", 1),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_TX", 0),
    ]
    if df:
        attrs.append(("IFLA_VXLAN_DF", VXLAN_DF_SET))
    return attrs


@functools.cache
def _port(port: Port) -> bytes:
    """Encode what a bridge is told of its port; there are few sorts of ports."""
    flags = b"".join(frames.attribute(at, bytes([getattr(port, field)])) for field, at in PORT_FLAGS.items())
    return frames.attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0") + frames.attribute(IFLA_INFO_SLAVE_DATA, flags)
