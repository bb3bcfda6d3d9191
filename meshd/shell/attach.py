"""Attach: the one way in which an endpoint comes to be, whoever asks (meshctl, CNI, CNM).

It decides idempotency (one interface name in one namespace of this boot is one endpoint), then in this order:
check what is to be published, reserve an index in memory, make the veth pair with all that guards it and leads to it,
commit endpoint and attachment to disk, answer. Whatever fails is undone whole. The daemon never enters the namespace:
the caller moves the peer there, or waits there for it to be born. Which address is chosen is shell/space.py's and state/addresses.py's business.
"""

import re
from collections.abc import Iterable, Iterator, Set
from contextlib import AsyncExitStack
from typing import Annotated, NamedTuple

import msgspec
import trio

from meshd.errors import BadRequest, Conflict, KernelError, MeshdError
from meshd.kernel.links import Birth
from meshd.model import (
    Attachment,
    Endpoint,
    EndpointId,
    Item,
    Kind,
    Network,
    Version,
    text_id,
    text_mac,
)
from meshd.plan import desired, elements, names, ops
from meshd.plan.publish import parse_all
from meshd.shell import hostaccess, lan, networks, orphans, publish, space, vxlans
from meshd.shell.desk import Held, Place, place_of
from meshd.shell.detach import (
    delete_link,
    detach,
    find,
    item_of,
    release,
    release_other_boots,
    release_vanished,
)
from meshd.shell.limits import check_ports
from meshd.shell.space import answer_block_ask
from meshd.shell.usecase import ClusterLike
from meshd.state.lan import LAN_DRIVERS
from meshd.state.layout import Layout

__all__ = [
    "AttachRequest",
    "Attached",
    "Netns",
    "answer_block_ask",
    "attach",
    "detach",
    "find",
    "mtu_of",
    "release_other_boots",
    "release_vanished",
]

EndpointName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})\Z",
        description="1 to 63 of A-Z, a-z, 0-9, '_', '.' and '-', starting with a letter or digit",
    ),
]
Ifname = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_.-]{1,15}\Z", description="1 to 15 of A-Z, a-z, 0-9, '_', '.' and '-'"
    ),
]
NO_IFNAMES = (".", "..", "lo", "all", "default")
"""Names the kernel refuses, or that /proc/sys/net/ipv4/conf and every namespace have already."""

MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


class Netns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names a network namespace: SO_NETNS_COOKIE, which counts within a boot; ``path`` is for people. ``boot_id``: who
    kept the cookie from earlier on says of which boot it is; "": of this one. ``pid``: a process in that namespace, as
    this daemon sees it, that waits there for the answer: a veth pair's other end is then born there, under its name."""

    cookie: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    boot_id: Annotated[str, msgspec.Meta(max_length=255)] = ""
    path: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    pid: Annotated[int, msgspec.Meta(ge=0, le=2**22)] = 0


class AttachRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/endpoints. What is left out is chosen."""

    network: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    netns: Netns
    ifname: Ifname = "eth0"
    name: EndpointName | None = None
    aliases: Annotated[tuple[EndpointName, ...], msgspec.Meta(max_length=64)] = ()
    ips: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=2)] = ()
    mac: Annotated[str, msgspec.Meta(max_length=17)] | None = None
    published: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=255)], ...], msgspec.Meta(max_length=256)
    ] = ()


class Attached(NamedTuple):
    """An endpoint of this host, with all that the caller needs to finish it. ``created`` False: it was there."""

    id: EndpointId
    endpoint: Endpoint
    attachment: Attachment
    network: Item
    created: bool
    warnings: tuple[str, ...] = ()


async def attach(
    cluster: ClusterLike,
    request: AttachRequest,
    owner: str = "",
    held: Held | None = None,
    spare: Set[int] = frozenset(),
) -> Attached:
    """Attach a namespace to a network, or find that it is attached just so. ``owner``: what a runtime calls this
    endpoint (model.Attachment). ``held``: an address that is kept for it already, ``request.ips`` being that one.
    ``spare``: inodes of sockets that stand for this endpoint on the ports it is to publish.

    Raises BadRequest, NotFound, Conflict (naming the difference or the holder), Unavailable (no address, no
    disk) or KernelError; nothing is left behind then.
    """
    _check(cluster, request)
    place = place_of(request.netns.cookie, request.ifname, owner)
    async with cluster.desk.place(place):
        network = networks.resolve(cluster, request.network)
        there = _there(cluster, place)
        if there is not None:
            same = _same(cluster, there, network, request, owner)
            return await _again(cluster, same) if there in cluster.reconciler.orphans() else same
        facts = networks.facts(network)
        networks.check_takes_endpoints(cluster, facts)
        check_ports(cluster, network.id, facts.name, facts.driver)
        published = parse_all(request.published)
        try:
            with cluster.desk.attaching(network.id, facts.name), publish.reserved(cluster, published):
                await publish.check(cluster, network, published, spare)
                return await _make(cluster, network, facts, request, owner, held)
        except BaseException:
            if facts.host_access:
                cluster.background(hostaccess.keep, cluster, network)
            raise


def _check(cluster: ClusterLike, request: AttachRequest) -> None:
    """Refuse what no network could make true."""
    if request.netns.boot_id not in ("", cluster.boot_id):
        raise BadRequest(
            "netns.boot_id: the namespace is of another boot or host", "ask the daemon of the host it is on"
        )
    if request.ifname in NO_IFNAMES:
        raise BadRequest(
            f"ifname: {request.ifname} cannot be an endpoint's interface", "use eth0 or the like"
        )
    if request.mac is not None:
        parse_mac(request.mac)
    parse_all(request.published)


def parse_mac(text: str) -> bytes:
    """Read a MAC: 6 bytes, unicast, not zero (IEEE 802, 8.2). Raises BadRequest."""
    if not MAC.fullmatch(text):
        raise BadRequest(f"mac: {text!r} is not of the form 02:42:ac:11:00:02")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise BadRequest(f"mac: {text} is not a unicast address", "the first byte must be even, such as 02")
    return mac


def _there(cluster: ClusterLike, place: Place) -> EndpointId | None:
    """Find the endpoint that has this interface name in this namespace."""
    for endpoint_id, attachment in cluster.attachments.items():
        if (
            attachment.netns_cookie == place[0]
            and attachment.boot_id == cluster.boot_id
            and place_of(attachment.netns_cookie, attachment.ifname, attachment.owner) == place
        ):
            return endpoint_id if endpoint_id in cluster.endpoints else None
    return None


def _same(
    cluster: ClusterLike, there: EndpointId, network: Item, request: AttachRequest, owner: str
) -> Attached:
    """Answer with the endpoint that is there, if all that was asked for is true of it. Raises Conflict."""
    endpoint, attachment = cluster.endpoints[there], cluster.attachments[there]
    if owner and attachment.owner != owner:
        whose = attachment.owner or f"meshctl attach's, named {endpoint.name}"
        raise Conflict(
            f"{request.ifname} of this namespace is attached already: {whose}", "detach that first"
        )
    shown = networks.shown(cluster)
    if endpoint.network != network.id:
        what = f"{request.ifname} of this namespace is endpoint {endpoint.name} of network"
        raise Conflict(
            f"{what} {shown.get(endpoint.network, text_id(endpoint.network))}",
            "use another --ifname, or detach it",
        )
    layout = Layout.of(network)
    asked = {
        "name": (request.name, endpoint.name),
        "mac": (parse_mac(request.mac).hex(":") if request.mac else None, text_mac(endpoint.mac)),
        "ip": (_text(layout, layout.index_of_all(request.ips)), _text(layout, endpoint.index)),
        "alias": (_list(request.aliases), _list(endpoint.aliases)),
        "publish": (_list(map(str, parse_all(request.published))), _list(endpoint.published)),
    }
    differing = [f"{key} is {is_}, not {want}" for key, (want, is_) in asked.items() if want and want != is_]
    if differing:
        what = f"{request.ifname} of this namespace is attached to network {request.network} already"
        raise Conflict(f"{what}: {'; '.join(differing)}", "detach it first to change that")
    return Attached(there, endpoint, attachment, network, created=False)


async def _again(cluster: ClusterLike, same: Attached) -> Attached:
    """Make the device of an endpoint anew that lost it with its parent (plan/orphans.py): the same endpoint, with the
    addresses and MAC that it had. Raises as ``attach``; it stays as it was then."""
    id_, network = same.id, same.network
    async with cluster.desk.plugging(id_), lan.place(cluster, network, None) as where:
        if where.mac not in (None, same.endpoint.mac):
            raise Conflict(
                f"endpoint {same.endpoint.name} had the MAC of its parent, and {where.parent.name} has another now",
                "detach it, then attach it",
            )
        attachment = msgspec.structs.replace(
            same.attachment, parent=where.parent.name, parent_index=where.parent.index
        )
        plugged = cluster.store.get(Kind.ATTACHMENT, id_)
        if plugged is None:
            raise Conflict(f"endpoint {same.endpoint.name} was detached meanwhile")
        version = plugged.version._replace(counter=plugged.version.counter + 1, writer=cluster.me)
        with cluster.reconciler.making(attachment.host_if):
            await lan.make(cluster, network, id_, same.endpoint.mac, where, attachment.host_if)
            try:
                await cluster.commit([Item(Kind.ATTACHMENT, id_, version, attachment)])
            except BaseException:
                with trio.CancelScope(shield=True):
                    await delete_link(cluster, attachment.host_if)
                raise
            cluster.reconciler.changed(network.id, id_)
    await cluster.reconciler.settled()
    cluster.events.publish("endpoint-up", **orphans.fields(cluster, id_))
    return same._replace(attachment=attachment, warnings=where.warnings)


def _text(layout: Layout, index: int | None) -> str | None:
    return None if index is None else ", ".join(text.partition("/")[0] for text in layout.texts(index))


def _list(aliases: Iterable[str]) -> str:
    return ", ".join(sorted(set(aliases)))


async def _make(
    cluster: ClusterLike, network: Item, facts: Network, request: AttachRequest, owner: str, kept: Held | None
) -> Attached:
    """Make a new endpoint; undo everything that was done if any of it fails."""
    layout = Layout.of(network)
    want = layout.index_of_all(request.ips)
    endpoint_id = kept.endpoint if kept else new_id(cluster, network, want)
    mac = _mac(cluster, network, endpoint_id, request.mac)
    async with AsyncExitStack() as held:
        where: lan.Place | None = None
        if facts.driver in LAN_DRIVERS:
            where = await held.enter_async_context(lan.place(cluster, network, request.mac))
            mac = where.mac or mac
        if kept is not None:
            index = kept.index
        elif where is not None:
            index = await lan.claim(cluster, network, layout, endpoint_id, want, where.parent)
        else:
            index = await space.reserve(cluster, network, layout, endpoint_id, want)
        made = await _make_at(cluster, network, request, owner, endpoint_id, index, mac, where)
    space.fetch_ahead(cluster, network)
    return made


async def _make_at(
    cluster: ClusterLike,
    network: Item,
    request: AttachRequest,
    owner: str,
    endpoint_id: EndpointId,
    index: int,
    mac: bytes,
    where: lan.Place | None,
) -> Attached:
    """Make an endpoint whose index is reserved; ``where``: on which device of the LAN, if on one."""
    try:
        endpoint = Endpoint(
            network=network.id,
            host=cluster.me,
            name=request.name or f"ep-{text_id(endpoint_id)[: names.NAME_HEX]}",
            index=index,
            ips=Layout.of(network).ips(index),
            mac=mac,
            ifname=request.ifname,
            aliases=tuple(dict.fromkeys(request.aliases)),
            published=tuple(map(str, parse_all(request.published))),
            created_ms=cluster.wall_ms(),
        )
        attachment = Attachment(
            boot_id=cluster.boot_id,
            netns_cookie=request.netns.cookie,
            netns_path=request.netns.path,
            ifname=request.ifname,
            host_if=names.guest(endpoint_id) if where else names.veth(endpoint_id),
            peer_if=names.guest(endpoint_id) if where else names.peer(endpoint_id),
            owner=owner,
            parent=where.parent.name if where else "",
            parent_index=where.parent.index if where else 0,
        )
        await hostaccess.keep(cluster, network)
        async with cluster.desk.plugging(endpoint_id):
            if item_of(cluster, endpoint_id) is not None:
                await delete_link(cluster, attachment.host_if)  # of its last time here, if it is still there
            if where is not None:
                await _put_on_lan(cluster, network, endpoint_id, endpoint, attachment, where)
            else:
                await _plug_in(cluster, network, endpoint_id, endpoint, attachment, request.netns.pid)
    except BaseException:
        if endpoint_id not in cluster.endpoints:
            cluster.usage.unreserve(endpoint_id)
        raise
    kept = await networks.keep_if_in_use(cluster, network)
    if kept or where is not None:
        await _stand(cluster, network, endpoint_id, attachment)
    warnings = where.warnings if where else ()
    return Attached(endpoint_id, endpoint, attachment, network, created=True, warnings=warnings)


async def _plug_in(
    cluster: ClusterLike,
    network: Item,
    endpoint_id: EndpointId,
    endpoint: Endpoint,
    attachment: Attachment,
    pid: int,
) -> None:
    """Make the veth pair and all else that the endpoint needs in this host's kernel, its network's devices where it is
    the first, then commit. Where the kernel refuses any of it there has been no endpoint: one that reaches nobody is
    worse than none."""
    born_as = attachment.ifname if pid else attachment.peer_if
    birth = Birth(born_as, endpoint.mac, mtu_of(cluster, network), pid)
    async with cluster.reconciler.coming(endpoint_id, endpoint, attachment, birth):
        for op, error in refusals(cluster, network, attachment):
            raise await _explained(cluster, network, op, error)
        await cluster.commit(_born(cluster, network, endpoint_id, endpoint, attachment))


async def _put_on_lan(
    cluster: ClusterLike,
    network: Item,
    endpoint_id: EndpointId,
    endpoint: Endpoint,
    attachment: Attachment,
    where: lan.Place,
) -> None:
    """Make the device on the LAN and commit; it goes again if the commit fails."""
    with cluster.reconciler.making(attachment.host_if):
        await lan.make(cluster, network, endpoint_id, endpoint.mac, where, attachment.host_if)
        try:
            await cluster.commit(_born(cluster, network, endpoint_id, endpoint, attachment))
        except BaseException:
            if endpoint_id not in cluster.endpoints:
                with trio.CancelScope(shield=True):
                    await delete_link(cluster, attachment.host_if)
            raise
        finally:
            cluster.reconciler.changed(network.id, endpoint_id)


async def _stand(
    cluster: ClusterLike, network: Item, endpoint_id: EndpointId, attachment: Attachment
) -> None:
    """Wait until what was changed after the endpoint's record was written stands too. Raises KernelError, and detaches
    again, where the kernel refuses any of it."""
    await cluster.reconciler.settled()
    for op, error in refusals(cluster, network, attachment):
        with trio.CancelScope(shield=True):
            await release(cluster, [endpoint_id])
            await delete_link(cluster, attachment.host_if)
            raise await _explained(cluster, network, op, error)


def refusals(
    cluster: ClusterLike, network: Item, attachment: Attachment
) -> Iterator[tuple[ops.Op, KernelError]]:
    """Yield what the kernel has refused of what an endpoint of this host needs."""
    devices = {
        attachment.host_if,
        desired.bridge_name(network.id, networks.facts(network)),
        names.vxlan(network.id),
    }
    for op, error in cluster.reconciler.failures().items():
        if _device(op) in devices or _guards(op, attachment.host_if):
            yield op, error


async def _explained(cluster: ClusterLike, network: Item, op: ops.Op, error: KernelError) -> MeshdError:
    """Say more about a refused VXLAN device than the kernel does."""
    if _device(op) == names.vxlan(network.id):
        return await vxlans.explain(cluster, networks.facts(network), error)
    return error


def _device(op: ops.Op) -> str | None:
    """Name the device that an op makes or gives something local; None for all others (a row that leads to another
    host is tried again, and `diff` shows it)."""
    match op:
        case ops.PutLink() | ops.RemakeLink():
            return op.link.name
        case ops.PutAddr():
            return op.addr.dev
        case ops.PutFdb() if op.target.local:
            return op.key.dev
    return None


def _guards(op: ops.Op, host_if: str) -> bool:
    """Tell whether an op is one without which an endpoint could pretend to be another, or is not published."""
    if isinstance(op, ops.PutElement):
        return elements.device(op.element) in ("", host_if)
    return isinstance(op, ops.SetFirewall)


def mtu_of(cluster: ClusterLike, network: Item) -> int:
    """Return the MTU of a network's links, in bytes."""
    return desired.network_mtu(cluster.view(), networks.facts(network))


