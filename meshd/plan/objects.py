"""The kernel objects that meshd programs, as values. Desired state (plan/desired.py) and what a dump found
(kernel/actual.py) are both a ``Kernel``; their difference (plan/diff.py) is what the reconciler applies.

Devices are named, not numbered: names are stable, an ifindex is the kernel's business. What there is one of per
row is kept from the garbage collector (``gc=False``: see model.py).
"""

from typing import Literal

import msgspec

from meshd.plan.elements import Element

Where = Literal["self", "master"]
"""An FDB row is the VXLAN device's own (``self``: MAC -> VTEP) or the bridge's (``master``: MAC -> port)."""


class Port(msgspec.Struct, frozen=True):
    """Bridge port flags (IFLA_BRPORT_*). Defaults are a container's port."""

    learning: bool = False
    flood: bool = False
    mcast_flood: bool = True
    bcast_flood: bool = True
    neigh_suppress: bool = False
    hairpin: bool = False  # frames go back by the port that they came from
    isolated: bool = False  # exchanges no frame with other isolated ports
    locked: bool = False  # takes only frames whose source has a row that leads to this port


class Vxlan(msgspec.Struct, frozen=True):
    """What identifies a VXLAN device: changing any of it means making the device anew. ``local`` is packed."""

    vni: int
    local: bytes
    port: int


LinkKind = Literal["bridge", "vxlan", "veth", "macvlan", "ipvlan"]
GUEST_KINDS = ("macvlan", "ipvlan")
ATTACHED_KINDS = ("veth", *GUEST_KINDS)
"""Devices that only an endpoint's attach makes: a missing one is a finding, not something to create."""


class Link(msgspec.Struct, frozen=True):
    """A device. ``mac`` 6 bytes or None (not compared); ``alias`` carries our mark.

    A ``veth`` is a local endpoint's host end: it is adjusted but never made here, since its peer is gone
    with it; a missing one is a finding, not something to create. One whose ``peer`` is named has both its ends in
    this namespace, both ours: it is made like any other device. The kernel is not asked for the peer's name.

    A ``macvlan`` or ``ipvlan`` is a local endpoint's only device and lives in the container's namespace, whose
    business its settings are: just that it exists is said and compared (``guest``). One whose ``parent`` is named is
    the host's own (--host-access) and made like any other device; ``mode`` as ip-link(8) calls it.

    ``mtu`` 0 is not compared: an operator's bridge has its ports' smallest, as the kernel sees to.

    ``narrow``: answers ARP for the device's own addresses alone, and takes answers that come another way (arp_ignore
    1, arp_announce 2, rp_filter 2); where it is not wanted, it is not compared. ``localnet``: packets from 127.0.0.0/8
    may be routed to it (route_localnet), which a port published on the loopback address needs.
    """

    name: str
    kind: LinkKind
    alias: str
    mtu: int
    mac: bytes | None = None
    master: str | None = None
    port: Port | None = None
    vxlan: Vxlan | None = None
    up: bool = True
    peer: str | None = None
    narrow: bool = False
    localnet: bool = False
    parent: str | None = None
    mode: str | None = None


def guest(name: str, kind: LinkKind, alias: str) -> Link:
    """Say that an endpoint's macvlan or ipvlan device is there, in whichever namespace."""
    return Link(name, kind, alias, mtu=0)


def made_by_attach(link: Link) -> bool:
    """Tell whether only an endpoint's attach can make the device: a missing one is a finding, not something to
    create."""
    return link.kind in ATTACHED_KINDS and not link.peer and not link.parent


class Addr(msgspec.Struct, frozen=True, order=True, gc=False):
    """An address on one of our bridges, or on the host's own device on a network. ``ip`` packed, ``prefix`` bits."""

    dev: str
    ip: bytes
    prefix: int


class Route(msgspec.Struct, frozen=True, order=True, gc=False):
    """The way to one address (``ip``, packed) by a device of the host's own; packets are from ``source`` (packed).
    ``prefix``: bits of the subnet that it leads to, 0 for the address alone."""

    dev: str
    ip: bytes
    source: bytes
    prefix: int = 0


class Nexthop(msgspec.Struct, frozen=True, gc=False):
    """An FDB nexthop (``via``: packed VTEP address) or a group of them (``group``: ids). Kernel >= 5.8."""

    id: int
    via: bytes | None = None
    group: tuple[int, ...] = ()


class FdbKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """What an FDB row is filed under. ``to``: packed VTEP of a row for everybody (BROADCAST), of which there is one
    a host; b"" for all others."""

    dev: str
    mac: bytes
    where: Where
    to: bytes = b""


BROADCAST = bytes(6)
"""The MAC of a VXLAN device's rows for frames that are for all: a copy goes to each (head-end replication)."""


class FdbTarget(msgspec.Struct, frozen=True, gc=False):
    """Where an FDB row points: a nexthop group, or a packed VTEP address, or (master rows) just the device.

    ``local`` marks a row for a local endpoint: static (NUD_NOARP), not extern_learn; PERMANENT would make the MAC
    the bridge's own.
    """

    nhid: int | None = None
    dst: bytes | None = None
    local: bool = False


class NeighKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """A neighbour on a bridge: what neigh_suppress answers ARP and ND with. ``ip`` packed."""

    dev: str
    ip: bytes


GATE_ACCEPTS = 2
"""In a gate: an accept for packets from our bridges and the host's own devices, and one for packets to them."""


class Gate(msgspec.Struct, frozen=True, order=True):
    """A chain of somebody else's through which forwarded packets go."""

    family: str
    table: str
    chain: str


class GateState(msgspec.Struct, frozen=True):
    """``shut``: what is forwarded would be dropped there but for our accepts. ``accepts``: how many of them there
    are; GATE_ACCEPTS are right."""

    shut: bool
    accepts: int


class Kernel(msgspec.Struct):
    """All that is ours in one namespace's kernel."""

    links: dict[str, Link] = {}
    addrs: set[Addr] = set()  # msgspec copies empty defaults
    nexthops: dict[int, Nexthop] = {}
    fdb: dict[FdbKey, FdbTarget] = {}
    neigh: dict[NeighKey, bytes] = {}
    firewall: str = ""  # the text of our tables with empty sets, as rendered; "" when absent
    elements: dict[Element, bytes] = {}
    gates: dict[Gate, GateState] = {}  # others' chains: what is wanted of them follows from what they are
    routes: set[Route] = set()


class Finding(msgspec.Struct, frozen=True):
    """One line of ``meshctl diff``. ``what``: the object as ip(8) or bridge(8) would name it; ``why``: for
    people."""

    object: str
    what: str
    why: str


class Dump(msgspec.Struct):
    """What a dump found: ``ours`` is compared, ``foreign`` is on our devices without our mark: reported,
    never touched. ``devices``: everybody's, ifindex -> name."""

    ours: Kernel
    foreign: list[Finding] = []
    devices: dict[int, str] = {}
