"""What the tables ``inet meshd`` and ``bridge meshd`` say (names.table: on another VXLAN port they are called
otherwise). The rules are static; networks, endpoints, members and published ports are elements of sets and maps
(elements.py).

Decides: masquerading, isolation between networks, what an internal network reaches, whose VXLAN frames are taken,
which ports are closed to containers, what a container's port may send, MSS clamping, where a published port leads.
Must not know any other table, nor what the kernel holds.

VXLAN and gossip ports are closed to containers towards other hosts too, not only towards this one: a masqueraded
packet arrives there with this host's address, and VXLAN takes a frame from any member as genuine. Bridged frames of
one network that br_netfilter shows to the forward hook are let through before that, unless its endpoints are to be kept
apart: then they are as those of two networks. Frames on our VXLAN port with a VNI that is not ours are not looked at:
they are somebody else's. A packet to 127.0.0.0/8 from a container is dropped before conntrack translates replies:
bridges with published ports have route_localnet on. What comes by another device than a bridge of ours, from an address
that is reached by one, is forged: containers' packets leave masqueraded. Strict rp_filter drops that too where it is on,
for IPv4 alone. An internal network's addresses are reached by no device, so they are like any that are made up.

What every packet of the host passes is ordered by price: a comparison before a look-up (0.2 us), and a device's name
by its beginning before the set of them, so that strangers' packets look up nothing but the way back to whom they say
they are from. What is loaded from a packet beside
its address and port is not cheap either: MAC and type are one load (elements.py), and a member's VXLAN frame is taken by
its source alone; its VNI is looked at only if that is no member's.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence, Set

from meshd import config
from meshd.model import Endpoint, Network
from meshd.plan import names
from meshd.plan.elements import Element, Elements, commands, data, declarations, element, virtual
from meshd.plan.publish import Publication

VNI_BYTES = 3
LINK_LOCAL = bytes.fromhex("fe80000000000000")

_USUAL_PORTS = (config.GOSSIP_PORT, config.VXLAN_PORT)
_BRIDGES = f'"{names.BRIDGE}*"'
_ANYBODYS = f"iifname {_BRIDGES}"
"""Where this is not the usual VXLAN port there may be a second cluster on this host, whose containers must not speak
with our members in this host's name, nor ours with its."""

_INET = """\
	chain raw {
		type filter hook prerouting priority raw; policy accept;
		iifname "BRIDGES*" goto loopback
		iif "lo" accept
		udp dport VXLAN_PORT accept
		fib saddr oifname @ways drop
	}

	chain loopback {
		ip daddr 127.0.0.0/8 iifname @bridges drop
		ip saddr 127.0.0.0/8 iifname @bridges drop
	}

	chain clamp {
		iifname @bridges tcp option maxseg size set rt mtu
		oifname @bridges tcp option maxseg size set rt mtu
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname != "BRIDGES*" oifname != "BRIDGES*" accept
		iifname . oifname @same accept
		tcp flags syn / syn,rst jump clamp
		iifname @internal drop
		oifname @internal drop
		iifname @bridges oifname @bridges ct status dnat accept
		iifname @bridges oifname @bridges drop
		udp dport CLOSED_UDP FROM_CONTAINERS OUTWARD drop
		tcp dport CLOSED_TCP FROM_CONTAINERS OUTWARD drop
		oifname @bridges ct state established,related accept
		oifname @bridges ct status dnat accept
		oifname @bridges drop
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname "BRIDGES*" goto containers
		udp dport VXLAN_PORT goto vxlan
	}

	chain containers {
		iifname @internal drop
		udp dport CLOSED_UDP FROM_CONTAINERS drop
		tcp dport CLOSED_TCP FROM_CONTAINERS drop
		udp dport VXLAN_PORT goto vxlan
	}

	chain vxlan {
		iif "lo" goto stranger
		ip saddr @members4 accept
		ip6 saddr @members6 accept
		goto stranger
	}

	chain stranger {
		@th,96,24 @vnis drop
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump published
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump published
	}

	chain published {
		ip6 daddr ::1 return
		meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @publish4
		meta nfproto ipv4 meta l4proto { tcp, udp, sctp } dnat ip to meta l4proto . th dport map @everywhere4
		meta l4proto { tcp, udp, sctp } dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish6
		meta nfproto ipv6 meta l4proto { tcp, udp, sctp } dnat ip6 to meta l4proto . th dport map @everywhere6
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		iifname . oifname @same ct status dnat masquerade
		iifname . oifname @apart ct status dnat masquerade
		ip saddr . ip daddr @selves4 masquerade
		ip6 saddr . ip6 daddr @selves6 masquerade
		oifname @bridges ip saddr 127.0.0.0/8 masquerade
		iifname @bridges oifname != @bridges masquerade
	}
"""
"""Written as ``nft list`` of 1.0.6 prints it, so that people can compare the two by eye."""

