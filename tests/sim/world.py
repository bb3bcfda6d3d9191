"""A simulated cluster: real Nodes, simulated network, clocks, crashes and pauses, in virtual time.

One seed decides everything, so that a failure can be run again: its number is in every assertion's text. The
network delays, loses, duplicates and reorders datagrams; ``split`` partitions it; ``block`` cuts one direction.
Streams do not lose, but break where datagrams cannot pass either way. What a host wrote to its store outlives
a crash, as on a disk; its session does not.
"""

import heapq
import itertools
import math
from collections import Counter
from random import Random

from meshd.messages import Want
from meshd.model import Address, HostFacts, Item, Kind, MemberFacts, Version
from meshd.node import FetchWanted, Node, StreamProbeWanted, SyncWanted
from meshd.spread import repair
from meshd.state.store import Store
from meshd.swim.events import MemberFailed, MemberSuspect
from meshd.wire.keys import Keyring, RingKey

WALL_S = 1_800_000_000.0
STREAM_TIMEOUT_S = 3.0
RING = Keyring((RingKey(1, b"k" * 32),))


class Host:
    """One machine: its node while it runs, and its store, which stays."""

    def __init__(self, n, identity, clock_s):
        self.n = n
        self.id = identity
        self.clock_s = clock_s
        self.address = Address(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 7947)
        self.store = Store(b"cluster secret")
        self.node = None
        self.boots = 0
        self.armed = math.inf
        self.asleep_until = -math.inf


