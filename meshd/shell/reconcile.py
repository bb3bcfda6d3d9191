"""Keep the kernel as the cluster's state wants it, whoever changes either: start is recovery, every change is
applied at once, and kernel events and a timer lead to a full comparison (design.md, section 7).

Decides *when*: what each change requires is plan/shadow.py's, how it is done the namespace's. Working it out and
doing it happen in one worker thread at a time, from a copy of the state: gossip never waits for the kernel nor
for 10,000 endpoints, and no dump races with a write. It must not know records, nor where permission to delete
what peers' records explain comes from.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple, Protocol, TypeVar, TypeVarTuple

import msgspec
import trio

from meshd.config import (
    COMPARE_REST,
    DELETIONS_ASKED_S,
    DUMP_AGAIN_S,
    EVENT_SETTLE_S,
    RECONCILE_REST,
    RECONCILE_S,
    REFUSED_AGAIN_S,
    ROWS_PUT_BACK_MAX,
    VANISHED_GRACE_S,
)
from meshd.errors import KernelError
from meshd.kernel.links import Birth
from meshd.kernel.watch import KernelEvent, Overrun
from meshd.model import Attachment, Endpoint, EndpointId, NetworkId
from meshd.plan import names
from meshd.plan.objects import Dump, FdbKey, Finding, NeighKey
from meshd.plan.ops import LeaveGate, Op, OpenGate
from meshd.plan.shadow import Shadow
from meshd.plan.view import View
from meshd.plan.wording import Named
from meshd.shell.watchdog import Loop

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Namespace(Protocol):
    """What this file needs of meshd.kernel.namespace.Namespace. Both calls block."""

    def dump(self, cluster_mark: str) -> Dump:
        """Read what the kernel holds. Raises KernelError."""
        ...

    def apply(self, ops: Sequence[Op], births: Mapping[str, Birth]) -> list[tuple[Op, KernelError]]:
        """Carry ops out in order; return those refused. One that is refused does not stop the others. ``births``: of
        endpoints that come, by their host end's name."""
        ...


class _Coming(NamedTuple):
    """An endpoint that has no record yet. ``mark``: once that many marks are done, it stands or was refused."""

    endpoint: Endpoint
    attachment: Attachment
    birth: Birth
    mark: int


