"""What this host knows and may do, in one object for the use cases: the store with the views derived from it,
the one way to change it (``commit``: disk first, then everybody), and asking peers for address space.

Every change to the store, whoever made it, comes through ``on_event`` once: views, journal, reconciler and the
event bus are kept in step there and nowhere else.
"""

import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec
import structlog
import trio

from meshd.config import (
    BLOCK_ASK_TIMEOUT_S,
    FORGOTTEN_LINGER_S,
    HOLD_IDS_MAX,
    LEAVE_ASK_S,
    Settings,
)
from meshd.errors import Conflict, MeshdError, Unavailable
from meshd.kernel.namespace import Namespace
from meshd.kernel.offload import Device
from meshd.messages import BlockAnswer, BlockAsk, Held, Hold, Message, News, SubnetAsk
from meshd.model import (
    NO_PARENT,
    Address,
    Attachment,
    Bridge,
    Deed,
    Endpoint,
    EndpointId,
    Forgotten,
    HostFacts,
    HostId,
    Item,
    Key,
    Kind,
    Network,
    NetworkId,
    Version,
    text_id,
    text_ip,
)
from meshd.node import (
    Alarm,
    BlockAnswered,
    BlockAsked,
    Changed,
    FetchWanted,
    HeldTold,
    HoldAsked,
    Node,
    NodeEvent,
    Path,
    PathChanged,
    StreamProbeWanted,
    SyncWanted,
)
from meshd.plan import desired
from meshd.plan.aged import aged, failed_since
from meshd.plan.forwarding import Forwarding, advice
from meshd.plan.view import View
from meshd.shell import farewell
from meshd.shell.desk import Desk
from meshd.shell.events import EventBus
from meshd.shell.gossip import Gossip
from meshd.shell.holds import Holds
from meshd.shell.journal import DiskWriter
from meshd.shell.lag import Lag
from meshd.shell.mtuwatch import MtuWatch
from meshd.shell.offload import Offload
from meshd.shell.reconcile import Reconciler
from meshd.shell.streams import Streams
from meshd.shell.tell import Teller
from meshd.shell.usecase import Farewell, Figures, Reloaded
from meshd.state.deeds import DeedBook
from meshd.state.opened import with_opened
from meshd.state.roster import Roster
from meshd.state.store import Change, Store
from meshd.state.usage import Usage
from meshd.swim import events as swim
from meshd.swim.members import Member, State
from meshd.wire.codec import decode_item, encode_item
from meshd.wire.keys import format_key

log = structlog.get_logger()

STOPS_ALLOCATION = ("rolled-back", "cloned", "forgotten")
"""Alarms under which this host might give away what it gave away before."""

ENDS = {"relearnt": "rolled-back"}
"""An alarm that says that another is over."""