class World:
    """``latency_s``: one-way, of which half is jitter. ``loss`` and ``duplicates``: shares of datagrams."""

    def __init__(self, seed, *, latency_s=0.0005, loss=0.0, duplicates=0.0, clocks_off_s=0.0):
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.latency_s = latency_s
        self.loss = loss
        self.duplicates = duplicates
        self.clocks_off_s = clocks_off_s
        self.hosts = []
        self.log = []  # (now, host number, event)
        self.carried = Counter()
        self._by_address = {}
        self._sides = None
        self._blocked = set()
        self._deaf = set()
        self._queue = []
        self._order = itertools.count()

    # --- machines -------------------------------------------------------------------------------------------
    def add(self, *, seeds=(0,), delay_s=0.0, identity=None):
        n = len(self.hosts)
        off_s = self.random.uniform(-self.clocks_off_s, self.clocks_off_s)
        host = Host(n, identity or self.random.randbytes(16), off_s)
        self.hosts.append(host)
        self._by_address[host.address] = host
        self.at(delay_s, lambda: self.boot(host, seeds))
        return host

    def facts(self, host):
        return MemberFacts(f"host{host.n}", host.address.packed, host.address.port, self.random.randbytes(16))

    def boot(self, host, seeds=(0,), facts=None):
        facts = facts or self.facts(host)
        wall_s = WALL_S + host.clock_s
        own = Random(self.random.randbytes(8))
        host.boots += 1
        host.node = Node(
            me=host.id, facts=facts, incarnation=int(1000 * (wall_s + self.now)), store=host.store, keyring=RING,
            entropy=own.randbytes, rng=own, now=self.now, wall_offset_s=wall_s,
            seeds=[self.hosts[n].address for n in seeds if n != host.n],
        )  # fmt: skip
        self._drain(host)

    def crash(self, host):
        host.node = None
        host.armed = math.inf

    def sleep(self, host, seconds):
        host.asleep_until = self.now + seconds
        self._arm(host)

    def write(self, host, text="", incarnation=1):
        """Let a host change its own HOST item: the smallest piece of news there is."""
        before = host.store.get(Kind.HOST, host.id)
        counter = before.version.counter + 1 if before is not None else 1
        body = HostFacts(f"host{host.n}{text}", host.address.packed, 4789, 1500)
        return self.put(host, Item(Kind.HOST, host.id, Version(incarnation, counter, host.id), body))

    def put(self, host, item):
        host.node.put([item], self.now)
        self._drain(host)
        return item

    # --- the network ----------------------------------------------------------------------------------------
    def split(self, *sides):
        """Let only hosts of one side reach each other; who is on no side is alone."""
        self._sides = {host.id: number for number, side in enumerate(sides) for host in side}

    def block(self, source, destination):
        self._blocked.add((source.id, destination.id))

    def block_udp(self, source, destination):
        """Lose all datagrams one way; streams pass."""
        self._deaf.add((source.id, destination.id))

    def heal(self):
        self._sides = None
        self._deaf.clear()
        self._blocked.clear()

    def passes(self, source, destination):
        if (source.id, destination.id) in self._blocked:
            return False
        sides = self._sides
        return sides is None or sides.get(source.id, -1) == sides.get(destination.id, -2)

    def _send(self, source, datagram, to):
        destination = self._by_address.get(to)
        self.carried["datagrams"] += 1
        self.carried["bytes"] += len(datagram) + 28
        if destination is None or not self.passes(source, destination):
            return
        if (source.id, destination.id) in self._deaf:
            return
        copies = 1 + (self.random.random() < self.duplicates)
        for _ in range(copies):
            if self.random.random() >= self.loss:
                self.at(self._delay(), lambda: self._arrive(destination, datagram, source.address))

    def _delay(self):
        return self.latency_s * (0.75 + 0.5 * self.random.random())

    def _arrive(self, host, datagram, source):
        if host.node is None:
            return
        if host.asleep_until > self.now:
            self.at(host.asleep_until - self.now, lambda: self._arrive(host, datagram, source))
            return
        host.node.receive(datagram, source, self.now)
        self._drain(host)

    # --- streams --------------------------------------------------------------------------------------------
    def _answers(self, host, other):
        return (
            other is not None
            and other.node is not None
            and other.asleep_until <= self.now
            and self.passes(host, other)
            and self.passes(other, host)
        )

    def _sync(self, host, wanted):
        node, other = host.node, self._by_address.get(wanted.address)

        def ended(ok):
            if host.node is node:
                node.sync_ended(wanted.peer, ok, self.now)
                self._drain(host)

        if not self._answers(host, other) or other.id != wanted.peer:
            self.at(STREAM_TIMEOUT_S, lambda: ended(False))
            return
        self.carried["syncs"] += 1
        answering = other.node
        ends = {
            host.n: node.sync_session(other.id, lambda: self.now),
            other.n: answering.sync_session(host.id, lambda: self.now),
        }

        def carry(to, back, messages):
            if to.node is not (node if to is host else answering) or not self._answers(back, to):
                self.at(STREAM_TIMEOUT_S, lambda: ended(False))
                return
            replies = [reply for message in messages for reply in ends[to.n].receive(message)]
            self._drain(to)
            if replies:
                self.at(self._delay(), lambda: carry(back, to, replies))
            if to is host and ends[host.n].finished:
                ended(True)

        first = ends[host.n].open()
        self.at(4 * self._delay(), lambda: carry(other, host, first))

    def _fetch(self, host, wanted):
        self.carried["fetches"] += 1
        node, other = host.node, self._by_address.get(wanted.address)

        def fetched():
            if host.node is node and self._answers(host, other):
                for item in list(repair.wanted(other.store, Want(wanted.keys))):
                    node.take_fetched(item, wanted.peer, self.now)
                self._drain(host)

        self.at(6 * self._delay(), fetched)

    def _stream_probe(self, host, wanted):
        node, other = host.node, self._by_address.get(wanted.address)

        def answered():
            if host.node is node and self._answers(host, other):
                node.stream_pong(wanted.peer, wanted.nonce, self.now)
                self._drain(host)

        self.at(6 * self._delay(), answered)

    # --- time -----------------------------------------------------------------------------------------------
    def at(self, delay_s, action):
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), action))

    def run(self, seconds):
        """Let virtual time pass."""
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def run_until(self, holds, within_s, step_s=0.05):
        """Let time pass until ``holds()``; how long it took. Fails with the seed when it does not."""
        began = self.now
        while not holds():
            assert self.now - began < within_s, f"seed {self.seed}: not within {within_s} s of virtual time"
            self.run(step_s)
        return self.now - began

    def _arm(self, host):
        if host.node is None:
            return
        due = max(host.node.deadline(), self.now, host.asleep_until)
        if due < math.inf and due != host.armed:
            host.armed = due
            node = host.node
            self.at(due - self.now, lambda: self._fire(host, node, due))

    def _fire(self, host, node, due):
        if host.node is not node or host.armed != due:
            return  # a later arming replaced this one
        if host.asleep_until > self.now:
            self._arm(host)
            return
        host.armed = math.inf
        node.tick(max(self.now, due))
        self._drain(host)

    def _drain(self, host):
        node = host.node
        for datagram, to in node.take_datagrams():
            self._send(host, datagram, to)
        for event in node.take_events():
            match event:
                case SyncWanted():
                    self._sync(host, event)
                case FetchWanted():
                    self._fetch(host, event)
                case StreamProbeWanted():
                    self._stream_probe(host, event)
                case _:
                    self.log.append((self.now, host.n, event))
        self._arm(host)

    # --- what holds -----------------------------------------------------------------------------------------
    def running(self):
        return [host for host in self.hosts if host.node is not None]

    def states(self, of):
        """What each running host but ``of`` thinks of ``of``."""
        views = {}
        for host in self.running():
            if host is not of:
                member = host.node.swim.members.get(of.id)
                views[host.n] = str(member.state) if member is not None else "unknown"
        return views

    def all_see(self, of, state):
        return set(self.states(of).values()) == {state}

    def all_alive(self):
        """Every running host sees every running host alive, and nobody else."""
        ids = sorted(host.id for host in self.running())
        return all(
            sorted(host.node.swim.alive_ids()) == ids
            and not any(member.suspicion for member in host.node.swim.members.values())
            for host in self.running()
        )

    def converged(self):
        return len({host.store.digest for host in self.running()}) == 1

    def happened(self, kind, since=0.0):
        return [(at, n, event) for at, n, event in self.log if isinstance(event, kind) and at >= since]

    def accused(self, since=0.0):
        """Numbers of hosts that anybody suspected or called failed."""
        number = {host.id: host.n for host in self.hosts}
        return {number[event.id] for _, _, event in self.happened((MemberSuspect, MemberFailed), since)}


