"""Who passes news to whom: rings that everyone derives from the membership (design.md, section 4; the rings are
Rapid's K rings, ATC'18 section 4.1). Nothing about the overlay is ever sent.

Each ring orders the hosts by hash(ring, host id). A host's neighbours are its successor and predecessor on each.
Views that differ by a few hosts differ in a few edges; ``RANDOM_NEIGHBOURS`` more a message cover those.
"""

import bisect
import hashlib

from meshd.config import RANDOM_NEIGHBOURS, RINGS
from meshd.model import HostId, Rng


class Rings:
    """The rings of all hosts that news goes to, this one included."""

    def __init__(self, me: HostId) -> None:
        self._me = me
        self._rings: list[list[tuple[bytes, HostId]]] = [[] for _ in range(RINGS)]
        self._hosts: set[HostId] = set()
        self._neighbours: tuple[HostId, ...] | None = None
        self._others: list[HostId] | None = None
        self.add(me)

    def __len__(self) -> int:
        return len(self._hosts)

    def add(self, host: HostId) -> None:
        """Put a host on the rings; again is nothing."""
        if host in self._hosts:
            return
        self._hosts.add(host)
        for number, ring in enumerate(self._rings):
            bisect.insort(ring, (_place(number, host), host))
        self._neighbours = self._others = None

    def remove(self, host: HostId) -> None:
        """Take a host off the rings; an unknown one is nothing."""
        if host not in self._hosts or host == self._me:
            return
        self._hosts.discard(host)
        for number, ring in enumerate(self._rings):
            del ring[bisect.bisect_left(ring, (_place(number, host), host))]
        self._neighbours = self._others = None

    def neighbours(self) -> tuple[HostId, ...]:
        """Return this host's up to 2 * RINGS distinct neighbours, in a fixed order."""
        if self._neighbours is None:
            found: dict[HostId, None] = {}
            for number, ring in enumerate(self._rings):
                here = bisect.bisect_left(ring, (_place(number, self._me), self._me))
                for step in (1, -1):
                    found[ring[(here + step) % len(ring)][1]] = None
            found.pop(self._me, None)
            self._neighbours = tuple(found)
        return self._neighbours

    def targets(self, rng: Rng, exclude: HostId | None) -> tuple[HostId, ...]:
        """Return whom to send one item: the neighbours and a few random others, never ``exclude``."""
        chosen = dict.fromkeys(self.neighbours())
        if self._others is None:
            self._others = sorted(self._hosts - {self._me, *chosen})
        if self._others:
            for host in rng.sample(self._others, min(RANDOM_NEIGHBOURS, len(self._others))):
                chosen[host] = None
        chosen.pop(exclude, None)  # type: ignore[arg-type]  # popping None from a dict of ids is nothing
        return tuple(chosen)


def _place(ring: int, host: HostId) -> bytes:
    return hashlib.blake2b(host, digest_size=8, salt=ring.to_bytes(2, "big")).digest()
