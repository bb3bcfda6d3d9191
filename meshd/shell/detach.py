"""How an endpoint of this host goes: detached, vanished with its namespace, or left by an earlier boot. Decides the
order: its record first, then its link, so that the address is free, after its rest, whatever the kernel does.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog
import trio

from meshd.config import TOMBSTONES_MIN
from meshd.errors import Conflict, MeshdError, NotFound
from meshd.model import HOST_NETNS, Endpoint, EndpointId, Item, Key, Kind, Released, text_id
from meshd.plan import names
from meshd.shell import lan
from meshd.shell.desk import place_of
from meshd.shell.usecase import ClusterLike

log = structlog.get_logger("meshd.detach")


def item_of(cluster: ClusterLike, endpoint_id: EndpointId) -> Item | None:
    """Return an endpoint's item, dead or alive, whichever kind it is."""
    found = cluster.store.get(Kind.ENDPOINT, endpoint_id)
    return found if found is not None else cluster.store.get(Kind.LOCAL_ENDPOINT, endpoint_id)


async def detach(
    cluster: ClusterLike,
    endpoint_id: EndpointId,
    *,
    force: bool = False,
    ended: Callable[[], None] = lambda: None,
) -> bool:
    """Detach an endpoint of this host; False where it is gone already. ``ended`` is called once its end is on disk,
    before its link goes.

    Its record goes first, then its link: the address is free, after its rest, even if the kernel refuses, and a
    link that no record explains is deleted by the reconciler. Raises Conflict for another host's endpoint, and for
    one that is this host itself unless ``force``.
    """
    endpoint, attachment = cluster.endpoints.get(endpoint_id), cluster.attachments.get(endpoint_id)
    if endpoint is not None and endpoint.host != cluster.me:
        host = cluster.host_name(endpoint.host)
        raise Conflict(f"endpoint {endpoint.name} is on {host}, not on this host", f"detach it on {host}")
    if endpoint is None and attachment is None:
        return False
    if attachment is None:
        return await release(cluster, [endpoint_id])
    if attachment.netns_cookie == HOST_NETNS and not force:
        raise Conflict(
            f"endpoint {text_id(endpoint_id)} is this host itself",
            "it goes with the last other endpoint here",
        )
    async with (
        cluster.desk.place(place_of(attachment.netns_cookie, attachment.ifname, attachment.owner)),
        cluster.desk.plugging(endpoint_id),
    ):
        if cluster.attachments.get(endpoint_id) != attachment:
            return False  # detached, and perhaps attached elsewhere under the same id, while this waited
        gone = await release(cluster, [endpoint_id])
        ended()
        await cluster.reconciler.settled()  # which deletes the links of all that end at once together
        await delete_link(cluster, attachment.host_if)  # where it had its reasons not to
        if attachment.host_if.startswith(names.GUEST):
            await lan.sweep(cluster)
    return gone


async def detach_ahead(cluster: ClusterLike, endpoint_id: EndpointId) -> bool:
    """As ``detach``, but return once the endpoint's end is on disk: the kernel takes 20-40 ms to remove a link, and
    what this process does not come to, the reconciler of the next one does. The place in the namespace stays
    locked until the link is gone."""
    send, receive = trio.open_memory_channel[bool | MeshdError](1)

    async def job() -> None:
        told = False

        def tell(outcome: bool | MeshdError) -> None:
            nonlocal told
            if not told:
                told = True
                send.send_nowait(outcome)

        with send:
            try:
                tell(await detach(cluster, endpoint_id, ended=lambda: tell(True)))
            except MeshdError as error:
                if told:
                    raise  # logged: whoever asked has gone
                tell(error)

    cluster.background(job)
    outcome = await receive.receive()
    if isinstance(outcome, MeshdError):
        raise outcome
    return outcome


async def release(cluster: ClusterLike, endpoint_ids: Sequence[EndpointId]) -> bool:
    """Commit the end of endpoints of this host in one record; False where there was none to end.

    An endpoint that was written anew while the end was on its way to the disk is ended again.
    """
    ended = [item for endpoint_id in endpoint_ids if (item := _mine(cluster, endpoint_id)) is not None]
    forget = [Key(Kind.ATTACHMENT, e) for e in endpoint_ids if e in cluster.attachments]
    if ended or forget:
        await cluster.commit(
            [_end(cluster, item) for item in ended], [*forget, *_old_local_tombstones(cluster)]
        )
    while again := [item for old in ended if (item := _mine(cluster, old.id)) is not None]:
        await cluster.commit([_end(cluster, item) for item in again])
    return bool(ended)


def _mine(cluster: ClusterLike, endpoint_id: EndpointId) -> Item | None:
    """Return a live endpoint's item if the endpoint is on this host."""
    item = item_of(cluster, endpoint_id)
    if item is None or item.dead or not isinstance(item.body, Endpoint) or item.body.host != cluster.me:
        return None
    return item


def _end(cluster: ClusterLike, item: Item) -> Item:
    """Make the tombstone of a live endpoint: it names that incarnation, so it never ends a later one."""
    if not isinstance(item.body, Endpoint):
        raise TypeError("not a live endpoint item")
    ended = msgspec.structs.replace(
        item,
        version=item.version._replace(counter=item.version.counter + 1, writer=cluster.me),
        body=Released(item.body.network, item.body.index),
        dead=True,
        rest=(),
    )
    if item.kind == Kind.LOCAL_ENDPOINT:
        return ended
    return msgspec.structs.replace(ended, origin=cluster.me, seq=cluster.next_seq())


def _old_local_tombstones(cluster: ClusterLike) -> list[Key]:
    """Name this host's own tombstones to forget: nobody else hears of them, and how long an address rests is
    counted in memory. Some are kept so that this is not done for every one."""
    dead = [item.key for item in cluster.store.all(Kind.LOCAL_ENDPOINT) if item.dead]
    return dead if len(dead) > TOMBSTONES_MIN else []


async def delete_link(cluster: ClusterLike, name: str) -> None:
    """Delete a host end. What the kernel refuses stays stale, and the reconciler's to try again."""
    try:
        await cluster.reconciler.in_kernel_thread(cluster.kernel.delete_link, name)
    except MeshdError as error:
        log.warning("link stays for now", link=name, error=error.what)


async def release_vanished(cluster: ClusterLike, endpoint_ids: Iterable[EndpointId]) -> None:
    """Release endpoints whose links vanished with their namespaces and that nobody detached in time."""
    for endpoint_id in endpoint_ids:
        endpoint = cluster.endpoints.get(endpoint_id)
        if endpoint is not None and await detach(cluster, endpoint_id):
            log.info("released: its link is gone", endpoint=text_id(endpoint_id), name=endpoint.name)


async def release_other_boots(cluster: ClusterLike) -> int:
    """Release what an earlier boot left: its namespaces ended with it. Call once, at start; returns how many."""
    left = [e for e, attachment in cluster.attachments.items() if attachment.boot_id != cluster.boot_id]
    if left:
        await release(cluster, left)
        log.info("released what an earlier boot left", endpoints=len(left))
    return len(left)


def find(cluster: ClusterLike, text: str) -> EndpointId:
    """Find a live endpoint by its id in hex. Raises NotFound."""
    try:
        endpoint_id = bytes.fromhex(text)
    except ValueError:
        endpoint_id = b""
    if endpoint_id not in cluster.endpoints:
        raise NotFound(f"no endpoint {text[:80]!r}", "meshctl endpoint ls lists them")
    return endpoint_id