def preloaded(seed, count, **faults):
    """Make ``count`` hosts whose stores hold all members already: large clusters, without simulating a join."""
    world = World(seed, **faults)
    for n in range(count):
        host = Host(n, world.random.randbytes(16), 0.0)
        world.hosts.append(host)
        world._by_address[host.address] = host
    facts = [world.facts(host) for host in world.hosts]
    incarnation = int(1000 * WALL_S)
    items = []
    for host, own in zip(world.hosts, facts, strict=True):
        items.append(Item(Kind.MEMBER, host.id, Version(incarnation, 0, own.session), own))
        body = HostFacts(own.name, host.address.packed, 4789, 1500)
        items.append(Item(Kind.HOST, host.id, Version(1, 1, host.id), body))
    for host, own in zip(world.hosts, facts, strict=True):
        for item in items:
            if item.key != (Kind.MEMBER, host.id):  # its own is written by its boot, and is the same
                host.store.merge(item)
        world.boot(host, seeds=(), facts=own)
    return world


def cluster(seed, count, **faults):
    """Make ``count`` hosts that know each other, then apply ``faults`` (loss, duplicates) to the network."""
    world = World(seed, **{key: faults.pop(key) for key in ("latency_s", "clocks_off_s") if key in faults})
    for n in range(count):
        world.add(delay_s=0.0 if n == 0 else world.random.random())
    world.run(1.1)
    world.run_until(lambda: world.all_alive() and world.converged(), 30)
    for name, value in faults.items():
        setattr(world, name, value)
    return world
