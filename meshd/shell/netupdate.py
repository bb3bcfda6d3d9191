"""Changes a network that is there: labels, which any host writes (the last writer wins), and subnets, which only its
creator adds (state/opened.py says why), itself or asked by another host. What is given together is done or refused
together, except that labels may fail after the subnets (no disk).
"""

import msgspec

from meshd.errors import BadRequest, Conflict, MeshdError, NotFound, Unavailable
from meshd.messages import BlockAnswer, SubnetAsk
from meshd.model import Deed, HostId, Item, Kind, Network, Subnet, Version
from meshd.shell import networks
from meshd.shell.usecase import ClusterLike
from meshd.state.blocks import deal
from meshd.state.deeds import deed_item
from meshd.state.layout import Layout, Prefix
from meshd.state.networks import check_addable, check_labels
from meshd.state.opened import plan_opening, space_size, with_opened
from meshd.state.subnets import parse_subnets

REFUSAL_MAX_CHARS = 200
"""As long as messages.BlockAnswer allows."""


class NetworkUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PATCH /v1/networks/NAME. ``labels`` are added to those there are, or replace them one by one."""

    add_subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    remove_labels: tuple[str, ...] = ()


async def update_network(cluster: ClusterLike, name_or_id: str, wanted: NetworkUpdate) -> Item:
    """Change a network as asked and return it as it is then.

    Raises BadRequest, NotFound, Conflict (overlap, being removed) or Unavailable (creator not reached, disk).
    """
    if wanted == NetworkUpdate():
        raise BadRequest("nothing to change", "name a subnet to add, or labels to set or remove")
    if wanted.gateways and not wanted.add_subnets:
        raise BadRequest(
            "a gateway without a subnet", "a subnet's gateway is chosen when the subnet is added"
        )
    if name_or_id in networks.UNMANAGED:
        raise BadRequest(f"network {name_or_id} cannot be changed: it has neither addresses nor labels")
    item = networks.resolve(cluster, name_or_id)
    network = networks.facts(item)
    if network.removing:
        raise Conflict(f"network {network.name} is being removed", "choose another network")
    labels = _labels(network, wanted)
    prefixes = parse_subnets(wanted.add_subnets, "add-subnet")
    if prefixes:
        await _add(cluster, item, prefixes, wanted.gateways)
    if labels != network.labels:
        async with cluster.desk.planning:
            await cluster.commit([_relabelled(cluster, item, labels)])
    if prefixes and networks.is_local(item):
        await cluster.reconciler.settled()
    return networks.by_id(cluster, item.id)


def _labels(network: Network, wanted: NetworkUpdate) -> dict[str, str]:
    """Return the labels after the change. Raises BadRequest, NotFound for one that is to go and is not there."""
    for key in wanted.remove_labels:
        if key not in network.labels:
            raise NotFound(
                f"network {network.name} has no label {key[:80]!r}", "meshctl network inspect shows them"
            )
    gone = {*wanted.remove_labels}
    labels = {key: value for key, value in network.labels.items() if key not in gone} | wanted.labels
    check_labels(labels)
    return labels


def _relabelled(cluster: ClusterLike, item: Item, labels: dict[str, str]) -> Item:
    """Make the record that follows from what the store has now."""
    now = _stored(cluster, item)
    version = Version(now.version.incarnation, now.version.counter + 1, cluster.me)
    return Item(now.kind, now.id, version, msgspec.structs.replace(networks.facts(now), labels=labels))


def _stored(cluster: ClusterLike, item: Item) -> Item:
    now = cluster.store.get(item.kind, item.id)
    if now is None or now.dead or networks.facts(now).removing:
        raise Conflict(f"network {networks.facts(item).name} was removed meanwhile; nothing was changed")
    return now


async def _add(cluster: ClusterLike, item: Item, prefixes: list[Prefix], gateways: tuple[str, ...]) -> None:
    """Add subnets, or have the network's creator do so. What this host can tell is refused here, in full words."""
    if networks.is_local(item):
        async with cluster.desk.planning:
            opens = _planned(cluster, item, prefixes, gateways)
            now = _stored(cluster, item)
            body = networks.facts(now)
            version = now.version._replace(counter=now.version.counter + 1)
            wider = msgspec.structs.replace(body, subnets=body.subnets + opens)
            await cluster.commit([Item(now.kind, now.id, version, wider)])
        return
    last = cluster.deeds.last_root(item.id)
    if last is None:
        raise Unavailable(
            f"who made network {networks.facts(item).name} is not known here yet",
            "retry once this host has heard from the others",
        )
    creator = last[1].owner
    if creator == cluster.me:
        await _open(cluster, item, prefixes, gateways)
        return
    _planned(cluster, item, prefixes, gateways)
    name = cluster.host_name(creator)
    if creator not in cluster.alive():
        raise Unavailable(
            f"host {name}, which made network {networks.facts(item).name}, is not alive; nothing was changed",
            f"bring {name} back: only it adds subnets, so that no address is ever given twice",
        )
    await cluster.ask_subnet(creator, item.id, [str(prefix) for prefix in prefixes], gateways)


