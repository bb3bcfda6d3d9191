"""One host's core: takes datagrams, items and time, gives datagrams, events and one deadline. No I/O.

The driver (shell/gossip.py, or tests/sim/world.py) keeps one invariant: after every call that takes ``now`` it
drains ``take_datagrams`` and ``take_events`` and arms one timer for ``deadline``. This file decides how parts
meet: who alive is is swim's business, which item stands is the store's, who may speak is the sealer's.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from meshd.config import (
    ALONE_S,
    ANNOUNCE_ABOVE_BYTES,
    DATAGRAM_BUCKETS,
    DATAGRAM_MAX_BYTES,
    DATAGRAM_REPAIR_BUCKETS,
    DIFFERING_CONTACTS,
    FETCH_AGAIN_S,
    FETCHES_REMEMBERED,
    FLOOD_SYNC_MAX_ITEMS,
    HEADER_BYTES,
    HELLO_RETRY_S,
    INCARNATION_MAX,
    IP_UDP_BYTES_V4,
    IP_UDP_BYTES_V6,
    JOIN_RETRY_S,
    JOIN_SYNCS,
    JOIN_TARGETS,
    MTU_MIN_V4,
    MTU_MIN_V6,
    REPAIR_IDLE_S,
    SEED_CHECK_S,
    STAMPS_PER_DATAGRAM,
    SYNC_TIMEOUT_S,
    SYNCS_AT_ONCE,
    TAG_BYTES,
)
from meshd.messages import (
    Ack,
    Announce,
    BlockAnswer,
    BlockAsk,
    Buckets,
    Held,
    Hold,
    IndirectAck,
    Message,
    MtuAck,
    MtuProbe,
    Nack,
    News,
    Ping,
    PingReq,
    Restarting,
    Stamp,
    Stamps,
    SubnetAsk,
    Suspect,
    Want,
)
from meshd.model import (
    FIRST_LOCAL_KIND,
    Address,
    Deed,
    Forgotten,
    HostFacts,
    HostId,
    Item,
    Key,
    Kind,
    MemberFacts,
    Opaque,
    Rank,
    Rng,
    Version,
)
from meshd.node.events import (
    Alarm,
    BlockAnswered,
    BlockAsked,
    Changed,
    FetchWanted,
    HeldTold,
    HoldAsked,
    NodeEvent,
    PathChanged,
    StreamProbeWanted,
    SyncWanted,
)
from meshd.node.outbox import Outbox
from meshd.node.pathmtu import Path, PathMtu
from meshd.node.sync import SyncSession
from meshd.spread import repair
from meshd.spread.rings import Rings
from meshd.state.store import Store
from meshd.swim.core import Swim
from meshd.swim.events import DigestSeen, StreamProbe
from meshd.swim.members import obeyed
from meshd.wire.codec import decode_messages, encode_item, encode_message, encode_probe, is_probe
from meshd.wire.errors import WireError
from meshd.wire.keys import Keyring
from meshd.wire.opened import Data, Greeted, Greeting, Who
from meshd.wire.seal import Sealer

_GONE = ("failed", "left")
_SWIM_MESSAGES = (Ping, Ack, PingReq, Nack, IndirectAck, Suspect, Restarting)


class Node:
    """The core of one host for one boot (one session)."""

    def __init__(
        self,
        *,
        me: HostId,
        facts: MemberFacts,
        incarnation: int,
        store: Store,
        keyring: Keyring,
        entropy: Callable[[int], bytes],
        rng: Rng,
        now: float,
        wall_offset_s: float,
        seeds: Sequence[Address] = (),
    ) -> None:
        """``store`` holds what the disk had. ``incarnation``: unix milliseconds at boot. ``wall_offset_s``: wall
        clock minus ``now``, a hint only. ``facts.session`` must be fresh."""
        self.me = me
        self.store = store
        self.counters: Counter[str] = Counter()
        self._rng = rng
        self._seeds = tuple(seeds)
        self._address = Address.unpack(facts.address, facts.port)
        self._datagrams: list[tuple[bytes, Address]] = []
        self._probes: list[tuple[bytes, Address]] = []
        self._events: list[NodeEvent] = []
        self._outbox = Outbox(now)
        self._rings = Rings(me)
        self._path_mtu = PathMtu(rng, self._floor)
        self._heard_from: dict[HostId, Address] = {}
        self._greeting: dict[Address, tuple[float, float]] = {}  # address -> (next attempt, wait after it)
        self._greeted_at: dict[Address, float] = {}
        self._started = now
        self._join_at = now
        self._first_join = True
        self._seed_check_at = now
        self._joined = False
        self._equal: set[HostId] = set()
        self._in_sync = False
        self._differing = 0
        self._repaired_at: dict[HostId, float] = {}
        self._syncing: dict[HostId, float] = {}
        self._fetching: dict[Key, tuple[Version, float]] = {}  # asked for at which version, and when
        self._relearning = False
        self.swim = Swim(
            me, facts, incarnation=incarnation, rng=rng, now=now, wall_offset_s=wall_offset_s,
            digest=lambda: self.store.digest,
        )  # fmt: skip
        self.sealer = Sealer(
            me, facts.session, keyring, entropy,
            incarnation=lambda: self.swim.incarnation, known_incarnation=self._known_incarnation,
        )  # fmt: skip
        for item in store.all(Kind.HOST):
            self._told(item, now)
        for item in sorted(store.all(Kind.MEMBER), key=lambda item: item.id):
            self.swim.load(item, now)
            self._place(item, now)
        self._settle(now)

    # --- inputs ---------------------------------------------------------------------------------------------
    def receive(self, datagram: bytes, source: Address, now: float) -> None:
        """Take one datagram from the network. Whatever it holds, nothing is raised: what cannot be read is
        counted in ``counters``."""
        try:
            opened = self.sealer.open(datagram, source, now)
        except WireError as error:
            self.counters[f"refused {error.reason}"] += 1
            if error.answer is not None:
                self._datagrams.append((error.answer, source))
            return
        match opened:
            case Greeting():
                if opened.host != self.me:
                    self._datagrams.append((opened.reply, source))
            case Greeted():
                self._greeted(opened, source, now)
            case Who():
                self.greet(source, now)
            case Data():
                self._heard_from[opened.host] = source
                try:
                    messages = decode_messages(opened.plaintext)
                except WireError as error:
                    self.counters[f"refused {error.reason}"] += 1
                    return
                if len(datagram) > DATAGRAM_MAX_BYTES and not is_probe(messages):
                    self.counters["refused long"] += 1
                    return
                self.swim.heard(opened.host, now)
                for message in messages:
                    self.counters[type(message).__name__] += 1
                    self._dispatch(opened.host, message, now)
        self._settle(now)

    def tick(self, now: float) -> None:
        """Do what is due. Call at or after ``deadline``."""
        if now >= self.swim.deadline():
            self.swim.tick(now)
        if now >= self._path_mtu.deadline():
            self._path_mtu.tick(now)
        self._join(now)
        for address, (at, wait) in list(self._greeting.items()):
            if now >= at:
                self._hello(address, now)
                if wait >= JOIN_RETRY_S:
                    del self._greeting[address]  # the join loop, probes or traffic will greet again
                else:
                    self._greeting[address] = (now + wait, 2 * wait)
        self._settle(now)

    def put(self, items: Iterable[Item], now: float) -> None:
        """Take this host's own new items (already on disk) and tell everybody."""
        for item in items:
            self._take(item, None, now)
        self._settle(now)

    def send(self, to: HostId, *messages: Message, now: float) -> None:
        """Send messages to one host (BlockAsk, SubnetAsk, BlockAnswer, Hold, Held), in this order; together in one
        datagram where they fit."""
        for message in messages:
            self._outbox.urgent(to, encode_message(message))
        self._settle(now)

    def underlay(self, mtu: int, now: float) -> None:
        """Say what this host's underlay carries (bytes): paths are measured up to that, from now on."""
        self._path_mtu.underlay(mtu, now)
        self._settle(now)

    def greet(self, address: Address, now: float) -> None:
        """Start a HELLO exchange with whoever is at ``address``, retried a few times."""
        if address != self._address and now - self._greeted_at.get(address, -1e9) >= HELLO_RETRY_S:
            self._hello(address, now)
            self._greeting[address] = (now + HELLO_RETRY_S, 2 * HELLO_RETRY_S)

    def stream_pong(self, peer: HostId, nonce: int, now: float) -> None:
        """The fallback probe over a stream was answered. News by UDP does not get through then, so compare by
        stream; it is also how two twins with one identity get to hear of each other."""
        self.swim.stream_pong(peer, nonce, now)
        if (address := self.address_of(peer)) is not None:
            self._want_sync(peer, address, now)
        self._settle(now)

    def move(self, address: Address, now: float) -> None:
        """This host's socket is at ``address`` from now on: tell everybody. Datagrams taken after this call leave
        by the new socket."""
        self._address = address
        self.swim.move(address, now)
        self._settle(now)

    def leave(self, now: float) -> None:
        """Say good-bye for good: everybody takes this host off its list."""
        self.swim.leave(now)
        self._settle(now)

    def restarting(self, now: float, duration_s: float) -> None:
        """Say that this host will be back within ``duration_s``."""
        self.swim.restarting(now, duration_s)
        self._settle(now)

    def take_fetched(self, item: Item, peer: HostId, now: float) -> None:
        """Take one item that FetchWanted asked for."""
        self._take(item, peer, now)
        self._settle(now)

    def sync_session(self, peer: HostId, now: Callable[[], float]) -> SyncSession:
        """Make one side of a sync with ``peer``; items enter as they arrive. ``now`` is read per item."""
        count = 0

        def take(item: Item, source: HostId) -> None:
            nonlocal count
            count += 1
            flood = self._joined and count <= FLOOD_SYNC_MAX_ITEMS
            self._take(item, source, now(), flood=flood)
            self._settle(now())

        return SyncSession(self.store, peer, take)

    def sync_ended(self, peer: HostId, ok: bool, now: float) -> None:
        """A sync that SyncWanted asked for has ended, well or not."""
        self._syncing.pop(peer, None)
        if ok:
            self._joined = True
            self._differing = 0
            self._equal.add(peer)
        elif self.store.digests.count <= DATAGRAM_BUCKETS:
            self._repair_by_datagram(peer)  # TCP may be blocked where UDP is not
        self._settle(now)

    def distrust(self, why: str, now: float) -> None:
        """This host's own disk has lost what it gave away. From now on it is out of sync until it has compared
        everything with peers anew (``in_sync``): the alarm ``rolled-back`` says when that begins, ``relearnt``
        that it is over."""
        self._relearning, self._in_sync, self._started = True, False, now
        self._equal.clear()
        self._events.append(Alarm("rolled-back", why))

    # --- outputs --------------------------------------------------------------------------------------------
    def take_datagrams(self) -> list[tuple[bytes, Address]]:
        """Drain what must be sent now, in order."""
        taken, self._datagrams = self._datagrams, []
        return taken

    def take_probes(self) -> list[tuple[bytes, Address]]:
        """Drain the datagrams that must not be fragmented on their way; one that does not even leave this host
        counts as lost. None come before ``underlay`` was called."""
        taken, self._probes = self._probes, []
        return taken

    @property
    def paths(self) -> Mapping[HostId, Path]:
        """What the path to each living peer carries, as far as it has been measured."""
        return self._path_mtu.paths

    def take_events(self) -> list[NodeEvent]:
        """Drain what happened."""
        taken, self._events = self._events, []
        return taken

    def deadline(self) -> float:
        """When ``tick`` must be called next (monotonic seconds, may be infinity)."""
        times = [self.swim.deadline(), self._outbox.deadline(), self._join_at, self._path_mtu.deadline()]
        times += [at for at, _ in self._greeting.values()]
        return min(times)

    def address_of(self, host: HostId) -> Address | None:
        """Return where to reach a host: what its member item says, else where it was last heard from."""
        member = self.swim.members.get(host)
        if member is not None:
            return Address.unpack(member.facts.address, member.facts.port)
        return self._heard_from.get(host)

    def use_seeds(self, seeds: Sequence[Address]) -> None:
        """Join by these addresses from now on."""
        self._seeds = tuple(seeds)

    def in_sync(self, now: float) -> bool:
        """Whether this host may delete what it has no record of: its digest has equalled that of two peers, or
        of all there are, or it has been alone for ALONE_S. Once true, it stays, until this host's state turns out
        to have been lost (``distrust``); being alone is no proof then, as long as anybody else is known."""
        if not self._in_sync:
            peers = [host for host in self.swim.alive_ids() if host != self.me]
            alone = not peers and now - self._started >= ALONE_S
            if self._relearning:
                others = [m for m in self.swim.members.values() if m.id != self.me and m.state != "left"]
                alone = alone and not others
            self._in_sync = alone or (bool(peers) and len(self._equal & set(peers)) >= min(2, len(peers)))
        return self._in_sync

    # --- joining --------------------------------------------------------------------------------------------
    def _join(self, now: float) -> None:
        """Greet seeds and known members while nobody is alive; later, look whether a seed is a stranger."""
        if now < self._join_at:
            return
        self._join_at = now + JOIN_RETRY_S
        members = self.swim.members.values()
        alive = {Address.unpack(m.facts.address, m.facts.port) for m in members if m.state == "alive"}
        alive.discard(self._address)
        first, self._first_join = self._first_join, False
        if not alive or first:
            known = [Address.unpack(m.facts.address, m.facts.port) for m in members if m.state != "left"]
            targets = list(dict.fromkeys([*self._seeds, *known]))
            if len(targets) > JOIN_TARGETS:
                targets = self._rng.sample(targets, JOIN_TARGETS)
            for address in targets:
                self.greet(address, now)
        elif now >= self._seed_check_at:
            self._seed_check_at = now + SEED_CHECK_S
            for address in self._seeds:
                if address not in alive:
                    self.greet(address, now)
        elif not (self._seeds or len(self.swim.members) > 1):
            self._join_at = float("inf")

    def _hello(self, address: Address, now: float) -> None:
        self._greeted_at[address] = now
        self._datagrams.append((self.sealer.hello(now), address))

    def _greeted(self, greeted: Greeted, source: Address, now: float) -> None:
        """A peer proved its session. If it is new to us, or we are new, compare everything."""
        self._greeting.pop(source, None)
        if greeted.host == self.me:
            return
        self._heard_from[greeted.host] = source
        if self.swim.incarnation < greeted.my_incarnation_there <= INCARNATION_MAX:
            self.swim.raise_incarnation(greeted.my_incarnation_there, now)
        member = self.swim.members.get(greeted.host)
        if (not self._joined and len(self._syncing) < JOIN_SYNCS) or member is None or member.state in _GONE:
            self._want_sync(greeted.host, source, now)

    def _known_incarnation(self, host: HostId) -> int:
        member = self.swim.members.get(host)
        return member.incarnation if member is not None else 0

    # --- messages -------------------------------------------------------------------------------------------
    def _dispatch(self, sender: HostId, message: Message, now: float) -> None:
        match message:
            case News():
                for item in message.items:
                    self._take(item, sender, now)
            case Announce():
                self._announced(sender, message, now)
            case Buckets():
                self._compare_buckets(sender, message, now)
            case Stamps():
                if message.count & (message.count - 1):
                    self.counters["refused bucket count"] += 1
                    return
                send, want = repair.compare(self.store, message)
                for item in send:
                    self._news([sender], item, own=False)
                if want:
                    keys = tuple(want)
                    for start in range(0, len(keys), STAMPS_PER_DATAGRAM):
                        page = Want(keys=keys[start : start + STAMPS_PER_DATAGRAM])
                        self._outbox.urgent(sender, encode_message(page))
            case Want():
                for item in repair.wanted(self.store, message):
                    self._news([sender], item, own=False)
            case BlockAsk() | SubnetAsk():
                self._events.append(BlockAsked(sender, message))
            case BlockAnswer():
                self._events.append(BlockAnswered(sender, message))
            case Hold():
                self._events.append(HoldAsked(sender, message))
            case Held():
                self._events.append(HeldTold(sender, message))
            case MtuProbe():
                self._outbox.urgent(sender, encode_message(MtuAck(message.nonce)))
            case MtuAck():
                self._path_mtu.answered(sender, message.nonce, now)
            case _ if isinstance(message, _SWIM_MESSAGES):
                self.swim.receive(sender, message, now)
            case _:
                self.counters["refused stream message in datagram"] += 1

    def _announced(self, sender: HostId, message: Announce, now: float) -> None:
        """Fetch what is announced and not held, from the first who says so: all neighbours will."""
        missing: list[Key] = []
        for stamp in message.stamps:
            key = Key(stamp.kind, stamp.id)
            mine = self.store.lookup(key)
            asked = self._fetching.get(key)
            if stamp.kind >= FIRST_LOCAL_KIND or (mine is not None and mine.version >= stamp.version):
                continue
            if asked is None or stamp.version > asked[0] or now - asked[1] >= FETCH_AGAIN_S:
                missing.append(key)
                self._fetching[key] = (stamp.version, now)
        if missing and (address := self.address_of(sender)) is not None:
            self._events.append(FetchWanted(sender, address, tuple(missing)))
        while len(self._fetching) > FETCHES_REMEMBERED:
            del self._fetching[next(iter(self._fetching))]

    def _compare_buckets(self, sender: HostId, theirs: Buckets, now: float) -> None:
        """Repair, step 2, in datagrams; over a stream when the difference is large."""
        if theirs.count & (theirs.count - 1) or theirs.count > DATAGRAM_BUCKETS:
            self.counters["refused bucket count"] += 1
            return
        buckets = repair.differing(self.store, theirs)
        if not buckets:
            self._equal.add(sender)
            return
        messages = repair.few_stamps(
            self.store, buckets, theirs.count, most_buckets=DATAGRAM_REPAIR_BUCKETS, limit=STAMPS_PER_DATAGRAM
        )
        if messages is None:
            address = self.address_of(sender)
            if address is not None:
                self._want_sync(sender, address, now)
            return
        for message in messages:
            self._outbox.urgent(sender, encode_message(message))

    def _take(self, item: Item, source: HostId | None, now: float, *, flood: bool = True) -> None:
        """Merge one item; if it is newer, tell the neighbours at once, whoever it came from."""
        if item.kind == Kind.MEMBER and not obeyed(item):
            self.counters["refused wild claim"] += 1  # stored by nobody, so it burns nothing
            self.swim.observe(item, now)  # which tells of it
            return
        changes = self.store.merge(item)
        if not changes:
            mine = self.store.lookup(item.key)
            if source is not None and flood and mine is not None and mine.version > item.version:
                self._news(
                    [source], mine, own=False
                )  # the sender is behind: tell it now rather than by digest
            return
        for change in changes:
            self._events.append(Changed(change, source))
        if flood and item.kind < FIRST_LOCAL_KIND:
            self._news(self._rings.targets(self._rng, source), item, own=source is None)
        self._told(item, now)
        if item.kind == Kind.MEMBER:
            self._place(item, now)
            self.swim.observe(item, now)
        elif source is not None and self._mine(item):
            self.distrust(
                "a peer holds newer records of this host than its own disk: the state was lost or rolled back",
                now,
            )

    def _mine(self, item: Item) -> bool:
        """Whether this host alone can have written an item: then its disk had it before any peer. What a newer host
        means by an id is not known here."""
        if isinstance(item.body, Opaque | Forgotten):
            return False
        return self.me in (item.id, item.origin) or (
            isinstance(item.body, Deed) and item.body.donor == self.me
        )

    def _place(self, item: Item, now: float) -> None:
        """Let a member item decide who gets news, whose session is current and whose path is measured."""
        facts = item.body
        if not isinstance(facts, MemberFacts) or item.id == self.me:
            return
        if item.version.counter == Rank.ALIVE:
            self._rings.add(item.id)
            self.sealer.learn(item.id, facts.session)
            self._path_mtu.add(item.id, now)
        else:
            self._rings.remove(item.id)  # a failed host catches up by digest when it is back
            self._path_mtu.remove(item.id)

    def _told(self, item: Item, now: float) -> None:
        """Let a host's item say what its underlay carries."""
        if isinstance(item.body, HostFacts) and item.id != self.me:
            self._path_mtu.told(item.id, item.body.underlay_mtu, now)

    def _news(self, targets: Iterable[HostId], item: Item, *, own: bool) -> None:
        encoded = encode_item(item)
        if len(encoded) <= ANNOUNCE_ABOVE_BYTES:
            self._outbox.news(targets, encoded, own=own)
            return
        announce = encode_message(Announce(stamps=(Stamp(item.kind, item.id, item.version),)))
        for host in targets:
            self._outbox.urgent(host, announce)

    # --- digests and repair ---------------------------------------------------------------------------------
    def _digest_seen(self, peer: HostId, digest: bytes, now: float) -> None:
        """Two contacts in a row that differ: the difference is not news in flight. Repair it."""
        if digest == self.store.digest:
            self._equal.add(peer)
            self._differing = 0
            self._joined = True
            self.in_sync(now)  # who asks later may find the peer gone
            return
        self._equal.discard(peer)
        self._differing += 1
        if self._differing < DIFFERING_CONTACTS or now - self._repaired_at.get(peer, -1e9) < REPAIR_IDLE_S:
            return
        self._repaired_at[peer] = now
        if self.store.digests.count <= DATAGRAM_BUCKETS:
            self._repair_by_datagram(peer)
        elif (address := self.address_of(peer)) is not None:
            self._want_sync(peer, address, now)

    def _repair_by_datagram(self, peer: HostId) -> None:
        self.counters["repairs"] += 1
        for message in repair.bucket_messages(self.store, self.store.digests.count):
            self._outbox.urgent(peer, encode_message(message))

    def _want_sync(self, peer: HostId, address: Address, now: float) -> None:
        under_way = sum(now - since < SYNC_TIMEOUT_S for since in self._syncing.values())
        if now - self._syncing.get(peer, -1e9) >= SYNC_TIMEOUT_S and under_way < SYNCS_AT_ONCE:
            self._syncing[peer] = now
            self.counters["syncs"] += 1
            self._events.append(SyncWanted(peer, address))

    # --- draining -------------------------------------------------------------------------------------------
    def _settle(self, now: float) -> None:
        """Carry swim's outputs to where they belong until it has none, then pack what is to be sent."""
        if self._relearning and self.in_sync(now):
            self._relearning = False
            text = "this host has learnt from its peers what its lost or rolled-back state gave away"
            self._events.append(Alarm("relearnt", text))
        while True:
            items, flood = self.swim.take_items(), self.swim.take_flood()
            sends, events = self.swim.take_sends(), self.swim.take_events()
            if not (items or flood or sends or events):
                break
            for item in items:
                self._take(item, None, now)
            for claim, exclude in flood:
                encoded = encode_message(claim)
                for host in self._rings.targets(self._rng, exclude):
                    self._outbox.urgent(host, encoded)
            for host, message in sends:
                member = self.swim.members.get(host)
                if isinstance(message, Ping) and member is not None and member.state == "failed":
                    # Both sides may have restarted meanwhile: then only a HELLO can be read over there.
                    self.greet(Address.unpack(member.facts.address, member.facts.port), now)
                self._outbox.urgent(host, encode_message(message))
            for event in events:
                self._swim_event(event, now)
        self._events += [PathChanged(peer) for peer in self._path_mtu.take_changed()]
        for probe in self._path_mtu.take_probes():
            self._pad(probe.peer, probe.nonce, probe.size)
        for host, plaintext in self._outbox.pack(now):
            self._seal(host, plaintext, now)

    def _pad(self, peer: HostId, nonce: int, size: int) -> None:
        """Make the datagram that an IP packet of ``size`` bytes holds. Without a session nothing is sent: pings
        take care of that, and the probe is tried again."""
        address = self.address_of(peer)
        if address is not None and self.sealer.session_of(peer) is not None:
            room = size - _headers(address) - HEADER_BYTES - TAG_BYTES
            self._probes.append((self.sealer.seal(peer, encode_probe(nonce, room), probe=True), address))

    def _floor(self, peer: HostId) -> int:
        address = self.address_of(peer) or self._address
        return MTU_MIN_V4 if len(address.packed) == 4 else MTU_MIN_V6

    def _swim_event(self, event: object, now: float) -> None:
        match event:
            case DigestSeen():
                self._digest_seen(event.peer, event.digest, now)
            case StreamProbe():
                address = self.address_of(event.target)
                if address is not None:
                    self._events.append(StreamProbeWanted(event.target, address, event.nonce))
            case _:
                self._events.append(event)  # type: ignore[arg-type]  # what is left of SwimEvent

    def _seal(self, host: HostId, plaintext: bytes, now: float) -> None:
        address = self.address_of(host)
        if address is None:
            self.counters["no address"] += 1
        elif self.sealer.session_of(host) is None:
            self.counters["no session"] += 1
            self.greet(address, now)
        else:
            self._datagrams.append((self.sealer.seal(host, plaintext), address))


def _headers(address: Address) -> int:
    """Count the bytes of an IP packet before a datagram to ``address``."""
    return IP_UDP_BYTES_V4 if len(address.packed) == 4 else IP_UDP_BYTES_V6
