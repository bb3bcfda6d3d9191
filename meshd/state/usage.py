"""Decides which indices of each network are in use and which have been released when, from the endpoint items
the store accepted, kept incrementally. Knows nothing of owners or addresses. Times are the caller's monotonic
seconds: what was released before this start counts as released at load.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

from meshd.config import COOLDOWN_S, INSERTS_SINGLE_MAX
from meshd.model import Endpoint, EndpointId, Item, Kind, NetworkId, Released

_KINDS = (Kind.ENDPOINT, Kind.LOCAL_ENDPOINT)


class NetworkUse:
    """One network's indices in use. ``holders``: index -> its live endpoints (more than one is a conflict)."""

    def __init__(self) -> None:
        self.holders: dict[int, tuple[EndpointId, ...]] = {}
        self.released: dict[int, float] = {}
        """Index -> when it was last released (it may be in use again). Absent: never released, as far as known."""
        self.former: dict[int, tuple[EndpointId, ...]] = {}
        """Index -> the endpoints whose tombstones name it."""
        self._used: list[int] = []
        self._new: list[int] = []  # in use, not in _used yet: 100,000 inserts one by one would be quadratic

    @property
    def used(self) -> Sequence[int]:
        """The indices in use, sorted. Not to be changed."""
        return self._sorted()

    def _sorted(self) -> list[int]:
        if len(self._new) <= INSERTS_SINGLE_MAX:
            for index in self._new:
                insort(self._used, index)
        else:
            self._used = sorted(self._used + self._new)
        self._new.clear()
        return self._used

    def take(self, index: int, endpoint: EndpointId) -> None:
        """Count an endpoint on an index."""
        holders = self.holders.get(index, ())
        if not holders:
            self._new.append(index)
        if endpoint not in holders:
            self.holders[index] = (*holders, endpoint)

    def drop(self, index: int, endpoint: EndpointId) -> bool:
        """Take an endpoint off an index; True where that was its last."""
        holders = self.holders.get(index, ())
        if endpoint not in holders:
            return False
        left = tuple(holder for holder in holders if holder != endpoint)
        if left:
            self.holders[index] = left
            return False
        del self.holders[index]
        used = self._sorted()
        del used[bisect_left(used, index)]
        return True

    def cooling(self, index: int, now: float) -> bool:
        """Whether an index was released less than COOLDOWN_S ago."""
        at = self.released.get(index)
        return at is not None and now - at < COOLDOWN_S

    def busy(self, now: float) -> set[int]:
        """Give every index in use or cooling: what must not be handed on."""
        return {*self.holders, *(index for index in self.released if self.cooling(index, now))}


class Usage:
    """All networks' indices in use."""

    def __init__(self) -> None:
        self._networks: dict[NetworkId, NetworkUse] = {}
        self._where: dict[EndpointId, tuple[NetworkId, int]] = {}
        self._left: dict[EndpointId, tuple[NetworkId, int]] = {}  # what its tombstone names
        self._nothing = NetworkUse()

    def of(self, network: NetworkId) -> NetworkUse:
        """Give one network's view, to read only."""
        return self._networks.get(network, self._nothing)

    def observe(self, item: Item, now: float) -> None:
        """Follow an ENDPOINT or LOCAL_ENDPOINT item that the store has accepted; others are ignored."""
        if item.kind not in _KINDS:
            return
        body = item.body
        self._forget_former(item.id)
        if isinstance(body, Endpoint) and not item.dead:
            self._move(item.id, (body.network, body.index), now)
        elif isinstance(body, Released):
            self._move(item.id, None, now)
            use = self._networks.setdefault(body.network, NetworkUse())
            self._left[item.id] = body.network, body.index
            use.former[body.index] = (*use.former.get(body.index, ()), item.id)
            if body.index not in use.holders:
                use.released[body.index] = now

    def forget(self, endpoint: EndpointId, now: float) -> None:
        """Release an endpoint whose item, or whose tombstone, the store dropped."""
        self._forget_former(endpoint)
        self._move(endpoint, None, now)

    def _forget_former(self, endpoint: EndpointId) -> None:
        where = self._left.pop(endpoint, None)
        if where is None:
            return
        former = self._networks[where[0]].former
        left = tuple(other for other in former[where[1]] if other != endpoint)
        if left:
            former[where[1]] = left
        else:
            del former[where[1]]

    def reserve(self, network: NetworkId, index: int, endpoint: EndpointId) -> None:
        """Count an index as used while its endpoint is being made: between ``choose`` and the commit nobody
        else may get it. ``observe`` of the item makes it lasting; ``unreserve`` undoes it."""
        self._move(endpoint, (network, index), 0.0)

    def unreserve(self, endpoint: EndpointId) -> None:
        """Undo ``reserve``: nobody was told of the index, so what was known of it before holds again."""
        where = self._where.pop(endpoint, None)
        if where is not None:
            self._networks[where[0]].drop(where[1], endpoint)

    def rest(self, network: NetworkId, index: int, now: float) -> None:
        """Have an index rest as if it had just been released: somebody who is no endpoint of ours has its
        address."""
        self._networks.setdefault(network, NetworkUse()).released[index] = now

    def _move(self, endpoint: EndpointId, to: tuple[NetworkId, int] | None, now: float) -> None:
        was = self._where.get(endpoint)
        if was == to:
            return
        if was is not None:
            del self._where[endpoint]
            use = self._networks[was[0]]
            if use.drop(was[1], endpoint):
                use.released[was[1]] = now
        if to is not None:
            self._where[endpoint] = to
            self._networks.setdefault(to[0], NetworkUse()).take(to[1], endpoint)
