"""How large a packet each path carries, found out by padded probes that may not be fragmented. No I/O.

Decides whom to probe when, with which size, and what the answers and their absence mean. A packet as large as
both hosts' underlays allow is tried first; only where that fails is the size searched for, downward. A host
that answers nothing, not even small probes, says nothing about its path: it is down, or older than probes.

Sizes are whole IP packets in bytes. Must not know datagrams, sealing or what networks need (state/paths.py).
"""

from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from meshd.config import (
    MTU_PROBE_GAP_S,
    MTU_PROBE_PERIOD_S,
    MTU_PROBE_TIMEOUT_S,
    MTU_PROBE_TRIES,
)
from meshd.model import HostId, Rng


class Probe(msgspec.Struct, frozen=True):
    """Send a probe to ``peer`` in an IP packet of ``size`` bytes, not to be fragmented."""

    peer: HostId
    nonce: int
    size: int


class Path(msgspec.Struct, frozen=True):
    """``mtu``: what the path to ``peer`` carries; ``tried``: the largest size that was tried."""

    peer: HostId
    mtu: int
    tried: int


class _Round:
    """One measurement of one path, from the full size to an answer."""

    def __init__(self, target: int, floor: int, hint: int) -> None:
        self.target = target
        self.floor = floor
        self.hint = hint  # what the path carried last time: probably still true
        self.carried = 0  # largest size answered
        self.lost = target + 1  # smallest size that was not
        self.size = target
        self.confirming = False
        self.left = MTU_PROBE_TRIES
        self.nonce = 0
        self.until = 0.0

    def answered(self) -> int | None:
        """Take the answer to ``size``: the path's MTU if that settles it, 0 if the answers contradict."""
        if self.confirming:
            return 0
        self.carried = self.size
        return self._next()

    def unanswered(self) -> int | None:
        """Take the loss of all tries of ``size``: likewise, 0 where nothing is answered at all."""
        if self.confirming:
            return self.carried
        if self.size == self.floor:
            return 0
        self.lost = self.size
        return self._next()

    def _next(self) -> int | None:
        self.left = MTU_PROBE_TRIES
        if self.carried == self.target:
            return self.target
        if not self.carried:
            self.size = self.floor
        elif self.carried + 1 == self.lost:
            self.size, self.confirming = self.lost, True  # by chance alone nobody is alarmed
        elif self.carried < self.hint < self.lost:
            self.size = self.hint
        elif self.carried == self.hint:
            self.size = self.hint + 1
        else:
            self.size = (self.carried + self.lost) // 2
        return None


class PathMtu:
    """The paths from this host to its living peers. Idle until ``underlay`` says what this host's carries.

    ``floor(host)``: bytes that every path of that address family must carry.
    """

    def __init__(self, rng: Rng, floor: Callable[[HostId], int]) -> None:
        self._rng = rng
        self._floor = floor
        self._mine = 0
        self._theirs: dict[HostId, int] = {}  # what hosts say of their underlays, living or not
        self._peers: dict[HostId, None] = {}
        self._soon: dict[HostId, None] = {}  # to be measured before their turn, in this order
        self._turns: deque[HostId] = deque()
        self._next_at = float("inf")
        self._rounds: dict[HostId, _Round] = {}
        self._paths: dict[HostId, Path] = {}
        self._probes: list[Probe] = []
        self._changed: list[HostId] = []

    @property
    def paths(self) -> Mapping[HostId, Path]:
        """What is known, by peer."""
        return self._paths

    # --- inputs ---------------------------------------------------------------------------------------------
    def underlay(self, mtu: int, now: float) -> None:
        """Take this host's underlay MTU; if that is news, all paths are measured anew."""
        if mtu != self._mine:
            self._mine = mtu
            for peer in self._peers:
                self._hurry(peer, now)

    def told(self, host: HostId, mtu: int, now: float) -> None:
        """Take what another host says of its underlay (0: nothing)."""
        if self._theirs.get(host, 0) != mtu:
            self._theirs[host] = mtu
            if host in self._peers:
                self._hurry(host, now)

    def add(self, peer: HostId, now: float) -> None:
        """A peer is alive; if it was not, measure its path soon."""
        if peer not in self._peers:
            self._peers[peer] = None
            self._turns.append(peer)
            self._hurry(peer, now)

    def remove(self, peer: HostId) -> None:
        """A peer is not alive any more: nothing is known of its path."""
        if peer in self._peers:
            del self._peers[peer]
            self._turns.remove(peer)
            self._soon.pop(peer, None)
            self._rounds.pop(peer, None)
            if self._paths.pop(peer, None) is not None:
                self._changed.append(peer)

    def answered(self, peer: HostId, nonce: int, now: float) -> None:
        """Take the answer to a probe; one that is not waited for counts for nothing."""
        found = self._rounds.get(peer)
        if found is not None and found.nonce == nonce:
            self._go_on(peer, found, found.answered(), now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        for peer, found in list(self._rounds.items()):
            if now >= found.until:
                if found.left:
                    self._probe(peer, found, now)
                else:
                    self._go_on(peer, found, found.unanswered(), now)
        if now >= self._next_at:
            self._begin(now)

    # --- outputs --------------------------------------------------------------------------------------------
    def deadline(self) -> float:
        """When ``tick`` is to be called next."""
        return min([self._next_at, *(found.until for found in self._rounds.values())])

    def take_probes(self) -> list[Probe]:
        """Drain what is to be sent."""
        taken, self._probes = self._probes, []
        return taken

    def take_changed(self) -> list[HostId]:
        """Drain the peers whose path is not what it was."""
        taken, self._changed = self._changed, []
        return taken

    # --- one path after the other ---------------------------------------------------------------------------
    def _hurry(self, peer: HostId, now: float) -> None:
        self._soon[peer] = None
        self._rounds.pop(peer, None)
        if self._mine:
            self._next_at = min(self._next_at, now + MTU_PROBE_GAP_S)

    def _begin(self, now: float) -> None:
        """Start the next path's round: who is waited for first, then in turn, everybody once a period."""
        if self._soon:
            peer = next(iter(self._soon))
            del self._soon[peer]
        elif self._turns:
            peer = self._turns[0]
            self._turns.rotate(-1)
        else:
            self._next_at = float("inf")
            return
        pause = MTU_PROBE_GAP_S if self._soon else MTU_PROBE_PERIOD_S / len(self._turns)
        self._next_at = now + max(MTU_PROBE_GAP_S, pause)
        if peer not in self._rounds:
            target, floor = min(self._mine, self._theirs.get(peer) or self._mine), self._floor(peer)
            if target >= floor:
                known = self._paths.get(peer)
                self._rounds[peer] = _Round(target, floor, known.mtu if known is not None else 0)
                self._probe(peer, self._rounds[peer], now)

    def _probe(self, peer: HostId, found: _Round, now: float) -> None:
        found.left -= 1
        found.nonce = self._rng.randrange(1, 1 << 62)
        found.until = now + MTU_PROBE_TIMEOUT_S
        self._probes.append(Probe(peer, found.nonce, found.size))

    def _go_on(self, peer: HostId, found: _Round, result: int | None, now: float) -> None:
        """Probe the next size, or note what was found."""
        if result is None:
            self._probe(peer, found, now)
            return
        del self._rounds[peer]
        path = Path(peer, result, found.target)
        if result and self._paths.get(peer) != path:
            self._paths[peer] = path
            self._changed.append(peer)
