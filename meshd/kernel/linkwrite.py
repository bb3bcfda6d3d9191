"""How a ``Link`` is said to the kernel: the requests that make, adjust and delete a device. It must not know
what is there (links.py asks) nor send anything.

A device comes about in three steps, because the kernel applies only part of the attributes while it creates
one (net/core/rtnetlink.c, rtnl_newlink_create): *new* (name, kind, MAC, MTU, master), *settle* (our alias, no
IPv6 link-local address, port flags), *up*, which is last since a device that comes up before it is told not to
generates an address.
"""

import ipaddress
import struct
from collections.abc import Mapping
from typing import Any

from meshd.config import VXLAN_TTL
from meshd.kernel import frames
from meshd.kernel.codec import link_message
from meshd.kernel.linkdump import (
    AF_INET,
    IFINFOMSG,
    IFLA_AF_SPEC,
    IFLA_IFNAME,
    IFLA_INET_CONF,
    IPV4_DEVCONF_ROUTE_LOCALNET,
    NARROW,
    RTM_DELLINK,
    RTM_NEWLINK,
    Seen,
    to_link,
)
from meshd.plan.objects import Link, Port, Vxlan

ADDR_GEN_MODE_NONE = 1
VXLAN_DF_SET = 1

_Attrs = list[tuple[str, Any]]


def create(link: Link, master: int, *, inet6: bool, df: bool = True, parent: int = 0) -> list[bytes]:
    """Encode the three steps. ``master``: ifindex or 0; ``inet6``: the kernel has IPv6; ``df``: set the outer
    don't-fragment bit; ``parent``: ifindex of what a macvlan is on."""
    messages = [_new(link, master, _data(link, df), parent), *_settle(link, 0, inet6)]
    return [*messages, localnet(link.name, on=True)] if link.localnet else messages


def create_pair(
    link: Link, master: int, peer: str, peer_mac: bytes, peer_mtu: int, *, inet6: bool, pid: int = 0
) -> list[bytes]:
    """Encode the three steps of a veth pair's one end; the other is born in the first, and stays down. ``pid``: a
    process in whose namespace it is born, which takes the kernel a tenth of the time of moving it there."""
    attrs: _Attrs = [("IFLA_IFNAME", peer), ("IFLA_MTU", peer_mtu)]
    if pid:
        attrs.append(("IFLA_NET_NS_PID", pid))
    if peer_mac:
        attrs.append(("IFLA_ADDRESS", peer_mac.hex(":")))
    return [_new(link, master, [("VETH_INFO_PEER", {"attrs": attrs})]), *_settle(link, 0, inet6)]


def adjust(link: Link, seen: Seen, master: int, *, inet6: bool) -> list[bytes]:
    """Encode what brings an existing device to ``link``. Its master comes first: port flags go to the bridge
    that it then has."""
    first: _Attrs = []
    if seen.master != master:
        first.append(("IFLA_MASTER", master))
    if link.mac is not None and seen.mac != link.mac:
        first.append(("IFLA_ADDRESS", link.mac.hex(":")))
    if link.vxlan is not None and _own_address(seen) != link.vxlan.local:
        info: _Attrs = [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": [_local(link.vxlan)]})]
        first.append(("IFLA_LINKINFO", {"attrs": info}))
    messages = [link_message(RTM_NEWLINK, frames.REQUEST, first, index=seen.ifindex)] if first else []
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
    return link_message(RTM_NEWLINK, frames.REQUEST, [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)])


def delete(index: int) -> bytes:
    """Encode a deletion by ifindex."""
    return link_message(RTM_DELLINK, frames.REQUEST, [], index=index)


def delete_named(name: str) -> bytes:
    """Encode a deletion by name."""
    return link_message(RTM_DELLINK, frames.REQUEST, [("IFLA_IFNAME", name)])


def rename(index: int, name: str) -> bytes:
    """Encode another name for the device of that ifindex."""
    return link_message(RTM_NEWLINK, frames.REQUEST, [("IFLA_IFNAME", name)], index=index)


def rename_down(index: int, name: str) -> list[bytes]:
    """Encode the same for a kernel that renames only what is down."""
    down, up = (link_message(RTM_NEWLINK, frames.REQUEST, [], index=index, up=on) for on in (False, True))
    return [down, rename(index, name), up]


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
    name: _Attrs = [] if index else [("IFLA_IFNAME", link.name)]
    mtu: _Attrs = [("IFLA_MTU", link.mtu)] if link.mtu else []
    attrs: _Attrs = [*name, *mtu, ("IFLA_IFALIAS", link.alias)]
    if inet6:
        mode: _Attrs = [("IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_MODE_NONE)]
        attrs.append(("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": mode})]}))
    info: _Attrs = []
    if link.kind == "bridge":
        info += [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": _data(link, df=False)})]
    if link.port is not None and link.master is not None:
        info += [
            ("IFLA_INFO_SLAVE_KIND", "bridge"),
            ("IFLA_INFO_SLAVE_DATA", {"attrs": _port(link.port)}),
        ]
    if info:
        attrs.append(("IFLA_LINKINFO", {"attrs": info}))
    return [
        link_message(RTM_NEWLINK, frames.REQUEST, attrs, index=index),
        *([_inet(link.name, NARROW)] if link.narrow else []),
        link_message(RTM_NEWLINK, frames.REQUEST, name, index=index, up=link.up),
    ]


def _inet(name: str, knobs: Mapping[int, int]) -> bytes:
    """Encode IPv4 settings of a device, IPV4_DEVCONF_* -> value: by netlink, since /proc/sys is read-only to the
    daemon."""
    values = b"".join(frames.attribute(at, struct.pack("=I", value)) for at, value in knobs.items())
    inet = frames.attribute(AF_INET, frames.attribute(IFLA_INET_CONF, values))
    named = frames.attribute(IFLA_IFNAME, name.encode() + b"\0")
    body = IFINFOMSG.pack(0, 0, 0, 0, 0) + named + frames.attribute(IFLA_AF_SPEC, inet)
    return frames.request(RTM_NEWLINK, 0, body)


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


def _port(port: Port) -> _Attrs:
    return [
        ("IFLA_BRPORT_LEARNING", int(port.learning)),
        ("IFLA_BRPORT_UNICAST_FLOOD", int(port.flood)),
        ("IFLA_BRPORT_MCAST_FLOOD", int(port.mcast_flood)),
        ("IFLA_BRPORT_BCAST_FLOOD", int(port.bcast_flood)),
        ("IFLA_BRPORT_NEIGH_SUPPRESS", int(port.neigh_suppress)),
        ("IFLA_BRPORT_MODE", int(port.hairpin)),
        ("IFLA_BRPORT_ISOLATED", int(port.isolated)),
        ("IFLA_BRPORT_LOCKED", int(port.locked)),
    ]
