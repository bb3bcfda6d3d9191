"""Decides which addresses of a network its endpoints may take by themselves and pass on to each other, as keepalived does:
those that ``--opt vip=`` names. They are never given out, whoever has one says so by gratuitous ARP or an unsolicited
neighbour advertisement, and what that does is the bridges' business. Must not know who has one.
"""

import ipaddress
from collections.abc import Mapping

from meshd.errors import BadRequest
from meshd.model import Network

OPTION = "vip"
DRIVERS = ("overlay", "bridge")
"""On a macvlan or ipvlan network nothing is guarded: the LAN's rules hold."""

VIPS_MAX = 64
"""Each of them is an element of the firewall for each local endpoint."""

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse(text: str) -> tuple[Ip, ...]:
    """Read addresses and prefixes, with commas between them: ``10.1.0.100,10.1.0.240/29``. Raises BadRequest."""
    found: dict[Ip, None] = {}
    for part in text.split(","):
        try:
            if "%" in part:
                raise ValueError("a scope means nothing here")
            prefix = ipaddress.ip_network(part.strip())
        except ValueError:
            raise BadRequest(
                f"option {OPTION}: {part.strip()[:80]!r} is neither an address nor a prefix without host bits",
                f"write it like {OPTION}=10.1.0.100 or {OPTION}=10.1.0.240/29",
            ) from None
        if len(found) + prefix.num_addresses > VIPS_MAX:
            raise BadRequest(f"option {OPTION} names more than {VIPS_MAX} addresses", "name fewer")
        found.update(dict.fromkeys(prefix))
    return tuple(found)


def vips_of(options: Mapping[str, str]) -> tuple[Ip, ...]:
    """Return the addresses that a network's options name. None of a record that cannot be read: a peer's mistake must
    not keep its endpoints from having the rest."""
    text = options.get(OPTION)
    if not text:
        return ()
    try:
        return parse(text)
    except BadRequest:
        return ()


def packed(network: Network) -> tuple[bytes, ...]:
    """Return a network's virtual addresses, packed."""
    return tuple(ip.packed for ip in vips_of(network.options))
