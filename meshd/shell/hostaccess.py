"""The host as an endpoint of a network that was made with --host-access: an address and a MAC of its own, from the
same deeds as everybody's, on a device of its own (plan/desired.py). On an overlay that is a veth pair, on a macvlan
network a macvlan beside its endpoints', since the kernel lets the parent itself not reach them.

Decides when there is one: as long as this host has another endpoint on the network. That is level-triggered, like
the kernel: whoever attached or detached asks for it, and the daemon's housekeeping in case one of them was cut short.
"""

import re

import msgspec

from meshd.model import HOST_NETNS, Attachment, Endpoint, EndpointId, Item, Kind, Version
from meshd.plan import names
from meshd.shell import lan, networks, space
from meshd.shell.detach import item_of, release
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS
from meshd.state.layout import Layout

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")


async def keep(cluster: ClusterLike, network: Item) -> None:
    """Make or release this host's own endpoint on ``network``, whichever is due; usually neither.

    Raises Unavailable: no address, or no disk.
    """
    if not networks.facts(network).host_access:
        return
    async with cluster.desk.hosting(network.id):
        mine, others = _here(cluster, network.id)
        if others and mine is None and not cluster.allocation_stopped:
            await _make(cluster, network)
        elif mine is not None and not others:
            await release(cluster, [mine])
            if networks.facts(network).driver in LAN_DRIVERS:
                await cluster.reconciler.settled()
                await lan.sweep(cluster)
        elif mine is not None and cluster.endpoints[mine].ifname != _device(network):
            await _call_anew(cluster, network, mine)


async def keep_all(cluster: ClusterLike) -> None:
    """Do it for every network. Raises Unavailable."""
    for network in networks.live(cluster):
        await keep(cluster, network)


async def _call_anew(cluster: ClusterLike, network: Item, id_: EndpointId) -> None:
    """Write down the name that its device has now; an earlier version of this program called it otherwise. The
    reconciler renames the device, with all that is on it."""
    name = _device(network)
    told, plugged = item_of(cluster, id_), cluster.store.get(Kind.ATTACHMENT, id_)
    if told is None or plugged is None:
        return
    next_ = msgspec.structs.replace
    endpoint = next_(cluster.endpoints[id_], ifname=name)
    attachment = next_(cluster.attachments[id_], ifname=name, peer_if=name)
    version, at = (
        item.version._replace(counter=item.version.counter + 1, writer=cluster.me) for item in (told, plugged)
    )
    await cluster.commit(
        [
            Item(Kind.ENDPOINT, id_, version, endpoint, origin=cluster.me, seq=cluster.next_seq()),
            Item(Kind.ATTACHMENT, id_, at, attachment),
        ]
    )


def _here(cluster: ClusterLike, network_id: bytes) -> tuple[EndpointId | None, bool]:
    """Return this host's own endpoint on a network, and whether another is here or just coming."""
    mine, others = None, cluster.desk.is_attaching(network_id)
    for id_ in cluster.endpoints.at(network_id, cluster.me):
        attachment = cluster.attachments.get(id_)
        if attachment is not None and attachment.netns_cookie == HOST_NETNS:
            mine = id_
        elif attachment is not None:
            others = True
    return mine, others


def _device(network: Item) -> str:
    """Name the host's device on a network."""
    on_the_lan = networks.facts(network).driver in LAN_DRIVERS
    return names.shim(network.id) if on_the_lan else names.host(network.id)


async def _make(cluster: ClusterLike, network: Item) -> None:
    """Give this host an address and write it down; the reconciler makes the device."""
    id_ = networks.fresh_endpoint_id(cluster)
    if networks.facts(network).driver not in LAN_DRIVERS:
        index = await space.reserve(cluster, network, Layout.of(network), id_, None)
        await _write(cluster, network, id_, index, names.veth(id_))
        return
    async with lan.place(cluster, network, None) as where:
        index = await lan.claim(cluster, network, Layout.of(network), id_, None, where.parent)
        await _write(cluster, network, id_, index, names.shim(network.id), where.parent.name)


async def _write(
    cluster: ClusterLike, network: Item, id_: EndpointId, index: int, host_if: str, parent: str = ""
) -> None:
    layout, name = Layout.of(network), _device(network)
    now = cluster.wall_ms()
    endpoint = Endpoint(
        network=network.id,
        host=cluster.me,
        name=_UNFIT.sub("-", cluster.host_name(cluster.me)),
        index=index,
        ips=layout.ips(index),
        mac=names.endpoint_mac(id_),
        ifname=name,
        created_ms=now,
    )
    attachment = Attachment(
        boot_id=cluster.boot_id,
        netns_cookie=HOST_NETNS,
        netns_path="",
        ifname=name,
        host_if=host_if,
        peer_if=name,
        parent=parent,
    )
    version = Version(now, 0, cluster.me)
    told = Item(Kind.ENDPOINT, id_, version, endpoint, origin=cluster.me, seq=cluster.next_seq())
    try:
        await cluster.commit([told, Item(Kind.ATTACHMENT, id_, version, attachment)])
    except BaseException:
        if id_ not in cluster.endpoints:
            cluster.usage.unreserve(id_)
        raise
