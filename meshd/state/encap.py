"""Decides a network's VXLAN number and MTU from what the hosts say of their underlay. Knows the encapsulation's
cost; must not know addresses or devices.
"""

import hashlib
from collections.abc import Iterable, Mapping

from meshd.config import (
    MTU_DEFAULT,
    MTU_MAX,
    MTU_MIN_V4,
    MTU_MIN_V6,
    VNI_MAX,
    VNI_MIN,
    VXLAN_OVERHEAD_V4,
    VXLAN_OVERHEAD_V6,
)
from meshd.errors import BadRequest, Conflict, Unavailable
from meshd.model import HostFacts, HostId, Item, Network, NetworkId


def plan_vni(
    network_id: NetworkId,
    wanted: int | None,
    networks: Iterable[Item],
    taken: Mapping[int, str] | None = None,
) -> int:
    """Take the number asked for, or probe upward from a hash of the network id past those in use.

    ``taken``: numbers that something other than a network has, in words: ``device vx0 of this host``.

    Automatic numbers are at or above VNI_MIN, out of the way of numbers that people choose by hand. Raises
    BadRequest (not 1 to VNI_MAX), Conflict (in use), Unavailable (all in use).
    """
    used = dict(taken or {})
    for item in networks:
        if isinstance(item.body, Network) and item.body.vni:
            used[item.body.vni] = f"network {item.body.name}"
    if wanted is not None:
        if not 1 <= wanted <= VNI_MAX:
            raise BadRequest(f"vni {wanted} is not between 1 and {VNI_MAX}")
        if wanted in used:
            raise Conflict(f"vni {wanted} is used by {used[wanted]}", "choose another, or leave --vni out")
        return wanted
    count = VNI_MAX - VNI_MIN + 1
    hashed = hashlib.blake2b(network_id, digest_size=8, person=b"meshd vni").digest()
    first = int.from_bytes(hashed, "big") % count
    for step in range(min(count, len(used) + 1)):
        vni = VNI_MIN + (first + step) % count
        if vni not in used:
            return vni
    raise Unavailable("every vni is in use", "remove networks")


def _room(driver: str, facts: HostFacts) -> tuple[int, str]:
    """Say what is left of a host's underlay MTU for a container's packet, and how that comes about."""
    if driver != "overlay":
        return facts.underlay_mtu, f"{facts.name}'s underlay has {facts.underlay_mtu} bytes"
    overhead = VXLAN_OVERHEAD_V4 if len(facts.vtep) == 4 else VXLAN_OVERHEAD_V6
    room = facts.underlay_mtu - overhead
    return room, f"{facts.name}'s underlay has {facts.underlay_mtu} bytes, of which VXLAN takes {overhead}"


def plan_mtu(
    driver: str, wanted: int | None, *, ipv6: bool, creator: HostId, hosts: Mapping[HostId, HostFacts]
) -> int:
    """Decide the MTU that containers get, in bytes.

    Overlay: what the narrowest known underlay leaves; an explicit value above that is refused with the numbers.
    Bridge: its own host's underlay, so that nothing is fragmented on the way out; an explicit value is free, as
    traffic may stay on the bridge. A host whose underlay is not known (0) is passed over. Raises BadRequest.
    """
    told = hosts.values() if driver == "overlay" else [hosts[creator]] if creator in hosts else []
    rooms = [_room(driver, facts) for facts in told if facts.underlay_mtu]
    overhead = VXLAN_OVERHEAD_V4 if driver == "overlay" else 0
    room, why = min(rooms, default=(MTU_DEFAULT - overhead, f"an underlay of {MTU_DEFAULT} bytes is assumed"))
    least = MTU_MIN_V6 if ipv6 else MTU_MIN_V4
    needs = f"{'IPv6 (RFC 8200)' if ipv6 else 'IPv4 (RFC 791)'} needs {least}"
    mtu = room if wanted is None else wanted
    if wanted is not None and driver == "overlay" and wanted > room:
        raise BadRequest(f"mtu {wanted} does not fit: {why}", f"at most {room}; leave --mtu out to get that")
    if mtu > MTU_MAX:
        raise BadRequest(f"mtu {mtu} is above {MTU_MAX}", "leave --mtu out to get what the underlay carries")
    if mtu < least:
        if wanted is None:
            raise BadRequest(f"mtu {mtu} is too small: {needs}, but {why}", "raise the underlay's MTU")
        raise BadRequest(
            f"mtu {mtu} is too small: {needs}", "leave --mtu out to get what the underlay carries"
        )
    return mtu