class Reconciler:
    """Level-triggered: it compares states and forgets how they came about, so nothing depends on having seen
    every event. ``trouble``: why the last dump failed, if it did."""

    def __init__(
        self,
        namespace: Namespace,
        events: AsyncIterator[KernelEvent | Overrun],
        view: Callable[[], View],
        *,
        deletions_allowed: Callable[[], bool],
        on_repair: Callable[[Sequence[Op]], None],
        on_fight: Callable[[Set[Named]], None],
        on_others: Callable[[], None] = lambda: None,
        on_gates: Callable[[Sequence[OpenGate | LeaveGate]], None] = lambda ops: None,
        loop: Loop | None = None,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        """``view``: the state now; its mappings are copied. ``deletions_allowed``: in sync with peers, so that
        what no record explains is really gone. ``on_repair``: told of ops that put right what somebody else
        had changed, once carried out. ``on_fight``: told of all objects that another program fights over, each
        time that these become others. ``on_others``: told that a device or address that is not ours changed, the
        underlay's perhaps. ``on_gates``: told of accepts put into others' chains or taken out, but for such repairs.
        ``loop``: whom to tell that this one goes round. ``used``: seconds of the processor that the calling thread has
        used, by which a comparison's rest is measured: how busy the machine is otherwise must not put off repairs.
        """
        self._namespace = namespace
        self._events = events
        self._view = view
        self._deletions_allowed = deletions_allowed
        self._on_repair = on_repair
        self._on_fight = on_fight
        self._on_others = on_others
        self._on_gates = on_gates
        self._used = used
        self._cost = 0.0  # of the last comparison
        self._loop = loop or Loop()
        self._kernel_work = trio.CapacityLimiter(1)
        self._shadow = Shadow()  # touched only by the thread that holds the limiter
        self._failed: dict[Op, KernelError] = {}  # copies of what it said last
        self._vanished: dict[EndpointId, float] = {}
        self._orphans: dict[EndpointId, str] = {}
        self._counts = {"missing": 0, "stale": 0}
        self._fights: Set[Named] = frozenset()
        self._withheld = False
        self._dirty: set[NetworkId] = set()
        self._dirty_endpoints: dict[NetworkId, set[EndpointId]] = {}
        self._all_dirty = False
        self._lost: set[FdbKey | NeighKey] = set()  # rows that somebody deleted
        self._making: set[str] = set()
        self._coming: dict[EndpointId, _Coming] = {}
        self._marked = self._applied = 0  # how often ``changed`` was called, and how many of those are done
        self._progress = trio.Event()
        self._wake = trio.Event()
        self._compare_at = math.inf  # monotonic seconds: the comparison that events asked for
        self._refused_wait = REFUSED_AGAIN_S
        self._overran = False  # events were lost since the last comparison
        self._quiet_by = math.inf  # a burst of events delays it no further than this
        self._started = self._compared = (
            self._ask_at
        ) = -math.inf  # of the last comparison; of the next question
        self.trouble: KernelError | None = None

    async def start(self) -> None:
        """Read the kernel, adopt what is there and add what is missing; delete nothing. Raises KernelError if
        the kernel cannot be read."""
        await self._compare(deletions=False)
        if self.trouble is not None:
            raise self.trouble

    async def run(self) -> None:
        """Reconcile for ever; after ``start``."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                self._loop.goes_round()
                await self._step()

    def changed(self, network_id: NetworkId | None = None, endpoint_id: EndpointId | None = None) -> None:
        """Say that the view changed; what follows from it is applied at once.

        With ``endpoint_id`` only that endpoint of the network did, which costs its own rows however large the
        network is; with a local endpoint's id also that its link has just been made. Without it, anything about
        the network; without ``network_id``, anything at all (a host's record, say).
        """
        if endpoint_id is not None and self._stands(endpoint_id):
            return  # its record has come, and says what is there already
        if network_id is not None and endpoint_id is not None:
            self._mark_endpoint(network_id, endpoint_id)
            return
        self._marked += 1
        if network_id is None:
            self._all_dirty = True
        else:
            self._dirty.add(network_id)
        self._wake.set()

    def _mark_endpoint(self, network_id: NetworkId, endpoint_id: EndpointId) -> None:
        self._marked += 1
        self._dirty_endpoints.setdefault(network_id, set()).add(endpoint_id)
        self._vanished.pop(
            endpoint_id, None
        )  # it may have been attached anew: what vanished was another link
        self._orphans.pop(endpoint_id, None)
        self._wake.set()

    async def settled(self) -> None:
        """Wait until everything marked so far has been carried out or refused (see ``failures``)."""
        target = self._marked
        while self._applied < target:
            await self._progress.wait()

    async def diff(self) -> dict[str, list[Finding]]:
        """Compare with a fresh dump: ``missing``, ``stale``, ``foreign``. Raises KernelError if there is none."""
        while True:
            await self.settled()
            marked, view = self._marked, self._seen().frozen()
            found = await self.in_kernel_thread(self._inspect, view)
            if marked == self._marked:  # else the view may be older than what the dump saw
                return found

    @asynccontextmanager
    async def coming(
        self, id_: EndpointId, endpoint: Endpoint, attachment: Attachment, birth: Birth
    ) -> AsyncIterator[None]:
        """Have all that an endpoint of this host needs in the kernel before its record is written: what the kernel
        refuses (see ``failures``) was never an endpoint then, and is undone by leaving without a record, which waits
        until nothing of it is left."""
        self._coming[id_] = _Coming(endpoint, attachment, birth, self._marked + 1)
        self._mark_endpoint(endpoint.network, id_)
        try:
            await self.settled()
            yield
        finally:
            recorded = self._is_recorded(id_)
            del self._coming[id_]
            if not recorded:
                self._mark_endpoint(endpoint.network, id_)
                with trio.CancelScope(shield=True):
                    await self.settled()

    def _is_recorded(self, id_: EndpointId) -> bool:
        view, coming = self._view(), self._coming[id_]
        return view.endpoints.get(id_) == coming.endpoint and view.attachments.get(id_) == coming.attachment

    def _stands(self, id_: EndpointId) -> bool:
        """Tell whether an endpoint is in the kernel as its record has it, which was written meanwhile."""
        coming = self._coming.get(id_)
        return (
            coming is not None
            and self._applied >= coming.mark
            and self._view().endpoints.get(id_) == coming.endpoint
        )

    def _seen(self) -> View:
        """Return the view with what comes."""
        coming = {id_: (each.endpoint, each.attachment) for id_, each in self._coming.items()}
        return msgspec.structs.replace(self._view(), coming=coming) if coming else self._view()

    @contextmanager
    def making(self, link: str) -> Iterator[None]:
        """Have a device left alone that no record explains yet: attach makes the link before it records the
        endpoint. Call ``changed`` before leaving."""
        self._making.add(link)
        try:
            yield
        finally:
            self._making.discard(link)

    async def in_kernel_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Run blocking kernel work (making a veth pair, say) in turn with the reconciler's own."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._kernel_work)

    def vanished(self, now: float) -> list[EndpointId]:
        """List local endpoints whose link has been missing for VANISHED_GRACE_S at ``now`` (trio's clock), but for
        ``orphans``."""
        return [
            id_
            for id_, since in self._vanished.items()
            if now - since >= VANISHED_GRACE_S and id_ not in self._orphans
        ]

    def orphans(self) -> dict[EndpointId, str]:
        """Return local endpoints whose device went with its parent, and why in words."""
        return self._orphans

    def failures(self) -> dict[Op, KernelError]:
        """Return what the kernel has refused since the last full comparison, which tries it again."""
        return self._failed

    def counts(self) -> dict[str, int]:
        """Return how many objects are ``missing`` and ``stale`` as far as is known without a dump."""
        return self._counts

    async def _listen(self) -> None:
        """Turn kernel events into a time for the next full comparison."""
        async for event in self._events:
            now = trio.current_time()
            if isinstance(event, Overrun):
                self._overran = True
                self._on_others()
                self._ask_compare(max(now, self._started + DUMP_AGAIN_S))
                continue
            others = event.what in ("link", "address") and not names.is_ours(event.name)
            if others:
                self._on_others()
            if (
                _concerns_us(event) or (others and self._matters(event))
            ) and not self._overran:  # else a comparison is coming, and not before its time
                if event.row is not None and event.gone and len(self._lost) < ROWS_PUT_BACK_MAX:
                    self._lost.add(event.row)
                    self._wake.set()
                    continue
                if self._quiet_by == math.inf:
                    self._quiet_by = now + DUMP_AGAIN_S
                self._compare_at = math.inf
                self._ask_compare(min(now + EVENT_SETTLE_S, self._quiet_by))

    def _matters(self, event: KernelEvent) -> bool:
        """Tell whether the event is about the device of a bridge that an operator made, of whatever name, or one that
        devices of ours are on, which go with it and can be made again once it is back."""
        if event.what != "link":
            return False
        view, name = self._view(), event.name
        return any(bridge.name == name for bridge in view.bridges.values()) or any(
            attachment.parent == name for attachment in view.attachments.values()
        )

    def _ask_compare(self, when: float) -> None:
        """Ask for a full comparison, leaving the kernel and this process time between two of them: at 100,000
        rows one takes half a second of a core."""
        rested = self._compared + COMPARE_REST * self._cost
        self._compare_at = min(self._compare_at, max(when, rested))
        self._wake.set()

    async def _step(self) -> None:
        """Apply what changed, compare if that is due, else sleep until there is something to do."""
        self._wake = trio.Event()
        if self._applied < self._marked:
            await self._apply_changes()
        if self._lost:
            await self._put_back()
        rested = self._compared + RECONCILE_REST * self._cost
        now, due = trio.current_time(), min(self._compare_at, max(self._started + RECONCILE_S, rested))
        if now >= due:
            await self._compare(deletions=self._deletions_allowed())
            return
        if self._withheld and now >= self._ask_at:
            self._ask_at = now + DELETIONS_ASKED_S
            if self._deletions_allowed():
                await self._compare(deletions=True)
                return
        due = min(due, now + self._loop.every_s)
        with trio.move_on_at(min(due, self._ask_at) if self._withheld else due):
            await self._wake.wait()

    async def _apply_changes(self) -> None:
        """Work out and carry out what the marks since the last time require."""
        marked = self._marked
        dirty, self._dirty = self._dirty, set()
        endpoints, self._dirty_endpoints = self._dirty_endpoints, {}
        everything, self._all_dirty = self._all_dirty, False
        deletions = self._deletions_allowed()
        whole = dirty or everything
        view = self._seen().frozen() if whole else self._seen().narrow(set().union(*endpoints.values()))
        births = {each.attachment.host_if: each.birth for each in self._coming.values()}

        def work() -> list[OpenGate | LeaveGate]:
            networks = dirty
            if everything:
                networks = dirty | view.networks.keys() | view.bridges.keys() | self._shadow.networks()
            ops = self._shadow.change(view, networks, endpoints, deletions=deletions)
            self._carry_out(ops, births)
            self._publish()
            return self._done_to_gates(ops)

        gated = await self.in_kernel_thread(work)
        self._try_refused_again()
        self._applied = marked
        self._progress.set()
        self._progress = trio.Event()
        if gated:
            self._on_gates(gated)

    async def _put_back(self) -> None:
        """Put back the rows that events named, without reading all others, which takes half a second at 100,000. What
        does not suffice is left to a comparison."""
        lost, self._lost = self._lost, set()
        now, fights = trio.current_time(), self._fights

        def work() -> tuple[list[Op], bool]:
            ops, clear = self._shadow.lost(lost, now)
            self._carry_out(ops)
            self._publish()
            done = [op for op in ops if op not in self._shadow.failed]
            return done, clear and len(done) == len(ops)

        repaired, clear = await self.in_kernel_thread(work)
        if repaired:
            self._on_repair(repaired)
        if self._fights != fights:
            self._on_fight(self._fights)
        if not clear:
            self._ask_compare(trio.current_time() + EVENT_SETTLE_S)

    async def _compare(self, *, deletions: bool) -> None:
        """Read everything, put it right and report what somebody else had changed since the last comparison."""
        first = self._compared == -math.inf
        self._compare_at = self._quiet_by = math.inf
        self._overran = False
        self._started = now = trio.current_time()
        view, making, fights = self._seen().frozen(), set(self._making), self._fights

        def work() -> tuple[list[Op], list[OpenGate | LeaveGate]]:
            dump = self._namespace.dump(view.cluster)
            for name in making:
                dump.ours.links.pop(name, None)
            ops, repairs = self._shadow.compare(
                view, dump.ours, now, deletions=deletions, devices=dump.devices
            )
            self._carry_out(ops)
            self._publish()
            done = [op for op in repairs if op not in self._shadow.failed]
            return done, [op for op in self._done_to_gates(ops) if op not in done]

        try:
            repaired, gated = await self.in_kernel_thread(self._counted, work)
            self.trouble = None
        except KernelError as error:
            repaired, gated, self.trouble = [], [], error
        self._compared = trio.current_time()
        self._try_refused_again()
        if repaired and not first:
            self._on_repair(repaired)
        if gated:
            self._on_gates(gated)
        if self._fights != fights:
            self._on_fight(self._fights)

    def _counted(self, work: Callable[[], T]) -> T:
        """Do the work of a comparison and note what it cost. Runs in the kernel thread."""
        begun = self._used()
        try:
            return work()
        finally:
            self._cost = self._used() - begun

    def _try_refused_again(self) -> None:
        """Compare soon where the kernel has refused something: what it refused while a device was being made or
        deleted it takes a moment later. What it goes on refusing waits longer each time."""
        if not self._failed:
            self._refused_wait = REFUSED_AGAIN_S
        elif self._compare_at == math.inf:
            self._ask_compare(trio.current_time() + self._refused_wait)
            self._refused_wait = min(2 * self._refused_wait, RECONCILE_S)

    def _carry_out(self, ops: Sequence[Op], births: Mapping[str, Birth] | None = None) -> None:
        """Have ops carried out and the shadow told of the outcome. Runs in the kernel thread."""
        if not ops:
            return
        try:
            refused = self._namespace.apply(ops, births or {})
        except KernelError as error:
            refused = [(op, error) for op in ops]  # how far it came is unknown: the next comparison finds out
        self._shadow.done(ops, refused)

    def _done_to_gates(self, ops: Sequence[Op]) -> list[OpenGate | LeaveGate]:
        """Return what was done to others' chains. Runs in the kernel thread."""
        return [op for op in ops if isinstance(op, (OpenGate, LeaveGate)) and op not in self._shadow.failed]

    def _inspect(self, view: View) -> dict[str, list[Finding]]:
        return self._shadow.inspect(view, self._namespace.dump(view.cluster))

    def _publish(self) -> None:
        """Leave copies for the loop's thread of what is asked for there. Runs in the kernel thread."""
        self._failed = dict(self._shadow.failed)
        self._vanished = dict(self._shadow.vanished)
        self._orphans = dict(self._shadow.orphans)
        self._counts = self._shadow.counts()
        self._withheld = self._shadow.withheld
        self._fights = frozenset(self._shadow.fights.going)


def _concerns_us(event: KernelEvent) -> bool:
    """Leave out our own doings, devices that are not ours and what a caller takes to its namespace. A macvlan or
    ipvlan tells nothing more once it is there: the next full comparison finds out."""
    if event.mine or event.name.startswith((names.PEER, names.GUEST)):
        return False
    return not event.name or names.is_ours(event.name)
