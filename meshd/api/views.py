"""From the cluster's state to the contract's shapes. Looks things up and converts; changes nothing and knows no
request.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from ipaddress import ip_address, ip_network

import msgspec
import trio

from meshd import __version__
from meshd.api.shapes import (
    AttachedShape,
    BlockShape,
    BridgePortAdded,
    BridgePortShape,
    BridgeShape,
    ClusterShape,
    DiffShape,
    EndpointShape,
    FindingShape,
    HostShape,
    KernelShape,
    KeysShape,
    LoopShape,
    MemberShape,
    NetworkDetail,
    NetworkShape,
    OffloadShape,
    PlumbShape,
    RouteShape,
    StatusShape,
    TokenShape,
)
from meshd.config import LISTED_AT_ONCE
from meshd.model import Endpoint, EndpointId, HostId, Item, Network, NetworkId, text_id, text_ip, text_mac
from meshd.plan.objects import Finding
from meshd.shell import bridges, networks
from meshd.shell.attach import Attached, mtu_of
from meshd.shell.bridgeports import Added
from meshd.shell.bridges import Found
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS, ROUTED_MODES, mode_of
from meshd.state.layout import Layout
from meshd.swim.members import Member, State


def member(cluster: ClusterLike, found: Member) -> MemberShape:
    """Show one member."""
    now, mine = cluster.now(), found.id == cluster.me
    seen = 0.0 if mine else None if found.last_seen is None else round(max(0.0, now - found.last_seen), 3)
    return MemberShape(
        id=text_id(found.id),
        name=found.facts.name,
        address=found.address.host,
        port=found.facts.port,
        state=str(found.state),
        incarnation=found.incarnation,
        is_self=mine,
        degraded=found.degraded,
        restarting=found.restarting(now),
        rtt_ms=None if found.rtt_s is None else round(found.rtt_s * 1000, 3),
        version=found.facts.software,
        last_seen_s=seen,
        path_mtu=path.mtu if (path := cluster.paths.get(found.id)) is not None else None,
        forgotten=found.id in cluster.forgotten,
        draining=(facts := cluster.hosts.get(found.id)) is not None and facts.draining,
    )


def members(cluster: ClusterLike) -> list[MemberShape]:
    """Show all members, by name, then id."""
    ordered = sorted(cluster.members.values(), key=lambda m: (m.facts.name, m.id))
    return [member(cluster, found) for found in ordered]


def status(cluster: ClusterLike) -> StatusShape:
    """Show this host, the cluster and the kernel in short."""
    me = cluster.members[cluster.me]
    states = Counter(found.state for found in cluster.members.values())
    counts = cluster.reconciler.counts()
    missing, stale = counts["missing"], counts["stale"]
    figures = cluster.figures()
    return StatusShape(
        ready=cluster.ready,
        host=HostShape(text_id(cluster.me), me.facts.name, me.address.host, cluster.draining),
        cluster=ClusterShape(text_id(cluster.cluster_id), *(states[state] for state in State)),
        digest=cluster.store.digest.hex(),
        networks=len(cluster.networks),
        endpoints=len(cluster.endpoints),
        kernel=KernelShape(not missing and not stale, missing, stale),
        keys=KeysShape(cluster.primary_key()[0]),
        health=cluster.health(),
        version=__version__,
        loop=LoopShape(round(figures.lag_s * 1000, 3), round(figures.lag_worst_s * 1000, 3)),
        offload=_offload(cluster),
    )


def _offload(cluster: ClusterLike) -> list[OffloadShape]:
    devices, result, detail = cluster.checksums()
    return [
        OffloadShape(
            each.name, each.driver, "card" if each.computes else "kernel", list(each.active), result, detail
        )
        for each in devices
    ]


def all_networks(cluster: ClusterLike) -> list[NetworkShape]:
    """Show all networks, ``none`` and ``host`` first, then by name."""
    fixed = [NetworkShape(*_unmanaged(name)) for name in networks.UNMANAGED]
    shown, used = networks.shown(cluster), cluster.endpoints.users
    found = [
        NetworkShape(*_network(cluster, item, shown[item.id], used(item.id).total()))
        for item in networks.live(cluster)
    ]
    return fixed + sorted(found, key=lambda shape: shape.name)


def named_network(cluster: ClusterLike, name_or_id: str) -> NetworkDetail:
    """Show all of one network. Raises NotFound, Conflict."""
    if name_or_id in networks.UNMANAGED:
        return NetworkDetail(
            *_unmanaged(name_or_id), creator="", created=0.0, ip_range=[], exclude=[], options={}, labels={},
            blocks=[], host_access=False, broadcast=False,
        )  # fmt: skip
    return network(cluster, networks.resolve(cluster, name_or_id))


def network(cluster: ClusterLike, item: Item) -> NetworkDetail:
    """Show all of one network."""
    body = networks.facts(item)
    used = cluster.endpoints.users(item.id).total()
    blocks = [
        BlockShape(found.block, None if found.owner is None else cluster.host_name(found.owner), found.free)
        for found in networks.blocks(cluster, item)
    ]
    return NetworkDetail(
        *_network(cluster, item, networks.shown(cluster)[item.id], used),
        creator=cluster.host_name(body.creator),
        created=body.created_ms / 1000,
        ip_range=list(body.ip_range),
        exclude=list(body.exclude),
        options=dict(body.options),
        labels=dict(body.labels),
        blocks=blocks,
        host_access=body.host_access,
        broadcast=body.broadcast,
    )


NetworkFields = tuple[str, str, str, str, int, list[str], list[str], int, bool, int, str]


def _unmanaged(name: str) -> NetworkFields:
    """Give NetworkShape's fields for a network that is only a name."""
    return (name, "", name, "host", 0, [], [], 0, name == "none", 0, "up")


