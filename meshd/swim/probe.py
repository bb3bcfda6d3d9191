"""Decides how one probe goes (SWIM 3.1, Lifeguard IV-A): direct ping; after a timeout helpers and, at the same
time, a stream; at the end of the period the outcome. A stream's answer is followed by more direct pings: none of
them answered means that UDP is blocked one way or the other, and not that a datagram was lost. Also retries failed members, for as long as they are known.

Times scale by local health at the start of the round. This file must not know verdicts: it says which round
failed, the core accuses.
"""

import math

from meshd.config import (
    DEGRADED_PING_S,
    DEGRADED_PINGS,
    INDIRECT_PROBES,
    PROBE_PERIOD_S,
    PROBE_TIMEOUT_S,
    RETRY_FAILED_PER_S,
    RTT_GAIN,
)
from meshd.messages import PingReq
from meshd.model import HostId, Rng
from meshd.swim.events import MemberDegraded, StreamProbe
from meshd.swim.health import PROBE_OK, Health, failed_probe
from meshd.swim.members import PARTICIPATES, Member, Roster, State
from meshd.swim.outbox import Outbox
from meshd.swim.ring import PeriodClock


class Round:
    """One probe of one member. ``scale`` and ``incarnation`` are those at its start."""

    __slots__ = (
        "acked", "again_at", "direct", "escalate_at", "excused", "helpers", "incarnation", "nacks", "nonce", "pings_left",
        "scale", "sent", "streamed", "target",
    )  # fmt: skip

    def __init__(self, target: Member, nonce: int, now: float, scale: int) -> None:
        self.target = target.id
        self.incarnation = target.incarnation
        self.nonce = nonce
        self.sent = now
        self.scale = scale
        self.escalate_at = now + PROBE_TIMEOUT_S * scale
        self.helpers: list[HostId] = []
        self.nacks: set[HostId] = set()
        self.acked = False
        self.direct = False
        self.excused = False
        self.streamed = False
        self.again_at = math.inf
        self.pings_left = DEGRADED_PINGS