def _born(
    cluster: ClusterLike, network: Item, endpoint_id: EndpointId, endpoint: Endpoint, attachment: Attachment
) -> list[Item]:
    """Make the records of a new endpoint. Raises Conflict where its network has gone meanwhile."""
    now = cluster.store.get(network.kind, network.id)
    if now is None or now.dead or (isinstance(now.body, Network) and now.body.removing):
        raise Conflict(f"network {networks.facts(network).name} was removed meanwhile")
    former = item_of(cluster, endpoint_id)
    if former is not None and not former.dead:
        where = cluster.host_name(cluster.endpoints[endpoint_id].host)
        raise Conflict(f"{endpoint.name}'s address was attached on {where} meanwhile")
    since = (
        endpoint.created_ms if former is None else max(endpoint.created_ms, former.version.incarnation + 1)
    )
    version = Version(since, 0, cluster.me)
    plugged = Item(Kind.ATTACHMENT, endpoint_id, version, attachment)
    if networks.is_local(network):
        return [Item(Kind.LOCAL_ENDPOINT, endpoint_id, version, endpoint), plugged]
    told = Item(Kind.ENDPOINT, endpoint_id, version, endpoint, origin=cluster.me, seq=cluster.next_seq())
    return [told, plugged]


def new_id(cluster: ClusterLike, network: Item, want: int | None) -> EndpointId:
    """Return the id of an endpoint that is to have index ``want``, or any."""
    return _former_id(cluster, network, want) or networks.fresh_endpoint_id(cluster)


