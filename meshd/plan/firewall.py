"""What table ``inet meshd`` says, as the text that nft reads. The rules are static; networks are elements of
sets, so that one more costs an element and nobody has to read a longer rule set.

Decides: masquerading, isolation between networks, what an internal network reaches, which ports are closed to
containers, MSS clamping. Must not know endpoints (they never change the table) nor any other table.

VXLAN and gossip ports are closed to containers towards other hosts too, not only towards this one: a
masqueraded packet arrives there with this host's address, and VXLAN takes a frame from any member as genuine.
Bridged frames of one network that br_netfilter shows to the forward hook are let through before that.
"""

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec


class Fence(msgspec.Struct, frozen=True):
    """A network that has a bridge here. ``subnets``: CIDR text. ``also``: the host's own device on it, if it has one:
    what is routed to the network leaves by it."""

    bridge: str
    subnets: tuple[str, ...]
    internal: bool = False
    also: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """What packets of the network come in and go out by."""
        return (self.bridge, *self.also)


_RULES = """\
	chain clamp {
		type filter hook forward priority mangle; policy accept;
		iifname @bridges tcp flags syn / syn,rst tcp option maxseg size set rt mtu
		oifname @bridges tcp flags syn / syn,rst tcp option maxseg size set rt mtu
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname . oifname @same accept
		iifname @bridges oifname @bridges drop
		iifname @internal drop
		oifname @internal drop
		iifname @bridges udp dport @closed_udp drop
		iifname @bridges tcp dport @closed_tcp drop
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname @internal drop
		iifname @bridges udp dport @closed_udp drop
		iifname @bridges tcp dport @closed_tcp drop
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != @bridges ip saddr @outward4 ip daddr != @own4 ip daddr != 224.0.0.0/4 masquerade
		oifname != @bridges ip6 saddr @outward6 ip6 daddr != @own6 ip6 daddr != ff00::/8 masquerade
	}
"""
"""Written as ``nft list`` of 1.0.6 prints it, so that people can compare the two by eye."""


def render(fences: Iterable[Fence], *, gossip_port: int, vxlan_port: int) -> str:
    """Return the whole table, or "" when there is no network to fence. Same fences in any order, same text.

    ``outward`` holds the subnets that leave masqueraded, ``own`` all of them; ``same`` pairs each bridge with
    itself, since nft cannot compare the two interfaces of a packet with each other.
    """
    ordered = sorted(set(fences), key=lambda fence: fence.bridge)
    if not ordered:
        return ""
    outward = [subnet for fence in ordered if not fence.internal for subnet in fence.subnets]
    own = [subnet for fence in ordered for subnet in fence.subnets]
    sets = (
        _set("bridges", "ifname", [f'"{device}"' for fence in ordered for device in fence.devices]),
        _set("internal", "ifname", [f'"{fence.bridge}"' for fence in ordered if fence.internal]),
        _set(
            "same",
            "ifname . ifname",
            [f'"{a}" . "{b}"' for fence in ordered for a in fence.devices for b in fence.devices],
        ),
        _set("outward4", "ipv4_addr", _collapsed(outward, 4), interval=True),
        _set("outward6", "ipv6_addr", _collapsed(outward, 6), interval=True),
        _set("own4", "ipv4_addr", _collapsed(own, 4), interval=True),
        _set("own6", "ipv6_addr", _collapsed(own, 6), interval=True),
        _set("closed_udp", "inet_service", [str(port) for port in sorted({gossip_port, vxlan_port})]),
        _set("closed_tcp", "inet_service", [str(gossip_port)]),
    )
    return "table inet meshd {\n" + "\n".join(sets) + "\n" + _RULES + "}\n"


def _collapsed(subnets: Iterable[str], version: int) -> list[str]:
    """Merge overlapping and adjacent ranges of one family: an interval set refuses overlaps."""
    networks = {ipaddress.ip_network(subnet) for subnet in subnets}
    if version == 4:
        ranges: Iterable[object] = ipaddress.collapse_addresses(
            sorted(network for network in networks if isinstance(network, ipaddress.IPv4Network))
        )
    else:
        ranges = ipaddress.collapse_addresses(
            sorted(network for network in networks if isinstance(network, ipaddress.IPv6Network))
        )
    return [str(network) for network in ranges]


def _set(name: str, kind: str, elements: Sequence[str], *, interval: bool = False) -> str:
    flags = "\t\tflags interval\n" if interval else ""
    listed = f"\t\telements = {{ {', '.join(elements)} }}\n" if elements else ""
    return f"\tset {name} {{\n\t\ttype {kind}\n{flags}{listed}\t}}\n"