def _network(cluster: ClusterLike, item: Item, shown: str, endpoints: int) -> NetworkFields:
    """Give NetworkShape's fields, in its order."""
    body = networks.facts(item)
    return (
        shown,
        text_id(item.id),
        body.driver,
        "host" if networks.is_local(item) else "global",
        body.vni,
        [subnet.cidr for subnet in body.subnets],
        [subnet.gateway for subnet in body.subnets],
        mtu_of(cluster, item),
        body.internal,
        endpoints,
        "removing" if body.removing else "up",
    )


class EndpointView:
    """Shows endpoints; looks names and prefix lengths up once for many."""

    def __init__(self, cluster: ClusterLike) -> None:
        self._cluster = cluster
        self._shown = networks.shown(cluster)
        self._items = {item.id: item for item in networks.live(cluster)}
        self._layouts: dict[NetworkId, Layout] = {}  # of the networks that were asked for
        self._orphans = cluster.reconciler.orphans()
        self._failed = {found.id for found in cluster.members.values() if found.state == State.FAILED}

    def show(self, endpoint_id: EndpointId, endpoint: Endpoint) -> EndpointShape:
        """Show one endpoint."""
        return EndpointShape(*self._fields(endpoint_id, endpoint))

    def attached(self, found: Attached) -> AttachedShape:
        """Show an endpoint of this host with what the caller has to do."""
        return AttachedShape(*self._fields(found.id, found.endpoint), plumb=self._plumb(found))

    def _fields(
        self, endpoint_id: EndpointId, endpoint: Endpoint
    ) -> tuple[str, str, str, str, list[str], list[str], str, str, str, list[str], str, str, str, str, str]:
        """Give EndpointShape's fields, in its order."""
        why = self._orphans.get(endpoint_id, "its host is failed" if endpoint.host in self._failed else "")
        return (
            text_id(endpoint_id),
            self._shown.get(endpoint.network, text_id(endpoint.network)),
            self._cluster.host_name(endpoint.host),
            endpoint.name,
            list(endpoint.aliases),
            self._ips(endpoint),
            text_mac(endpoint.mac),
            endpoint.ifname,
            "stale" if why else "up",
            list(endpoint.published),
            text_id(endpoint.host),
            text_id(endpoint.network),
            why,
            *self._runtime(endpoint_id),
        )

    def _runtime(self, endpoint_id: EndpointId) -> tuple[str, str]:
        """Say which runtime asked for an endpoint of this host and by which id it knows it (Attachment.owner)."""
        attachment = self._cluster.attachments.get(endpoint_id)
        words = attachment.owner.split("/") if attachment is not None else []
        return (words[0], words[RUNTIME_ID_AT]) if len(words) > RUNTIME_ID_AT else ("", "")

    def _ips(self, endpoint: Endpoint) -> list[str]:
        """Give the addresses with the prefix length of their subnet; of a network not heard of yet, its own."""
        layout = self._layouts.get(endpoint.network)
        if layout is None:
            item = self._items.get(endpoint.network)
            if item is None:
                return [f"{text_ip(ip)}/{len(ip) * 8}" for ip in endpoint.ips]
            layout = self._layouts[endpoint.network] = Layout.of(item)
        return [f"{text_ip(ip)}/{layout.length_of(ip)}" for ip in endpoint.ips]

    def _plumb(self, found: Attached) -> PlumbShape:
        """Say what the caller has to do."""
        body = networks.facts(found.network)
        return PlumbShape(
            link=found.attachment.peer_if,
            ifname=found.attachment.ifname,
            mac=text_mac(found.endpoint.mac),
            mtu=mtu_of(self._cluster, found.network),
            addresses=self._ips(found.endpoint),
            routes=[*routes_inside(body, found.endpoint), *default_routes(body, found.endpoint)],
            ipv6=any(len(ip) > 4 for ip in found.endpoint.ips),
            existing=not found.created,
            warnings=list(found.warnings),
        )


