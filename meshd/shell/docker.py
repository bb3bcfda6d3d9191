"""Which network a Docker network is. Docker says so once, when the network is created, and never again: so it is on
this host's disk, and survives both daemons and the machine.

Decides whether what Docker asks for fits a network that exists, and when one is made for it: with ``-o network=NAME``
it is that one; else the one that has the same subnets, on whichever host it was made, and a new one where there is
none. Two hosts that make one at the same moment then have two: each uses the one with the lower id as soon as it
knows both. Must not know JSON, nor call Docker: its daemon waits for us.
"""

from collections.abc import Sequence

import msgspec
import trio

from meshd.errors import BadRequest, MeshdError, NotFound
from meshd.model import DockerNetwork, EndpointId, Item, Key, Kind, Subnet, Version
from meshd.shell import held, networks
from meshd.shell.detach import detach
from meshd.shell.usecase import ClusterLike
from meshd.state.docker import LABEL, SHORT_ID, Wanted, check_fit, check_kind, filed_under, read
from meshd.state.layout import Layout
from meshd.state.networks import NetworkRequest

OWNER = "docker"


def owner(docker_network: str, docker_endpoint: str = "") -> str:
    """Say what Docker calls an endpoint (Attachment.owner), or how that begins for all of one network."""
    return f"{OWNER}/{docker_network}/{docker_endpoint}"


def endpoint_of(cluster: ClusterLike, docker_network: str, docker_endpoint: str) -> EndpointId | None:
    """Find an endpoint by Docker's ids."""
    mine = owner(docker_network, docker_endpoint)
    return next((id_ for id_, attachment in cluster.attachments.items() if attachment.owner == mine), None)


def _key(docker_id: str) -> Key:
    return Key(Kind.DOCKER_NETWORK, filed_under(docker_id))


def bound(cluster: ClusterLike, docker_id: str) -> DockerNetwork | None:
    """Return what is known of a Docker network; None: it was never created here, or was removed."""
    item = cluster.store.get(*_key(docker_id))
    return item.body if item is not None and isinstance(item.body, DockerNetwork) else None


def network_of(cluster: ClusterLike, docker_id: str) -> Item | None:
    """Return the network that a Docker network is; None where it has to be made anew. Raises NotFound where it is not
    known here, or was removed under Docker's hands."""
    binding = bound(cluster, docker_id)
    if binding is None:
        raise NotFound(
            f"meshd knows no Docker network {docker_id[:SHORT_ID]}: its state on this host is younger than that network",
            f"docker network rm {docker_id[:SHORT_ID]}, then create it anew",
        )
    if binding.request:
        return with_subnets(cluster, [subnet.cidr for subnet in binding.subnets])
    for item in networks.live(cluster):
        if item.id == binding.network:
            return item
    for item in networks.live(cluster):
        if networks.facts(item).name == binding.name and _fits(item, binding.subnets):
            return item
    raise NotFound(
        f"network {binding.name}, which this Docker network is, was removed",
        f"docker network rm {docker_id[:SHORT_ID]}; meshctl network create and meshctl docker create make one anew",
    )


def _fits(item: Item, subnets: Sequence[Subnet]) -> bool:
    """Tell whether a network has these subnets and, where Docker has one, these gateways."""
    there = {subnet.cidr: subnet.gateway for subnet in networks.facts(item).subnets}
    return all(subnet.cidr in there and subnet.gateway in ("", there[subnet.cidr]) for subnet in subnets)


async def ensure(cluster: ClusterLike, docker_id: str) -> Item:
    """Return the network that a Docker network is, made anew if it was made for Docker and has gone. Raises as
    ``network_of`` and networks.create_network do."""
    item = network_of(cluster, docker_id)
    if item is not None:
        return item
    async with cluster.desk.docker:
        item, binding = network_of(cluster, docker_id), bound(cluster, docker_id)
        if item is None and binding is not None:
            item = await networks.create_network(
                cluster, msgspec.json.decode(binding.request, type=NetworkRequest)
            )
    if item is None:
        raise NotFound(f"Docker network {docker_id[:SHORT_ID]} was removed meanwhile")
    return item


async def ensure_subnet(cluster: ClusterLike, cidr: str) -> Item | None:
    """Return the network that has a subnet, made anew if it was made for Docker and has gone; None where there is none.
    Raises as ``ensure`` does."""
    item = with_subnets(cluster, [cidr])
    if item is not None:
        return item
    for kept in cluster.store.live(Kind.DOCKER_NETWORK):
        body = kept.body
        if isinstance(body, DockerNetwork) and body.request and cidr in [s.cidr for s in body.subnets]:
            return await ensure(cluster, body.docker_id)
    return None


def with_subnets(cluster: ClusterLike, cidrs: Sequence[str]) -> Item | None:
    """Find the network that has these subnets and perhaps one of the other family. Of several, two partitions' say, the
    one that has endpoints here, then the one with the lowest id."""
    found = [
        item
        for item in networks.live(cluster)
        if cidrs and {*cidrs} <= {subnet.cidr for subnet in networks.facts(item).subnets}
    ]
    return min(
        found, key=lambda item: (not cluster.endpoints.users(item.id)[cluster.me], item.id), default=None
    )


