"""Decides how long a suspicion may last before it becomes a verdict (Lifeguard IV-B, "LHA-Suspicion").

The more independent accusers, the shorter: from SUSPICION_MAX_S for one to SUSPICION_MIN_S for k others. An
unhealthy accuser (health.py) gives more time. This file must not know members, messages or the store.
"""

import math
from collections.abc import Iterable

from meshd.config import SUSPICION_CONFIRMATIONS, SUSPICION_MAX_S, SUSPICION_MIN_S
from meshd.model import HostId


def wanted_confirmations(participants: int) -> int:
    """k: how many others can confirm. Neither accuser nor accused counts; 0 where nobody else is left."""
    return max(0, min(SUSPICION_CONFIRMATIONS, participants - 2))


def timeout(confirmations: int, k: int, min_s: float, max_s: float) -> float:
    """Seconds from the first accusation to the verdict: max - (max - min) * log(c + 1) / log(k + 1).

    With ``k`` < 1 nobody could ever confirm, so waiting for it is pointless: ``min_s``.
    """
    if k < 1:
        return min_s
    share = math.log(confirmations + 1) / math.log(k + 1)
    return max(min_s, max_s - (max_s - min_s) * share)


class Suspicion:
    """One member's suspicion at one incarnation.

    ``since``: monotonic seconds, pushed back by local pauses. ``scale``: local health + 1 when it began; it is
    not raised later, or the probes that fail because the accused is dead would delay its own verdict.
    """

    __slots__ = ("accusers", "incarnation", "scale", "since")

    def __init__(self, incarnation: int, since: float, scale: int) -> None:
        self.incarnation = incarnation
        self.since = since
        self.scale = scale
        self.accusers: set[HostId] = set()

    def accuse(self, accuser: HostId, k: int) -> bool:
        """Count an accuser. True if it is new and worth passing on: the first and up to ``k`` others."""
        if accuser in self.accusers:
            return False
        self.accusers.add(accuser)
        return len(self.accusers) <= k + 1

    def remaining(self, now: float, k: int) -> float:
        """Seconds left until the verdict; negative when overdue."""
        allowed = timeout(len(self.accusers) - 1, k, SUSPICION_MIN_S, SUSPICION_MAX_S) * self.scale
        return self.since + allowed - now

    def deadline(self, k: int) -> float:
        """Monotonic seconds of the verdict."""
        return self.remaining(0.0, k)


class Suspicions:
    """The members under suspicion here, and which verdict is due first (cached: few change, many ask)."""

    def __init__(self) -> None:
        self._by_host: dict[HostId, Suspicion] = {}
        self._first: tuple[int, float] | None = None

    def __contains__(self, host: object) -> bool:
        return host in self._by_host

    def start(self, host: HostId, suspicion: Suspicion) -> None:
        """Begin; replaces an older suspicion of the same host."""
        self._by_host[host] = suspicion
        self._first = None

    def stop(self, host: HostId) -> None:
        """End without a verdict. Harmless if there is none."""
        if self._by_host.pop(host, None) is not None:
            self._first = None

    def changed(self) -> None:
        """An accuser was added: the cached deadline no longer holds."""
        self._first = None

    def push_back(self, by_s: float) -> None:
        """This host was not running for ``by_s`` seconds; nobody's refutation could reach it meanwhile."""
        for suspicion in self._by_host.values():
            suspicion.since += by_s
        self._first = None

    def first(self, k: int) -> float:
        """Monotonic seconds of the next verdict, inf if none is pending."""
        if self._first is None or self._first[0] != k:
            self._first = (k, min(_deadlines(self._by_host.values(), k), default=math.inf))
        return self._first[1]

    def due(self, now: float, k: int) -> list[HostId]:
        """Hosts whose verdict is due."""
        if self.first(k) > now:
            return []
        return [host for host, suspicion in self._by_host.items() if suspicion.deadline(k) <= now]


def _deadlines(suspicions: Iterable[Suspicion], k: int) -> Iterable[float]:
    return (suspicion.deadline(k) for suspicion in suspicions)
