"""What the kernel says of forwarding and of router advertisements, over netlink. It decides nothing of it.

Layouts: linux/netconf.h (RTM_GETNETCONF), linux/if_link.h (IFLA_INET6_CONF: an int per DEVCONF_*, linux/ipv6.h).
"""

import socket
import struct

from meshd.errors import KernelError
from meshd.kernel import addresses, frames, linkdump, netlink
from meshd.kernel.links import marked
from meshd.kernel.underlay import RTM_GETROUTE, RTM_NEWROUTE
from meshd.plan.forwarding import Device, Forwarding
from meshd.plan.names import is_lan_bridge

RTM_GETNETCONF = 82
NETCONFA_IFINDEX, NETCONFA_FORWARDING = 1, 2
NETCONFA_IFINDEX_ALL = -1
IFLA_INET6_CONF = 2
DEVCONF_FORWARDING, DEVCONF_ACCEPT_RA = 0, 3
RTPROT_RA = 9
RTA_OIF, RTA_MULTIPATH = 4, 9
IFA_F_PERMANENT = 0x80

_NETCONF = struct.Struct("=B3x")  # struct netconfmsg, padded to 4
_LINK = struct.Struct("=BxHiII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")
_INT = struct.Struct("=i")


def read_forwarding(link: netlink.Netlink) -> Forwarding:
    """Read it. Raises KernelError."""
    v4, v6 = (_all(link, family) for family in (socket.AF_INET, socket.AF_INET6))
    names = {
        seen.ifindex: seen.name
        for seen in linkdump.parse_all(link.dump(linkdump.dump_request()))
        if (not marked(seen) or is_lan_bridge(seen.alias)) and seen.name != "lo"
    }
    routed = _advertised(link)
    held = addresses.parse(link.dump(addresses.dump_request(socket.AF_INET6)))
    expiring = {
        seen.ifindex
        for seen in held
        if seen.scope == addresses.SCOPE_GLOBAL and not seen.flags & IFA_F_PERMANENT
    }
    devices = [
        Device(names[index], bool(forwarding), accept_ra, index in routed, index in expiring)
        for index, (forwarding, accept_ra) in device_settings(link).items()
        if index in names
    ]
    return Forwarding(v4, v6, tuple(sorted(devices, key=lambda device: device.name)))


def _all(link: netlink.Netlink, family: int) -> bool:
    """Ask for ``conf.all.forwarding``; False where the kernel lacks the family."""
    body = _NETCONF.pack(family) + frames.attribute(NETCONFA_IFINDEX, _INT.pack(NETCONFA_IFINDEX_ALL))
    (answer,) = link.get([frames.request(RTM_GETNETCONF, 0, body)])
    if isinstance(answer, KernelError):
        return False
    found = frames.attributes(answer, frames.HEADER_BYTES + _NETCONF.size, len(answer))
    return NETCONFA_FORWARDING in found and _INT.unpack(found[NETCONFA_FORWARDING])[0] > 0


def device_settings(link: netlink.Netlink) -> dict[int, tuple[int, int]]:
    """Map ifindex to (forwarding, accept_ra) of all devices that IPv6 runs on."""
    found: dict[int, tuple[int, int]] = {}
    body = _LINK.pack(socket.AF_INET6, 0, 0, 0, 0)
    for chunk in link.dump(frames.request(linkdump.RTM_GETLINK, 0, body)):
        for kind, _, start, end in frames.split(chunk):
            if kind != linkdump.RTM_NEWLINK:
                continue
            _, _, index, _, _ = _LINK.unpack_from(chunk, start + frames.HEADER_BYTES)
            said = frames.attributes(chunk, start + frames.HEADER_BYTES + _LINK.size, end)
            inet6 = said.get(linkdump.IFLA_PROTINFO, b"")
            conf = frames.attributes(inet6, 0, len(inet6)).get(IFLA_INET6_CONF, b"")
            if len(conf) >= 4 * (DEVCONF_ACCEPT_RA + 1):
                values = struct.unpack_from(f"={DEVCONF_ACCEPT_RA + 1}i", conf)
                found[index] = (values[DEVCONF_FORWARDING], values[DEVCONF_ACCEPT_RA])
    return found


def _advertised(link: netlink.Netlink) -> set[int]:
    """Return the devices with a default route that a router advertised."""
    found: set[int] = set()
    body = _ROUTE.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
    for chunk in link.dump(frames.request(RTM_GETROUTE, 0, body)):
        for kind, _, start, end in frames.split(chunk):
            if kind != RTM_NEWROUTE:
                continue
            _, prefix, _, _, _, protocol, _, _, _ = _ROUTE.unpack_from(chunk, start + frames.HEADER_BYTES)
            if prefix or protocol != RTPROT_RA:
                continue
            said = frames.attributes(chunk, start + frames.HEADER_BYTES + _ROUTE.size, end)
            if RTA_OIF in said:
                found.add(_INT.unpack(said[RTA_OIF])[0])
            paths = said.get(RTA_MULTIPATH, b"")
            while len(paths) >= _NEXTHOP.size:
                length, _, _, device = _NEXTHOP.unpack_from(paths)
                found.add(device)
                paths = paths[max((length + 3) & ~3, _NEXTHOP.size) :]
    return found
