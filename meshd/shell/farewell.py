"""How a host goes for good: by itself (``hand_on`` is leave's part that matters to others), or because an operator says
that it is off (``forget``), and what its heirs do then (``take_over``). Who inherits is state/heirs.py's rule.
"""

import time

import msgspec

from meshd.config import LEAVE_CONFIRM_S
from meshd.errors import BadRequest, Conflict, NotFound
from meshd.model import Deed, Forgotten, HostId, Item, Kind, Rank, Version, text_id
from meshd.shell.usecase import ClusterLike, Farewell, Handed
from meshd.state.heirs import bequests, heir_of_forgotten, heir_of_leaving, line
from meshd.state.layout import Layout
from meshd.state.lookup import hosts_meant
from meshd.swim.members import Member


async def hand_on(cluster: ClusterLike) -> Farewell:
    """Hand all that this host owns on to those next in line, and wait until they, and whoever stands in the line, say
    that they have the deeds: LEAVE_CONFIRM_S at most. Raises Unavailable (disk), with nothing handed on.
    """
    alive = [host for host in cluster.alive() if host != cluster.me]

    def heir(key: bytes) -> HostId | None:
        return heir_of_leaving(cluster.deeds, key, cluster.me, alive, alive)

    deeds = bequests(cluster.deeds, _networks(cluster), cluster.me, heir)
    if not deeds:
        return Farewell([], [])
    await cluster.commit(deeds)
    asked: dict[HostId, list[Item]] = {}
    for item in deeds:
        for host in {*line(cluster.deeds, item.id), _deed(item).owner} & {*alive}:
            asked.setdefault(host, []).append(item)
    silent = await cluster.held_by(asked, LEAVE_CONFIRM_S)
    return Farewell([_handed(cluster, item) for item in deeds], sorted(map(cluster.host_name, silent)))


class ForgetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/forget. ``host``: a name or an id. ``fenced``: the operator's word that it is off."""

    host: str
    fenced: bool = False


async def forget(cluster: ClusterLike, request: ForgetRequest) -> tuple[Member, list[Handed]]:
    """Forget a host for good: its endpoints are void, its blocks go to its heirs, and it never comes back under its
    identity. Returns it, and where its blocks go. Raises NotFound, BadRequest, Conflict, Unavailable (disk)."""
    member = _named(cluster, request.host)
    name = cluster.host_name(member.id)
    if member.id == cluster.me:
        raise Conflict("this host does not forget itself", "meshctl leave")
    if member.id not in cluster.forgotten:
        if member.state in ("alive", "suspect"):
            raise Conflict(
                f"host {name} is {member.state}; nothing was changed",
                "a host that runs goes by itself: meshctl leave, on it",
            )
        if not request.fenced:
            raise BadRequest(
                f"host {name}: its addresses go to others, who use them though it may still run; nothing was changed",
                "make sure that it is off, then say so: --fenced",
            )
        said = Forgotten(name, cluster.host_name(cluster.me), cluster.wall_ms())
        record = Item(Kind.FORGOTTEN, member.id, Version(0, said.at_ms, cluster.me), said)
        await cluster.commit([record, member.item(Rank.LEFT)])
    return member, [
        _handed(cluster, item)
        for item in bequests(cluster.deeds, _networks(cluster), member.id, lambda key: _heir(cluster, key))
    ] + _inherited(cluster, member.id)


async def take_over(cluster: ClusterLike) -> None:
    """Take what forgotten hosts owned and this one inherits. Call when a host was forgotten, and now and then: a block
    or a network may be heard of later. Raises Unavailable (disk)."""
    if cluster.allocation_stopped:
        return

    def mine(key: bytes) -> HostId | None:
        heir = _heir(cluster, key)
        return heir if heir == cluster.me else None

    for host in sorted(cluster.forgotten):
        deeds = bequests(cluster.deeds, _networks(cluster), host, mine)
        if deeds:
            await cluster.commit(deeds)


def _heir(cluster: ClusterLike, key: bytes) -> HostId | None:
    return heir_of_forgotten(cluster.deeds, key, cluster.forgotten)


def _inherited(cluster: ClusterLike, host: HostId) -> list[Handed]:
    """List what this host has taken over already of a forgotten one."""
    mine = [
        cluster.deeds.deed(block.deed)
        for network in _networks(cluster)
        for block in cluster.deeds.owned(network, cluster.me)
    ]
    return [_show(cluster, deed) for deed in mine if deed is not None and deed.donor == host]


def _networks(cluster: ClusterLike) -> list[bytes]:
    return [item.id for item in cluster.store.live(Kind.NETWORK)]


def _named(cluster: ClusterLike, host: str) -> Member:
    """Find a member by name, id or the beginning of its id. Raises NotFound, or Conflict where it fits several."""
    meant = hosts_meant(host, {member.id: member.facts.name for member in cluster.members.values()})
    named = [cluster.members[each] for each in sorted(meant)]
    if not named:
        raise NotFound(f"no host {host[:64]!r}", "meshctl members lists them")
    if len(named) > 1:
        ids = ", ".join(text_id(member.id) for member in named)
        raise Conflict(f"{host} is {len(named)} hosts: {ids}", "say the id")
    return named[0]


def _handed(cluster: ClusterLike, item: Item) -> Handed:
    return _show(cluster, _deed(item))


def _show(cluster: ClusterLike, deed: Deed) -> Handed:
    network = cluster.store.get(Kind.NETWORK, deed.network)
    name, block = text_id(deed.network), f"{deed.size} addresses"
    if network is not None and (facts := cluster.networks.get(deed.network)) is not None:
        name = facts.name
        space = Layout.of(msgspec.structs.replace(network, body=facts)).space_at(deed.start)
        if space is not None:
            last = deed.start + deed.size - 1
            block = f"{space.text(deed.start)} to {space.text(last)}" if deed.size > 1 else space.text(last)
    return Handed(name, block, cluster.host_name(deed.owner))


def _deed(item: Item) -> Deed:
    if not isinstance(item.body, Deed):
        raise TypeError("not a deed")
    return item.body


def told(said: Forgotten) -> str:
    """Say to a forgotten host what has become of it."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(said.at_ms // 1000))
    return f"this host was forgotten on {said.by} at {when}: its addresses are others' now"