RUNTIME_ID_AT = 2
"""Which word of Attachment.owner is the runtime's id: RUNTIME/NETWORK/ID, perhaps with more behind."""


def routes_inside(network: Network, endpoint: Endpoint) -> list[RouteShape]:
    """Give the routes to the network's other subnets of the endpoint's families: they are on the same wire."""
    of = [ip_network(subnet.cidr) for subnet in network.subnets]
    mine = [ip_address(ip) for ip in endpoint.ips]
    served = {ip.version for ip in mine}
    return [
        RouteShape(str(prefix), None)
        for prefix in of
        if prefix.version in served and not any(ip in prefix for ip in mine)
    ]


def default_routes(network: Network, endpoint: Endpoint) -> list[RouteShape]:
    """Give the way out, if a network is one: an internal network has none. Where there is no ARP, the device itself
    is the way."""
    if network.internal or network.options.get("default-route") == "no":
        return []
    if network.driver in LAN_DRIVERS and mode_of(network) in ROUTED_MODES:
        families = {":" in subnet.cidr for subnet in network.subnets}
        return [RouteShape("::/0" if v6 else "0.0.0.0/0", None) for v6 in sorted(families)]
    mine = [ip_address(ip) for ip in endpoint.ips]
    return [
        RouteShape("default", subnet.gateway)
        for subnet in network.subnets
        if any(ip in ip_network(subnet.cidr) for ip in mine)
    ]


