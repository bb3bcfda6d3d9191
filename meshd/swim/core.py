"""Decides who is alive: SWIM with Lifeguard, as a value machine. Inputs change it, outputs are drained.

After every input the caller drains take_sends, take_flood, take_items and take_events and arms one timer for
``deadline``. Items taken go into the store and to everybody; items that the store accepted come back through
``observe`` (those taken from here may, and change nothing). Times are monotonic seconds. This file joins the
parts: members.py says which claim stands, probe.py who is silent, others.py what follows from either, own.py
what this host says of itself. It must not know datagrams, addresses' use, or any other kind of item.
"""

import math
from collections.abc import Callable, Mapping

import msgspec

from meshd.config import PAUSE_S, RESTART_MAX_S
from meshd.messages import Ack, IndirectAck, Message, Nack, Ping, PingReq, Restarting, Suspect, View
from meshd.model import Address, HostId, Item, MemberFacts, Rng
from meshd.swim import events, health
from meshd.swim.members import VIEW_ACCUSES, Member, Roster, State, obeyed
from meshd.swim.others import Others
from meshd.swim.outbox import Flood, Outbox
from meshd.swim.own import Answer, OwnClaim
from meshd.swim.probe import Prober, direct_ack
from meshd.swim.relay import Relays
from meshd.swim.ring import PeriodClock


