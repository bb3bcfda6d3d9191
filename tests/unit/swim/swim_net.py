"""A tiny synchronous world for Swim cores: virtual time, one fake store a host, cuts, crashes and pauses.

``Driven`` drives one core by hand and keeps all that it gave out. ``Net`` connects several.
"""

import heapq
import itertools
import math
import random

from meshd.messages import Ping
from meshd.model import Item, Kind, MemberFacts, Rank, Version
from meshd.swim.core import Swim
from meshd.swim.events import StreamProbe

EPOCH = 1_000_000  # incarnation of every host's first life
DIGEST = bytes(16)


def host_id(n):
    return n.to_bytes(16)


def session(n, life=0):
    return bytes([200, life]) + n.to_bytes(14)


def facts(n, life=0, name=None):
    return MemberFacts(name or f"host{n}", bytes([192, 0, 2, n]), 7947, session(n, life))


def claim(n, incarnation=EPOCH, rank=Rank.ALIVE, life=0, name=None):
    body = facts(n, life, name)
    return Item(Kind.MEMBER, host_id(n), Version(incarnation, rank, body.session), body)


class Driven:
    """One core, all of whose outputs are kept. ``now`` starts at 100 s of its monotonic clock."""

    def __init__(self, n=0, peers=(), *, seed=1, incarnation=EPOCH, now=100.0, life=0):
        self.n = n
        self.now = now
        self.swim = Swim(
            host_id(n), facts(n, life), incarnation=incarnation, rng=random.Random(seed), now=now,
            wall_offset_s=1_700_000_000.0, digest=lambda: DIGEST,
        )  # fmt: skip
        for peer in peers:
            self.swim.load(claim(peer), now)
        self.sends, self.flood, self.items, self.events = [], [], [], []
        self.drain()

    def drain(self):
        self.sends += self.swim.take_sends()
        self.flood += self.swim.take_flood()
        self.items += self.swim.take_items()
        self.events += self.swim.take_events()

    def receive(self, n, message):
        self.swim.receive(host_id(n), message, self.now)
        self.drain()

    def observe(self, item):
        self.swim.observe(item, self.now)
        self.drain()

    def tick_at(self, now):
        self.now = now
        self.swim.tick(now)
        self.drain()

    def run(self, seconds):
        """Tick at every deadline within the next ``seconds``."""
        until = self.now + seconds
        while self.swim.deadline() <= until:
            self.tick_at(max(self.now, self.swim.deadline()))
        self.now = until

    def step(self):
        """Tick at the next deadline."""
        self.tick_at(self.swim.deadline())

    def sent(self, kind):
        return [(to, m) for to, m in self.sends if isinstance(m, kind)]

    def happened(self, kind):
        return [e for e in self.events if isinstance(e, kind)]

    def probe(self):
        """Run until a probe starts: (target number, its Ping)."""
        self.sends.clear()
        while not (pings := self.sent(Ping)):
            self.step()
        target, ping = pings[0]
        return int.from_bytes(target), ping

    def state(self, n):
        return self.swim.members[host_id(n)].state


class Host(Driven):
    """A core with a fake store."""

    def __init__(self, n, **kwargs):
        self.store = {}
        super().__init__(n, **kwargs)
        self.frozen_until = -math.inf
        self.mark = [0, 0, 0, 0]

    def merge(self, item):
        old = self.store.get(item.id)
        if old is not None and old.version >= item.version:
            return False
        self.store[item.id] = item
        return True


class Net:
    """Several hosts: ``cut`` holds (from, to) pairs over which nothing goes, ``streams`` says if streams work."""

    LATENCY = 0.001

    def __init__(self, count, *, seed=1):
        self.now = 100.0
        self.seed = seed
        self.hosts = {}
        self.cut = set()
        self.streams = True
        self._queue = []
        self._order = itertools.count()
        self.log = []
        for n in range(count):
            self.start(n)
        for host in self.hosts.values():
            for other in self.hosts.values():
                for item in list(other.store.values()):
                    self._take(host, item, None)

    def start(self, n, *, life=0, incarnation=EPOCH, knows=()):
        host = Host(n, seed=self.seed * 1000 + n, now=self.now, life=life, incarnation=incarnation)
        for item in knows:
            host.merge(item)
            host.swim.load(item, self.now)
        self.hosts[n] = host
        self._settle(host)
        return host

    def crash(self, n):
        return self.hosts.pop(n)

    def freeze(self, n, seconds):
        self.hosts[n].frozen_until = self.now + seconds

    def isolate(self, n, others=None):
        for other in others if others is not None else [o for o in self.hosts if o != n]:
            self.cut |= {(n, other), (other, n)}

    def run(self, seconds):
        until = self.now + seconds
        while True:
            for host in list(self.hosts.values()):
                self._settle(host)
            due = [(max(h.swim.deadline(), h.frozen_until, self.now), n) for n, h in self.hosts.items()]
            at, n = min(due, default=(math.inf, -1))
            mail = self._queue[0][0] if self._queue else math.inf
            if min(at, mail) > until:
                break
            if mail <= at:
                self.now, _, to, action = heapq.heappop(self._queue)
                host = self.hosts.get(to)
                if host is not None and host.frozen_until > self.now:
                    self._post(host.frozen_until + 0.001 - self.now, to, action)
                elif host is not None:
                    host.now = self.now
                    action(host)
            else:
                self.now = at
                self.hosts[n].tick_at(at)
        self.now = until

    def _post(self, delay, to, action):
        heapq.heappush(self._queue, (self.now + delay, next(self._order), to, action))

    def _send(self, source, to, action):
        if (source, to) not in self.cut:
            self._post(self.LATENCY, to, action)

    def _take(self, host, item, source):
        if not host.merge(item):
            return
        host.swim.observe(item, self.now)
        for other in list(self.hosts):
            if other not in (host.n, source):
                self._send(host.n, other, lambda h, i=item, s=host.n: self._take(h, i, s))

    def _settle(self, host):
        host.drain()
        marks = host.mark
        sends, flood, items, events = (
            part[mark:]
            for part, mark in zip((host.sends, host.flood, host.items, host.events), marks, strict=True)
        )
        host.mark = [len(host.sends), len(host.flood), len(host.items), len(host.events)]
        self.log += [(self.now, host.n, event) for event in events]
        for item in items:
            self._take(host, item, None)
        for to, message in sends:
            self._send(host.n, int.from_bytes(to), lambda h, m=message, s=host.n: h.receive(s, m))
        for message, exclude in flood:
            for other in host.swim.alive_ids():
                if other not in (host.swim.me, exclude):
                    to = int.from_bytes(other)
                    self._send(host.n, to, lambda h, m=message, s=host.n: h.receive(s, m))
        for event in events:
            if isinstance(event, StreamProbe) and self.streams:
                target = int.from_bytes(event.target)
                if target in self.hosts:
                    pong = (event.target, event.nonce)
                    self._post(0.01, host.n, lambda h, p=pong: h.swim.stream_pong(*p, self.now))
        if any((items, sends, flood)):
            self._settle(host)

    def states(self, n):
        """What each running host thinks of host ``n``."""
        return {h.n: str(h.swim.members[host_id(n)].state) for h in self.hosts.values()}

    def logged(self, kind):
        return [(at, n, e) for at, n, e in self.log if isinstance(e, kind)]
