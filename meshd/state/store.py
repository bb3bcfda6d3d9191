"""The map of versioned items: which of two items stands, and what is void (design.md, section 6).

The rule is one comparison: the higher Version wins, whoever brings it and in whatever order, so merging is
commutative, associative and idempotent and needs no clock.

Tombstones are collected without clocks: an origin numbers its ENDPOINT items and publishes in its HOST item a
*floor*, after writing everything of its that is alive anew above it. An item at or below its origin's floor is
void: dropped where it is, refused where it arrives, so that a host back after months resurrects nothing. So is all that a
forgotten host wrote of endpoints.
Must not know networks, addresses or the wire.
"""

from collections import defaultdict
from collections.abc import Iterator

import msgspec

from meshd.config import TOMBSTONES_MIN
from meshd.model import FIRST_LOCAL_KIND, HostFacts, HostId, Item, Key, Kind, Version
from meshd.spread.digest import DigestTable


class Change(msgspec.Struct, frozen=True):
    """What a merge did: ``item`` now stands in place of ``before``. An item that became void by a raised floor
    is a Change with ``item`` None."""

    key: Key
    item: Item | None
    before: Item | None


class Store:
    """All items this host knows, gossiped and local."""

    def __init__(self, secret: bytes) -> None:
        """``secret``: keys the digest; the cluster's, never rotated."""
        self._kinds: defaultdict[int, dict[bytes, Item]] = defaultdict(dict, {kind: {} for kind in Kind})
        self._by_origin: dict[HostId, dict[bytes, None]] = {}
        self._highest: dict[HostId, int] = {}  # sequence seen of each origin
        self.digests = DigestTable(secret)

    @property
    def digest(self) -> bytes:
        """16 bytes; equal at two hosts when they hold the same gossiped items."""
        return self.digests.root

    def get(self, kind: int, item_id: bytes) -> Item | None:
        """Return the item, dead or alive, or None."""
        return self._kinds[kind].get(item_id)

    def live(self, kind: int) -> Iterator[Item]:
        """Yield the items of a kind that are not dead."""
        return (item for item in self._kinds[kind].values() if not item.dead)

    def all(self, kind: int) -> Iterator[Item]:
        """Yield the items of a kind, tombstones included."""
        return iter(self._kinds[kind].values())

    def everything(self) -> Iterator[Item]:
        """Yield every item of every kind: what a snapshot holds."""
        for items in self._kinds.values():
            yield from items.values()

    def lookup(self, key: Key) -> Item | None:
        """Return the item under ``key`` or None."""
        return self._kinds.get(key.kind, {}).get(key.id)

    def floor(self, origin: HostId) -> int:
        """Return the sequence at and below which this origin's endpoint items are void."""
        item = self._kinds[Kind.HOST].get(origin)
        return item.body.floor if item is not None and isinstance(item.body, HostFacts) else 0

    def void(self, item: Item) -> bool:
        """Whether the origin's floor has passed this item, or the origin was forgotten."""
        return item.kind == Kind.ENDPOINT and (
            item.seq <= self.floor(item.origin) or item.origin in self._kinds[Kind.FORGOTTEN]
        )

    def newer(self, item: Item) -> bool:
        """Whether ``merge`` would take this item."""
        mine = self._kinds[item.kind].get(item.id)
        return (mine is None or item.version > mine.version) and not self.void(item)

    def merge(self, item: Item) -> list[Change]:
        """Take the item if it is newer. Returns what changed, the item first; [] when it was not newer or void."""
        if not self.newer(item):
            return []
        kind = self._kinds[item.kind]
        before = kind.get(item.id)
        kind[item.id] = item
        if item.kind < FIRST_LOCAL_KIND:
            self.digests.put(item.key, item.version)
        changes = [Change(item.key, item, before)]
        if item.kind == Kind.ENDPOINT:
            if before is not None:
                self._by_origin.get(before.origin, {}).pop(item.id, None)
            self._by_origin.setdefault(item.origin, {})[item.id] = None
            self._highest[item.origin] = max(item.seq, self._highest.get(item.origin, 0))
        elif item.kind in (Kind.HOST, Kind.FORGOTTEN):
            changes += self._sink(item.id)
        return changes

    def drop(self, key: Key) -> Item | None:
        """Forget a local item (ATTACHMENT) altogether. Gossiped items are never dropped: they die."""
        if key.kind < FIRST_LOCAL_KIND:
            raise ValueError("only local items can be dropped")
        return self._kinds[key.kind].pop(key.id, None)

    def _sink(self, origin: HostId) -> list[Change]:
        """Drop what this origin's floor has made void, or that it was forgotten."""
        endpoints = self._kinds[Kind.ENDPOINT]
        gone = [endpoints[i] for i in self._by_origin.get(origin, ()) if self.void(endpoints[i])]
        for item in gone:
            del endpoints[item.id]
            self._by_origin[origin].pop(item.id, None)
            self.digests.remove(item.key)
        return [Change(item.key, None, item) for item in gone]

    def own_sequence(self, me: HostId) -> int:
        """Return the highest sequence known of this origin; the next write must be above it."""
        return max(self._highest.get(me, 0), self.floor(me))

    def collect(self, me: HostId) -> list[Item]:
        """Return the items to write so that this origin's tombstones can go, [] while there is little to gain.

        In two steps, of which a call gives one. First what is alive is written anew, above all tombstones. Only
        when that is done and had time to arrive (the caller waits between two calls) is the floor raised: a host
        that heard of the floor first would take down, for a moment, what lives.
        """
        endpoints = self._kinds[Kind.ENDPOINT]
        own = [endpoints[i] for i in sorted(self._by_origin.get(me, ()))]
        alive = [item for item in own if not item.dead]
        dead = [item.seq for item in own if item.dead]
        enough = max(TOMBSTONES_MIN, len(alive))
        highest = self.own_sequence(me)
        floor = min((item.seq for item in alive), default=highest + 1) - 1
        if sum(seq <= floor for seq in dead) > enough:
            return self._raised(me, floor)
        if len(dead) <= enough:
            return []
        low = [item for item in alive if item.seq < max(dead)]
        return [
            msgspec.structs.replace(item, version=_next(item.version), seq=highest + number)
            for number, item in enumerate(low, start=1)
        ]

    def _raised(self, me: HostId, floor: int) -> list[Item]:
        host = self._kinds[Kind.HOST].get(me)
        if host is None or not isinstance(host.body, HostFacts):
            return []
        body = msgspec.structs.replace(host.body, floor=floor)
        return [msgspec.structs.replace(host, version=_next(host.version), body=body)]


def _next(version: Version) -> Version:
    return version._replace(counter=version.counter + 1)
