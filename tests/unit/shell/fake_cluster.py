"""Hosts in memory for tests of the use cases and the API: real Store, DeedBook, Usage, EventBus and Desk.

Fake are the kernel (a dict of veth pairs), the journal (a list of committed batches), the reconciler (it writes
nothing and records what it was told) and gossip (every commit is merged by all hosts of the world that are alive
and not cut off, at once).
"""

import hashlib
from contextlib import asynccontextmanager, contextmanager

import msgspec
import trio

from meshd.config import Settings
from meshd.errors import Conflict, KernelError, Unavailable
from meshd.kernel.offload import Device
from meshd.messages import BlockAsk, SubnetAsk
from meshd.model import (
    FIRST_LOCAL_KIND,
    Address,
    Attachment,
    Bridge,
    Endpoint,
    Forgotten,
    HostFacts,
    Item,
    Kind,
    MemberFacts,
    Network,
    Rank,
    Version,
)
from meshd.plan.bridges import Belongings, Card
from meshd.plan.objects import Link
from meshd.plan.ops import PutLink
from meshd.plan.view import View
from meshd.shell.desk import Desk
from meshd.shell.events import EventBus
from meshd.shell.netupdate import answer_subnet_ask
from meshd.shell.space import answer_block_ask
from meshd.shell.usecase import Changed, Farewell, Figures, Reloaded
from meshd.state.deeds import DeedBook
from meshd.state.opened import with_opened
from meshd.state.roster import Roster
from meshd.state.store import Store
from meshd.state.usage import Usage
from meshd.swim.members import Member

BOOT = "11111111-2222-3333-4444-555555555555"


class FakeBridging:
    """Devices by name, what the host has on each, and which moves were asked for."""

    def __init__(self):
        self.cards = {}
        self.on = {}
        self.moves = []
        self.refuse = None
        self.kept_back = []

    def card(self, name):
        return self.cards.get(name, Card(name, missing=True))

    brief = card

    def belongings(self, index):
        return self.on.get(index, Belongings())

    def join(self, move):
        self.moves.append(("join", move))
        if self.refuse:
            raise self.refuse
        self._master(move, move.bridge)

    def leave(self, move):
        self.moves.append(("leave", move))
        if self.refuse:
            raise self.refuse
        self._master(move, "")
        return self.kept_back

    def _master(self, move, master):
        card = self.cards[move.card]
        self.cards[move.card] = msgspec.structs.replace(
            card, master=master, master_kind="bridge" if master else ""
        )
        if move.bridge in self.cards:
            bridge = self.cards[move.bridge]
            ports = tuple(name for name, one in self.cards.items() if one.master == move.bridge)
            self.cards[move.bridge] = msgspec.structs.replace(bridge, ports=ports, mac=move.mac)


class FakeKernel:
    def __init__(self, being_made):
        self.bridging = FakeBridging()
        self.being_made = being_made
        self.links = {}
        self.moved = set()  # peers that are in a namespace by now
        self.fail_create = None
        self.fail_delete = None
        self.vxlans = []
        self.sockets = []
        self.elsewhere = []
        self.addresses = {bytes((192, 0, 2, 1))}

    def foreign_vxlans(self, cluster_mark):
        return self.vxlans

    def published_elsewhere(self):
        return list(self.elsewhere)

    def listeners(self):
        return list(self.sockets)

    def local_addresses(self):
        return set(self.addresses)

    def plug(self, name, birth):
        assert name not in self.links
        self.links[name] = birth
        if birth.pid:
            self.moved.add(birth.peer)

    def links_exist(self, names):
        there = {end for link, birth in self.links.items() for end in (link, birth.peer)}
        return (there - self.moved) & set(names)

    def delete_link(self, name):
        if self.fail_delete:
            raise self.fail_delete
        self.links.pop(name, None)


class FakeReconciler:
    def __init__(self, cluster):
        self.cluster = cluster
        self.told = []
        self.refused = {}
        self.found = {"missing": [], "stale": [], "foreign": []}
        self.settles = 0
        self.being_made = set()
        self.lost = {}

    def changed(self, network_id=None, endpoint_id=None):
        self.told.append((network_id, endpoint_id))

    async def settled(self):
        self.settles += 1
        await trio.lowlevel.checkpoint()

    async def in_kernel_thread(self, function, *args):
        await trio.lowlevel.checkpoint()
        return function(*args)

    @asynccontextmanager
    async def coming(self, id_, endpoint, attachment, birth):
        name, kernel = attachment.host_if, self.cluster.kernel
        refused = PutLink(Link(name, "veth", "", birth.mtu))
        self.told.append((endpoint.network, id_))
        try:
            with self.making(name):
                await self.settled()
                if kernel.fail_create:
                    self.refused[refused] = kernel.fail_create
                else:
                    kernel.plug(name, birth)
                yield
        finally:
            self.refused.pop(refused, None)
            if self.cluster.endpoints.get(id_) != endpoint:
                kernel.links.pop(name, None)

    @contextmanager
    def making(self, link):
        self.being_made.add(link)
        try:
            yield
        finally:
            self.being_made.discard(link)

    def failures(self):
        return dict(self.refused)

    async def diff(self):
        return self.found

    def orphans(self):
        return self.lost

    def counts(self):
        return {"missing": len(self.found["missing"]), "stale": len(self.found["stale"])}


