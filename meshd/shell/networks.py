"""Makes, finds and removes networks. Decides when a network may go and what happens when an endpoint was attached
elsewhere at that moment; what a network looks like is state/networks.py's business.

Removal without a coordinator: whoever removes a network writes its tombstone. A host that has a live endpoint on
it at that moment writes the network anew above the tombstone, marked ``removing``: it takes no new endpoints,
and when its last one is gone every host that sees this writes the same tombstone. Both records follow from what
they replace, so that hosts which act at once write one record and not many.
"""

from collections import Counter

import msgspec

from meshd.errors import BadRequest, Conflict, NotFound, Unavailable
from meshd.model import (
    ID_BYTES,
    EndpointId,
    HostId,
    Item,
    Kind,
    Network,
    NetworkId,
    Removed,
    Version,
)
from meshd.plan.names import NAME_HEX, guest, veth
from meshd.plan.parents import missing_feature
from meshd.shell import vxlans
from meshd.shell.usecase import ClusterLike
from meshd.state import lookup
from meshd.state.addresses import BlockView, blocks_view
from meshd.state.blocks import deal, genesis
from meshd.state.deeds import DeedBook
from meshd.state.lan import LAN_DRIVERS
from meshd.state.layout import Layout
from meshd.state.networks import BUILTIN_NAMES, KIND_OF_DRIVER, NetworkRequest, plan_network

KINDS = (Kind.NETWORK, Kind.LOCAL_NETWORK)
ROUND = 1 << 32
"""A network's ``Version.counter``: below this is counted how often it was updated, above it how often it was removed or
kept. So a removal wins over every update, whoever made it and whether the remover knew of it or not."""

DEFAULT_BRIDGE = "bridge"
UNMANAGED = {
    "none": (
        "network none is a namespace without any network: there is nothing to attach to",
        "meshctl run none -- COMMAND starts a process so; attach its namespace to another network at any time",
    ),
    "host": (
        "network host is this host's own namespace: a process is in it from its start or not at all",
        "meshctl run host -- COMMAND starts a process in it; to attach a namespace, name another network",
    ),
}
"""Networks that are only names, and why nothing is attached to them: nothing programmed."""


def live(cluster: ClusterLike) -> list[Item]:
    """Return all live networks, the cluster's and this host's own, each with the subnets that were added to it."""
    return [known(cluster, item) for kind in KINDS for item in cluster.store.live(kind)]


def known(cluster: ClusterLike, item: Item) -> Item:
    """Return a live network item with the subnets that were added to it: for looking, not to be committed."""
    body = cluster.networks.get(item.id)
    return item if body is None or body == item.body else msgspec.structs.replace(item, body=body)


def resolve(cluster: ClusterLike, name_or_id: str) -> Item:
    """Find a network by shown name or id. Raises NotFound, Conflict, or BadRequest for ``none`` and ``host``."""
    if name_or_id in UNMANAGED:
        raise BadRequest(*UNMANAGED[name_or_id])
    return lookup.resolve(name_or_id, live(cluster))


def by_id(cluster: ClusterLike, network_id: NetworkId) -> Item:
    """Return a live network. Raises NotFound."""
    for kind in KINDS:
        item = cluster.store.get(kind, network_id)
        if item is not None and not item.dead:
            return known(cluster, item)
    raise NotFound("the network has been removed", "meshctl network ls lists those there are")


def shown(cluster: ClusterLike) -> dict[NetworkId, str]:
    """Give every live network the name it is shown by."""
    return lookup.display_names(live(cluster))


def facts(item: Item) -> Network:
    """Return a live network item's body."""
    if not isinstance(item.body, Network):
        raise TypeError("not a live network item")
    return item.body


def check_takes_endpoints(cluster: ClusterLike, facts: Network) -> None:
    """Refuse a new endpoint where the network is going, where this host may give no address, or is draining. Raises
    Conflict, Unavailable."""
    if facts.removing:
        raise Conflict(f"network {facts.name} is being removed", "choose another network")
    if cluster.allocation_stopped:
        raise Unavailable(
            f"no address can be given: {cluster.allocation_stopped}", "meshctl status says more"
        )
    if cluster.draining:
        raise Unavailable("this host is draining and takes no new endpoints", "meshctl undrain")


def is_local(item: Item) -> bool:
    """Whether the network exists on this host only."""
    return item.kind == Kind.LOCAL_NETWORK


def book_for(cluster: ClusterLike, item: Item, layout: Layout) -> DeedBook:
    """Return who owns a network's space. A network of this host alone needs no deeds: all of it is this host's."""
    if not is_local(item):
        return cluster.deeds
    book = DeedBook()
    book.add(genesis(item.id, layout.end, cluster.me, ()))
    return book


def blocks(cluster: ClusterLike, item: Item) -> list[BlockView]:
    """List a network's space with owners and free addresses."""
    layout = Layout.of(item)
    book = book_for(cluster, item, layout)
    return [view for space in layout.spaces for view in blocks_view(space, book, cluster.usage)]


