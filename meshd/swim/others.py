"""Decides what follows from claims about other hosts: which news they are, when one is suspect, when that becomes
a verdict, and which of it travels on.

This file must not know what is said about this host (own.py) or how silence is found out (probe.py).
"""

from collections.abc import Mapping

from meshd.config import INCARNATION_MAX, RESTART_MAX_S
from meshd.messages import Restarting, Suspect
from meshd.model import HostId, Item, Kind, Rank, Version
from meshd.swim import events
from meshd.swim.health import Health
from meshd.swim.members import PARTICIPATES, Member, Roster, State, obeyed, supersedes
from meshd.swim.outbox import Outbox
from meshd.swim.probe import Prober
from meshd.swim.suspicion import Suspicion, Suspicions, wanted_confirmations

_NEWS: Mapping[State, type[events.MemberAlive | events.MemberFailed | events.MemberLeft]] = {
    State.ALIVE: events.MemberAlive,
    State.FAILED: events.MemberFailed,
    State.LEFT: events.MemberLeft,
}


class Others:
    """Changes the roster's other members, and holds their suspicions."""

    def __init__(self, roster: Roster, prober: Prober, health: Health, out: Outbox) -> None:
        self._roster = roster
        self._prober = prober
        self._health = health
        self._out = out
        self._suspicions = Suspicions()

    def deadline(self) -> float:
        """When the next verdict is due, inf if none is pending."""
        return self._suspicions.first(self._k())

    def push_back(self, by_s: float) -> None:
        """This host was not running for ``by_s`` seconds."""
        self._suspicions.push_back(by_s)

    def tick(self, now: float) -> None:
        """Give the verdicts that are due."""
        while due := self._suspicions.due(now, self._k()):
            for host in due:
                verdict = self._roster.members[host].item(Rank.FAILED)
                self._out.items.append(verdict)
                self.take(verdict, now)

    def take(self, item: Item, now: float, *, quiet: bool = False) -> None:
        """Take in a claim about another host, if it stands, and say what changed."""
        applied = self._roster.apply(item)
        if applied is None:
            return
        member, before, old = applied
        if member.suspicion is None:
            self._suspicions.stop(member.id)
        if member.state not in PARTICIPATES:
            member.degraded = False
        self._prober.wake(now)
        if quiet:
            return
        was, facts, incarnation = before or "", member.facts, member.incarnation
        if member.state is not before and member.state is not State.SUSPECT:
            self._out.events.append(_NEWS[member.state](member.id, facts, incarnation, was))
        elif old is not None and member.state in PARTICIPATES and facts != old:
            restarted = facts.session != old.session
            self._out.events.append(events.MemberChanged(member.id, facts, incarnation, restarted))

    def suspected(self, sender: HostId, claim: Suspect, now: float) -> None:
        """Take somebody's suspicion of another host, received from ``sender``."""
        version = Version(claim.incarnation, Rank.ALIVE, claim.facts.session)
        premise = Item(kind=Kind.MEMBER, id=claim.accused, version=version, body=claim.facts)
        held = self._roster.members.get(claim.accused)
        if not obeyed(premise):
            self._out.events.append(events.WildClaim(claim.accused, claim.incarnation))
            return
        if held is None or claim.incarnation > held.incarnation:
            self._out.items.append(premise)  # the alive claim that the accuser had and this host missed
            self.take(premise, now)
            held = self._roster.members[claim.accused]
        elif not supersedes(State.SUSPECT, claim.incarnation, claim.facts.session, held):
            return
        if claim.accuser != self._roster.me and not held.restarting(now):
            self.accuse(held, claim.accuser, self._health.scale, sender, now)

    def accuse(self, member: Member, accuser: HostId, scale: int, source: HostId | None, now: float) -> None:
        """Suspect a member, or confirm it, and pass that on as long as it shortens the suspicion."""
        suspicion = member.suspicion
        if suspicion is None:
            suspicion = member.suspicion = Suspicion(member.incarnation, now, scale)
            self._suspicions.start(member.id, suspicion)
            self._out.events.append(events.MemberSuspect(member.id, member.incarnation, accuser))
        if not suspicion.accuse(accuser, self._k()):
            return
        self._suspicions.changed()
        claim = Suspect(member.id, member.incarnation, accuser, member.facts)
        self._out.flood.append((claim, source))
        if accuser == self._roster.me:
            self._out.sends.append(
                (member.id, claim)
            )  # so that it can refute even if no ring path reaches it

    def restarts(self, sender: HostId, message: Restarting, now: float) -> None:
        """Take a host's word, received from ``sender``, that it will be back and is not to be suspected."""
        member = self._roster.members.get(message.host)
        if member is None or member.state not in PARTICIPATES or message.host == self._roster.me:
            return
        if message.incarnation < member.incarnation or message.incarnation > INCARNATION_MAX:
            return
        if message.incarnation <= member.restart_incarnation:
            return  # heard before
        duration_s = min(message.duration_ms / 1000, RESTART_MAX_S)
        member.restart_incarnation, member.restart_until = message.incarnation, now + duration_s
        if member.suspicion is not None:
            member.suspicion = None
            self._suspicions.stop(member.id)
            self._out.events.append(
                events.MemberAlive(member.id, member.facts, member.incarnation, State.SUSPECT)
            )
        self._out.events.append(events.MemberRestarting(member.id, duration_s))
        self._out.flood.append((message, sender))

    def _k(self) -> int:
        return wanted_confirmations(len(self._roster.ring))