class Cluster:
    """One host's view of the cluster and its hands."""

    gossip: Gossip
    streams: Streams
    reconciler: Reconciler
    answer_block_ask: Callable[[HostId, BlockAsk], Awaitable[BlockAnswer]]
    reload: Callable[[], Reloaded]
    answer_subnet_ask: Callable[[HostId, SubnetAsk], Awaitable[BlockAnswer]]
    release: Callable[[EndpointId], Awaitable[object]]
    network_removed: Callable[[Item], Awaitable[None]]
    endpoint_gone: Callable[[NetworkId], Awaitable[None]]

    def __init__(
        self,
        *,
        me: HostId,
        settings: Settings,
        store: Store,
        disk: DiskWriter,
        entropy: Callable[[int], bytes],
        boot_id: str,
        mark: str,
        secret: bytes,
        gossip_port: int,
        nhid: bool,
        kernel: Namespace,
    ) -> None:
        self.me = me
        self.settings = settings
        self.store = store
        self.entropy = entropy
        self.boot_id = boot_id
        self.secret = secret
        self.mark = mark
        self.kernel = kernel
        self.deeds = DeedBook()
        self.holds = Holds(me, self.deeds)
        self.usage = Usage()
        self.events = EventBus(time.time)
        self.tell = Teller(self)
        self.alarms: dict[str, str] = {}
        self.networks: dict[NetworkId, Network] = {}
        self.endpoints = Roster()
        self.hosts: dict[HostId, HostFacts] = {}
        self.attachments: dict[EndpointId, Attachment] = {}
        self.bridges: dict[bytes, Bridge] = {}
        self._stopped: dict[str, str] = {}  # why no address may be given: the alarm's kind, its text
        self.aged: frozenset[HostId] = frozenset()
        self._failed_since: dict[HostId, float] = {}
        self.lag = Lag()
        self._disk = disk
        self._nhid = nhid
        self._gossip_port = gossip_port
        self._durable: set[tuple[Key, Version]] = set()
        self._sequence = store.own_sequence(me)
        self.forgotten: dict[HostId, Forgotten] = {}
        self._awaited: dict[HostId, dict[bytes, Item]] = {}
        self._more_held = trio.Event()
        self._asks: dict[int, tuple[HostId, trio.MemorySendChannel[BlockAnswer]]] = {}
        self._nursery: trio.Nursery | None = None
        self.desk = Desk()
        self.mtu = MtuWatch()
        self.offload = Offload()
        self.forwarding: Forwarding | None = None
        self.ready = False
        self.left = trio.Event()

    # --- starting -------------------------------------------------------------------------------------------
    def adopt(self, now: float) -> None:
        """Derive all views from what the store holds; call once, before the first event."""
        for item in self.store.everything():
            self._derive(Change(item.key, item, None), now)

    def start(self, nursery: trio.Nursery) -> None:
        """Let events start tasks in ``nursery`` from now on."""
        self._nursery = nursery

    @property
    def node(self) -> Node:
        """The core."""
        return self.gossip.node

    @property
    def cluster_id(self) -> bytes:
        """What all hosts of this cluster share and may show: 16 bytes."""
        return cluster_id(self.secret)

    @property
    def members(self) -> Mapping[HostId, Member]:
        """Every host known, this one included."""
        return self.node.swim.members

    @property
    def allocation_stopped(self) -> str:
        """Why this host may give no address: it leaves, its identity was cloned (until the daemon is started
        anew), or its state was lost and it has not yet learnt from its peers what it gave away (Node.in_sync)."""
        return next(iter(self._stopped.values()), "")

    @property
    def paths(self) -> Mapping[HostId, Path]:
        """What the path to each living host carries, as far as it has been measured."""
        return self.node.paths

    def background(self, job: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run something that nobody waits for; what it raises is logged, not fatal."""

        async def guarded() -> None:
            try:
                await job(*args)
            except MeshdError as error:
                log.warning("background task failed", task=job.__name__, error=error.what)

        self._spawn(guarded)

    def health(self) -> list[str]:
        """Return what an operator should see to, a line each."""
        found = [*self.alarms.values(), *self.mtu.lines()]
        if self.forwarding is not None:
            found += advice(self.forwarding, *(desired.outward(self.view(), family) for family in (4, 6)))
        if self.gossip.send_errors:
            found.append(f"{self.gossip.send_errors} datagrams could not be sent since the start")
        degraded = sorted(m.facts.name for m in self.members.values() if m.degraded)
        if degraded:
            found.append(f"UDP port {self._gossip_port} is blocked to or from: {', '.join(degraded)}")
        return found

    def checksums(self) -> tuple[Sequence[Device], str, str]:
        """Return the devices that overlay packets leave by, whether their checksums arrive right, and who found that."""
        return self.offload.devices, self.offload.outcome, self.offload.detail(self.host_name)

    def figures(self) -> Figures:
        """Return what has been counted since the start."""
        return Figures(
            sent=self.gossip.sent,
            received=self.gossip.received,
            send_errors=self.gossip.send_errors,
            core=self.node.counters,
            repairs=self.tell.repairs,
            fights=self.tell.fights,
            journal_bytes=self._disk.bytes,
            lag_s=self.lag.last_s,
            lag_worst_s=self.lag.worst_s(self.now()),
        )

    def seeds(self) -> list[Address]:
        """Return addresses that a new host can join by: this host's, then up to two others'."""
        here = Address.unpack(self.members[self.me].facts.address, self._gossip_port)
        others = [m.address for m in self.members.values() if m.state == "alive" and m.id != self.me]
        return [here, *others[:2]]

    def primary_key(self) -> tuple[str, str]:
        """Return the primary key's id and the key itself, as ``KEYID`` and ``KEYID:BASE64``."""
        key = self.node.sealer.keyring.primary
        return f"{key.id:04x}", format_key(key)

    async def leave(self) -> Farewell:
        """Release this host's endpoints, hand its addresses on, say good-bye and stop the daemon. The data plane of
        other hosts drops what was here."""
        self._stopped["leaving"] = "this host is leaving the cluster"
        try:
            for endpoint in [e for e, attachment in self.attachments.items() if attachment]:
                await self.release(endpoint)
            handed = await farewell.hand_on(self)
        except BaseException:
            del self._stopped["leaving"]
            raise
        for each in handed.handed_on:
            log.info("addresses handed on", network=each.network, block=each.block, to=each.to)
        if handed.unconfirmed:
            log.warning("left without word that they have what was handed on", hosts=handed.unconfirmed)
        self._good_bye()
        return handed

    def _good_bye(self) -> None:
        self.node.leave(self.now())
        self.gossip.pump()
        self.left.set()

    async def held_by(self, asked: Mapping[HostId, Sequence[Item]], within_s: float) -> list[HostId]:
        """Ask these hosts until each has said that it has these deeds of ours on disk; return who has not in time."""
        self._awaited = {host: {item.id: item for item in items} for host, items in asked.items()}
        with trio.move_on_after(within_s):
            while any(self._awaited.values()):
                self._more_held = trio.Event()
                for host, items in self._awaited.items():
                    some = [*items.values()][:HOLD_IDS_MAX]
                    if some:
                        ask = Hold(tuple(item.id for item in some))
                        self.send(host, [*(News((item,)) for item in some), ask])
                with trio.move_on_after(LEAVE_ASK_S):
                    await self._more_held.wait()
        return sorted(host for host, items in self._awaited.items() if items)

    async def _end_forgotten(self, said: Forgotten) -> None:
        """This host was forgotten: take down what it had, once it knows all that is true, and end."""
        self.alarm("forgotten", farewell.told(said))
        with trio.move_on_after(FORGOTTEN_LINGER_S):
            while not self.node.in_sync(self.now()):  # noqa: ASYNC110 - it comes about by contacts, one a second
                await trio.sleep(LEAVE_ASK_S)
            self._dirty(None)
            await self.reconciler.settled()
        self._good_bye()

    def now(self) -> float:
        """Monotonic seconds."""
        return self.gossip.now()

    def wall_ms(self) -> int:
        """Unix milliseconds, for what people read and for incarnations."""
        return time.time_ns() // 1_000_000

    def view(self) -> View:
        """What desired kernel state is computed from. The mappings are live."""
        return View(
            me=self.me,
            cluster=self.mark,
            networks=self.networks,
            endpoints=self.endpoints,
            hosts=self.hosts,
            attachments=self.attachments,
            nhid=self._nhid,
            vxlan_port=self.settings.vxlan.port,
            gossip_port=self._gossip_port,
            aged=self.aged,
            open_forward=self.settings.firewall.open_forward,
            bridges=self.bridges,
        )

    def use(self, settings: Settings) -> None:
        """Go on with other settings: those that are read when they matter (shell/reload.py has the list)."""
        before, self.settings = self.settings, settings
        if before.firewall != settings.firewall:
            self._dirty(None)
        self.age_rows()

    # --- changing -------------------------------------------------------------------------------------------
    async def commit(self, items: Sequence[Item], forget: Sequence[Key] = ()) -> None:
        """Make items durable, then put them in the store and tell everybody; local keys in ``forget`` are
        dropped in the same record. Raises Unavailable when the disk refuses: nothing has changed then. Once
        begun it runs to its end, also when the caller is cancelled: what is on disk must be in the store."""
        for item in items:
            decode_item(
                encode_item(item), local=True
            )  # peers refuse a whole datagram for one field out of bounds

        def put() -> None:
            for key in forget:
                before = self.store.drop(key)
                self._derive(Change(key, None, before), self.now())
            self._put(items)

        with trio.CancelScope(shield=True):
            await self._disk.commit([*items, *forget], put)

    def _put(self, items: Sequence[Item]) -> None:
        """Put items that are on disk already."""
        self._durable |= {(item.key, item.version) for item in items}
        self.node.put(items, self.now())
        self.gossip.pump()
        self._durable.clear()  # what was not newer has made no event

    def next_seq(self) -> int:
        """Return the number of this host's next ENDPOINT write; never given twice."""
        self._sequence = max(self._sequence, self.store.own_sequence(self.me)) + 1
        return self._sequence

    async def collect_tombstones(self) -> None:
        """Take the next step towards letting this host's tombstones go, if it is worth it (Store.collect)."""
        items = self.store.collect(self.me)
        if items:
            self._sequence = max(self._sequence, *(item.seq for item in items))  # theirs alone from now on
            await self.commit(items)

    def age_rows(self) -> None:
        """Take rows of hosts that have been failed for [gossip] failed_rows_age_h out of what is wanted here, and bring
        those of hosts that are back. Call now and then, and when a verdict changes."""
        now = self.now()
        failed = [member.id for member in self.members.values() if member.state == State.FAILED]
        self._failed_since = failed_since(self._failed_since, failed, now)
        age_s = self.settings.gossip.failed_rows_age_h * 3600
        old = aged(self._failed_since, now, age_s, others_alive=len(self.alive()) > 1)
        if old == self.aged:
            return
        for host in sorted(old - self.aged):
            log.info("rows of a failed host aged", host=self.host_name(host), id=text_id(host))
            self.events.publish("rows-aged", host=self.host_name(host), id=text_id(host))
        self.aged = old
        self._dirty(None)

    # --- address space --------------------------------------------------------------------------------------
    async def ask_block(
        self,
        owner: HostId,
        network: NetworkId,
        size: int,
        exact_start: int | None = None,
        *,
        near: int = 0,
        proof: Sequence[Item] = (),
    ) -> list[Item]:
        """Ask ``owner`` for part of its space, of that which ``near`` is in, or for exactly what starts at
        ``exact_start``; returns the deeds, already on our disk and in the store. ``proof``: deeds by which the space is
        its, in case it has not heard of them. Raises Unavailable naming the owner and its reason."""
        name, exact = self.host_name(owner), exact_start is not None
        start = near if exact_start is None else exact_start
        along = [News((item,)) for item in proof]
        answer = await self._ask(owner, lambda number: BlockAsk(number, network, size, exact, start), along)
        if answer is None:
            raise Unavailable(
                f"host {name} owns the addresses and does not answer; nothing was changed",
                f"wait until {name} is back, or choose an address without --ip",
            )
        if answer.refusal:
            raise Unavailable(f"host {name} does not hand addresses on: {answer.refusal}")
        return await self._granted(answer)

    async def ask_subnet(
        self, creator: HostId, network: NetworkId, subnets: Sequence[str], gateways: Sequence[str]
    ) -> list[Item]:
        """Ask the network's creator to add subnets; the deed that opens them is on our disk and in the store on
        return. Raises Conflict with its reason, Unavailable naming it."""
        name = self.host_name(creator)
        answer = await self._ask(
            creator, lambda number: SubnetAsk(number, network, tuple(subnets), tuple(gateways))
        )
        if answer is None:
            raise Unavailable(
                f"host {name}, which made the network, does not answer; whether the subnet was added shows once it does",
                f"bring {name} back: only it adds subnets, so that no address is ever given twice",
            )
        if answer.refusal:
            raise Conflict(f"host {name}, which made the network, refuses: {answer.refusal}")
        return await self._granted(answer)

    def send(self, to: HostId, messages: Sequence[Message]) -> None:
        """Send messages to one host, in this order."""
        self.node.send(to, *messages, now=self.now())
        self.gossip.pump()

    async def confirmed(self, deeds: Collection[bytes]) -> set[HostId]:
        """Wait until deeds of this host's may be used, a short while; returns the hosts whose word is missing."""
        return await self.holds.settled(deeds, self.gone, self.alive)

    def gone(self) -> set[HostId]:
        """Return the hosts that have left for good, or were forgotten."""
        return self.forgotten.keys() | {
            member.id for member in self.members.values() if member.state == State.LEFT
        }

    async def _hold(self, peer: HostId, hold: Hold) -> None:
        """Give a witness's word for what is on this host's disk, unless this host has reason to doubt itself."""
        if any(kind in self._stopped for kind in STOPS_ALLOCATION):
            return
        await self._disk.commit(())  # all that was noted before is on disk then
        known = tuple(key for key in hold.deeds if self.deeds.sound(key))
        if known:
            self.send(peer, [Held(known)])

    async def _ask(
        self, host: HostId, ask: Callable[[int], BlockAsk | SubnetAsk], along: Sequence[Message] = ()
    ) -> BlockAnswer | None:
        """Send what ``ask`` makes of a fresh number and return the answer, None without one in time. ``along`` goes
        before it."""
        request = int.from_bytes(self.entropy(7), "big")
        send, receive = trio.open_memory_channel[BlockAnswer](1)
        self._asks[request] = host, send
        try:
            self.send(host, [*along, ask(request)])
            with trio.move_on_after(BLOCK_ASK_TIMEOUT_S):
                return await receive.receive()
        finally:
            del self._asks[request]
        return None

    async def _granted(self, answer: BlockAnswer) -> list[Item]:
        deeds = [item for item in answer.deeds if isinstance(item.body, Deed)]
        await self.commit(deeds)
        return deeds

    def alive(self) -> list[HostId]:
        """Return the hosts that are alive, this one included."""
        return sorted({self.me, *self.node.swim.alive_ids()})

    def host_name(self, host: HostId) -> str:
        """Name a host for people; an unknown one by the start of its id."""
        facts = self.hosts.get(host)
        if facts is not None:
            return facts.name
        member = self.node.swim.members.get(host)
        return member.facts.name if member is not None else text_id(host)[:8]

    # --- events ---------------------------------------------------------------------------------------------
    def on_event(self, event: NodeEvent) -> None:
        """Act on one thing that the core says has happened."""
        match event:
            case Changed():
                self._changed(event)
            case SyncWanted():
                self._spawn(self.streams.sync, event.peer, event.address)
            case FetchWanted():
                self._spawn(self.streams.fetch, event.peer, event.address, event.keys)
            case StreamProbeWanted():
                self._spawn(self.streams.probe, event.peer, event.address, event.nonce)
            case BlockAsked():
                self._spawn(self._answer, event.peer, event.ask)
            case BlockAnswered():
                asked = self._asks.get(event.answer.request)
                if asked is not None and asked[0] == event.peer:
                    with contextlib.suppress(trio.WouldBlock):  # answered twice: the first counts
                        asked[1].send_nowait(event.answer)
            case HoldAsked():
                self.background(self._hold, event.peer, event.hold)
            case HeldTold():
                self.holds.heard(event.peer, event.held)
                waited = self._awaited.get(event.peer, {})
                for key in waited.keys() & {*event.held.deeds}:
                    del waited[key]
                    self._more_held.set()
            case PathChanged():
                self.mtu.look(self)
            case Alarm():
                self.alarm(event.kind, event.text)
            case _:
                self.tell.membership(event)
                if isinstance(event, swim.MemberAlive | swim.MemberFailed):
                    self.age_rows()
                elif isinstance(event, swim.Cloned):
                    where = text_ip(event.facts.address)
                    text = f"another daemon with this host's identity runs at {where}: this disk was cloned"
                    self.alarm("cloned", text)

    def alarm(self, kind: str, text: str) -> None:
        """Show an operator something: in ``status``, in the log and as an event; the same one once."""
        if kind in STOPS_ALLOCATION:
            self._stopped[kind] = text
        if self.alarms.get(kind) == text:
            return
        if kind in ENDS:
            self.alarms.pop(ENDS[kind], None)
            self._stopped.pop(ENDS[kind], None)
        else:
            self.alarms[kind] = text
        log.warning("alarm", kind=kind, text=text)
        self.events.publish("conflict" if kind == "cloned" else "alarm", alarm=kind, text=text)

    def calm(self, kind: str) -> None:
        """Take an alarm back: it is true no more."""
        if self.alarms.pop(kind, None) is not None:
            log.info("alarm over", kind=kind)

    def _spawn(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(function, *args)

    async def _answer(self, peer: HostId, ask: BlockAsk | SubnetAsk) -> None:
        try:
            if isinstance(ask, SubnetAsk):
                answer = await self.answer_subnet_ask(peer, ask)
            else:
                answer = await self.answer_block_ask(peer, ask)
        except MeshdError as error:
            answer = BlockAnswer(request=ask.request, deeds=(), refusal=error.what[:200])
        self.send(peer, [answer])

    def _changed(self, event: Changed) -> None:
        change = event.change
        item = change.item
        if item is None:
            pass  # void by a floor, which is what a restart learns it from
        elif (item.key, item.version) in self._durable:
            self._durable.discard((item.key, item.version))
        else:
            self._disk.note(item)
        self._derive(change, self.now())
        self.tell.changed(change)
        before = change.before
        if (
            item is not None
            and isinstance(item.body, Forgotten)
            and before is None
            and not item.dead
            and item.id == self.me
        ):
            self.background(self._end_forgotten, item.body)
        if item is not None and item.dead and before is not None and isinstance(before.body, Network):
            self.background(self.network_removed, before)  # an endpoint that lives on it here wins
        if change.key == Key(Kind.HOST, self.me) and event.source is not None:
            self.background(self._republish, item)

    async def _republish(self, theirs: Item) -> None:
        """A peer held a newer record of this host than our disk: say again what is true, above it."""
        mine = self.own_facts
        floor = max(mine.floor, theirs.body.floor if isinstance(theirs.body, HostFacts) else 0)
        await self.publish_facts(msgspec.structs.replace(mine, floor=floor))

    own_facts: HostFacts

    async def drain(self, draining: bool) -> None:
        """Take no new endpoints, or take them again; restarts do not change that. Raises Unavailable (disk)."""
        await self.publish_facts(self.own_facts, draining)
        self.events.publish("host-drained" if draining else "host-undrained")

    @property
    def draining(self) -> bool:
        """Whether this host takes no new endpoints, as the operator said."""
        facts = self.hosts.get(self.me)
        return facts is not None and facts.draining

    async def publish_facts(self, facts: HostFacts, draining: bool | None = None) -> None:
        """Tell everybody what this host is, if that is news. The floor is never lowered; whether it is ``draining``
        stays as it is unless it is said."""
        held = self.store.get(Kind.HOST, self.me)
        floor = max(facts.floor, self.store.floor(self.me))
        draining = self.draining if draining is None else draining
        self.own_facts = msgspec.structs.replace(facts, floor=floor, draining=draining)
        if held is not None and held.body == self.own_facts and held.version.writer == self.me:
            return
        # As wall time, so that a host that lost its disk does not write another record under an old version.
        counter = max(held.version.counter + 1 if held is not None else 0, self.wall_ms())
        version = Version(held.version.incarnation if held is not None else 0, counter, self.me)
        await self.commit([Item(Kind.HOST, self.me, version, self.own_facts)])

    def _derive(self, change: Change, now: float) -> None:
        """Bring the views in step with one change of the store."""
        kind, item_id = change.key
        item = change.item
        body = item.body if item is not None and not item.dead else None
        if item is not None:
            self.usage.observe(item, now)
        elif kind in (Kind.ENDPOINT, Kind.LOCAL_ENDPOINT):
            self.usage.forget(item_id, now)
        match kind:
            case Kind.DEED if item is not None:
                self.deeds.add(item)
                self.holds.watch(item_id)
                if isinstance(item.body, Deed):
                    self.tell.contradictions(item.body.network)
                if isinstance(item.body, Deed) and (item.body.opens or item.body.parent == NO_PARENT):
                    self._relaid(item.body.network)
            case Kind.CONFIRMED if item is not None:
                self.deeds.confirm(item_id)
            case Kind.FORGOTTEN if isinstance(body, Forgotten):
                self.forgotten[item_id] = body
            case Kind.HOST:
                was = self.hosts.get(item_id)
                facts = body if isinstance(body, HostFacts) else None
                _set(self.hosts, item_id, facts)
                if _programmed(was) != _programmed(facts):  # else nothing is to be worked out anew
                    self._dirty(None)
            case Kind.NETWORK | Kind.LOCAL_NETWORK:
                known = with_opened(body, self.deeds.opened(item_id)) if isinstance(body, Network) else None
                _set(self.networks, item_id, known)
                self._dirty(item_id)
            case Kind.ENDPOINT | Kind.LOCAL_ENDPOINT:
                before = self.endpoints.get(item_id)
                endpoint = body if isinstance(body, Endpoint) else None
                _set(self.endpoints, item_id, endpoint)
                for network in {e.network for e in (before, endpoint) if e is not None}:
                    self._dirty(network, item_id)
                if before is not None and endpoint is None:
                    self.background(self.endpoint_gone, before.network)
            case Kind.ATTACHMENT:
                _set(self.attachments, item_id, body if isinstance(body, Attachment) else None)
            case Kind.LOCAL_BRIDGE:
                _set(self.bridges, item_id, body if isinstance(body, Bridge) else None)
                self._dirty(item_id)

    def _relaid(self, network_id: NetworkId) -> None:
        """Look again at what subnets a network has: a deed that opens one has come, or what it waited for."""
        item = self.store.get(Kind.NETWORK, network_id)
        if item is None or not isinstance(item.body, Network):
            return
        network = with_opened(item.body, self.deeds.opened(network_id))
        if network != self.networks.get(network_id):
            self.networks[network_id] = network
            self._dirty(network_id)
            if self._nursery is not None:
                self.tell.network_updated(network_id, network)

    def _dirty(self, network: NetworkId | None, endpoint: EndpointId | None = None) -> None:
        if self._nursery is not None:
            self.reconciler.changed(network, endpoint)


def cluster_id(secret: bytes) -> bytes:
    """Derive the cluster's public id (16 bytes) from its secret."""
    return hashlib.blake2b(b"meshd/1 cluster id", key=secret, digest_size=16).digest()


def _programmed(facts: HostFacts | None) -> tuple[bytes, int] | None:
    """Return what plan/ reads of a host's facts."""
    return None if facts is None else (facts.vtep, facts.underlay_mtu)


def _set(mapping: dict, key: bytes, value: object | None) -> None:  # type: ignore[type-arg]
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value
