"""The JSON that users rely on (contract.md): field names, units and order. Values in, structs out; what is true
is looked up in api/views.py. Ids are lower-case hex, times in seconds or ``_ms``, absent measures null.
"""

import msgspec

from meshd.shell.usecase import Handed


class MemberShape(msgspec.Struct, frozen=True):
    """One host as this one sees it. ``rtt_ms`` and ``last_seen_s`` (ago) are null before the first contact,
    ``path_mtu`` (bytes of an IP packet that the path there carries) before it was measured."""

    id: str
    name: str
    address: str
    port: int
    state: str
    incarnation: int
    is_self: bool = msgspec.field(name="self")
    degraded: bool = msgspec.field()
    restarting: bool = msgspec.field()
    rtt_ms: float | None = msgspec.field()
    version: str = msgspec.field()
    last_seen_s: float | None = msgspec.field()
    path_mtu: int | None = msgspec.field()
    draining: bool = msgspec.field()
    forgotten: bool = msgspec.field()


class NetworkShape(msgspec.Struct, frozen=True):
    """A line of ``network ls``. ``state``: "up", or "removing" while its last endpoints go."""

    name: str
    id: str
    driver: str
    scope: str
    vni: int
    subnets: list[str]
    gateways: list[str]
    mtu: int
    internal: bool
    endpoints: int
    state: str


class BlockShape(msgspec.Struct, frozen=True):
    """A part of a network's space, its owner's name (null: quarantined) and how many addresses in it are free."""

    block: str
    owner: str | None
    free: int


class NetworkDetail(NetworkShape, frozen=True):
    """``network inspect``. ``created``: unix seconds."""

    creator: str
    created: float
    ip_range: list[str]
    exclude: list[str]
    options: dict[str, str]
    labels: dict[str, str]
    blocks: list[BlockShape]
    host_access: bool = False
    broadcast: bool = False


class EndpointShape(msgspec.Struct, frozen=True):
    """``host`` is a name, which two hosts may share; ``host_id`` is not. ``state``: "up", or "stale" while its
    host is failed, or its device went with the network card that it was on; ``why`` then says more. ``runtime``: who
    asked for it, "docker" say, and ``runtime_id``: its id there (Docker's EndpointID); empty for meshctl's, and for
    endpoints of other hosts, where nobody knows."""

    id: str
    network: str
    host: str
    name: str
    aliases: list[str]
    ips: list[str]
    mac: str
    ifname: str
    state: str
    published: list[str]
    host_id: str
    network_id: str
    why: str
    runtime: str
    runtime_id: str


class RouteShape(msgspec.Struct, frozen=True):
    """A route the caller sets: ``dst`` "default" by way of ``via``, whose family says which; or a prefix, and
    ``via`` null for what the device itself reaches."""

    dst: str
    via: str | None


class PlumbShape(msgspec.Struct, frozen=True):
    """What the caller does in the namespace: take ``link`` there, call it ``ifname``, and so on. ``existing``:
    the endpoint was attached before; if ``link`` is gone from the host's namespace it is plumbed already.
    ``warnings``: what works badly or surprises, a line each, for people."""

    link: str
    ifname: str
    mac: str
    mtu: int
    addresses: list[str]
    routes: list[RouteShape]
    ipv6: bool
    existing: bool
    warnings: list[str] = []


class AttachedShape(EndpointShape, frozen=True):
    """The answer to POST /v1/endpoints."""

    plumb: PlumbShape


class HostShape(msgspec.Struct, frozen=True):
    """This host; ``address`` is where its gossip is. ``draining``: it takes no new endpoints."""

    id: str
    name: str
    address: str
    draining: bool


class ClusterShape(msgspec.Struct, frozen=True):
    """How many members are in which state."""

    id: str
    alive: int
    suspect: int
    failed: int
    left: int


class KernelShape(msgspec.Struct, frozen=True):
    """Desired against actual, in numbers."""

    in_sync: bool
    missing: int
    stale: int


class KeysShape(msgspec.Struct, frozen=True):
    """``primary``: the id of the key that this host seals with."""

    primary: str


class BridgePortShape(msgspec.Struct, frozen=True):
    """``state``: "up"; "unconfirmed", and then it leaves the bridge again in ``seconds_left``; or "missing" while the
    device is not there or no port."""

    name: str
    state: str
    seconds_left: float | None


class BridgeShape(msgspec.Struct, frozen=True):
    """A line of ``bridge ls``. ``state``: "up", "down" or "missing"; ``others``: ports that meshd was not asked for,
    such as virtual machines'. ``mtu``: bytes, its ports' smallest."""

    name: str
    id: str
    state: str
    mac: str
    mtu: int
    ports: list[BridgePortShape]
    others: list[str]
    created: float


class BridgePortAdded(BridgeShape, frozen=True):
    """The answer to POST /v1/bridges/ports. ``warnings``: what an operator should see to, a line each."""

    warnings: list[str] = []


class LoopShape(msgspec.Struct, frozen=True):
    """How late the daemon's loop woke: the last time, and at worst within a minute."""

    lag_ms: float
    lag_worst_ms: float


class OffloadShape(msgspec.Struct, frozen=True):
    """A device that overlay packets leave by, or that such a one stands on. ``computes``: ``card`` where it is left to
    compute checksums, else ``kernel``; ``features``: those that are on, as ``ethtool -k`` calls them. ``result``: of
    trying it, ``right``, ``wrong`` or ``untested``; ``detail``: with whom, or why not."""

    device: str
    driver: str
    computes: str
    features: list[str]
    result: str
    detail: str


class StatusShape(msgspec.Struct, frozen=True):
    """``status``. Equal digests mean equal state; ``health``: what an operator should see to, a line each."""

    ready: bool
    host: HostShape
    cluster: ClusterShape
    digest: str
    networks: int
    endpoints: int
    kernel: KernelShape
    keys: KeysShape
    health: list[str]
    version: str
    loop: LoopShape
    offload: list[OffloadShape]


class FindingShape(msgspec.Struct, frozen=True):
    """One line of ``diff``."""

    object: str
    what: str
    why: str


class DiffShape(msgspec.Struct, frozen=True):
    """``diff``: desired against kernel; ``foreign`` does not count."""

    in_sync: bool
    missing: list[FindingShape]
    stale: list[FindingShape]
    foreign: list[FindingShape]


class TokenShape(msgspec.Struct, frozen=True):
    """What a new host joins with. ``key`` is ``KEYID:BASE64``; ``v6``: the cluster's v6 pools, if set."""

    seeds: list[str]
    key: str
    v6: list[str]


class VersionShape(msgspec.Struct, frozen=True):
    """The daemon's version."""

    version: str


class ReadyShape(msgspec.Struct, frozen=True):
    """The API answers, the kernel has been read and adopted, and gossip runs."""

    ready: bool


class RemovedShape(msgspec.Struct, frozen=True):
    """``removed`` False: it was gone already."""

    removed: bool


class ForgottenShape(msgspec.Struct, frozen=True):
    """The answer to forget: the host, and who gets its addresses."""

    id: str
    name: str
    blocks: list[Handed]


class DrainShape(msgspec.Struct, frozen=True):
    """The answer to drain and undrain. ``endpoints``: how many are still on this host."""

    draining: bool
    endpoints: int


class EmptyShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to say, and nothing to ask."""
