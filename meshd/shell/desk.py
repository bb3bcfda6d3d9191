"""What attach and detach are in the middle of, in memory only: who waits for whom, and which network must not
be removed meanwhile. Knows neither addresses nor the kernel.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import msgspec
import trio

from meshd.errors import Conflict
from meshd.model import UNKNOWN_NETNS, EndpointId, NetworkId
from meshd.plan.publish import Publication

K = TypeVar("K")

Place = tuple[int, str]
"""Cookie of a network namespace of this boot, and an interface name in it; or UNKNOWN_NETNS and what its owner calls
the endpoint."""


def place_of(cookie: int, ifname: str, owner: str) -> Place:
    """Return what tells an endpoint from others of this host."""
    return (cookie, owner) if cookie == UNKNOWN_NETNS else (cookie, ifname)


class Held(msgspec.Struct, frozen=True):
    """An address that a runtime was given for an endpoint which it asks for in a moment (shell/held.py), reserved for
    that endpoint's id. ``until``: monotonic seconds; ``families``: those that it has been told the address of."""

    endpoint: EndpointId
    index: int
    until: float
    families: frozenset[int]


class Desk:
    """One of these per daemon."""

    def __init__(self) -> None:
        self._locks: dict[Place, trio.Lock] = {}
        self._plugging: dict[EndpointId, trio.Lock] = {}
        self._attaching: Counter[NetworkId] = Counter()
        self._fetching: set[NetworkId] = set()
        self._asking: dict[NetworkId, trio.Lock] = {}
        self._hosting: dict[NetworkId, trio.Lock] = {}
        self._closing: set[NetworkId] = set()
        self.publishing: list[tuple[Publication, ...]] = []
        """Of endpoints that are being made: shell/publish.py."""
        self.planning = trio.Lock()
        """Held from planning a network to its commit: two networks must not be planned onto one name or prefix."""
        self.bridging = trio.Lock()
        """Held while an operator's bridges or their ports are changed."""
        self.lan = trio.Lock()
        """Held while a parent is looked at and its devices are made or deleted."""
        self.parents: Counter[str] = Counter()
        """Parents of the LAN that endpoints are being made on."""
        self.docker = trio.Lock()
        """Held while it is decided which network a Docker network is."""
        self.held: dict[tuple[NetworkId, int], Held] = {}
        """Addresses given out of which no endpoint has come yet, by index."""
        self.left: set[EndpointId] = set()
        """Endpoints whose peer a runtime is about to put back where it took it from."""

    @asynccontextmanager
    async def place(self, place: Place) -> AsyncIterator[None]:
        """Have a place alone: two callers about one interface go one after the other, others do not wait."""
        async with _alone(self._locks, place):
            yield

    @asynccontextmanager
    async def plugging(self, endpoint: EndpointId) -> AsyncIterator[None]:
        """Have an endpoint's link alone: an id that is attached anew waits until its former link is gone. Taken
        after ``place``."""
        async with _alone(self._plugging, endpoint):
            yield

    @asynccontextmanager
    async def asking(self, network: NetworkId) -> AsyncIterator[None]:
        """Be the only one that asks owners for space in a network: what one is given serves those behind it."""
        async with _alone(self._asking, network):
            yield

    @asynccontextmanager
    async def hosting(self, network: NetworkId) -> AsyncIterator[None]:
        """Be the only one that gives this host an endpoint of its own on a network, or takes it away."""
        async with _alone(self._hosting, network):
            yield

    def is_attaching(self, network: NetworkId) -> bool:
        """Tell whether an endpoint is being made on a network just now."""
        return self._attaching[network] > 0

    @contextmanager
    def attaching(self, network: NetworkId, name: str) -> Iterator[None]:
        """Count an endpoint that is being made on a network. Raises Conflict while the network is removed."""
        if network in self._closing:
            raise Conflict(f"network {name} is being removed")
        self._attaching[network] += 1
        try:
            yield
        finally:
            self._attaching[network] -= 1
            if not self._attaching[network]:
                del self._attaching[network]

    @contextmanager
    def closing(self, network: NetworkId, name: str) -> Iterator[None]:
        """Let no endpoint be made on a network. Raises Conflict while one is."""
        if self._attaching[network]:
            raise Conflict(
                f"an endpoint is being attached to network {name} just now", "detach it, then try again"
            )
        self._closing.add(network)
        try:
            yield
        finally:
            self._closing.discard(network)

    @contextmanager
    def fetching(self, network: NetworkId) -> Iterator[bool]:
        """Say whether the caller is the only one that fetches space ahead for a network, and keep it so."""
        first = network not in self._fetching
        self._fetching.add(network)
        try:
            yield first
        finally:
            if first:
                self._fetching.discard(network)


@asynccontextmanager
async def _alone(locks: dict[K, trio.Lock], key: K) -> AsyncIterator[None]:
    """Hold the lock of ``key``, which exists only while somebody holds or wants it."""
    lock = locks.setdefault(key, trio.Lock())
    try:
        async with lock:
            yield
    finally:
        if not lock.locked() and locks.get(key) is lock:
            del locks[key]
