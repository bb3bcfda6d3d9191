"""Addresses given out before their endpoint is asked for: Docker asks its IPAM driver for an address, and the network
driver for an endpoint with that address a moment later. Decides how long one is kept, and which one a second question
about the same endpoint means. Which address is chosen is shell/space.py's and shell/lan.py's business.

Kept in memory only: the endpoint's record is what lasts, and an address whose endpoint never comes is free again.
"""

import msgspec

from meshd.config import HELD_S
from meshd.model import EndpointId, Item, NetworkId
from meshd.shell import lan, networks, space
from meshd.shell.attach import new_id
from meshd.shell.desk import Held
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS
from meshd.state.layout import Layout, Prefix


async def hold(
    cluster: ClusterLike, network: Item, subnet: Prefix, want: int | None, within: Prefix | None = None
) -> Held:
    """Give an address of the family of ``subnet``, one of the network's: index ``want``, or any, of ``within`` if given,
    else of that subnet and, once it is full, of the network's others.

    Where one was given in the other family a moment ago, it is the same endpoint's, and so the same index. Raises as
    attach does.
    """
    family = subnet.version
    again = _half(cluster, network.id, family, want)
    if again is not None:
        both = msgspec.structs.replace(again, families=again.families | {family})
        cluster.desk.held[network.id, again.index] = both
        return both
    facts = networks.facts(network)
    networks.check_takes_endpoints(cluster, facts)
    layout, endpoint = _first(Layout.of(network), subnet), new_id(cluster, network, want)
    with cluster.desk.attaching(network.id, facts.name):
        if facts.driver in LAN_DRIVERS:
            async with lan.place(cluster, network, None) as where:
                index = await lan.claim(cluster, network, layout, endpoint, want, where.parent)
        elif within is not None and want is None:
            index = await space.reserve_within(cluster, network, layout, endpoint, within)
        else:
            index = await space.reserve(cluster, network, layout, endpoint, want)
    held = Held(endpoint, index, cluster.now() + HELD_S, frozenset((family,)))
    cluster.desk.held[network.id, index] = held
    space.fetch_ahead(cluster, network)
    return held


def _first(layout: Layout, subnet: Prefix) -> Layout:
    """Put the spaces of a subnet first, and leave those without its family out."""
    of_family = [s for s in layout.spaces if any(prefix.version == subnet.version for prefix in s.prefixes)]
    of_family.sort(key=lambda space: subnet not in space.prefixes)
    return msgspec.structs.replace(layout, spaces=tuple(of_family))


def _half(cluster: ClusterLike, network: NetworkId, family: int, want: int | None) -> Held | None:
    """Find what was given in the other family only: the oldest, since Docker asks for one endpoint after the other."""
    found = [
        held
        for (of, index), held in cluster.desk.held.items()
        if of == network and family not in held.families and want in (None, index)
    ]
    return min(found, key=lambda held: held.until, default=None)


def take(cluster: ClusterLike, network: NetworkId, index: int) -> Held | None:
    """Take what is held out of the book, because its endpoint is made; it stays reserved."""
    return cluster.desk.held.pop((network, index), None)


def drop(cluster: ClusterLike, network: NetworkId, index: int) -> None:
    """Free what is held; nothing held is no error."""
    held = take(cluster, network, index)
    if held is not None:
        free(cluster, held.endpoint)


def free(cluster: ClusterLike, endpoint: EndpointId) -> None:
    """Undo a reservation, unless its endpoint has come."""
    if endpoint not in cluster.endpoints:
        cluster.usage.unreserve(endpoint)


def expire(cluster: ClusterLike) -> None:
    """Free what has been held for longer than HELD_S."""
    for (network, index), held in list(cluster.desk.held.items()):
        if held.until <= cluster.now():
            drop(cluster, network, index)
