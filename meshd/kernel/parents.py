"""What the kernel says of a device that is to carry macvlan or ipvlan endpoints, and which one that is when nobody
names it. It judges nothing: plan/parents.py does.
"""

import ipaddress
import socket
import struct
from pathlib import Path

from meshd.errors import Unavailable
from meshd.kernel import addresses, frames, linkdump, netlink, underlay
from meshd.plan.parents import Parent

IFF_LOOPBACK, IFF_PROMISC = 0x8, 0x100
SYSFS = Path("/sys/class/net")

_IFINFOMSG = struct.Struct("=BxHiII")


def read_parent(link: netlink.Netlink, name: str | None) -> Parent:
    """Read a device. ``name`` None: the one of the default route, v4 before v6, the least metric first. Raises
    Unavailable where there is none, KernelError."""
    devices: dict[int, tuple[linkdump.Seen, int]] = {}
    for chunk in link.dump(linkdump.dump_request()):
        for kind, _, start, end in frames.split(chunk):
            if kind == linkdump.RTM_NEWLINK:
                seen = linkdump.parse(chunk, start, end)
                devices[seen.ifindex] = seen, _IFINFOMSG.unpack_from(chunk, start + frames.HEADER_BYTES)[3]
    if name is None:
        index = _default_device(link)
        if index not in devices:
            raise Unavailable(
                "this host has no default route to find the LAN's device by; nothing was changed",
                "make the network with --parent, naming it on every host",
            )
    else:
        index = next((number for number, (seen, _) in devices.items() if seen.name == name), 0)
        if not index:
            return Parent(name, missing=True)
    seen, flags = devices[index]
    master = devices[seen.master][0] if seen.master in devices else None
    held = addresses.parse(link.dump(addresses.dump_request()))
    return Parent(
        name=seen.name,
        index=index,
        up=seen.up,
        loopback=bool(flags & IFF_LOOPBACK),
        master=master.name if master else "",
        master_kind=master.kind if master else "",
        mtu=seen.mtu,
        mac=seen.mac,
        promiscuous=bool(flags & IFF_PROMISC),
        wireless=(SYSFS / seen.name / "phy80211").exists(),
        addresses=tuple(
            f"{ipaddress.ip_address(one.ip)}/{one.prefix}" for one in held if one.ifindex == index and one.ip
        ),
    )


def _default_device(link: netlink.Netlink) -> int:
    """Return the ifindex of the device that the default route leads to, 0 where there is none."""
    for family in (socket.AF_INET, socket.AF_INET6):
        routes = [route for route in underlay.read_routes(link, family) if not route.prefix and route.devices]
        if routes:
            return min(routes, key=lambda route: route.metric).devices[0]
    return 0
