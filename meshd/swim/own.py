"""Decides what this host claims about itself: its incarnation, and how it answers what others claim about it.

Whoever says anything about this host that stands above its own claim is overruled by a higher incarnation
(SWIM 4.2). Two processes with one identity would overrule each other for ever: that is recognised as a clone
and answered at most once in CLONE_REFUTE_S. This file must not know probes, other members or the network.
"""

import enum

from meshd.config import CLONE_OUTBIDS, CLONE_REFUTE_S, INCARNATION_MAX
from meshd.model import HostId, Item, Kind, MemberFacts, Rank, SessionId, Version


class Answer(enum.Enum):
    """What to make of a claim about this host."""

    STALE = enum.auto()  # below this host's own claim, or a clone's again too soon: nothing to do
    WILD = enum.auto()  # an incarnation that could not be overruled: not obeyed
    OUTBID = enum.auto()  # overruled by a higher incarnation
    REFUTED = enum.auto()  # the same, and it was an accusation
    CLONED = enum.auto()  # made by another process with this identity (first time)


class OwnClaim:
    """This host's claim about itself.

    ``item``: the claim as it stands. ``pending``: it has changed since it was last handed out.
    """

    def __init__(self, me: HostId, facts: MemberFacts, incarnation: int) -> None:
        self._me = me
        self._facts = facts
        self._past: set[SessionId] = set()
        self._cloned = False
        self._outbids = 0  # of incarnations that this life never claimed
        self._may_outbid_at = 0.0
        self.pending = True
        self.item = self._claim(min(incarnation, INCARNATION_MAX), Rank.ALIVE)

    @property
    def incarnation(self) -> int:
        """What the others must know this host at, or not know it at all yet."""
        return self.item.version.incarnation

    @property
    def left(self) -> bool:
        """Whether this host has said good-bye for good."""
        return self.item.version.counter == Rank.LEFT

    def remember(self, item: Item) -> None:
        """Take what an earlier life left on disk: go above it, and do not take its claims for a clone's."""
        self._past.add(item.version.writer)
        if self.incarnation <= item.version.incarnation < INCARNATION_MAX:
            self._raise_above(item.version.incarnation)

    def heard(self, item: Item, now: float) -> Answer:
        """Judge a recorded claim about this host."""
        if self.left or item.version <= self.item.version:
            return Answer.STALE
        if item.version.incarnation >= INCARNATION_MAX:
            return Answer.WILD
        rank, session = item.version.counter, item.version.writer
        first = False
        if rank == Rank.ALIVE:
            if session in self._past:
                self._past.discard(session)  # an earlier life speaks once; one that answers is alive
            else:
                first, self._cloned = not self._cloned, True
        if not self._outbid(item.version.incarnation, now, at_once=first):
            return Answer.STALE
        if rank != Rank.ALIVE:
            return Answer.REFUTED
        return Answer.CLONED if first else Answer.OUTBID

    def accused_at(self, incarnation: int, now: float) -> Answer:
        """Judge a suspicion, or a peer's view that this host is not alive."""
        if self.left or incarnation < self.incarnation:
            return Answer.STALE
        if incarnation >= INCARNATION_MAX:
            return Answer.WILD
        return Answer.REFUTED if self._outbid(incarnation, now) else Answer.STALE

    def known_at(self, incarnation: int, now: float) -> Answer:
        """Judge a peer's word that it knows this host, alive, at ``incarnation``."""
        if self.left or incarnation <= self.incarnation:
            return Answer.STALE
        if incarnation >= INCARNATION_MAX:
            return Answer.WILD
        return Answer.OUTBID if self._outbid(incarnation, now) else Answer.STALE

    def leave(self) -> None:
        """Say good-bye for good; nothing is answered from now on."""
        self.item = self._claim(self.incarnation, Rank.LEFT)
        self.pending = True

    def move(self, facts: MemberFacts) -> None:
        """Say other facts of this life (another address) from now on, above what was said before."""
        self._facts = facts
        if not self.left:
            self._raise_above(self.incarnation)

    def _outbid(self, incarnation: int, now: float, *, at_once: bool = False) -> bool:
        """Go above ``incarnation``; False if a clone makes that too often.

        Peers' words name no session. Who is outbid again and again waits, so that the other's claim itself
        can arrive, which does.
        """
        self._outbids += incarnation > self.incarnation
        if self._cloned or self._outbids >= CLONE_OUTBIDS:
            if now < self._may_outbid_at and not at_once:
                return False
            self._may_outbid_at = now + CLONE_REFUTE_S
        self._raise_above(incarnation)
        return True

    def _raise_above(self, incarnation: int) -> None:
        self.item = self._claim(max(self.incarnation, incarnation) + 1, Rank.ALIVE)
        self.pending = True

    def _claim(self, incarnation: int, rank: Rank) -> Item:
        version = Version(incarnation, rank, self._facts.session)
        return Item(kind=Kind.MEMBER, id=self._me, version=version, body=self._facts)