def _former_id(cluster: ClusterLike, network: Item, want: int | None) -> EndpointId | None:
    """Return the id of who had the address last that is asked for by name, so that it lives on where it moved to:
    with the id goes the MAC, which everybody who spoke with it still knows for up to a minute. None: nobody did."""
    if want is None:
        return None
    kind = Kind.LOCAL_ENDPOINT if networks.is_local(network) else Kind.ENDPOINT
    ids = cluster.usage.of(network.id).former.get(want, ())
    found = [item for id_ in ids if (item := cluster.store.get(kind, id_)) is not None]
    last = max(found, key=lambda item: item.version, default=None)
    if last is None or networks.has_device(cluster, last.id):
        return None
    return last.id


def _mac(cluster: ClusterLike, network: Item, endpoint_id: EndpointId, wanted: str | None) -> bytes:
    """Take the MAC asked for, unless somebody on the network has it, or derive one from the id."""
    if wanted is None:
        return names.endpoint_mac(endpoint_id)
    mac = parse_mac(wanted)
    if mac == names.gateway_mac(network.id):
        raise Conflict(f"mac: {wanted} is the gateway's of network {networks.facts(network).name}", OTHER_MAC)
    for other in map(cluster.endpoints.__getitem__, cluster.endpoints.on(network.id)):
        if other.mac == mac:
            raise Conflict(
                f"mac: {wanted} is endpoint {other.name}'s on {cluster.host_name(other.host)}", OTHER_MAC
            )
    return mac


OTHER_MAC = "choose another, or leave --mac out"