class Swim:
    """One host's view of who is alive, for one boot (one session)."""

    def __init__(
        self,
        me: HostId,
        facts: MemberFacts,
        *,
        incarnation: int,
        rng: Rng,
        now: float,
        wall_offset_s: float,
        digest: Callable[[], bytes],
    ) -> None:
        """``incarnation``: unix milliseconds at boot. ``wall_offset_s``: wall clock minus ``now``, a hint for
        probe order alone. ``digest``: of all replicated state, carried in pings and acks."""
        self.me = me
        self.health = health.Health()
        self._digest = digest
        self._out = Outbox()
        self._own = OwnClaim(me, facts, incarnation)
        self._roster = Roster(me)
        self._roster.apply(self._own.item)
        self._relays = Relays()
        self._prober = Prober(self._roster, self.health, PeriodClock(me, wall_offset_s), self._out, rng)
        self._others = Others(self._roster, self._prober, self.health, self._out)
        self._roster.members[me].last_seen = now

    # --- what it holds ------------------------------------------------------------------------------------
    @property
    def members(self) -> dict[HostId, Member]:
        """All known members, this host included. To be read only."""
        return self._roster.members

    @property
    def incarnation(self) -> int:
        """This host's own."""
        return self._own.incarnation

    @property
    def addresses(self) -> Mapping[HostId, Address]:
        """Where to reach every member that has not left, this host excluded."""
        return self._roster.addresses

    @property
    def generation(self) -> int:
        """Changes whenever ``alive_ids`` does."""
        return self._roster.generation

    def alive_ids(self) -> list[HostId]:
        """Hosts that take part: alive and suspect ones, this host included, in an order all hosts share."""
        return self._roster.ring.ids()

    # --- inputs -------------------------------------------------------------------------------------------
    def load(self, item: Item, now: float) -> None:
        """Take a MEMBER item from disk at start. No events: this is not news."""
        if not obeyed(item):
            return
        if item.id == self.me:
            self._own.remember(item)
            self._roster.apply(self._own.item)
        else:
            self._others.take(item, now, quiet=True)

    def observe(self, item: Item, now: float) -> None:
        """Take a MEMBER item that the store has just accepted, about any host."""
        self._woke(now)
        if not obeyed(item):
            self._out.events.append(events.WildClaim(item.id, item.version.incarnation))
        elif item.id != self.me:
            self._others.take(item, now)
        else:
            self._answer(self._own.heard(item, now), item, None)

    def raise_incarnation(self, at_least: int, now: float) -> None:
        """A peer said that it knows this host at ``at_least``: go above, unless that is this life's own."""
        self._woke(now)
        self._answer(self._own.known_at(at_least, now), at_least, None)

    def heard(self, sender: HostId, now: float) -> None:
        """Note an authenticated datagram, whatever it held. Silence is judged by probes, not by this."""
        self._woke(now)
        member = self.members.get(sender)
        if member is not None:
            member.last_seen = now

    def receive(self, sender: HostId, message: Message, now: float) -> None:
        """Take one message of ours from an authenticated ``sender``; messages of other parts are ignored."""
        self.heard(sender, now)
        if sender == self.me or self._own.left:
            return
        match message:
            case Ping():
                self._read(sender, message.digest, message.you, now)
                ack = Ack(message.nonce, self._digest(), self._roster.view(sender))
                self._out.sends.append((sender, ack))
            case Ack():
                if self._prober.ack(sender, message.nonce, now) or self._relay_ack(
                    sender, message.nonce, now
                ):
                    self._read(sender, message.digest, message.you, now)
            case PingReq():
                self._help(sender, message, now)
            case IndirectAck():
                self._prober.indirect_ack(sender, message.nonce)
            case Nack():
                self._prober.nack(sender, message.nonce)
            case Suspect() if message.accused == self.me:
                judged = self._own.accused_at(message.incarnation, now)
                self._answer(judged, message.incarnation, message.accuser)
            case Suspect():
                self._others.suspected(sender, message, now)
            case Restarting():
                self._others.restarts(sender, message, now)
            case _:
                pass

    def stream_pong(self, target: HostId, nonce: int, now: float) -> None:
        """The stream that a StreamProbe event asked for was answered."""
        self._woke(now)
        self._prober.stream_pong(target, nonce, now)

    def tick(self, now: float) -> None:
        """Do what is due; call at ``deadline``. Early calls do nothing."""
        if self._own.left:
            return
        self._woke(now)
        self._out.sends += self._relays.tick(now)
        failed = self._prober.tick(now)
        if failed is not None:
            self._others.accuse(self.members[failed.target], self.me, failed.scale, None, now)
        for target, nonce in self._prober.take_pings():
            self._ping(target, nonce)
        self._others.tick(now)

    def move(self, address: Address, now: float) -> None:
        """This host's gossip socket is at ``address`` from now on: everybody is told, at a higher incarnation."""
        self._woke(now)
        facts = self.members[self.me].facts
        self._own.move(msgspec.structs.replace(facts, address=address.packed, port=address.port))
        self._roster.apply(self._own.item)

    def leave(self, now: float) -> None:
        """Say good-bye for good: take_items gives the LEFT item, and nothing is done or answered any more."""
        self._woke(now)
        self._own.leave()
        self._roster.apply(self._own.item)

    def restarting(self, now: float, duration_s: float) -> None:
        """Tell everybody that this host will be back within ``duration_s`` seconds."""
        self._woke(now)
        duration_ms = int(1000 * min(duration_s, RESTART_MAX_S))
        self._out.flood.append((Restarting(self.me, self.incarnation, duration_ms), None))

    # --- outputs ------------------------------------------------------------------------------------------
    def take_sends(self) -> list[tuple[HostId, Message]]:
        """Drain messages for one host each."""
        return self._out.take_sends()

    def take_flood(self) -> list[Flood]:
        """Drain messages for the ring neighbours, with the one to leave out (it sent us this), or None."""
        return self._out.take_flood()

    def take_items(self) -> list[Item]:
        """Drain new MEMBER items for the store: this host's own claim when it changed, and verdicts."""
        own = [self._own.item] if self._own.pending else []
        self._own.pending = False
        return own + self._out.take_items()

    def take_events(self) -> list[events.SwimEvent]:
        """Drain what happened, in order."""
        return self._out.take_events()

    def deadline(self) -> float:
        """Monotonic seconds when ``tick`` must be called next; inf when nothing is to be done."""
        if self._own.left:
            return math.inf
        return min(self._prober.deadline(), self._relays.deadline(), self._others.deadline())

    # --- this host ----------------------------------------------------------------------------------------
    def _woke(self, now: float) -> None:
        """A host that slept through its deadline knows nothing of the others' doings meanwhile."""
        late = now - self.deadline()
        if late <= PAUSE_S:
            return
        self._prober.cancel(now)
        self._relays.clear()
        self._others.push_back(late)
        self.health.note(health.PAUSED)
        self._out.events.append(events.Paused(late))

    def _answer(self, answer: Answer, claim: Item | int, accuser: HostId | None) -> None:
        """Do what follows from a judged claim about this host."""
        incarnation = claim.version.incarnation if isinstance(claim, Item) else claim
        if answer is Answer.WILD:
            self._out.events.append(events.WildClaim(self.me, incarnation))
        elif answer is Answer.REFUTED:
            self.health.note(health.SELF_REFUTED)
            self._out.events.append(events.SelfAccused(incarnation, accuser))
        elif answer is Answer.CLONED and isinstance(claim, Item) and isinstance(claim.body, MemberFacts):
            self._out.events.append(events.Cloned(claim.version.writer, claim.body))
        self._roster.apply(self._own.item)

    def _read(self, peer: HostId, digest: bytes, you: View, now: float) -> None:
        """Take what every ping and ack carries."""
        self._out.events.append(events.DigestSeen(peer, digest))
        if you.state >= VIEW_ACCUSES:
            self._answer(self._own.accused_at(you.incarnation, now), you.incarnation, peer)
        elif you.state:
            self._answer(self._own.known_at(you.incarnation, now), you.incarnation, peer)

    # --- pings --------------------------------------------------------------------------------------------
    def _ping(self, target: HostId, nonce: int) -> None:
        self._out.sends.append((target, Ping(nonce, self._digest(), self._roster.view(target))))

    def _help(self, accuser: HostId, ask: PingReq, now: float) -> None:
        target = self.members.get(ask.target)
        if ask.target == self.me:
            self._out.sends.append((accuser, IndirectAck(ask.nonce)))
        elif target is None or target.state is State.LEFT:
            self._out.sends.append((accuser, Nack(ask.nonce)))
        else:
            nonce = self._prober.nonce()
            self._relays.add(nonce, accuser, ask.nonce, ask.target, now)
            self._ping(ask.target, nonce)

    def _relay_ack(self, sender: HostId, nonce: int, now: float) -> bool:
        found = self._relays.ack(sender, nonce)
        if found is None:
            return False
        relay, answer = found
        direct_ack(self.members[sender], relay.sent, now, self._out)
        self._out.sends.append((relay.accuser, answer))
        return True
