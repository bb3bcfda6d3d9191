"""Decides which claim about a member stands, and holds what each member is by that rule.

Precedence is one table, AT_EQUAL; a higher incarnation always wins, whatever it says of the state, so that
Dead@1, Dead@10, Alive@2 leaves a member dead (memberlist resurrects it) and a late Dead@old cannot beat a
restarted host. The store's "higher version wins" gives the same for recorded claims; suspicion is this
host's own and is never recorded. This file must not know probes, timers, messages' routes or who accuses.
"""

import enum
from collections.abc import Mapping

from meshd.config import INCARNATION_MAX
from meshd.messages import View
from meshd.model import Address, HostId, Item, Kind, MemberFacts, Rank, Version
from meshd.swim.ring import ProbeRing
from meshd.swim.suspicion import Suspicion


class State(enum.StrEnum):
    """What a member is, as people read it."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    FAILED = "failed"
    LEFT = "left"


class Tie(enum.Enum):
    """What happens to a claim at the incarnation that is already held."""

    WINS = enum.auto()
    LOSES = enum.auto()
    SESSION = enum.auto()  # same weight: the higher session stands, everywhere alike


AT_EQUAL: Mapping[tuple[State, State], Tie] = {
    # (claim, held)
    (State.ALIVE, State.ALIVE): Tie.SESSION,
    (State.ALIVE, State.SUSPECT): Tie.SESSION,  # new facts, if any; the suspicion stays (SWIM 4.2)
    (State.ALIVE, State.FAILED): Tie.LOSES,
    (State.ALIVE, State.LEFT): Tie.LOSES,
    (State.SUSPECT, State.ALIVE): Tie.WINS,
    (State.SUSPECT, State.SUSPECT): Tie.WINS,  # another accuser: a confirmation
    (State.SUSPECT, State.FAILED): Tie.LOSES,
    (State.SUSPECT, State.LEFT): Tie.LOSES,
    (State.FAILED, State.ALIVE): Tie.WINS,
    (State.FAILED, State.SUSPECT): Tie.WINS,
    (State.FAILED, State.FAILED): Tie.SESSION,
    (State.FAILED, State.LEFT): Tie.LOSES,
    (State.LEFT, State.ALIVE): Tie.WINS,
    (State.LEFT, State.SUSPECT): Tie.WINS,
    (State.LEFT, State.FAILED): Tie.WINS,
    (State.LEFT, State.LEFT): Tie.SESSION,
}

STATE_OF_RANK: Mapping[int, State] = {
    Rank.ALIVE: State.ALIVE,
    Rank.FAILED: State.FAILED,
    Rank.LEFT: State.LEFT,
}

VIEW_CODE: Mapping[State, int] = {State.ALIVE: 1, State.SUSPECT: 2, State.FAILED: 3, State.LEFT: 3}
"""``View.state`` on the wire; 0 is a host that the sender does not know."""

VIEW_ACCUSES = 2
"""``View.state`` from this value on is an accusation."""

PARTICIPATES = frozenset({State.ALIVE, State.SUSPECT})


class Member:
    """One host as this host sees it. Changed by Roster and the core alone; others read.

    ``version``: of the recorded claim. ``rtt_s``: smoothed round trip of direct acks, None before the first.
    ``last_seen``: monotonic seconds of its last authenticated datagram, None before the first.
    ``degraded``: answers by stream only, that is, UDP is blocked between the two hosts.
    """

    __slots__ = (
        "degraded", "facts", "id", "last_seen", "restart_incarnation", "restart_until", "rtt_s", "suspicion",
        "version",
    )  # fmt: skip

    def __init__(self, item_id: HostId, version: Version, facts: MemberFacts) -> None:
        self.id = item_id
        self.version = version
        self.facts = facts
        self.suspicion: Suspicion | None = None
        self.degraded = False
        self.rtt_s: float | None = None
        self.last_seen: float | None = None
        self.restart_incarnation = -1
        self.restart_until = 0.0

    @property
    def incarnation(self) -> int:
        """The incarnation of the claim that stands."""
        return self.version.incarnation

    @property
    def state(self) -> State:
        """alive, suspect, failed or left; compares equal to that text."""
        return State.SUSPECT if self.suspicion is not None else STATE_OF_RANK[self.version.counter]

    @property
    def address(self) -> Address:
        """Where its gossip socket is."""
        return Address.unpack(self.facts.address, self.facts.port)

    def restarting(self, now: float) -> bool:
        """Whether it said that it would be back and its time is not up."""
        return now < self.restart_until and self.incarnation <= self.restart_incarnation

    def item(self, rank: Rank) -> Item:
        """Make the claim that this member, at the incarnation held here, is ``rank``.

        Equal for all who make it, so that verdicts of several accusers are one record.
        """
        version = Version(self.incarnation, rank, self.facts.session)
        return Item(kind=Kind.MEMBER, id=self.id, version=version, body=self.facts)


def obeyed(item: Item) -> bool:
    """Whether a MEMBER item can be right at all; what is not must not enter the store.

    An incarnation above INCARNATION_MAX could never be refuted by the host that it is about.
    """
    return (
        item.kind == Kind.MEMBER
        and item.version.incarnation <= INCARNATION_MAX
        and item.version.counter in STATE_OF_RANK
        and isinstance(item.body, MemberFacts)
        and item.version.writer == item.body.session
        and not item.dead
    )


def supersedes(claim: State, incarnation: int, session: bytes, held: Member) -> bool:
    """Whether a claim stands against what is held about the same host."""
    if incarnation != held.incarnation:
        return incarnation > held.incarnation
    tie = AT_EQUAL[claim, held.state]
    return session > held.version.writer if tie is Tie.SESSION else tie is Tie.WINS


class Roster:
    """All known members, this host included, and the sets derived from them.

    ``generation`` changes whenever the participants (alive and suspect) do, so that others can cache.
    ``addresses``: where to reach every member that has not left, this host excluded.
    """

    def __init__(self, me: HostId) -> None:
        self.me = me
        self.members: dict[HostId, Member] = {}
        self.ring = ProbeRing(me)
        self.failed: list[HostId] = []
        self.addresses: dict[HostId, Address] = {}
        self.generation = 0

    def apply(self, item: Item) -> tuple[Member, State | None, MemberFacts | None] | None:
        """Take a claim in if it stands: the member with the state and facts it had before, or None."""
        facts, version = item.body, item.version
        if not isinstance(facts, MemberFacts):
            return None
        member = self.members.get(item.id)
        if member is None:
            member = self.members[item.id] = Member(item.id, version, facts)
            self._derive(member, None)
            return member, None, None
        claim, before, old_facts = STATE_OF_RANK[version.counter], member.state, member.facts
        if not supersedes(claim, version.incarnation, version.writer, member):
            return None
        if member.suspicion is not None and (
            claim is not State.ALIVE or version.incarnation > member.suspicion.incarnation
        ):
            member.suspicion = None
        member.version, member.facts = version, facts
        self._derive(member, before)
        return member, before, old_facts

    def view(self, host: HostId) -> View:
        """How this host sees ``host``, for Ping and Ack to it."""
        member = self.members.get(host)
        return View(0, 0) if member is None else View(member.incarnation, VIEW_CODE[member.state])

    def peers(self) -> bool:
        """Whether anybody is worth a probe or a retry."""
        return len(self.ring) > 1 or bool(self.failed)

    def _derive(self, member: Member, before: State | None) -> None:
        after = member.state
        if after is State.LEFT:
            self.addresses.pop(member.id, None)
        elif member.id != self.me:
            self.addresses[member.id] = member.address
        if (before is State.FAILED) != (after is State.FAILED):
            (self.failed.append if after is State.FAILED else self.failed.remove)(member.id)
        if (before in PARTICIPATES) != (after in PARTICIPATES):
            (self.ring.add if after in PARTICIPATES else self.ring.remove)(member.id)
            self.generation += 1