class Prober:
    """This host's probe rounds, one at a time, and its retries of failed members."""

    def __init__(self, roster: Roster, health: Health, clock: PeriodClock, out: Outbox, rng: Rng) -> None:
        self._roster = roster
        self._health = health
        self._clock = clock
        self._out = out
        self._rng = rng
        self._round: Round | None = None
        self._retry: tuple[HostId, int, float] | None = None
        self._pings: list[tuple[HostId, int]] = []

    # --- answers ------------------------------------------------------------------------------------------
    def ack(self, sender: HostId, nonce: int, now: float) -> bool:
        """Take an ack from ``sender``; False if it answers no ping of ours to it."""
        if self._retry is not None and self._retry[:2] == (sender, nonce):
            direct_ack(self._roster.members[sender], self._retry[2], now, self._out)
            self._retry = None
            return True
        probe = self._round
        if probe is None or (probe.target, probe.nonce) != (sender, nonce):
            return False
        if not probe.streamed:  # else nobody knows which ping it answers
            note_rtt(self._roster.members[sender], now - probe.sent)
        over(self._roster.members[sender], self._out)
        probe.direct, probe.again_at = True, math.inf
        self._succeed(probe)
        return True

    def indirect_ack(self, sender: HostId, nonce: int) -> None:
        """Take a helper's word that the target answered it."""
        probe = self._round
        if probe is not None and probe.nonce == nonce and sender in probe.helpers:
            self._succeed(probe)

    def nack(self, sender: HostId, nonce: int) -> None:
        """Take a helper's word that it is well and the target did not answer it."""
        probe = self._round
        if probe is not None and probe.nonce == nonce and sender in probe.helpers:
            probe.nacks.add(sender)

    def stream_pong(self, target: HostId, nonce: int, now: float) -> None:
        """Take the shell's word that the target answered by stream. Whether that means that UDP is blocked is
        seen at the end of the period: an ack may only be late, and the next ping may come through."""
        probe = self._round
        if probe is not None and (probe.target, probe.nonce) == (target, nonce):
            probe.streamed = True
            probe.again_at = math.inf if probe.direct else now

    # --- time ---------------------------------------------------------------------------------------------
    def deadline(self) -> float:
        """When ``tick`` is due; inf when there is nobody to probe or retry."""
        probe = self._round
        if probe is None:
            return self._clock.starts
        return min(self._clock.starts, probe.again_at, math.inf if probe.acked else probe.escalate_at)

    def tick(self, now: float) -> Round | None:
        """Do what is due. The round that ended without any answer, if one did."""
        failed: Round | None = None
        probe = self._round
        if probe is not None and not probe.acked and now >= probe.escalate_at:
            self._escalate(probe, now)
        if probe is not None and now >= probe.again_at:
            probe.pings_left -= 1
            probe.again_at = now + DEGRADED_PING_S if probe.pings_left else math.inf
            self._pings.append((probe.target, probe.nonce))
        if now >= self._clock.starts:
            if probe is not None:
                self._round = None
                failed = self._conclude(probe, now)
            self._begin(now)
        return failed

    def take_pings(self) -> list[tuple[HostId, int]]:
        """Drain (target, nonce) of pings to send; the core adds digest and view."""
        taken, self._pings = self._pings, []
        return taken

    def wake(self, now: float) -> None:
        """The roster changed: start or stop the clock as there are peers or none."""
        if not self._roster.peers():
            self._round = self._retry = None
            self._clock.stop()
        elif self._clock.starts == math.inf:
            self._clock.start(now)

    def cancel(self, now: float) -> None:
        """Drop the round in flight: this host was not running, so its outcome would say nothing."""
        self._round = self._retry = None
        if self._clock.starts != math.inf:
            self._clock.start(now)

    # --- the round ----------------------------------------------------------------------------------------
    def nonce(self) -> int:
        """Make a nonce that only its receiver can answer."""
        return self._rng.randrange(1, 2**63)

    def _begin(self, now: float) -> None:
        scale = self._health.scale
        target = self._roster.ring.target(self._clock.number)
        self._clock.advance(scale, now)
        if target is not None:
            self._round = Round(self._roster.members[target], self.nonce(), now, scale)
            self._pings.append((target, self._round.nonce))
        self._retry_failed(now)

    def _escalate(self, probe: Round, now: float) -> None:
        probe.escalate_at = math.inf
        target = self._roster.members[probe.target]
        if target.restarting(now):
            probe.excused = True  # it said that it would not answer
            return
        others = [
            host
            for host in self._roster.ring.ids()
            if host not in (self._roster.me, probe.target)
            and self._roster.members[host].state is State.ALIVE
            and not self._roster.members[host].restarting(now)
        ]
        probe.helpers = self._rng.sample(others, min(INDIRECT_PROBES, len(others)))
        self._out.sends += [(helper, PingReq(probe.nonce, probe.target)) for helper in probe.helpers]
        self._out.events.append(StreamProbe(probe.target, probe.nonce))

    def _succeed(self, probe: Round) -> None:
        if not probe.acked:
            probe.acked = True
            self._health.note(PROBE_OK)

    def _conclude(self, probe: Round, now: float) -> Round | None:
        target = self._roster.members[probe.target]
        if probe.direct or probe.excused or target.restarting(now):
            return None
        if target.incarnation != probe.incarnation or target.state not in PARTICIPATES:
            return None  # it spoke, or the verdict came, meanwhile: this silence says nothing new
        if probe.streamed:
            if not target.degraded:
                target.degraded = True
                self._out.events.append(MemberDegraded(target.id, degraded=True))
            return None
        if probe.acked:
            return None
        self._health.note(failed_probe(len(probe.helpers), len(probe.nacks)))
        return probe

    def _retry_failed(self, now: float) -> None:
        """All hosts together try each failed member RETRY_FAILED_PER_S times a second."""
        self._retry = None
        failed, alive = self._roster.failed, max(1, len(self._roster.ring))
        share = RETRY_FAILED_PER_S * PROBE_PERIOD_S * len(failed) / alive
        if failed and self._rng.random() < share:
            self._retry = (self._rng.choice(failed), self.nonce(), now)
            self._pings.append(self._retry[:2])


def direct_ack(member: Member, sent: float, now: float, out: Outbox) -> None:
    """Note what a ping answered by UDP shows: the round trip, and that UDP works."""
    note_rtt(member, now - sent)
    over(member, out)


def note_rtt(member: Member, rtt: float) -> None:
    """Let one measured round trip count."""
    member.rtt_s = rtt if member.rtt_s is None else member.rtt_s + RTT_GAIN * (rtt - member.rtt_s)


def over(member: Member, out: Outbox) -> None:
    """UDP works between the two hosts."""
    if member.degraded:
        member.degraded = False
        out.events.append(MemberDegraded(member.id, degraded=False))
