"""Asks the LAN who has an address before it is used, as RFC 5227 does, with CAP_NET_ADMIN alone: a neighbour entry
with NTF_USE makes the kernel send an ARP request or a neighbour solicitation; whoever answers has the address.

It asks on the parent, in the host's own name. On the new device itself, which has no address, the kernel would name
the host's address as the sender beside the new device's MAC, and every neighbour that knows the host would send to
that MAC from then on (net/ipv4/arp.c, arp_process).
"""

import socket
import struct
from collections.abc import Sequence

from meshd.errors import KernelError
from meshd.kernel import frames, netlink, rows

NTF_USE = 0x01
NUD_ANSWERED = 0x02 | 0x04 | 0x08 | 0x10  # reachable, and what follows from it by time: stale, delay, probe
NUD_FIXED = rows.NUD_NOARP | rows.NUD_PERMANENT

_NDMSG = struct.Struct("=BxxxiHBB")


def _message(kind: int, how: int, index: int, ip: bytes, ntf: int) -> bytes:
    family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
    return frames.request(
        kind, how, _NDMSG.pack(family, index, 0, ntf, 0) + frames.attribute(rows.NDA_DST, ip)
    )


def use(index: int, ip: bytes) -> bytes:
    """Pack the request that makes the kernel ask for an address on a device."""
    return _message(rows.RTM_NEWNEIGH, frames.CREATE, index, ip, NTF_USE)


def ask(link: netlink.Netlink, index: int, ips: Sequence[bytes]) -> dict[bytes, bytes]:
    """Ask on the device ``index`` for packed addresses, once. What the kernel knew of them is forgotten first, but
    for entries that somebody fixed: those are returned as ``answers`` does. Raises KernelError."""
    fixed = _known(link, index, ips, NUD_FIXED)
    asked = [ip for ip in ips if ip not in fixed]
    link.transact([_message(rows.RTM_DELNEIGH, 0, index, ip, 0) for ip in asked])
    messages = [use(index, ip) for ip in asked]
    refused = next((error for error in link.transact(messages) if error is not None), None)
    if refused is not None:
        raise KernelError("asking the LAN for an address", errno=refused.errno, words=refused.words)
    return fixed


def answers(link: netlink.Netlink, index: int, ips: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return who has answered: packed address -> 6-byte MAC. Raises KernelError."""
    return _known(link, index, ips, NUD_ANSWERED | NUD_FIXED)


def forget(link: netlink.Netlink, index: int, ips: Sequence[bytes]) -> None:
    """Take away the entries that asking made; what is gone already is no error."""
    fixed = _known(link, index, ips, NUD_FIXED)
    link.transact([_message(rows.RTM_DELNEIGH, 0, index, ip, 0) for ip in ips if ip not in fixed])


def _known(link: netlink.Netlink, index: int, ips: Sequence[bytes], states: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for size in sorted({len(ip) for ip in ips}):
        family = socket.AF_INET if size == 4 else socket.AF_INET6
        for chunk in link.dump(rows.dump_request(family)):
            for row in rows.parse(chunk, {index}):
                if row.dst is not None and row.dst in ips and row.state & states and any(row.mac):
                    found[row.dst] = row.mac
    return found
