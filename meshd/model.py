"""The values that all parts share: identities, replicated items and their bodies. No behaviour beyond
what a value can say about itself; no I/O, no clock.

Everything the cluster agrees on is one map of *items*, Key -> (version, body). The higher version wins,
whoever brings it (state/store.py); an item that is ``dead`` is a tombstone. Membership is in the same map
(kind MEMBER), so that it is covered by the same digest as everything that depends on it (moby #53437).

``gc=False``: values that are frozen and hold only values cannot be part of a cycle, and there are 100,000s of them.
Looked at by the collector they would hold up the loop for 0.1-0.4 s each time (tests/bench/bench_scale.py).
"""

import enum
import ipaddress
from collections.abc import MutableSequence, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import msgspec

T = TypeVar("T")

ID_BYTES = 16
"""Hosts, sessions, networks, endpoints and deeds are named by 128 bits."""

HostId = bytes
SessionId = bytes
NetworkId = bytes
EndpointId = bytes

Id16 = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
PackedIp = Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Short = Annotated[str, msgspec.Meta(max_length=255)]
U64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # msgspec checks bounds as signed 64 bit
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Rng(Protocol):
    """The part of random.Random that the core uses; always passed in, so that a run can be replayed."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...

    def randrange(self, start: int, stop: int | None = None, /) -> int:
        """Return an int in [start, stop)."""
        ...

    def randbytes(self, n: int, /) -> bytes:
        """Return n bytes."""
        ...

    def choice(self, seq: Sequence[T], /) -> T:
        """Return one element."""
        ...

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """Return k distinct elements."""
        ...

    def shuffle(self, x: MutableSequence[T], /) -> None:
        """Shuffle in place."""
        ...


class Address(NamedTuple):
    """A UDP or TCP address of the underlay: numeric host (v4 or v6) and port."""

    host: str
    port: int

    @property
    def packed(self) -> bytes:
        """The host as 4 or 16 network-order bytes."""
        return ipaddress.ip_address(self.host).packed

    @classmethod
    def unpack(cls, packed: bytes, port: int) -> "Address":
        """Make an address from 4 or 16 bytes and a port. Raises ValueError for another length."""
        return cls(str(ipaddress.ip_address(packed)), port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Kind(enum.IntEnum):
    """What an item is about. Numbers are on the wire and on disk: never reuse one.

    Kinds from LOCAL_NETWORK up are this host's own: journalled, never gossiped, not in the digest. One that is not here
    is a newer host's: its items are merged by version, kept and passed on like all others, and obeyed by nobody.
    """

    MEMBER = 1  # id: host id; version (incarnation, rank, session)
    HOST = 2  # id: host id; what a host says of itself that outlives its boots
    NETWORK = 3  # id: network id; tombstones are permanent
    ENDPOINT = 4  # id: endpoint id; version (endpoint incarnation, counter, writer)
    DEED = 5  # id: hash of the deed; immutable, never dead
    FORGOTTEN = 6  # id: host id, under which no host comes back; never dead
    LOCAL_NETWORK = 32  # a `bridge` network: exists on this host only
    LOCAL_ENDPOINT = 33  # an endpoint on one
    ATTACHMENT = 34  # id: endpoint id; which namespace and link a local endpoint has
    LOCAL_BRIDGE = 35  # a bridge that an operator made for the LAN, and its ports
    DOCKER_NETWORK = 36  # id: hash of Docker's own id; which network a Docker network of this host is
    CONFIRMED = 37  # id: deed id; all witnesses of a deed of this host's have it


FIRST_LOCAL_KIND = Kind.LOCAL_NETWORK


class Key(NamedTuple):
    """What an item is filed under."""

    kind: int
    id: bytes


class Version(NamedTuple):
    """Orders the items of one key; compared as a tuple, the higher wins (design.md, section 6)."""

    incarnation: int
    counter: int
    writer: bytes


class Rank(enum.IntEnum):
    """``Version.counter`` of a MEMBER item: at one incarnation, failed beats alive and left beats failed."""

    ALIVE = 0
    FAILED = 1
    LEFT = 2


class MemberFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a host says of itself for one boot. Failed and left claims carry the facts of the incarnation
    they are about, so that who never heard it alive still knows whom the claim accuses.
    """

    name: Name
    address: PackedIp
    port: Port
    session: Id16
    software: Short = ""


class HostFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a host says of itself that outlives its boots. Written by that host alone.

    ``vtep``: address its VXLAN traffic comes from. ``underlay_mtu``: bytes, of the link that address is on.
    ``floor``: every ENDPOINT item with this origin and a sequence at or below it is void (state/store.py).
    ``routes``: prefixes that the host routes itself, so that no pool is laid over them. ``draining``: it takes no new
    endpoints.
    """

    name: Name
    vtep: PackedIp
    vxlan_port: Port
    underlay_mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    floor: U64 = 0
    routes: Annotated[tuple[Short, ...], msgspec.Meta(max_length=64)] = ()
    draining: bool = False


class Subnet(msgspec.Struct, frozen=True, array_like=True):
    """One address range of a network: CIDR text and the gateway's address text (same on every host). ``start``: the
    index that its own address stands for; the address of an index is as far from it (state/layout.py).
    """

    cidr: Short
    gateway: Short
    start: U64 = 0


class Network(msgspec.Struct, frozen=True, array_like=True):
    """A network as the cluster knows it. ``vni`` is 0 for networks without VXLAN. ``mtu`` in bytes is what
    containers get. ``subnets``: those it was made with; later ones come by a deed that ``opens`` them.
    ``host_access``: each host with an endpoint is one itself. ``broadcast``: broadcast and multicast frames reach
    all its endpoints.
    """

    name: Name
    driver: Annotated[str, msgspec.Meta(max_length=16)]
    subnets: Annotated[tuple[Subnet, ...], msgspec.Meta(max_length=16)]
    vni: U32 = 0
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    internal: bool = False
    creator: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    created_ms: U64 = 0
    ip_range: Annotated[tuple[Short, ...], msgspec.Meta(max_length=8)] = ()
    exclude: Annotated[tuple[Short, ...], msgspec.Meta(max_length=256)] = ()
    options: Annotated[dict[Short, Short], msgspec.Meta(max_length=64)] = {}
    labels: Annotated[
        dict[Short, Annotated[str, msgspec.Meta(max_length=1024)]], msgspec.Meta(max_length=64)
    ] = {}
    removing: bool = False
    host_access: bool = False
    broadcast: bool = False


class Endpoint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A container's or process's network interface. ``index`` is its allocation in the network's index
    space; ``ips`` (packed, v4 before v6) follow from it. ``mac`` is 6 bytes.
    """

    network: Id16
    host: Id16
    name: Name
    index: U64
    ips: Annotated[tuple[PackedIp, ...], msgspec.Meta(max_length=8)]
    mac: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    ifname: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    aliases: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    published: Annotated[tuple[Short, ...], msgspec.Meta(max_length=1024)] = ()
    created_ms: U64 = 0


