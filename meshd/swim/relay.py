"""Decides what a helper does for an accuser: ping the target, relay its ack, or say in time that there was none.

This file must not know members or who is right; it holds only promises and their times.
"""

import math

import msgspec

from meshd.config import NACK_AFTER_S, PROBE_PERIOD_S, RELAYS_MAX
from meshd.messages import IndirectAck, Message, Nack
from meshd.model import HostId


class Relay(msgspec.Struct):
    """One PingReq being served. ``asked_nonce`` is the accuser's, ``due``: when the next step is."""

    accuser: HostId
    asked_nonce: int
    target: HostId
    sent: float
    due: float
    nacked: bool = False


class Relays:
    """The PingReqs being served, by the nonce of this host's own ping."""

    def __init__(self) -> None:
        self._by_nonce: dict[int, Relay] = {}
        self._first = math.inf

    def add(self, nonce: int, accuser: HostId, asked_nonce: int, target: HostId, now: float) -> None:
        """Promise an answer. The oldest promise is forgotten when there are RELAYS_MAX."""
        if len(self._by_nonce) >= RELAYS_MAX:
            del self._by_nonce[next(iter(self._by_nonce))]
        self._by_nonce[nonce] = Relay(accuser, asked_nonce, target, now, now + NACK_AFTER_S)
        self._reckon()

    def ack(self, sender: HostId, nonce: int) -> tuple[Relay, Message] | None:
        """Take an ack: whom to tell what, if it answers a ping of ours to ``sender``."""
        relay = self._by_nonce.get(nonce)
        if relay is None or relay.target != sender:
            return None
        del self._by_nonce[nonce]
        self._reckon()
        return relay, IndirectAck(relay.asked_nonce)

    def tick(self, now: float) -> list[tuple[HostId, Message]]:
        """Do what is due: NACKs to send. An ack is still relayed for a period after a NACK."""
        if now < self._first:
            return []
        sends: list[tuple[HostId, Message]] = []
        for nonce, relay in list(self._by_nonce.items()):
            if relay.due > now:
                continue
            if relay.nacked:
                del self._by_nonce[nonce]
            else:
                sends.append((relay.accuser, Nack(relay.asked_nonce)))
                relay.nacked, relay.due = True, now + PROBE_PERIOD_S
        self._reckon()
        return sends

    def clear(self) -> None:
        """Forget all promises: this host was not running when they were due."""
        self._by_nonce.clear()
        self._reckon()

    def deadline(self) -> float:
        """When ``tick`` is due, inf if never."""
        return self._first

    def _reckon(self) -> None:
        self._first = min((relay.due for relay in self._by_nonce.values()), default=math.inf)