_BRIDGE = """\
	chain prerouting {
		type filter hook prerouting priority filter; policy accept;
		iifname != "PORTS*" accept
		iifname . @ll,48,64 . @nh,96,32 @ips4 goto container_ip
		iifname . @ll,48,64 . @nh,64,128 @ips6 goto container_ip6
		ether type ip6 goto unspecified
		ether type arp goto container_arp
		goto other
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		meta pkttype != other iifname . oifname @loops meta pkttype { broadcast, multicast } drop
	}

	chain container_ip {
		meta l4proto != udp accept
		th sport 67 drop
		th dport 68 drop
	}

	chain container_ip6 {
		meta l4proto tcp accept
		meta l4proto udp goto container_udp6
		icmpv6 type { nd-router-advert, nd-redirect } drop
		icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
	}

	chain container_udp6 {
		th sport 547 drop
		th dport 546 drop
	}

	chain unspecified {
		ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . ether saddr @macs iifname . @th,64,128 @targets6 accept
		goto other
	}

	chain container_arp {
		iifname . ether saddr != @macs goto other
		iifname . arp saddr ether != @macs drop
		arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ip @targets4 accept
		drop
	}

	chain other {
		iifname @ports drop
		iifname @own notrack
	}
"""
"""One look-up for a container's IPv4 packet, none for what comes by the tunnel or another's bridge: there are four frames
in a round trip. A frame that is neither ARP nor IP is dropped, a tagged one too, whose type is another: what is inside
would pass unseen."""

_TYPE = {4: b"\x08\x00", 16: b"\x86\xdd"}
"""A frame's type by the length of the addresses in it: what follows the source MAC."""


def render(*, gossip_port: int, vxlan_port: int) -> str:
    """Return both tables with empty sets, ports UDP (gossip: and TCP) as numbers."""
    usual = vxlan_port == config.VXLAN_PORT
    says = {
        "CLOSED_UDP": _ports({gossip_port, vxlan_port, *(() if usual else _USUAL_PORTS)}),
        "CLOSED_TCP": _ports({gossip_port, *(() if usual else _USUAL_PORTS[:1])}),
        "VXLAN_PORT": str(vxlan_port),
        "BRIDGES": names.BRIDGE,
        "FROM_CONTAINERS OUTWARD": "iifname @bridges" if usual else f"{_ANYBODYS} oifname != {_BRIDGES}",
        "FROM_CONTAINERS": "iifname @bridges" if usual else _ANYBODYS,
    }
    rules = functools.reduce(lambda text, word: text.replace(word, says[word]), says, _INET)
    table = names.table(vxlan_port)
    return "\n".join(
        f"table {family} {table} {{\n" + "\n".join(declarations(family)) + "\n" + text + "}"
        for family, text in (("inet", rules), ("bridge", _BRIDGE.replace("PORTS", names.VETH)))
    ) + "\n"  # fmt: skip


def _ports(numbers: Set[int]) -> str:
    listed = sorted(numbers)
    return "{ " + ", ".join(map(str, listed)) + " }" if listed[1:] else str(listed[0])


def script(text: str, elements: Elements, table: str = names.MARK) -> str:
    """Return what nft reads to make the tables with these elements; "" for no table."""
    return text + commands(elements, table) if text else ""


