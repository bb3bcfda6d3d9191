"""What kernel objects are called: device names, MACs, the ownership mark and nexthop ids.

Everything here follows from ids alone, so that two daemons, or one before and after a restart, name the same
thing the same way and find it again. It must not know what is programmed, nor read any state.
"""

import functools
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from meshd.config import NEXTHOP_BASE, NEXTHOP_BASE_OTHERS, VXLAN_PORT
from meshd.model import ID_BYTES, EndpointId, HostId, NetworkId

MARK = "meshd"
NAME_HEX = 8
"""Hex digits of an id in a device name: IFNAMSIZ leaves 15 characters, people leave fewer."""

OVERLAY_BRIDGE = BRIDGE = "mo"
HOST = BRIDGE + "x"
"""One beginning for every bridge of ours and the host's own device beside it, so that one pair of rules in somebody
else's chain names all that packets are routed to and from."""
VXLAN, VETH, PEER, GUEST, SHIM = "mv", "mh", "mp", "mu", "ms"
PREFIXES = (HOST, BRIDGE, VXLAN, VETH, PEER, GUEST, SHIM)
NEXTHOP_SLOTS = 1 << 23
GROUP_OFFSET = NEXTHOP_SLOTS
"""A host's group id is its nexthop id plus this."""

_PORT_HIGH_SHIFT, _PORT_LOW_BITS, _PORT_LOW_SHIFT = 24, 9, 14
"""Where a VXLAN port is in the nexthop ids of a cluster that is not on the usual one; GROUP_OFFSET is between."""


class NexthopIds(NamedTuple):
    """Which nexthop ids are a cluster's: ``base`` + [0, ``slots``), and so many from ``base`` + GROUP_OFFSET on."""

    base: int
    slots: int

    def __contains__(self, number: object) -> bool:
        """Tell whether an id is one of these."""
        return isinstance(number, int) and 0 <= (number & ~GROUP_OFFSET) - self.base < self.slots


def nexthops_of(vxlan_port: int) -> NexthopIds:
    """Return the ids of the cluster on a VXLAN port. Two clusters on one host have two ports, and no id in common."""
    if vxlan_port == VXLAN_PORT:
        return NexthopIds(NEXTHOP_BASE, NEXTHOP_SLOTS)
    low = vxlan_port & (1 << _PORT_LOW_BITS) - 1
    high = vxlan_port >> _PORT_LOW_BITS
    return NexthopIds(
        NEXTHOP_BASE_OTHERS | high << _PORT_HIGH_SHIFT | low << _PORT_LOW_SHIFT, 1 << _PORT_LOW_SHIFT
    )


def table(vxlan_port: int) -> str:
    """Name the nftables tables of the cluster on a VXLAN port."""
    return MARK if vxlan_port == VXLAN_PORT else f"{MARK}-{vxlan_port}"


def overlay_bridge(network: NetworkId) -> str:
    """Name the bridge of an overlay network."""
    return OVERLAY_BRIDGE + network.hex()[:NAME_HEX]


def vxlan(network: NetworkId) -> str:
    """Name the VXLAN device of an overlay network."""
    return VXLAN + network.hex()[:NAME_HEX]


def bridge(network: NetworkId) -> str:
    """Name the bridge of a ``bridge`` network."""
    return BRIDGE + network.hex()[:NAME_HEX]


def veth(endpoint: EndpointId) -> str:
    """Name the end of an endpoint's veth pair that stays in the host's namespace."""
    return VETH + endpoint.hex()[:NAME_HEX]


def peer(endpoint: EndpointId) -> str:
    """Name the end of an endpoint's veth pair that the caller moves away, until it is renamed there."""
    return PEER + endpoint.hex()[:NAME_HEX]


def host(network: NetworkId) -> str:
    """Name the device by which the host itself is on an overlay network (--host-access)."""
    return HOST + network.hex()[:NAME_HEX]


def shim(network: NetworkId) -> str:
    """Name the device by which the host itself is on a macvlan network (--host-access). Not like a bridge: what is
    routed by it is the LAN's, and no other firewall need let it through."""
    return SHIM + network.hex()[:NAME_HEX]


def guest(endpoint: EndpointId) -> str:
    """Name an endpoint's macvlan or ipvlan device until the caller has moved and renamed it. In plans it keeps
    this name wherever it is."""
    return GUEST + endpoint.hex()[:NAME_HEX]


def is_ours(name: str) -> bool:
    """Tell whether a device is named as ours are; only the alias proves that it is ours."""
    hex_part = name.removeprefix(next((prefix for prefix in PREFIXES if name.startswith(prefix)), name))
    return len(hex_part) == NAME_HEX and not hex_part.strip("0123456789abcdef")


