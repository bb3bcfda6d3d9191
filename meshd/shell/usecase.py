"""What a use case needs of the running daemon, as a Protocol: so that attach, networks and the API are written
and tested without sockets, gossip or a kernel. shell/cluster.py is the real one. Decides nothing.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar, TypeVarTuple

import msgspec

from meshd.config import Settings
from meshd.errors import KernelError
from meshd.kernel.lan import Guest
from meshd.kernel.links import Birth
from meshd.kernel.nft import Elsewhere
from meshd.kernel.offload import Device
from meshd.kernel.sockets import Listener
from meshd.kernel.vxlans import ForeignVxlan
from meshd.messages import Message
from meshd.model import (
    Address,
    Attachment,
    Bridge,
    Endpoint,
    EndpointId,
    Forgotten,
    HostFacts,
    HostId,
    Item,
    Key,
    Network,
    NetworkId,
)
from meshd.node.pathmtu import Path
from meshd.plan.bridges import Belongings, Card, Move
from meshd.plan.objects import Finding
from meshd.plan.ops import Op
from meshd.plan.parents import Parent
from meshd.plan.view import View
from meshd.shell.desk import Desk
from meshd.shell.events import EventBus
from meshd.state.deeds import DeedBook
from meshd.state.roster import Roster
from meshd.state.store import Store
from meshd.state.usage import Usage
from meshd.swim.members import Member

T = TypeVar("T")
Args = TypeVarTuple("Args")


class LanLike(Protocol):
    """kernel/lan.py, as far as use cases go. All calls block."""

    def parent(self, name: str | None) -> Parent:
        """Read a device, or the default route's. Raises Unavailable, KernelError."""
        ...

    def make_guest(self, guest: Guest) -> None:
        """Make an endpoint's device. Raises Unavailable, KernelError with nothing left behind."""
        ...

    def make_vlan(self, name: str, parent: int, number: int, alias: str) -> int:
        """Make a VLAN sub-interface. Raises Unavailable, KernelError with nothing left behind."""
        ...

    def vlans(self, mark: str) -> dict[str, str]:
        """Return the VLAN sub-interfaces that are ours: name -> alias. Raises KernelError."""
        ...

    def supports(self, kind: str) -> bool:
        """Tell whether the kernel can make devices of a kind."""
        ...

    def ask(self, index: int, ips: Sequence[bytes]) -> dict[bytes, bytes]:
        """Ask once on a device who has these addresses; return what needs no asking. Raises KernelError."""
        ...

    def answers(self, index: int, ips: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return who has answered so far: address -> MAC. Raises KernelError."""
        ...

    def forget(self, index: int, ips: Sequence[bytes]) -> None:
        """Take away what asking left. Raises KernelError."""
        ...


class BridgingLike(Protocol):
    """kernel/bridging.py, as far as use cases go. All calls block."""

    def card(self, name: str) -> Card:
        """Read a device. Raises KernelError."""
        ...

    def brief(self, name: str) -> Card:
        """Read a device alone: nothing of what is on it or a port of it. Raises KernelError."""
        ...

    def belongings(self, index: int) -> Belongings:
        """Read what the host has on a device. Raises KernelError."""
        ...

    def join(self, move: Move) -> None:
        """Make a card a port, and move what is on it. Raises KernelError with everything as it was."""
        ...

    def leave(self, move: Move) -> list[KernelError]:
        """Take a card out again; return what the kernel refused, all else being done. Raises KernelError."""
        ...


class KernelLike(Protocol):
    """kernel/namespace.py, as far as use cases go. Its calls block: they are made in a worker thread."""

    @property
    def lan(self) -> LanLike:
        """Devices on the LAN itself."""
        ...

    @property
    def bridging(self) -> BridgingLike:
        """Operators' bridges and their ports."""
        ...

    def delete_link(self, name: str) -> None:
        """Delete a device of ours; one that is gone is a success. Raises KernelError."""
        ...

    def links_exist(self, names: Sequence[str]) -> set[str]:
        """Return which of these devices there are. Raises KernelError."""
        ...

    def foreign_vxlans(self, cluster_mark: str) -> list[ForeignVxlan]:
        """List VXLAN devices that are not this cluster's. Raises KernelError."""
        ...

    def published_elsewhere(self) -> list[Elsewhere]:
        """Return which ports other clusters' daemons publish on this host. Raises KernelError."""
        ...

    def listeners(self) -> list[Listener]:
        """Return which ports the host's own sockets have. Raises KernelError."""
        ...

    def local_addresses(self) -> set[bytes]:
        """Return the host's addresses, packed. Raises KernelError."""
        ...


class ReconcilerLike(Protocol):
    """shell/reconcile.py, as far as use cases go."""

    def changed(self, network_id: NetworkId | None = None, endpoint_id: EndpointId | None = None) -> None:
        """Say that the view changed; with a local endpoint's id also that its link has just been made."""
        ...

    async def settled(self) -> None:
        """Wait until all that was marked before this call is in the kernel, or was refused by it."""
        ...

    async def in_kernel_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Run a call that blocks, in turn with the reconciler's own."""
        ...

    def coming(
        self, id_: EndpointId, endpoint: Endpoint, attachment: Attachment, birth: Birth
    ) -> AbstractAsyncContextManager[None]:
        """Have all that an endpoint needs in the kernel before it is written down; without a record at the end it goes
        again, before this returns. Raises nothing: see ``failures``."""
        ...

    def making(self, link: str) -> AbstractContextManager[None]:
        """Have a device left alone that no record explains yet. Call ``changed`` before leaving."""
        ...

    def failures(self) -> dict[Op, KernelError]:
        """Return what the kernel has refused since the last full comparison."""
        ...

    async def diff(self) -> dict[str, list[Finding]]:
        """Compare with a fresh dump: ``missing``, ``stale``, ``foreign``. Raises KernelError."""
        ...

    def counts(self) -> dict[str, int]:
        """Return how many objects are ``missing`` and ``stale``, as far as is known without a dump."""
        ...

    def orphans(self) -> dict[EndpointId, str]:
        """Return local endpoints whose device went with its parent, and why in words."""
        ...


class Figures(msgspec.Struct, frozen=True):
    """What this daemon has counted since it started. ``core``: node.Node.counters; ``repairs``: kernel objects put right,
    by kind; ``fights``: objects that another program changes again and again; ``lag_s``, ``lag_worst_s``: how late the
    loop woke last, and at worst within LAG_WINDOW_S."""

    sent: int
    received: int
    send_errors: int
    core: Mapping[str, int]
    repairs: Mapping[str, int]
    fights: int
    journal_bytes: int
    lag_s: float
    lag_worst_s: float


class Handed(msgspec.Struct, frozen=True):
    """A block of addresses that goes to another host: names, and the block as people read it."""

    network: str
    block: str
    to: str


class Farewell(msgspec.Struct, frozen=True):
    """What a leaving host handed on, and the names of hosts that did not say in time that they have it on record."""

    handed_on: list[Handed]
    unconfirmed: list[str]


class Changed(msgspec.Struct, frozen=True):
    """One setting whose value in the file is not the one in use: ``key`` as ``table.key``, values as JSON has them."""

    key: str
    before: Any
    after: Any


class Reloaded(msgspec.Struct, frozen=True):
    """What a reload came to. ``changed``: in use now; ``restart``: not before the daemon is started anew; ``notes``:
    what else to know, a line each."""

    changed: list[Changed]
    restart: list[Changed]
    notes: list[str]


class ClusterLike(Protocol):
    """This host and what it knows of its cluster. All calls are from the trio thread."""

    @property
    def me(self) -> HostId:
        """This host's id."""
        ...

    @property
    def cluster_id(self) -> bytes:
        """What the ownership mark and ``status`` show."""
        ...

    @property
    def boot_id(self) -> str:
        """The kernel's boot id, which says whether a namespace cookie is of this boot."""
        ...

    @property
    def mark(self) -> str:
        """The 8 hex digits of the cluster that every device's alias carries."""
        ...

    @property
    def secret(self) -> bytes:
        """The cluster's secret, which never rotates."""
        ...

    @property
    def allocation_stopped(self) -> str:
        """Why no address may be given now (state lost or cloned, leaving); "" normally."""
        ...

    @property
    def settings(self) -> Settings:
        """The operator's settings."""
        ...

    @property
    def store(self) -> Store:
        """Every item known."""
        ...

    @property
    def deeds(self) -> DeedBook:
        """Who owns which address; follows the store."""
        ...

    @property
    def usage(self) -> Usage:
        """Which index is in use; follows the store."""
        ...

    @property
    def networks(self) -> Mapping[NetworkId, Network]:
        """Live networks, the cluster's and this host's own; follows the store, as do the next three."""
        ...

    @property
    def endpoints(self) -> Roster:
        """Live endpoints of all hosts."""
        ...

    @property
    def hosts(self) -> Mapping[HostId, HostFacts]:
        """What hosts say of themselves."""
        ...

    @property
    def attachments(self) -> Mapping[EndpointId, Attachment]:
        """Where this host's endpoints are plugged in."""
        ...

    @property
    def bridges(self) -> Mapping[bytes, Bridge]:
        """The bridges that an operator made on this host, by id."""
        ...

    @property
    def alarms(self) -> dict[str, str]:
        """What an operator should see to, by kind; shown in ``status``."""
        ...

    @property
    def events(self) -> EventBus:
        """What happened, for watchers."""
        ...

    @property
    def desk(self) -> Desk:
        """What attach and detach are in the middle of."""
        ...

    @property
    def kernel(self) -> KernelLike:
        """The host's namespace."""
        ...

    @property
    def reconciler(self) -> ReconcilerLike:
        """What brings the kernel to the desired state."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the kernel was read and adopted and gossip runs."""
        ...

    @property
    def members(self) -> Mapping[HostId, Member]:
        """Every host known, this one included."""
        ...

    @property
    def paths(self) -> Mapping[HostId, Path]:
        """What the path to each living host carries, as far as it has been measured."""
        ...

    def view(self) -> View:
        """What desired kernel state is computed from."""
        ...

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def wall_ms(self) -> int:
        """Unix milliseconds."""
        ...

    @property
    def entropy(self) -> Callable[[int], bytes]:
        """Gives unpredictable bytes, as many as asked for."""
        ...

    def next_seq(self) -> int:
        """Return the next sequence of this host's ENDPOINT items."""
        ...

    def alive(self) -> list[HostId]:
        """Return the hosts alive, this one included."""
        ...

    def host_name(self, host: HostId) -> str:
        """Name a host for people; its short id where it is not known."""
        ...

    async def commit(self, items: Sequence[Item], forget: Sequence[Key] = ()) -> None:
        """Make items durable, then put them in the store and tell the cluster; local keys in ``forget`` are
        dropped. Raises Unavailable (disk), with nothing changed. Once begun it runs to its end, also when the
        caller is cancelled."""
        ...

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
        """Ask an owner for part of its space, of that which ``near`` is in; the deeds are in journal and store on
        return. ``proof``: deeds by which the space is its. Raises Unavailable naming the owner."""
        ...

    def gone(self) -> set[HostId]:
        """Return the hosts that have left for good."""
        ...

    def send(self, to: HostId, messages: Sequence[Message]) -> None:
        """Send messages to one host, in this order; they may get lost."""
        ...

    async def confirmed(self, deeds: Collection[bytes]) -> set[HostId]:
        """Wait until deeds of this host's may be used, a short while; returns the hosts whose word is missing."""
        ...

    async def ask_subnet(
        self, creator: HostId, network: NetworkId, subnets: Sequence[str], gateways: Sequence[str]
    ) -> list[Item]:
        """Ask a network's creator to add subnets; its deed is in journal and store on return. Raises Conflict with
        its reason, Unavailable naming it."""
        ...

    def background(self, job: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run something that nobody waits for until the daemon stops; its errors are logged."""
        ...

    def alarm(self, kind: str, text: str) -> None:
        """Show an operator something until ``calm``; the same one once."""
        ...

    def calm(self, kind: str) -> None:
        """Take an alarm back: it is true no more."""
        ...

    def health(self) -> list[str]:
        """Return what an operator should see to, a line each; empty when all is well."""
        ...

    def checksums(self) -> tuple[Sequence[Device], str, str]:
        """Return the devices that overlay packets leave by, whether their checksums arrive right, and who found that."""
        ...

    def figures(self) -> Figures:
        """Return what has been counted."""
        ...

    def seeds(self) -> list[Address]:
        """Return addresses a new host may join by."""
        ...

    def primary_key(self) -> tuple[str, str]:
        """Return the primary key's id and the key itself, as ``KEYID`` and ``KEYID:BASE64``."""
        ...

    @property
    def reload(self) -> Callable[[], Reloaded]:
        """Read the operator's files anew and use what can be used at once. Raises ConfigError, with nothing
        changed."""
        ...

    @property
    def draining(self) -> bool:
        """Whether this host takes no new endpoints, as the operator said."""
        ...

    async def drain(self, draining: bool) -> None:
        """Take no new endpoints, or take them again. Raises Unavailable (disk)."""
        ...

    @property
    def forgotten(self) -> Mapping[HostId, Forgotten]:
        """Hosts that an operator said are off for good."""
        ...

    async def held_by(self, asked: Mapping[HostId, Sequence[Item]], within_s: float) -> list[HostId]:
        """Wait until each of these hosts has shown that it holds these deeds, of which this host is the donor; return
        those that have not in time."""
        ...

    async def leave(self) -> Farewell:
        """Release this host's endpoints, hand on what it owns and leave the cluster. Raises Unavailable (disk)."""
        ...
