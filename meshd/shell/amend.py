"""Changes what may change of an endpoint while it lives: its name, its aliases, the ports that it publishes. All else
would make it another one.
"""

import msgspec
import trio

from meshd.errors import NotFound
from meshd.model import Endpoint, EndpointId, Item, Kind, text_id
from meshd.plan import elements, ops
from meshd.plan.publish import Publication
from meshd.shell import networks, publish
from meshd.shell.detach import item_of
from meshd.shell.usecase import ClusterLike


async def rename(cluster: ClusterLike, endpoint_id: EndpointId, name: str, aliases: tuple[str, ...]) -> bool:
    """Give an endpoint of this host another name and other aliases; False where it has them. Raises NotFound,
    Unavailable (disk)."""
    return await _amend(cluster, endpoint_id, name=name, aliases=aliases)


async def publish_ports(
    cluster: ClusterLike, endpoint_id: EndpointId, published: tuple[Publication, ...]
) -> None:
    """Publish these ports of an endpoint of this host, and no others; done once the firewall has them.

    Raises NotFound, BadRequest, Conflict naming who has a port, Unavailable (disk) or KernelError, with none
    published then, and those it had before gone.
    """
    endpoint, _ = _mine(cluster, endpoint_id)
    if endpoint.published == tuple(map(str, published)):
        return
    if endpoint.published:
        await _amend(cluster, endpoint_id, published=())
    if published:
        network = networks.by_id(cluster, endpoint.network)
        with publish.reserved(cluster, published):
            await publish.check(cluster, network, published)
            await _amend(cluster, endpoint_id, published=tuple(map(str, published)))
    await cluster.reconciler.settled()
    for op, error in cluster.reconciler.failures().items():
        if published and (
            isinstance(op, ops.SetFirewall)
            or (isinstance(op, ops.PutElement) and not elements.device(op.element))
        ):
            with trio.CancelScope(shield=True):
                await _amend(cluster, endpoint_id, published=())
            raise error


async def _amend(cluster: ClusterLike, endpoint_id: EndpointId, **fields: object) -> bool:
    async with cluster.desk.plugging(endpoint_id):
        endpoint, item = _mine(cluster, endpoint_id)
        changed = msgspec.structs.replace(endpoint, **fields)
        if changed == endpoint:
            return False
        version = item.version._replace(counter=item.version.counter + 1, writer=cluster.me)
        told = msgspec.structs.replace(item, version=version, body=changed)
        if item.kind == Kind.ENDPOINT:
            told = msgspec.structs.replace(told, origin=cluster.me, seq=cluster.next_seq())
        await cluster.commit([told])
        return True


def _mine(cluster: ClusterLike, endpoint_id: EndpointId) -> tuple[Endpoint, Item]:
    item = item_of(cluster, endpoint_id)
    if item is None or not isinstance(item.body, Endpoint) or item.body.host != cluster.me:
        raise NotFound(f"endpoint {text_id(endpoint_id)} is not on this host any more")
    return item.body, item
