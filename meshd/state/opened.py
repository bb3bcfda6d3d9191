"""Decides how a subnet is added to a network that is there already: which indices it gets, what a deed that opens one
must say, and what the network is then. Must not know who may allocate, nor how a deed travels.

Only the network's creator, who has its genesis deed, opens subnets; any host may ask it to. So in whatever partition
two hosts add subnets at once, one host decides on both: it refuses what overlaps, and where it cannot be reached nothing
is added. The deeds that open form a chain (genesis, first subnet added, second, ...): the order in which addresses are
chosen. A creator whose state was rolled back or cloned may open overlapping subnets all the same: state/deeds.py finds
that and gives their space to nobody.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from meshd.config import SUBNETS_MAX
from meshd.errors import BadRequest
from meshd.model import Deed, Network, Subnet
from meshd.state.layout import Layout, Prefix, room
from meshd.state.subnets import choose_gateways

V4_START = 1 << 40
"""A v4 subnet that was added starts here plus its own address as a number, far above what networks are made with (2**28
at most). The v6 subnet that goes with it, if it was there before, needs addresses for as many indices: a /64 has them."""

V6_START = 1 << 60
V6_CHUNK_BITS = 24
"""A v6 subnet that was added without a v4 one gets one of 2**32 chunks by hash of its address."""


def with_opened(network: Network, opened: Iterable[Deed]) -> Network:
    """Return the network with the subnets that deeds have added to it."""
    more = tuple(subnet for deed in opened for subnet in deed.opens)
    return msgspec.structs.replace(network, subnets=network.subnets + more) if more else network


def plan_opening(
    network_id: bytes, network: Network, prefixes: Sequence[Prefix], gateways: Sequence[str]
) -> tuple[Subnet, ...]:
    """Plan the subnets that are to be added together: one, or one of each family, ``prefixes`` v4 first.

    ``network`` has the subnets opened before. Raises BadRequest.
    """
    _check_number(network, prefixes)
    chosen = choose_gateways(prefixes, gateways)
    start = _start(prefixes[0])
    opens = tuple(Subnet(str(prefix), str(chosen[prefix]), start) for prefix in prefixes)
    if len(prefixes) == 2 and prefixes[1].num_addresses < prefixes[0].num_addresses:
        raise BadRequest(
            f"subnet {prefixes[1]} holds fewer addresses than {prefixes[0]}",
            f"use a /{96 + prefixes[0].prefixlen} or a larger one, such as a /64",
        )
    layout = Layout.build(network_id, msgspec.structs.replace(network, subnets=network.subnets + opens))
    has = {prefix.version for prefix in layout.spaces[0].prefixes}
    space = layout.space_at(start)
    lacks = has - {prefix.version for prefix in space.prefixes} if space is not None else has
    if lacks:
        raise BadRequest(
            f"subnet {prefixes[0]} would have no IPv{min(lacks)} addresses to go with it, as network {network.name} has",
            f"add an IPv{min(lacks)} subnet in the same command: --add-subnet twice",
        )
    return opens


def _check_number(network: Network, prefixes: Sequence[Prefix]) -> None:
    if not prefixes:
        raise BadRequest("no subnet was named")
    if len({prefix.version for prefix in prefixes}) != len(prefixes):
        raise BadRequest(
            f"{len(prefixes)} subnets at once ({', '.join(map(str, prefixes))})",
            "add one after the other; in one command only an IPv4 and an IPv6 one that go together",
        )
    if len(network.subnets) + len(prefixes) > SUBNETS_MAX:
        raise BadRequest(
            f"network {network.name} has {len(network.subnets)} subnets; at most {SUBNETS_MAX}",
            "make a second network",
        )


def _start(first: Prefix) -> int:
    """Return the index at which the space of added subnets starts: a function of the first one's address, so that a
    creator that lost its state gives another subnet other indices."""
    if first.version == 4:
        return V4_START + int(first.network_address)
    drawn = hashlib.blake2b(first.network_address.packed, digest_size=4, person=b"meshd v6 space").digest()
    return V6_START + (int.from_bytes(drawn, "big") << V6_CHUNK_BITS)


def space_size(opens: Sequence[Subnet]) -> int:
    """Return how many indices subnets open together. Raises ValueError for what is no prefix."""
    first = min((ipaddress.ip_network(subnet.cidr) for subnet in opens), key=lambda prefix: prefix.version)
    return room(first, alone=all(":" in subnet.cidr for subnet in opens))


def fault(deed: Deed, parent: Deed, *, of_root: bool) -> str:
    """Say what is wrong with a deed that opens subnets; "" nothing. ``of_root``: its parent is the genesis deed or
    opens a subnet itself."""
    if not of_root or deed.donor != deed.owner or deed.owner != parent.owner:
        return "opens a subnet without being the creator's"
    try:
        prefixes = [ipaddress.ip_network(subnet.cidr) for subnet in deed.opens]
        gateways = [ipaddress.ip_address(subnet.gateway) for subnet in deed.opens]
        size = space_size(deed.opens)
    except ValueError:
        return "opens what is no subnet"
    if any(gateway not in prefix for gateway, prefix in zip(gateways, prefixes, strict=True)):
        return "its gateway is in another subnet"
    placed = deed.start == _start(min(prefixes, key=lambda prefix: prefix.version))
    if deed.size != size or not placed or any(subnet.start != deed.start for subnet in deed.opens):
        return "its space is not that of its subnets"
    return ""


def overlap(one: Deed, other: Deed) -> bool:
    """Whether two deeds open subnets that share addresses."""
    mine, theirs = ([ipaddress.ip_network(subnet.cidr) for subnet in deed.opens] for deed in (one, other))
    return any(a.version == b.version and a.overlaps(b) for a in mine for b in theirs)