async def bind(cluster: ClusterLike, wanted: Wanted) -> Item:
    """Decide which network a new Docker network is, and keep that; the same again is no error.

    Raises BadRequest, NotFound, Conflict or Unavailable, with nothing changed.
    """
    async with cluster.desk.docker:
        item = _already(cluster, wanted.docker_id)
        if item is not None:
            return item
        name = wanted.options.get("network")
        if name is not None:
            others = sorted(wanted.options.keys() - {"network"})
            if others:
                raise BadRequest(
                    f"option {others[0][:80]} says nothing of network {name[:80]}, which exists already",
                    "leave it out; -o network= is the only one needed",
                )
            item = networks.resolve(cluster, name)
            check_fit(networks.facts(item), wanted)
            await _keep(cluster, wanted, item, "")
            return item
        asked = read(wanted)
        item = with_subnets(cluster, asked.subnets)
        if item is not None:
            check_fit(networks.facts(item), wanted)
            check_kind(networks.facts(item), asked)
            await _keep(cluster, wanted, item, msgspec.json.encode(asked).decode())
            return item
        item = await networks.create_network(cluster, asked)
        try:
            await _keep(cluster, wanted, item, msgspec.json.encode(asked).decode())
        except BaseException:
            with trio.CancelScope(shield=True):
                await networks.remove_network(cluster, item.id.hex())
            raise
        return item


def _already(cluster: ClusterLike, docker_id: str) -> Item | None:
    if bound(cluster, docker_id) is None:
        return None
    try:
        return network_of(cluster, docker_id)
    except NotFound:
        return None


async def _keep(cluster: ClusterLike, wanted: Wanted, item: Item, request: str) -> None:
    facts, layout = networks.facts(item), Layout.of(item)
    aux = tuple(sorted({layout.index_of(ip) for ip in wanted.aux if not _left_out(layout, ip)}))
    for index in aux:
        if (item.id, index) not in cluster.desk.held:
            await held.hold(cluster, item, layout.subnets[0].prefix, index)
    subnets = wanted.subnets or facts.subnets
    network = b"" if request else item.id
    binding = DockerNetwork(wanted.docker_id, network, facts.name, subnets, request, aux, wanted.ours)
    key = _key(wanted.docker_id)
    before = cluster.store.get(*key)
    counter = before.version.counter + 1 if before is not None else 0
    await cluster.commit([Item(*key, Version(0, counter, cluster.me), binding)])
    for index in aux:
        held.drop(cluster, item.id, index)
    keep_aux(cluster, binding)


def _left_out(layout: Layout, ip: str) -> bool:
    """Tell whether the network itself never gives an address out."""
    index = layout.index_of(ip)
    space = layout.space_at(index)
    return space is not None and space.why_reserved(index) is not None


def keep_aux(cluster: ClusterLike, binding: DockerNetwork) -> None:
    """Have nobody given what Docker keeps for something that is no container."""
    item = _already(cluster, binding.docker_id)
    if item is None:
        return
    for index in binding.aux:
        if not cluster.usage.of(item.id).holders.get(index):
            cluster.usage.reserve(item.id, index, _aux_id(binding.docker_id, index))


def keep_all_aux(cluster: ClusterLike) -> None:
    """Do it for every Docker network; call once, at start."""
    for item in cluster.store.live(Kind.DOCKER_NETWORK):
        if isinstance(item.body, DockerNetwork):
            keep_aux(cluster, item.body)


def _aux_id(docker_id: str, index: int) -> bytes:
    return filed_under(f"aux {docker_id} {index}")


async def unbind(cluster: ClusterLike, docker_id: str) -> bool:
    """Forget a Docker network; False where it was not known. Endpoints that Docker has left on it go; a network that
    was made for Docker goes too, unless it still has endpoints elsewhere. Raises Unavailable (disk)."""
    async with cluster.desk.docker:
        binding = bound(cluster, docker_id)
        if binding is None:
            return False
        mine = owner(docker_id)
        for id_ in [e for e, attachment in cluster.attachments.items() if attachment.owner.startswith(mine)]:
            await detach(cluster, id_, force=True)
        for index in binding.aux:
            cluster.usage.unreserve(_aux_id(docker_id, index))
        await cluster.commit([], [_key(docker_id)])
        if binding.request:
            await _remove(cluster, binding)
        return True


def _is_used(cluster: ClusterLike, item: Item) -> bool:
    """Tell whether a Docker network of this host is this one."""
    return any(
        isinstance(each.body, DockerNetwork) and _already(cluster, each.body.docker_id) == item
        for each in cluster.store.live(Kind.DOCKER_NETWORK)
    )


async def _remove(cluster: ClusterLike, binding: DockerNetwork) -> None:
    """Remove the network that was made for Docker: this engine's, or another's that has no endpoint on it. One that
    engine makes anew with its next container."""
    item = with_subnets(cluster, [subnet.cidr for subnet in binding.subnets])
    if item is None or LABEL not in networks.facts(item).labels or _is_used(cluster, item):
        return
    try:
        await networks.remove_network(cluster, item.id.hex())
    except MeshdError:
        return  # it has endpoints on other hosts: whose engine removes its own last removes it
