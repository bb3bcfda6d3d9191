"""How this host comes by an address: from its own space, else from an owner that it asks, and ahead of need; and
how it answers when it is asked itself. What is chosen and whom to ask is state/addresses.py's rule, what is
handed on state/blocks.py's; here is the waiting in between.
"""

from collections.abc import Callable

import msgspec

from meshd.config import BLOCK_ASKS_MAX, DEED_DEPTH_MAX_ONE
from meshd.errors import Conflict, MeshdError, Unavailable
from meshd.messages import BlockAnswer, BlockAsk
from meshd.model import EndpointId, HostId, Item, Kind, Network, NetworkId
from meshd.shell.networks import book_for, is_local, known
from meshd.shell.usecase import ClusterLike
from meshd.state.addresses import Full, NeedBlock, choose, holdings, low_water
from meshd.state.blocks import hand_on
from meshd.state.confirm import Unconfirmed
from meshd.state.layout import IndexSpace, Layout, Prefix

RANGE_TRIES = 16
"""Addresses of a range that are asked for one by one, drawn at random, where this host owns none of it."""

HOSTS_NAMED = 3  # in one line of an error
REFUSAL_MAX_CHARS = 200
"""As long as messages.BlockAnswer allows."""


async def reserve(
    cluster: ClusterLike, network: Item, layout: Layout, endpoint: EndpointId, want: int | None
) -> int:
    """Choose an index and reserve it for ``endpoint``, of the first subnet that has one free; owners are asked in turn
    where this host has none.

    Undo with ``Usage.unreserve``. Raises Unavailable naming who holds free addresses, Conflict or BadRequest.
    """
    if want is not None:
        space = layout.space_at(want)
        if space is None:
            raise ValueError("no index of this network")
        return await _reserve_exactly(cluster, network, layout, space, endpoint, want)
    refused: list[Unavailable] = []
    for space in layout.spaces:
        try:
            return await _reserve(cluster, network, layout, space, endpoint)
        except Unavailable as error:
            refused.append(error)
    full = [error for error in refused if isinstance(error, Full)]
    if len(full) == len(refused):
        raise Full(layout.name, sum(error.usable for error in full))
    raise next(error for error in refused if not isinstance(error, Full))


async def _reserve_exactly(
    cluster: ClusterLike, network: Item, layout: Layout, space: IndexSpace, endpoint: EndpointId, want: int
) -> int:
    """Take one address, asking its owner, and whom that one gives it back to, in turn."""
    tried: set[HostId] = set()
    given: list[Item] = []
    for number in range(DEED_DEPTH_MAX_ONE):
        found = _take(cluster, network, layout, space, endpoint, want, tried)
        if isinstance(found, int):
            return found
        if isinstance(found, Unconfirmed):
            await _wait(cluster, found)
        elif not number:  # only where this host has not got it is it of interest who cannot be asked
            tried |= unreachable(cluster, network.id)
        if isinstance(found, NeedBlock) and found.owners[0] not in tried:
            # One address of one owner: its own words say best why not.
            tried.add(found.owners[0])
            given = await cluster.ask_block(found.owners[0], network.id, found.size, want, proof=given)
    return _index(_take(cluster, network, layout, space, endpoint, want, tried))


async def _wait(cluster: ClusterLike, unconfirmed: Unconfirmed) -> None:
    """Wait until own space may be used. Raises Unavailable naming whose word is missing."""
    missing = sorted(map(cluster.host_name, await cluster.confirmed(unconfirmed.deeds)))
    if missing:
        named = ", ".join(missing[:HOSTS_NAMED]) + (", ..." if missing[HOSTS_NAMED:] else "")
        raise Unavailable(
            f"{unconfirmed.what}: {named}, to whom it may come back, must have that on disk first",
            f"bring {missing[0]} back, or have the address given by a host that has it already",
        )


async def _reserve(
    cluster: ClusterLike, network: Item, layout: Layout, space: IndexSpace, endpoint: EndpointId
) -> int:
    """Take any address of one space, asking owners in turn."""
    found = _take(cluster, network, layout, space, endpoint, None, set())
    if isinstance(found, int):
        return found
    tried = unreachable(cluster, network.id)
    waited: Unavailable | None = None
    async with cluster.desk.asking(network.id):
        try:
            for number in range(BLOCK_ASKS_MAX + len(cluster.members)):
                found = _take(cluster, network, layout, space, endpoint, None, tried)
                if isinstance(found, int):
                    return found
                if isinstance(found, Unconfirmed):
                    waited = await _vainly(cluster, found)
                    tried |= {cluster.me} if waited else set()
                    continue
                owner = found.owners[0]
                try:
                    given = await cluster.ask_block(owner, network.id, found.size, near=space.start)
                except Unavailable:
                    given = []
                if given and cluster.me in tried:
                    tried.discard(
                        cluster.me
                    )  # what came last may be confirmed where what was here before is not
                    tried.add(owner)
                elif (
                    not given or number >= BLOCK_ASKS_MAX
                ):  # others may use up what was given: then ask again
                    tried.add(owner)
            return _index(_take(cluster, network, layout, space, endpoint, None, {*tried, *cluster.members}))
        except Unavailable as error:
            raise waited or error from None


async def _vainly(cluster: ClusterLike, unconfirmed: Unconfirmed) -> Unavailable | None:
    """Wait until own space may be used; return why it may not, if so."""
    try:
        await _wait(cluster, unconfirmed)
    except Unavailable as error:
        return error
    return None


