"""How a macvlan, ipvlan or VLAN device is said to the kernel, packed by hand. It decides which attributes such a
device has; not which there are. Layouts: linux/if_link.h.

An ipvlan has its parent's MAC, and a passthru macvlan gives its parent its own: none is told for either.
"""

import struct

from meshd.kernel import frames
from meshd.kernel.linkdump import (
    IFLA_ADDRESS,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MACVLAN_MODE,
    IFLA_MTU,
    MACVLAN_MODES,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
)

IFLA_AF_SPEC, AF_INET6, IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 26, 10, 8, 1
IFLA_TARGET_NETNSID = 46
IFLA_IPVLAN_MODE, IFLA_VLAN_ID = 1, 1
IFF_UP = 0x1

IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}

_IFINFOMSG = struct.Struct("=BxHiII")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_S32 = struct.Struct("=i")
_NEW = frames.CREATE | frames.EXCL


def _mode(kind: str, mode: str) -> bytes:
    if kind == "macvlan":
        return frames.attribute(IFLA_MACVLAN_MODE, _U32.pack(MACVLAN_MODES[mode]))
    return frames.attribute(IFLA_IPVLAN_MODE, _U16.pack(IPVLAN_MODES[mode]))


def _info(kind: str, data: bytes) -> bytes:
    kind_of = frames.attribute(IFLA_INFO_KIND, kind.encode() + b"\0")
    return frames.attribute(
        IFLA_LINKINFO, kind_of + (frames.attribute(IFLA_INFO_DATA, data) if data else b"")
    )


def _new(name: str, parent: int, more: bytes) -> bytes:
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + frames.attribute(IFLA_IFNAME, name.encode() + b"\0")
    if parent:
        body += frames.attribute(IFLA_LINK, _U32.pack(parent))
    return frames.request(RTM_NEWLINK, _NEW, body + more)


def new_guest(name: str, kind: str, mode: str, parent: int, mtu: int, mac: bytes | None) -> bytes:
    """Pack the request for an endpoint's device on the device ``parent`` (ifindex). ``mtu`` bytes."""
    more = frames.attribute(IFLA_MTU, _U32.pack(mtu))
    if mac is not None:
        more += frames.attribute(IFLA_ADDRESS, mac)
    return _new(name, parent, more + _info(kind, _mode(kind, mode)))


def new_vlan(name: str, parent: int, number: int) -> bytes:
    """Pack the request for the 802.1Q sub-interface ``number`` of the device ``parent``."""
    return _new(name, parent, _info("vlan", frames.attribute(IFLA_VLAN_ID, _U16.pack(number))))


def settle(name: str, alias: str, *, inet6: bool) -> bytes:
    """Pack the request that marks a device as ours and keeps it without a link-local address of its own."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + frames.attribute(IFLA_IFNAME, name.encode() + b"\0")
    body += frames.attribute(IFLA_IFALIAS, alias.encode())
    if inet6:
        mode = frames.attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE]))
        body += frames.attribute(IFLA_AF_SPEC, frames.attribute(AF_INET6, mode))
    return frames.request(RTM_NEWLINK, 0, body)


def set_up(name: str, *, up: bool) -> bytes:
    """Pack the request that sets a device up or down."""
    body = _IFINFOMSG.pack(0, 0, 0, IFF_UP if up else 0, IFF_UP)
    return frames.request(RTM_NEWLINK, 0, body + frames.attribute(IFLA_IFNAME, name.encode() + b"\0"))


def trial(kind: str) -> bytes:
    """Pack a request that no kernel can meet: one that knows the kind says EINVAL, one that does not
    EOPNOTSUPP. The kernel loads the module for it, if there is one."""
    return _new("mu00000000", 0, _info(kind, b""))


def delete_there(index: int, nsid: int) -> bytes:
    """Pack the deletion of a device in another namespace. ``nsid``: that namespace's number in ours."""
    body = _IFINFOMSG.pack(0, 0, index, 0, 0) + frames.attribute(IFLA_TARGET_NETNSID, _S32.pack(nsid))
    return frames.request(RTM_DELLINK, 0, body)


def dump_there(nsid: int) -> bytes:
    """Pack the dump request for the devices of another namespace."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + frames.attribute(IFLA_TARGET_NETNSID, _S32.pack(nsid))
    return frames.request(RTM_GETLINK, 0, body)