def _planned(
    cluster: ClusterLike, item: Item, prefixes: list[Prefix], gateways: tuple[str, ...]
) -> tuple[Subnet, ...]:
    network = networks.facts(item)
    check_addable(network, prefixes, networks.live(cluster), cluster.hosts, cluster.me)
    return plan_opening(item.id, network, prefixes, gateways)


async def _open(cluster: ClusterLike, item: Item, prefixes: list[Prefix], gateways: tuple[str, ...]) -> Item:
    """Add subnets to a network that this host made: their root deed, and shares of their space for the live hosts, in
    one commit. Returns the root deed."""
    async with cluster.desk.planning:
        if cluster.allocation_stopped:
            raise Unavailable(
                f"no subnet can be added: {cluster.allocation_stopped}", "meshctl status says more"
            )
        item = networks.known(cluster, _stored(cluster, item))
        opens = _planned(cluster, item, prefixes, gateways)
        last = cluster.deeds.last_root(item.id)
        if last is None or last[1].owner != cluster.me:
            raise Conflict("only the host that made a network adds subnets to it")
        size, start = space_size(opens), opens[0].start
        root = Deed(item.id, start, size, cluster.me, cluster.me, last[0], opens=opens)
        wider = Layout.build(item.id, with_opened(networks.facts(item), [root]))
        space = wider.space_at(start)
        if space is None:
            raise ValueError("a subnet without its space")
        made = deed_item(root)
        await cluster.commit([made, *deal(made, space, cluster.alive())])
    return made


async def answer_subnet_ask(cluster: ClusterLike, asker: HostId, ask: SubnetAsk) -> BlockAnswer:
    """Add what another host asks for, or say why not. Asked again for what is there already, answer with its deed: the
    first answer was lost."""
    try:
        return BlockAnswer(ask.request, (await _asked(cluster, asker, ask),))
    except MeshdError as error:
        return BlockAnswer(ask.request, (), error.what[:REFUSAL_MAX_CHARS])


async def _asked(cluster: ClusterLike, asker: HostId, ask: SubnetAsk) -> Item:
    if asker == cluster.me or asker not in cluster.members:
        raise Unavailable("only another member can ask for a subnet")
    item = cluster.store.get(Kind.NETWORK, ask.network)
    if item is None or item.dead:
        raise Unavailable("the network is not known here, or was removed")
    prefixes = parse_subnets(ask.subnets, "add-subnet")
    for deed in cluster.deeds.opened(ask.network):
        if _is(deed, prefixes, ask):
            return deed_item(deed)
    return await _open(cluster, item, prefixes, ask.gateways)


def _is(deed: Deed, prefixes: list[Prefix], ask: SubnetAsk) -> bool:
    same = [subnet.cidr for subnet in deed.opens] == [str(prefix) for prefix in prefixes]
    return same and {*ask.gateways} <= {subnet.gateway for subnet in deed.opens}