def network_elements(bridge: str, network: Network, also: Sequence[str] = ()) -> Elements:
    """Return the elements of a network that has a bridge here. ``also``: the host's own device on it, if it has one:
    what is routed to the network leaves by it."""
    devices = [name.encode() for name in (bridge, *also)]
    found = {element(name, device): b"" for name in ("bridges", "ways") for device in devices}
    within = "apart" if isolates_ports(network) else "same"
    found |= {element(within, one, other): b"" for one in devices for other in devices}
    if network.internal:
        found |= {element("internal", name): b"" for name in devices}
    if network.driver == "overlay":
        found[element("vnis", network.vni.to_bytes(VNI_BYTES, "big"))] = b""
    return found


def isolates_ports(network: Network) -> bool:
    """Tell whether a network's endpoints are kept from each other: each reaches its gateway and beyond alone."""
    return network.driver == "bridge" and network.options.get("isolate-ports") == "yes"


def port_elements(host_if: str, endpoint: Endpoint, also: Sequence[bytes] = ()) -> Elements:
    """Return what says who may send by a local endpoint's port: its MAC, its addresses, its link-local address; and
    ``also``, the network's virtual addresses, which are anybody's on it."""
    name, mac = host_if.encode(), endpoint.mac
    found = {element("ports", name): b"", element("macs", name, mac): b""}
    for ip in (*endpoint.ips, *also):
        if len(ip) == 4:
            found[element("ips4", name, mac + _TYPE[4], ip)] = b""
            found[element("targets4", name, ip)] = b""
    if any(len(ip) == 16 for ip in endpoint.ips):
        for ip in (*endpoint.ips, *also, link_local(mac)):
            if len(ip) == 16:
                found[element("ips6", name, mac + _TYPE[16], ip)] = b""
                found[element("targets6", name, ip)] = b""
    return found


def loop_elements(host_if: str, endpoint: Endpoint) -> Elements:
    """Return what lets an endpoint reach its own published ports where br_netfilter translates them in the bridge: its
    packets come back by the port that they came from (Port.hairpin), from another address than its own, which it would
    not take, and nothing that is for all does."""
    name = host_if.encode()
    found = {element("loops", name, name): b""}
    for ip in endpoint.ips:
        found[element("selves4" if len(ip) == 4 else "selves6", ip, ip)] = b""
    return found


def own_port_elements(host_if: str, endpoint: Endpoint) -> Elements:
    """Return what says that a port is the host's own: nobody else sends by it, and that also what it forwards. What
    comes by it was tracked as it left the host; with br_netfilter it would be once more, as somebody else's. Its
    addresses are said for tracked.py alone."""
    name = host_if.encode()
    own = {element("targets4" if len(ip) == 4 else "targets6", name, ip): b"" for ip in endpoint.ips}
    return {element("own", name): b"", **own}


def vip_elements(vips: Iterable[bytes]) -> Elements:
    """Return what says of a network's virtual addresses, packed, that they are no endpoint's own."""
    return {virtual(ip): b"" for ip in vips}


def link_local(mac: bytes) -> bytes:
    """Return the address that an interface of this MAC gives itself (RFC 4291, appendix A), packed."""
    return LINK_LOCAL + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def published_elements(endpoint: Endpoint) -> Elements:
    """Return where the endpoint's published ports lead."""
    found: Elements = {}
    for text in endpoint.published:
        for ip in endpoint.ips:
            found.update(_published(Publication.parse(text), ip))
    return found


def _published(publication: Publication, ip: bytes) -> Iterator[tuple[Element, bytes]]:
    family = 4 if len(ip) == 4 else 6
    if publication.family not in (0, family):
        return
    protocol = bytes((publication.protocol,))
    for host_port, port in publication.ports():
        key = (protocol, host_port.to_bytes(2, "big"))
        if publication.address is None:
            name = f"everywhere{family}"
            of = element(name, *key)
        else:
            name = f"publish{family}"
            of = element(name, publication.address, *key)
        yield of, data(name, ip, port.to_bytes(2, "big"))


def member_elements(vteps: Iterable[bytes]) -> Elements:
    """Return the elements of the hosts whose VXLAN frames are taken; ``vteps`` packed."""
    return {element("members4" if len(vtep) == 4 else "members6", vtep): b"" for vtep in vteps}