def _local_mac(seed: bytes) -> bytes:
    """Make a locally administered unicast MAC, 02 + 40 bits of BLAKE2b: never derived from an address, since
    an address is used again and a MAC must not be (moby #52661)."""
    return b"\x02" + hashlib.blake2b(seed, digest_size=5).digest()


def endpoint_mac(endpoint: EndpointId) -> bytes:
    """Return the 6-byte MAC of an endpoint that asked for none."""
    return _local_mac(endpoint)


def gateway_mac(network: NetworkId) -> bytes:
    """Return the 6-byte MAC of a network's bridge, the same on every host: an endpoint that moves keeps its
    gateway's neighbour entry."""
    return _local_mac(b"gateway" + network)


def vtep_mac(network: NetworkId, host: HostId) -> bytes:
    """Return the 6-byte MAC of a host's VXLAN device in a network."""
    return _local_mac(b"vtep" + network + host)


def cluster_mark(cluster: bytes) -> str:
    """Return the 8 hex digits that stand for a cluster in every mark."""
    return cluster.hex()[:NAME_HEX]


def alias(mark: str, network: NetworkId, endpoint: EndpointId = b"") -> str:
    """Return the IFLA_IFALIAS of every device of ours. ``mark``: ``cluster_mark``'s; ``endpoint``: whose veth it is,
    so that the device is known again under another name."""
    whose = f":{endpoint.hex()[:NAME_HEX]}" if endpoint else ""
    return f"{MARK}:{mark}:{network.hex()}{whose}"


def guest_alias(mark: str, network: NetworkId, endpoint: EndpointId) -> str:
    """Return the IFLA_IFALIAS of a device that goes into a container's namespace: there its name is the
    container's, so the mark says whose it is."""
    return f"{alias(mark, network)}:{endpoint.hex()}"


def lan_bridge_alias(mark: str, bridge: bytes) -> str:
    """Return the IFLA_IFALIAS of a bridge that an operator made: it carries the host's own addresses, so that nothing
    on it but itself is ours."""
    return f"{alias(mark, bridge)}:{LAN_TAIL}"


LAN_TAIL = "lan"


def is_lan_bridge(text: str) -> bool:
    """Tell whether an alias is that of a bridge that an operator made, of whichever cluster."""
    return text.startswith(f"{MARK}:") and text.endswith(f":{LAN_TAIL}")


def lan_bridge_mac(bridge: bytes) -> bytes:
    """Return the 6-byte MAC that an operator's bridge has while it has no port. ``bridge``: its random id."""
    return _local_mac(b"lan" + bridge)


def alias_head(mark: str) -> str:
    """Return what every alias of a cluster's devices begins with."""
    return f"{MARK}:{mark}:"


def alias_network(text: str, mark: str) -> NetworkId | None:
    """Return the network that an alias names, or None if it is not this cluster's mark."""
    head = alias_head(mark)
    if not text.startswith(head):
        return None
    try:
        return bytes.fromhex(text[len(head) :].partition(":")[0])
    except ValueError:
        return None


def alias_endpoint(text: str, mark: str) -> EndpointId | None:
    """Return the endpoint that a guest's alias names, or None if it is not one of this cluster."""
    endpoint = text.rpartition(":")[2]
    if alias_network(text, mark) is None or text.count(":") != GUEST_ALIAS_COLONS:
        return None
    try:
        found = bytes.fromhex(endpoint)
    except ValueError:
        return None
    return found if len(found) == ID_BYTES else None  # a veth's names the id's beginning only


GUEST_ALIAS_COLONS = 3


@functools.lru_cache(maxsize=1 << 16)
def _hash(host: HostId) -> int:
    return int.from_bytes(hashlib.blake2b(host, digest_size=4).digest(), "big")


def nexthop_ids(hosts: Iterable[HostId], vxlan_port: int = VXLAN_PORT) -> dict[HostId, int]:
    """Assign each host the id of its FDB nexthop; its group's is that plus GROUP_OFFSET.

    The cluster's base + bits of a hash of the host's id. Where two fall on one slot (6 % of clusters of 1,000
    hosts have such a pair) the higher host id takes the next free one, so the result depends on the set of
    hosts and not on the order in which they were heard of. Where there are more hosts than slots those with the highest
    ids have none: their rows name their addresses.
    """
    base, slots = nexthops_of(vxlan_port)
    taken: dict[int, HostId] = {}
    ids: dict[HostId, int] = {}
    for host in sorted(hosts)[:slots]:
        slot = _hash(host) % slots
        while slot in taken:
            slot = (slot + 1) % slots
        taken[slot] = host
        ids[host] = base + slot
    return ids