class Released(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a dead ENDPOINT item still says: which allocation it gave up, so that the address can cool."""

    network: Id16
    index: U64


class Removed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a dead NETWORK item still says: the name it had."""

    name: Name


class Deed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who owns a block of a network's index space: ``[start, start + size)`` (state/deeds.py).

    ``parent``: hash of the deed by which ``donor`` owns the space this is cut from; 16 zero bytes for the
    genesis deed, whose donor and owner are the network's creator and whose ``heirs`` (at most two) are named once.
    ``opens``: subnets (at most one a family) that this deed adds to its network, and their space with them; its
    parent is the genesis deed or the one that opened the subnet before (state/opened.py).
    """

    network: Id16
    start: U64
    size: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    owner: Id16
    donor: Id16
    parent: Id16
    heirs: Annotated[tuple[Id16, ...], msgspec.Meta(max_length=2)] = ()
    opens: Annotated[tuple[Subnet, ...], msgspec.Meta(max_length=2)] = ()


class Forgotten(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A host that an operator said is off for good: the ``name`` it had, the host ``by`` which that was said, and when
    (unix ms)."""

    name: Name
    by: Name
    at_ms: U64 = 0


class Attachment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a local endpoint is plugged in. Never leaves this host.

    ``netns_cookie`` (SO_NETNS_COOKIE) and ``boot_id`` name the namespace beyond doubt; ``netns_path`` is what
    the caller called it. ``host_if`` stays in the host's namespace, ``peer_if`` is what the caller moves.
    A cookie of HOST_NETNS is the host's own namespace: the endpoint is the host itself, and ``peer_if`` stays there.
    ``parent``, ``parent_index``: the device and its ifindex that a macvlan or ipvlan was made on; "" and 0 for others.
    ``owner``: what the runtime that asked calls it, "cni/NETWORK/CONTAINER/IFNAME", or "" for meshctl's.
    "docker/NETWORK/ENDPOINT" are Docker's ids: it moves the peer and does not say where to, so that the cookie is
    UNKNOWN_NETNS.
    """

    boot_id: Short
    netns_cookie: U64
    netns_path: Annotated[str, msgspec.Meta(max_length=4096)]
    ifname: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    host_if: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    peer_if: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    owner: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    parent: Annotated[str, msgspec.Meta(max_length=15)] = ""
    parent_index: U32 = 0


class BridgePort(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A network card that is a port of an operator's bridge.

    ``boot_id``, ``index``, ``bridge_index``: the boot and the ifindexes that ``carried`` and ``before`` speak of: what the card had, and
    what the bridge had, before the card joined, as netlink messages (kernel/carried.py). ``deadline_ms``: without
    confirmation the card leaves again then, milliseconds of CLOCK_BOOTTIME; 0 once confirmed.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    mac: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    boot_id: Short
    index: U32
    bridge_index: U32 = 0
    deadline_ms: U64 = 0
    moved_ms: U64 = 0  # CLOCK_BOOTTIME: lifetimes in ``carried`` count from then
    carried: bytes = b""
    before: bytes = b""


class Bridge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A bridge that an operator made, for containers and machines that are to be on the LAN itself. Never leaves
    this host. ``mac``: what it has now, its first port's or its own."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=15)]
    mac: Annotated[bytes, msgspec.Meta(min_length=6, max_length=6)]
    created_ms: U64 = 0
    ports: Annotated[tuple[BridgePort, ...], msgspec.Meta(max_length=64)] = ()


class Confirmed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A deed of this host's in ``network`` may be used (state/confirm.py). Never leaves this host."""

    network: Id16


HOST_NETNS = 0
"""``Attachment.netns_cookie`` of an endpoint that is the host itself: no namespace has this cookie."""


class Opaque(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of a kind that this version does not know: as it came, msgpack."""

    packed: bytes


UNKNOWN_NETNS = 2**63 - 1
"""``Attachment.netns_cookie`` where only the caller knows the namespace: the kernel counts them up from 1."""


class DockerNetwork(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which network a Docker network is. Never leaves this host: each engine has ids of its own.

    ``docker_id``: Docker's. ``network``: ours, named by ``name``; b"" where it is the one that has ``subnets``, which
    is made anew from ``request`` (JSON of the request for it) when it is missing. ``subnets``: as Docker has them.
    ``aux``: indices of ``network`` that Docker keeps for what is no container (--aux-address). ``ours``: its addresses
    are given by our IPAM driver, and not by Docker's own.
    """

    docker_id: Short
    network: Annotated[bytes, msgspec.Meta(max_length=16)]
    name: Name
    subnets: Annotated[tuple[Subnet, ...], msgspec.Meta(max_length=8)]
    request: Annotated[str, msgspec.Meta(max_length=16384)] = ""
    aux: Annotated[tuple[U64, ...], msgspec.Meta(max_length=256)] = ()
    ours: bool = True


Body = (
    MemberFacts
    | HostFacts
    | Network
    | Endpoint
    | Released
    | Removed
    | Deed
    | Attachment
    | Bridge
    | Confirmed
    | Forgotten
    | Opaque
    | DockerNetwork
    | None
)

LIVE_BODY: dict[int, type] = {
    Kind.MEMBER: MemberFacts,
    Kind.HOST: HostFacts,
    Kind.NETWORK: Network,
    Kind.ENDPOINT: Endpoint,
    Kind.DEED: Deed,
    Kind.FORGOTTEN: Forgotten,
    Kind.LOCAL_NETWORK: Network,
    Kind.LOCAL_ENDPOINT: Endpoint,
    Kind.ATTACHMENT: Attachment,
    Kind.LOCAL_BRIDGE: Bridge,
    Kind.DOCKER_NETWORK: DockerNetwork,
    Kind.CONFIRMED: Confirmed,
}
"""Body type of a live item, by kind."""

DEAD_BODY: dict[int, type] = {
    Kind.NETWORK: Removed,
    Kind.ENDPOINT: Released,
    Kind.LOCAL_NETWORK: Removed,
    Kind.LOCAL_ENDPOINT: Released,
}
"""Body type of a dead item, by kind; a kind that is not here (bar ATTACHMENT, without body) is never dead: LOCAL_BRIDGE
is forgotten at once."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One versioned record.

    ``origin`` and ``seq``: for ENDPOINT items the host that wrote it and that host's write number, which its
    floor is compared with; 16 zero bytes and 0 for other kinds. ``rest``: fields of the body beyond those that this
    version knows, in order; they are kept, passed on and stay when an older host changes the others.
    """

    kind: int
    id: bytes
    version: Version
    body: Body
    dead: bool = False
    origin: bytes = bytes(ID_BYTES)
    seq: int = 0
    rest: tuple[Any, ...] = ()

    @property
    def key(self) -> Key:
        """What the item is filed under."""
        return Key(self.kind, self.id)


NO_PARENT = bytes(ID_BYTES)


def text_id(value: bytes) -> str:
    """Show an id as people and JSON see it: lower-case hex."""
    return value.hex()


def text_mac(mac: bytes) -> str:
    """Show 6 bytes as aa:bb:cc:dd:ee:ff."""
    return mac.hex(":")


def text_ip(packed: bytes) -> str:
    """Show 4 or 16 bytes as an address."""
    if len(packed) == 4:  # 20 times as fast, and every endpoint's event says it
        return "{}.{}.{}.{}".format(*packed)
    return str(ipaddress.ip_address(packed))
