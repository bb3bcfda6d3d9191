"""Decides where packets of a network's size do not get through: what hosts say of their underlays, what paths were
found to carry, and what networks need, held against each other. Says so for people; must not know how a path
is measured (node/pathmtu.py). Nothing is changed by it: a network's MTU stays what its record says.
"""

from collections.abc import Callable, Collection, Mapping

import msgspec

from meshd.config import MTU_HOSTS_NAMED, VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6
from meshd.model import HostFacts, HostId, Network, NetworkId


class Mismatch(msgspec.Struct, frozen=True):
    """``hosts``: names of those concerned, this one first. ``carried`` and ``needed``: bytes of an IP packet of
    the underlay; of ``differ`` mismatches the smallest and the largest underlay."""

    kind: str
    hosts: tuple[str, ...]
    carried: int
    needed: int
    text: str


def mismatches(
    me: HostId,
    alive: Collection[HostId],
    hosts: Mapping[HostId, HostFacts],
    networks: Mapping[NetworkId, Network],
    paths: Mapping[HostId, int],
    name_of: Callable[[HostId], str],
) -> list[Mismatch]:
    """List what is wrong between this host and others that are alive, in a lasting order.

    ``paths``: bytes that the path to a host carries, where that was measured.
    """
    mine = hosts.get(me)
    if mine is None:
        return []
    found = _differ(me, mine, [host for host in alive if host != me], hosts, name_of)
    overhead = VXLAN_OVERHEAD_V4 if len(mine.vtep) == 4 else VXLAN_OVERHEAD_V6
    overlays = sorted(
        (network.mtu, network.name) for network in networks.values() if network.driver == "overlay"
    )
    if not overlays:
        return found
    mtu, name = overlays[-1]
    here = name_of(me)
    for there, carried in sorted((name_of(host), paths[host]) for host in alive if host in paths):
        if carried < mtu + overhead:
            text = (
                f"the path from {here} to {there} carries {carried} bytes, but network {name} needs {mtu + overhead} "
                f"(mtu {mtu} and {overhead} for VXLAN): larger packets are lost; widen the path, or make the network "
                f"anew with --mtu {carried - overhead}"
            )
            found.append(Mismatch("narrow", (here, there), carried, mtu + overhead, text))
    return found


def _differ(
    me: HostId,
    mine: HostFacts,
    others: Collection[HostId],
    hosts: Mapping[HostId, HostFacts],
    name_of: Callable[[HostId], str],
) -> list[Mismatch]:
    """Compare this host's underlay with the others': one mismatch names them all."""
    differing = sorted(
        (name_of(host), facts.underlay_mtu)
        for host in others
        if (facts := hosts.get(host)) is not None and facts.underlay_mtu not in (0, mine.underlay_mtu)
    )
    if not mine.underlay_mtu or not differing:
        return []
    told = [f"{name} {mtu}" for name, mtu in differing[:MTU_HOSTS_NAMED]]
    more = len(differing) - len(told)
    here = name_of(me)
    text = f"underlay MTUs differ: {here} has {mine.underlay_mtu} bytes, {', '.join(told)}" + (
        f" and {more} more hosts something else" if more else ""
    )
    all_mtus = [mine.underlay_mtu, *(mtu for _, mtu in differing)]
    names = (here, *(name for name, _ in differing[:MTU_HOSTS_NAMED]))
    return [Mismatch("differ", names, min(all_mtus), max(all_mtus), f"{text}; set the same on all")]
