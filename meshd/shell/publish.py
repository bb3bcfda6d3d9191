"""May an endpoint's ports be published? Decides what stands against it: a network from which nothing leads out, an
address that is not this host's, another endpoint's publication, a socket of the host's own, what another cluster's daemon here publishes. All of it is told before
anything is made. What a publication says is plan/publish.py's business, where it leads plan/firewall.py's.
"""

import ipaddress
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from meshd.errors import BadRequest, Conflict, Unavailable
from meshd.kernel.nft import Elsewhere
from meshd.kernel.sockets import Listener
from meshd.model import Item, text_ip
from meshd.plan.elements import PROTOCOLS
from meshd.plan.publish import Publication
from meshd.shell import networks
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS

_NAMES = {number: name for name, number in PROTOCOLS.items()}


class Taken(Conflict):
    """Sockets of this host's own have ports that are to be published. ``inodes``: which."""

    def __init__(self, what: str, hint: str, inodes: Sequence[int]) -> None:
        super().__init__(what, hint)
        self.inodes = inodes


async def check(
    cluster: ClusterLike, network: Item, wanted: Sequence[Publication], spare: Set[int] = frozenset()
) -> None:
    """Raise BadRequest or Conflict where the host itself stands against it, KernelError. ``spare``: inodes of sockets
    that do not."""
    if not wanted:
        return
    facts = networks.facts(network)
    if facts.internal:
        raise BadRequest(
            f"published: network {facts.name} is internal: nothing leads into it",
            "attach to another network as well",
        )
    if facts.driver in LAN_DRIVERS:
        raise BadRequest(
            f"published: network {facts.name} is the LAN itself, where its endpoints have addresses of their own",
            "leave --publish out, or attach to another network as well",
        )
    served = {ipaddress.ip_network(subnet.cidr).version for subnet in facts.subnets}
    for one in wanted:
        if one.family and one.family not in served:
            raise BadRequest(f"published: {one}: network {facts.name} has no IPv{one.family} subnet")
    ask = cluster.reconciler.in_kernel_thread
    local = await ask(cluster.kernel.local_addresses)
    for one in wanted:
        if (
            one.address is not None
            and not ipaddress.ip_address(one.address).is_loopback
            and one.address not in local
        ):
            raise BadRequest(
                f"published: {text_ip(one.address)} is not an address of this host",
                "ip address lists what it has",
            )
    taken = [
        listener
        for listener in await ask(cluster.kernel.listeners)
        if listener.inode not in spare and any(_takes(listener, one) for one in wanted)
    ]
    for listener in taken[:1]:
        raise Taken(
            f"published: port {listener.port}/{_NAMES[listener.protocol]} of this host is taken by a socket of uid "
            f"{listener.uid} on {text_ip(listener.address) if listener.address else 'every address'}",
            "choose another host port, or stop that service: ss -lntup names it",
            [one.inode for one in taken],
        )
    for other in await ask(cluster.kernel.published_elsewhere):
        if any(_takes(other, one) for one in wanted):
            raise Conflict(
                f"published: port {other.port}/{_NAMES[other.protocol]} of this host is published by another cluster's "
                f"daemon here (table inet {other.table})",
                "choose another host port, or detach that cluster's endpoint",
            )


class Choice(NamedTuple):
    """A publication of one port whose port on the host is any from its own to ``last``; ``anywhere``: chosen by us, so
    that one which was given up lately rests."""

    wanted: Publication
    last: int
    anywhere: bool


async def choose(cluster: ClusterLike, wanted: Sequence[Choice]) -> tuple[Publication, ...]:
    """Choose free ports of the host, and write ports that lie side by side as one range. A port that is free of none is
    left as it was asked for: ``reserved`` and ``check`` say who has it. Raises Unavailable where all are in use."""
    ask = cluster.reconciler.in_kernel_thread
    others: list[Listener | Elsewhere] = [
        *await ask(cluster.kernel.listeners),
        *await ask(cluster.kernel.published_elsewhere),
    ]
    taken = [one for held in cluster.desk.publishing for one in held]
    for endpoint in map(cluster.endpoints.__getitem__, cluster.endpoints.of(cluster.me)):
        taken += map(Publication.parse, endpoint.published)
    chosen: list[Publication] = []
    for choice in wanted:
        count = choice.last - choice.wanted.first + 1
        start = int.from_bytes(cluster.entropy(4), "big") % count if choice.anywhere else 0
        for step in range(count):
            port = choice.wanted.first + (start + step) % count
            one = msgspec.structs.replace(choice.wanted, first=port)
            if not any(_takes(other, one) for other in others) and not any(
                one.clash(other) is not None for other in (*taken, *chosen)
            ):
                break
        else:
            if choice.anywhere:
                raise Unavailable(
                    f"published: every port from {choice.wanted.first} to {choice.last} of this host is in use",
                    "name a host port: -p HOSTPORT:PORT",
                )
            one = choice.wanted
        chosen.append(one)
    return _ranges(chosen)


def _ranges(ports: Sequence[Publication]) -> tuple[Publication, ...]:
    found: list[Publication] = []
    for one in sorted(set(ports), key=lambda p: (p.protocol, p.family, p.address or b"", p.first)):
        last = found[-1] if found else None
        if last is not None and one == msgspec.structs.replace(
            last, first=last.first + last.count, inner=last.inner + last.count, count=1
        ):
            found[-1] = msgspec.structs.replace(last, count=last.count + 1)
        else:
            found.append(one)
    return tuple(found)


def _takes(listener: Listener | Elsewhere, one: Publication) -> bool:
    if listener.protocol != one.protocol or not one.first <= listener.port < one.first + one.count:
        return False
    if not set(listener.families) & set(one.families()):
        return False
    return listener.address is None or one.address is None or listener.address == one.address


@contextmanager
def reserved(cluster: ClusterLike, wanted: Sequence[Publication]) -> Iterator[None]:
    """Keep others from publishing the same while an endpoint is made. Raises Conflict naming who has it."""
    for endpoint in map(cluster.endpoints.__getitem__, cluster.endpoints.of(cluster.me)):
        if endpoint.published:
            held = [Publication.parse(text) for text in endpoint.published]
            _refuse(wanted, held, f"endpoint {endpoint.name}")
    _refuse(
        wanted,
        [one for held in cluster.desk.publishing for one in held],
        "an endpoint that is being attached",
    )
    mine = tuple(wanted)
    cluster.desk.publishing.append(mine)
    try:
        yield
    finally:
        cluster.desk.publishing.remove(mine)


def _refuse(wanted: Sequence[Publication], held: Sequence[Publication], holder: str) -> None:
    for one in wanted:
        for other in held:
            port = one.clash(other)
            if port is not None:
                raise Conflict(
                    f"published: port {port}/{_NAMES[one.protocol]} of this host is {holder}'s already ({other})",
                    "choose another host port, or detach that endpoint",
                )