class EndpointFilter:
    """Which endpoints a caller wants; None does not narrow. A namespace is one of this host's."""

    def __init__(
        self,
        *,
        network: bytes | None = None,
        hosts: Set[HostId] | None = None,
        netns_cookie: int | None = None,
        boot_id: str | None = None,
    ) -> None:
        self.network = network
        self.hosts = hosts
        self.netns_cookie = netns_cookie
        self.boot_id = boot_id

    def _boot(self, cluster: ClusterLike) -> str | None:
        """Return the boot that is asked for: a cookie counts within one, by default this one."""
        return cluster.boot_id if self.boot_id is None and self.netns_cookie is not None else self.boot_id

    def select(self, cluster: ClusterLike) -> Iterator[EndpointId]:
        """Yield the endpoints wanted, at the cost of those that the narrowest index leaves."""
        found: Iterable[EndpointId] = cluster.endpoints
        wanted_boot = self._boot(cluster)
        if self.netns_cookie is not None or self.boot_id is not None:
            found = (id_ for id_ in cluster.attachments if id_ in cluster.endpoints)
        elif self.network is not None:
            found = cluster.endpoints.on(self.network)
        for endpoint_id in found:
            endpoint, attachment = cluster.endpoints[endpoint_id], cluster.attachments.get(endpoint_id)
            cookie, boot = (attachment.netns_cookie, attachment.boot_id) if attachment else (None, None)
            if (
                self.network in (None, endpoint.network)
                and (self.hosts is None or endpoint.host in self.hosts)
                and self.netns_cookie in (None, cookie)
                and wanted_boot in (None, boot)
            ):
                yield endpoint_id


async def endpoints(cluster: ClusterLike, wanted: EndpointFilter) -> bytes:
    """Show the endpoints wanted as a JSON list, by network, name and id. There may be 100,000: the loop has its turn
    every LISTED_AT_ONCE of them, and one that goes meanwhile is not shown."""
    view = EndpointView(cluster)
    slices: list[list[EndpointShape]] = []
    for some in _slices([*wanted.select(cluster)]):
        slices.append([view.show(id_, cluster.endpoints[id_]) for id_ in some if id_ in cluster.endpoints])
        await trio.lowlevel.checkpoint()
    return await trio.to_thread.run_sync(_listed, slices)


def _slices(ids: list[EndpointId]) -> Iterator[list[EndpointId]]:
    return (ids[start : start + LISTED_AT_ONCE] for start in range(0, len(ids), LISTED_AT_ONCE))


def _listed(slices: list[list[EndpointShape]]) -> bytes:
    """Sort and encode, in steps that are short too: sorting and encoding all at once is one step for all threads."""
    for some in slices:
        some.sort(key=_order)
    ordered = heapq.merge(*slices, key=_order)
    return b"[" + b",".join(map(msgspec.json.encode, ordered)) + b"]"


def _order(shape: EndpointShape) -> tuple[str, str, str]:
    return shape.network, shape.name, shape.id


def bridge(cluster: ClusterLike, found: Found) -> BridgeShape:
    """Show a bridge that an operator made."""
    card = found.card
    return BridgeShape(
        name=found.bridge.name,
        id=text_id(found.id),
        state="missing" if card.missing else "up" if card.up else "down",
        mac=text_mac(card.mac or found.bridge.mac),
        mtu=card.mtu,
        ports=[
            BridgePortShape(port.name, *bridges.port_state(cluster, found, port))
            for port in found.bridge.ports
        ],
        others=list(found.others),
        created=found.bridge.created_ms / 1000,
    )


def port_added(cluster: ClusterLike, added: Added) -> BridgePortAdded:
    """Show a bridge with a new port."""
    shown = bridge(cluster, added.found)
    fields = {name: getattr(shown, name) for name in shown.__struct_fields__}
    return BridgePortAdded(**fields, warnings=list(added.warnings))


def diff(findings: dict[str, list[Finding]]) -> DiffShape:
    """Show what desired and actual kernel state differ in."""
    missing, stale, foreign = (
        [FindingShape(found.object, found.what, found.why) for found in findings[key]]
        for key in ("missing", "stale", "foreign")
    )
    return DiffShape(not missing and not stale, missing, stale, foreign)


def token(cluster: ClusterLike) -> TokenShape:
    """Show what a new host joins with: a secret."""
    seeds = [str(address) for address in cluster.seeds()]
    return TokenShape(seeds, cluster.primary_key()[1], list(cluster.settings.pools.v6))