class World:
    def __init__(self, hosts=1):
        self.time = 1000.0
        self.hosts = []
        self.down = set()
        self.cut_off = set()
        self.gossip = True
        self.nursery = None
        for number in range(hosts):
            self.hosts.append(FakeCluster(self, number))
        for host in self.hosts:
            for other in self.hosts:
                host.learn(other)

    def named(self, host_id):
        return next(host for host in self.hosts if host.me == host_id)

    def spread(self, source, item):
        for host in self.hosts if self.gossip else ():
            together = (host.me in self.cut_off) == (source.me in self.cut_off)
            if together and host.me not in self.down:
                host.take(item)

    def heal(self):
        """Give everybody everything, as anti-entropy does."""
        self.gossip = True
        self.cut_off.clear()
        for host in self.hosts:
            for item in [i for i in host.store.everything() if i.kind < FIRST_LOCAL_KIND]:
                for other in self.hosts:
                    other.take(item)


class FakeCluster:
    def __init__(self, world, number):
        self.world = world
        self.name = f"host{number + 1}"
        self.me = hashlib.blake2b(self.name.encode(), digest_size=16).digest()
        self.secret = b"s" * 32
        self.cluster_id = b"c" * 16
        self.mark = "63636363"
        self.boot_id = BOOT
        self.settings = Settings()
        self.store = Store(self.secret)
        self.deeds = DeedBook()
        self.usage = Usage()
        self.networks, self.hosts, self.attachments = {}, {}, {}
        self.endpoints = Roster()
        self.bridges, self.alarms = {}, {}
        self.events = EventBus(lambda: 1234.5)
        self.desk = Desk()
        self.reconciler = FakeReconciler(self)
        self.kernel = FakeKernel(self.reconciler.being_made)
        self.ready = True
        self.allocation_stopped = ""
        self.draining = False
        self.forgotten = {}
        self.members = {}
        self.paths = {}
        self.journal = []
        self.disk_full = False
        self.asked = []
        self.left = False
        self.drop_answers = False
        self.gone = []
        self._sequence = 0
        self._drawn = 0
        self._number = number

    def learn(self, other):
        address = Address(f"192.0.2.{other._number + 1}", 7947)
        facts = MemberFacts(other.name, address.packed, 7947, other.me, "0.1.0")
        self.members[other.me] = Member(other.me, Version(1, Rank.ALIVE, other.me), facts)
        self.hosts[other.me] = HostFacts(other.name, address.packed, 4789, 1500)

    def now(self):
        return self.world.time

    def wall_ms(self):
        return 1_700_000_000_000 + int(self.world.time * 1000)

    def entropy(self, n):
        self._drawn += 1
        return hashlib.blake2b(f"{self.name} {self._drawn}".encode(), digest_size=n).digest()

    def next_seq(self):
        self._sequence += 1
        return self._sequence

    def alive(self):
        up = [host.me for host in self.world.hosts if host.me not in self.world.down]
        return sorted(host for host in up if (host in self.world.cut_off) == (self.me in self.world.cut_off))

    def host_name(self, host):
        return self.members[host].facts.name if host in self.members else host.hex()[:8]

    def view(self):
        return View(
            me=self.me, cluster=self.mark, networks=self.networks, endpoints=self.endpoints, hosts=self.hosts,
            attachments=self.attachments, nhid=True, vxlan_port=4789, gossip_port=7947,
        )  # fmt: skip

    async def commit(self, items, forget=()):
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
            if self.disk_full:
                raise Unavailable("the disk is full, nothing was changed", "make room")
            self.journal.append([*items, *forget])
            self.made_meanwhile = set(self.reconciler.being_made)
        for key in forget:
            self.store.drop(key)
            self.attachments.pop(key.id, None)
            self.bridges.pop(key.id, None)
        for item in items:
            self.take(item)
            if item.kind < FIRST_LOCAL_KIND:
                self.world.spread(self, item)
        for item in items if self.world.gossip else ():
            if item.kind == Kind.DEED and item.body.owner in self.alive():
                await self.world.named(item.body.owner).confirmed([item.id])

    def take(self, item):
        """Merge, and keep the views in step as the real Cluster does."""
        for change in self.store.merge(item):
            body = item.body
            self.usage.observe(item, self.now())
            views = {
                Network: self.networks, Endpoint: self.endpoints, Attachment: self.attachments,
                Bridge: self.bridges,
            }  # fmt: skip
            if item.kind == Kind.DEED:
                self.deeds.add(item)
                held = self.store.get(Kind.NETWORK, body.network)
                if held is not None and not held.dead:
                    self.networks[held.id] = with_opened(held.body, self.deeds.opened(held.id))
            if isinstance(body, Forgotten):
                self.forgotten[item.id] = body
            for form, view in views.items():
                if isinstance(body, form):
                    view[item.id] = body
            if isinstance(body, Network):
                self.networks[item.id] = with_opened(body, self.deeds.opened(item.id))
            if item.dead:
                for view in views.values():
                    view.pop(item.id, None)
                if change.before is not None and isinstance(change.before.body, Endpoint):
                    self.gone.append(change.before.body.network)

    async def ask_subnet(self, creator, network, subnets, gateways):
        await trio.lowlevel.checkpoint()
        name = self.host_name(creator)
        if creator in self.world.down:
            raise Unavailable(f"host {name}, which made the network, does not answer")
        ask = SubnetAsk(1, network, tuple(subnets), tuple(gateways))
        answer = await answer_subnet_ask(self.world.named(creator), self.me, ask)
        if self.drop_answers:
            raise Unavailable(f"host {name}, which made the network, does not answer")
        if answer.refusal:
            raise Conflict(f"host {name}, which made the network, refuses: {answer.refusal}")
        await self.commit(answer.deeds)
        return list(answer.deeds)

    async def confirmed(self, deeds):
        """Ask all witnesses at once; who is down or cut off says nothing."""
        await trio.lowlevel.checkpoint()
        missing = set()
        for key in deeds:
            silent = self.deeds.witnesses(key) - set(self.alive())
            for witness in self.deeds.witnesses(key) - silent:
                self.world.named(witness).take(self.store.get(Kind.DEED, key))
                if not self.world.named(witness).deeds.sound(key):
                    silent |= {witness}
            if not silent:
                self.deeds.confirm(key)
            missing |= silent
        return missing

    async def ask_block(self, owner, network, size, exact_start=None, *, near=0, proof=()):
        for item in proof:
            self.world.named(owner).take(item)
        self.asked.append((owner, exact_start))
        await trio.lowlevel.checkpoint()
        name = self.host_name(owner)
        if owner in self.world.down:
            raise Unavailable(f"host {name} owns the addresses and does not answer; nothing was changed")
        ask = BlockAsk(
            1, network, size, exact_start is not None, near if exact_start is None else exact_start
        )
        answer = await answer_block_ask(self.world.named(owner), self.me, ask)
        if answer.refusal:
            raise Unavailable(f"host {name} does not hand addresses on: {answer.refusal}")
        if self.drop_answers:
            raise Unavailable(f"host {name} owns the addresses and does not answer; nothing was changed")
        await self.commit(answer.deeds)
        return list(answer.deeds)

    def background(self, job, *args):
        if self.world.nursery is not None:
            self.world.nursery.start_soon(job, *args)

    def alarm(self, kind, text):
        self.alarms[kind] = text

    def calm(self, kind):
        self.alarms.pop(kind, None)

    def health(self):
        return []

    def checksums(self):
        active = ("tx-checksum-ip-generic",)
        return [Device("eth0", "ixgbe", active), Device("vlan7", "", ())], "right", "right at host2"

    def figures(self):
        return Figures(
            sent=7, received=8, send_errors=1, core={"refused tag": 3, "Ping": 5, "syncs": 2, "repairs": 4},
            repairs={"fdb": 6}, fights=0, journal_bytes=4096, lag_s=0.0015, lag_worst_s=0.25,
        )  # fmt: skip

    def seeds(self):
        return [Address("192.0.2.1", 7947), Address("2001:db8::1", 7947)]

    def primary_key(self):
        return "0001", "0001:c2VjcmV0"

    async def drain(self, draining):
        await trio.lowlevel.checkpoint()
        self.draining = draining

    def reload(self):
        return Reloaded([Changed("log.level", "info", "debug")], [], [])

    async def held_by(self, asked, within_s):
        await trio.lowlevel.checkpoint()
        lacking = []
        for host, items in asked.items():
            up = host not in self.world.down and host not in self.world.cut_off
            if not up or any(self.world.named(host).store.lookup(item.key) is None for item in items):
                lacking.append(host)
        return lacking

    async def leave(self):
        self.left = True
        return Farewell([], [])


def free_counts(cluster):
    """Count what is reserved or used, by network: nothing may leak."""
    return {net: len(use.used) for net, use in cluster.usage._networks.items() if use.used}


REFUSED_BY_KERNEL = KernelError("device mh", errno=95, words="operation not supported")
__all__ = ["BOOT", "REFUSED_BY_KERNEL", "FakeCluster", "Item", "World", "free_counts"]