async def create_network(cluster: ClusterLike, request: NetworkRequest, *, builtin: bool = False) -> Item:
    """Make a network; for an overlay the deeds of its space go with it in one commit.

    Raises BadRequest, Conflict or Unavailable, with nothing changed.
    """
    async with cluster.desk.planning:
        if cluster.allocation_stopped and not builtin:
            raise Unavailable(
                f"no network can be made: {cluster.allocation_stopped}", "meshctl status says more"
            )
        network_id = _fresh_id(cluster)
        vnis = await vxlans.taken(cluster) if request.driver == "overlay" else {}
        if request.driver in LAN_DRIVERS:
            kernel = cluster.reconciler.in_kernel_thread
            if not await kernel(cluster.kernel.lan.supports, request.driver):
                raise missing_feature(request.driver)
        network = plan_network(
            request,
            network_id,
            creator=cluster.me,
            created_ms=cluster.wall_ms(),
            networks=live(cluster),
            hosts=cluster.hosts,
            pools=cluster.settings.pools,
            secret=cluster.secret,
            builtin=builtin,
            vnis=vnis,
        )
        item = Item(KIND_OF_DRIVER[network.driver], network_id, Version(0, 0, cluster.me), network)
        items = [item]
        if not is_local(item):
            layout, alive = Layout.of(item), cluster.alive()
            root = genesis(network_id, layout.end, cluster.me, alive)
            items += [root, *(deed for space in layout.spaces for deed in deal(root, space, alive))]
        await cluster.commit(items)
    if is_local(item) and not builtin:  # the daemon makes its own before the reconciler runs
        await cluster.reconciler.settled()
    return item


def _fresh_id(cluster: ClusterLike) -> NetworkId:
    """Draw an id whose beginning, which device names carry, no network here has had."""
    taken = {item.id.hex()[:NAME_HEX] for kind in KINDS for item in cluster.store.all(kind)}
    while True:
        network_id = cluster.entropy(ID_BYTES)
        if network_id.hex()[:NAME_HEX] not in taken:
            return network_id


def fresh_endpoint_id(cluster: ClusterLike) -> EndpointId:
    """Draw an id whose beginning, which device names carry, no endpoint of this host has."""
    while True:
        endpoint_id = cluster.entropy(ID_BYTES)
        if not has_device(cluster, endpoint_id):
            return endpoint_id


def has_device(cluster: ClusterLike, endpoint_id: EndpointId) -> bool:
    """Tell whether an endpoint of this host has a device with the name that this id gives."""
    mine = (veth(endpoint_id), guest(endpoint_id))
    return any(attachment.host_if in mine for attachment in cluster.attachments.values())


async def ensure_default_bridge(cluster: ClusterLike) -> Item:
    """Return this host's ``bridge`` network, made at its first start. Raises Unavailable: no prefix is free."""
    for item in cluster.store.live(Kind.LOCAL_NETWORK):
        if facts(item).name == DEFAULT_BRIDGE:
            return item
    return await create_network(cluster, NetworkRequest(DEFAULT_BRIDGE, "bridge"), builtin=True)


async def remove_network(cluster: ClusterLike, name_or_id: str) -> Item:
    """Remove a network without endpoints. Raises Conflict naming who still uses it, NotFound, BadRequest."""
    if name_or_id in BUILTIN_NAMES:
        raise BadRequest(f"network {name_or_id} cannot be removed: it always exists")
    async with cluster.desk.planning:
        item = resolve(cluster, name_or_id)
        name = facts(item).name
        if is_local(item) and name in BUILTIN_NAMES:
            raise BadRequest(f"network {name} cannot be removed: it always exists")
        with cluster.desk.closing(item.id, name):
            using = cluster.endpoints.users(item.id)
            if using:
                total, told = sum(using.values()), ", ".join(_told(cluster, using))
                raise Conflict(
                    f"network {name} has {total} endpoint{'s' if total > 1 else ''}, on {told}",
                    f"detach them first; meshctl endpoint ls --network {name} lists them",
                )
            await cluster.commit([_tombstone(item)])
    return item


def _told(cluster: ClusterLike, using: Counter[HostId]) -> list[str]:
    """Say which hosts use a network, most endpoints first."""
    most = sorted(
        ((count, cluster.host_name(host)) for host, count in using.items()), key=lambda u: (-u[0], u[1])
    )
    told = [f"{name} ({count})" for count, name in most[:HOSTS_NAMED]]
    return told + ([f"{len(most) - HOSTS_NAMED} more hosts"] if len(most) > HOSTS_NAMED else [])


HOSTS_NAMED = 5  # in one line of an error


def _tombstone(item: Item) -> Item:
    """Make the tombstone that follows from a live network item: the same whoever makes it, and above all updates
    that may have been made of that item meanwhile."""
    version = Version(0, (item.version.counter // ROUND + 1) * ROUND, item.version.writer)
    return Item(item.kind, item.id, version, Removed(facts(item).name), dead=True)


async def keep_if_in_use(cluster: ClusterLike, before: Item) -> bool:
    """Call when the live item ``before`` was replaced by a tombstone: where this host has a live endpoint on the
    network, the endpoint wins and the network is kept, ``removing``. Tells whether that was so.
    """
    now = cluster.store.get(before.kind, before.id)
    if now is None or not now.dead or not isinstance(before.body, Network):
        return False
    if not cluster.endpoints.at(before.id, cluster.me):
        return False
    updates = (
        before.version.counter % ROUND
    )  # hosts that knew different ones keep different records: the newest stands
    version = Version(0, now.version.counter // ROUND * ROUND + ROUND + updates, before.version.writer)
    kept = msgspec.structs.replace(before.body, removing=True)
    await cluster.commit([msgspec.structs.replace(before, version=version, body=kept)])
    return True


async def on_endpoint_gone(cluster: ClusterLike, network: NetworkId) -> None:
    """Call when an endpoint of a network is gone: a network that is being removed goes with its last."""
    for kind in KINDS:
        item = cluster.store.get(kind, network)
        if (
            item is not None
            and isinstance(item.body, Network)
            and item.body.removing
            and not cluster.endpoints.users(network)
        ):
            await cluster.commit([_tombstone(item)])


async def finish_removals(cluster: ClusterLike) -> None:
    """Remove what was being removed when the daemon stopped; call once, at start."""
    for item in live(cluster):
        await on_endpoint_gone(cluster, item.id)