async def reserve_within(
    cluster: ClusterLike, network: Item, layout: Layout, endpoint: EndpointId, within: Prefix
) -> int:
    """Reserve an index whose address lies in ``within``, a part of one of the subnets: of this host's own if there is
    one, else of an owner, who is asked for that one address. Raises BadRequest, Unavailable."""
    first = layout.index_of(within.network_address.packed)
    space = layout.space_at(first)
    if space is None:
        raise ValueError("no index of this network")
    part = msgspec.structs.replace(space, auto=space.auto_part(first, first + within.num_addresses))
    try:
        return _index(_take(cluster, network, layout, part, endpoint, None, {*cluster.members}))
    except Unavailable as error:
        full = Unavailable(f"no free address in {within}: {error.what}", "give a larger --ip-range")
    used = cluster.usage.of(network.id).holders
    start, end = part.auto
    for _ in range(RANGE_TRIES):
        index = start + int.from_bytes(cluster.entropy(8), "big") % max(1, end - start)
        if end > start and index not in used and space.why_reserved(index) is None:
            try:
                return await reserve(cluster, network, layout, endpoint, index)
            except (Unavailable, Conflict) as error:
                full = Unavailable(f"no free address in {within}: {error.what}", error.hint)
    raise full


def _take(
    cluster: ClusterLike,
    network: Item,
    layout: Layout,
    space: IndexSpace,
    endpoint: EndpointId,
    want: int | None,
    tried: set[HostId],
) -> int | NeedBlock | Unconfirmed:
    """Choose and reserve with nothing awaited in between, so that two attaches never get one index."""
    try:
        index = choose(
            space,
            book_for(cluster, network, layout),
            cluster.usage,
            cluster.me,
            cluster.now(),
            want=want,
            tried=tried,
            name_of=cluster.host_name,
        )
    except (NeedBlock, Unconfirmed) as need:
        return need
    cluster.usage.reserve(network.id, index, endpoint)
    return index


def _index(found: int | NeedBlock | Unconfirmed) -> int:
    """Return the index, or give up with what is missing."""
    if not isinstance(found, int):
        raise Unavailable(found.what, found.hint)
    return found


def unreachable(cluster: ClusterLike, network: NetworkId) -> set[HostId]:
    """Return the owners of a network's space that are not alive, as far as is known."""
    owners = {owner for owner, _ in cluster.deeds.blocks(network) if owner is not None}
    return owners - set(cluster.alive())


def fetch_ahead(cluster: ClusterLike, network: Item) -> None:
    """Have more space fetched in the background where little is left, so that an attach rarely waits."""
    if is_local(network):
        return
    if any(map(_low(cluster), Layout.of(network).spaces)):
        cluster.background(fetch, cluster, network.id)


def _low(cluster: ClusterLike) -> Callable[[IndexSpace], bool]:
    return lambda space: low_water(space, cluster.deeds, cluster.usage, cluster.me, cluster.now())


async def fetch(cluster: ClusterLike, network_id: NetworkId) -> None:
    """Ask the owners that are alive, most free first, until one gives a block. Nothing is raised: the attach
    that needs it will ask, and say why not, itself."""
    item = cluster.store.get(Kind.NETWORK, network_id)
    if item is None or item.dead:
        return
    away = {cluster.me, *unreachable(cluster, network_id)}
    with cluster.desk.fetching(network_id) as first:
        if not first:
            return
        async with cluster.desk.asking(network_id):
            for space in filter(_low(cluster), Layout.of(known(cluster, item)).spaces):
                for holding in holdings(space, cluster.deeds, cluster.usage):
                    if holding.owner in away or not holding.givable:
                        continue
                    try:
                        if await cluster.ask_block(holding.owner, network_id, space.size, near=space.start):
                            return
                    except Unavailable:
                        continue


async def answer_block_ask(cluster: ClusterLike, asker: HostId, ask: BlockAsk) -> BlockAnswer:
    """Hand part of this host's space on, or say why not. What is handed on is out of this host's reach before
    anything is awaited, and on its disk before the answer: a lost answer delays, it never duplicates.
    """
    try:
        return BlockAnswer(ask.request, tuple(await _hand_on(cluster, asker, ask)))
    except MeshdError as error:
        return BlockAnswer(ask.request, (), error.what[:REFUSAL_MAX_CHARS])


async def _hand_on(cluster: ClusterLike, asker: HostId, ask: BlockAsk) -> list[Item]:
    item = cluster.store.get(Kind.NETWORK, ask.network)
    if item is None or not isinstance(item.body, Network):
        raise Unavailable("the network is not known here, or was removed")
    if cluster.allocation_stopped:
        raise Unavailable(f"{cluster.host_name(cluster.me)} gives nothing: {cluster.allocation_stopped}")
    if asker == cluster.me or asker not in cluster.members:
        raise Unavailable("only another member can be given addresses")
    space = Layout.of(known(cluster, item)).space_at(ask.start)
    if space is None:
        raise Unavailable("the subnet is not known here")
    try:
        deeds = _cut(cluster, space, asker, ask)
    except Unconfirmed as unconfirmed:
        await _wait(cluster, unconfirmed)
        deeds = _cut(cluster, space, asker, ask)
    for deed in deeds:
        cluster.deeds.add(deed)
    await cluster.commit(deeds)
    return deeds


def _cut(cluster: ClusterLike, space: IndexSpace, asker: HostId, ask: BlockAsk) -> list[Item]:
    use, alive = cluster.usage.of(ask.network), cluster.alive()
    return hand_on(
        cluster.deeds,
        space,
        cluster.me,
        asker,
        size=ask.size,
        exact=ask.start if ask.exact else None,
        busy=set(use.used) if ask.exact else use.busy(cluster.now()),  # who names an address wants that one
        live=len(alive),
        alive=alive,
    )
