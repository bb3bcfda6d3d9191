"""Decides which index an endpoint gets, and whom to ask where this host has none. Knows deeds and use; must not
know how a block is asked for, or which hosts are alive (the caller says whom it tried).

The caller's loop, with nothing awaited between a successful ``choose`` and ``Usage.reserve``::

    tried = {hosts that are not alive}
    while True:
        try: index = choose(space, book, usage, me, now, want=want, tried=tried)
        except NeedBlock as need: tried.add(need.owners[0]); ask need.owners[0] for need.size, need.exact
"""

from collections.abc import Callable, Collection, Sequence

import msgspec

from meshd.config import COOLDOWN_S, DEED_DEPTH_MAX, DEED_DEPTH_MAX_ONE, LOW_WATER
from meshd.errors import BadRequest, Conflict, Unavailable
from meshd.model import HostId, NetworkId
from meshd.state.confirm import Unconfirmed
from meshd.state.deeds import Block, DeedBook
from meshd.state.layout import IndexSpace
from meshd.state.spans import aligned, count
from meshd.state.usage import NetworkUse, Usage

OWNERS_NAMED = 3  # in one line of an error


def short_id(host: HostId) -> str:
    """Name a host where nothing better is known."""
    return host.hex()[:8]


class NeedBlock(Unavailable):
    """This host has no address to give; an owner can be asked for a block.

    ``exact``: the one index that is wanted, or None. ``size``: what to ask for (the owner decides how much it
    gives). ``owners``: not empty, none of ``tried``; most free first.
    """

    code = "need-block"

    def __init__(
        self, what: str, network: NetworkId, owners: list[HostId], *, exact: int | None, size: int
    ) -> None:
        super().__init__(what, "retry")
        self.network = network
        self.owners = owners
        self.exact = exact
        self.size = size


class Full(Unavailable):
    """Nobody has an address to give: all ``usable`` ones are in use."""

    def __init__(self, name: str, usable: int) -> None:
        super().__init__(
            f"network {name} is full: all {usable} addresses are in use",
            "remove endpoints, add a subnet (meshctl network update), or create a larger network",
        )
        self.usable = usable


class Holding(msgspec.Struct, frozen=True):
    """What one host has free in the automatic range: ``free`` indices, of which ``givable`` may be handed on."""

    owner: HostId
    free: int
    givable: int


class BlockView(msgspec.Struct, frozen=True):
    """One line of ``network inspect``: an aligned block as CIDR text; ``owner`` None where it is quarantined."""

    block: str
    owner: HostId | None
    free: int


def choose(
    space: IndexSpace,
    book: DeedBook,
    usage: Usage,
    me: HostId,
    now: float,
    *,
    want: int | None = None,
    tried: Collection[HostId] = (),
    name_of: Callable[[HostId], str] = short_id,
) -> int:
    """Choose an index from this host's own space.

    ``want``: this index or none (it need not have cooled: who names an address wants that one).
    Otherwise, in the automatic range: never used, lowest first; then least recently released, if it has
    cooled for COOLDOWN_S; then, once no owner is left to ask, still cooling ones, oldest first.
    ``tried``: owners that cannot be asked, or were, without success; ``me``: waiting for witnesses was in vain.
    Raises NeedBlock; Unconfirmed where own space waits for its witnesses; Unavailable naming who holds free addresses; Conflict or BadRequest for a ``want`` that
    is in use or reserved. Nothing is changed.
    """
    use = usage.of(space.network)
    if want is not None:
        return _explicit(space, book, use, me, want, tried, name_of)
    mine = book.owned(space.network, me)
    owned = [block for block in mine if book.valid(block.deed)]
    index = _never_used(space, owned, use)
    cooled = None if index is not None else _least_recently_released(space, owned, use)
    if index is None and cooled is not None and now - use.released[cooled] >= COOLDOWN_S:
        index = cooled
    if index is not None:
        return index
    waiting = [
        block
        for block in mine
        if block not in owned and space.usable(*space.auto_part(block.start, block.end))
    ]
    if waiting and me not in tried:
        raise Unconfirmed(f"space of network {space.name}", [block.deed for block in waiting])
    others = [holding for holding in holdings(space, book, usage) if holding.owner != me]
    askable = [holding.owner for holding in others if holding.givable and holding.owner not in tried]
    if askable:
        what = f"this host has no free address of network {space.name}"
        raise NeedBlock(what, space.network, askable, exact=None, size=space.size)
    if cooled is not None:
        return cooled
    raise _exhausted(space, book, [holding for holding in others if holding.free], name_of)


def _explicit(
    space: IndexSpace,
    book: DeedBook,
    use: NetworkUse,
    me: HostId,
    want: int,
    tried: Collection[HostId],
    name_of: Callable[[HostId], str],
) -> int:
    ip = f"{space.text(want)} of network {space.name}"
    reason = space.why_reserved(want)
    if reason is not None:
        raise BadRequest(f"{ip} cannot be given to an endpoint: it is {reason}", "choose another address")
    holders = use.holders.get(want)
    if holders:
        raise Conflict(f"{ip} is in use by endpoint {min(holders).hex()}", "choose another address")
    found = book.block_of(space.network, want)
    if found is None:
        raise _unowned(ip, space, book, want, name_of)
    owner, leaf = found
    if owner == me:
        if not book.valid(leaf.deed):
            raise Unconfirmed(ip, [leaf.deed])
        return want
    if leaf.depth >= DEED_DEPTH_MAX_ONE:
        raise Unavailable(
            f"{ip} is in a block of {name_of(owner)} that cannot be handed on again",
            f"attach on {name_of(owner)}, or choose another address",
        )
    if owner in tried:
        raise Unavailable(
            f"{ip} is in a block of {name_of(owner)}, which did not hand it on",
            f"bring {name_of(owner)} back, or choose another address",
        )
    raise NeedBlock(f"{ip} is in a block of {name_of(owner)}", space.network, [owner], exact=want, size=1)


def _unowned(
    ip: str, space: IndexSpace, book: DeedBook, want: int, name_of: Callable[[HostId], str]
) -> Unavailable:
    """Say why nobody may allocate an index."""
    for bad in book.quarantined(space.network):
        if bad.start <= want < bad.start + bad.size:
            first, second = (name_of(holder) for holder in bad.holders)
            return Unavailable(
                f"{ip} is quarantined: {name_of(bad.donor)} gave it to both {first} and {second}",
                f"choose another address; {name_of(bad.donor)} runs from old or cloned state",
            )
    return Unavailable(f"nobody is known to own {ip} yet", "retry once this host has heard from the others")


def _never_used(space: IndexSpace, owned: list[Block], use: NetworkUse) -> int | None:
    """Find the lowest index that was never used; first in space that cannot be handed on, so that what can be
    stays free for others."""
    for block in sorted(owned, key=lambda block: (-block.depth, block.start)):
        for index in range(*space.auto_part(block.start, block.end)):
            if index not in use.holders and index not in use.released and space.why_reserved(index) is None:
                return index
    return None


def _least_recently_released(space: IndexSpace, owned: list[Block], use: NetworkUse) -> int | None:
    """Find the index of own space that has been free for longest."""
    parts = [space.auto_part(block.start, block.end) for block in owned]
    free = (
        (at, index)
        for index, at in use.released.items()
        if index not in use.holders
        and space.why_reserved(index) is None
        and any(start <= index < end for start, end in parts)
    )
    return min(free, default=(0.0, None))[1]


def _exhausted(
    space: IndexSpace, book: DeedBook, others: list[Holding], name_of: Callable[[HostId], str]
) -> Unavailable:
    """Say who holds the free addresses, or that there are none."""
    if others:
        named = [f"{name_of(other.owner)} holds {other.free}" for other in others[:OWNERS_NAMED]]
        rest = len(others) - len(named)
        told = ", ".join(named) + (f", {rest} more hosts hold some" if rest else "")
        return Unavailable(
            f"no free address of network {space.name} in reach: {told}",
            f"bring {name_of(others[0].owner)} back, or remove endpoints here",
        )
    if next(book.blocks(space.network), None) is None:
        return Unavailable(
            f"nobody is known to own the addresses of network {space.name} yet",
            "retry once this host has heard from the others",
        )
    return Full(space.name, space.usable(*space.auto))


def holdings(space: IndexSpace, book: DeedBook, usage: Usage) -> list[Holding]:
    """Count what each owner has free in the automatic range; most givable first, then most free."""
    used = usage.of(space.network).used
    free: dict[HostId, int] = {}
    givable: dict[HostId, int] = {}
    for owner, block in book.blocks(space.network):
        if owner is not None:
            part = _free(space, used, *space.auto_part(block.start, block.end))
            free[owner] = free.get(owner, 0) + part
            givable[owner] = givable.get(owner, 0) + (part if block.depth < DEED_DEPTH_MAX else 0)
    found = [Holding(owner, free[owner], givable[owner]) for owner in free]
    return sorted(found, key=lambda holding: (-holding.givable, -holding.free, holding.owner))


def _free(space: IndexSpace, used: Sequence[int], start: int, end: int) -> int:
    """Count usable indices of a range that no endpoint has."""
    return space.usable(start, end) - count(used, start, end)


def low_water(space: IndexSpace, book: DeedBook, usage: Usage, me: HostId, now: float) -> bool:
    """Whether to ask for a block ahead of need: less than LOW_WATER of own automatic space can be given now.

    True where this host has none at all. A cooling index counts as taken: a host that replaces containers
    quickly needs room for those as well.
    """
    use = usage.of(space.network)
    parts = [space.auto_part(block.start, block.end) for block in book.owned(space.network, me)]
    usable = sum(space.usable(*part) for part in parts)
    cooling = sorted(i for i in use.released if i not in use.holders and use.cooling(i, now))
    reserved = [i for i in space.reserved if i in use.holders or use.cooling(i, now)]
    taken = sum(count(use.used, *part) + count(cooling, *part) for part in parts)
    free = usable - taken + sum(start <= i < end for i in reserved for start, end in parts)
    return free < usable * LOW_WATER or not usable


def blocks_view(space: IndexSpace, book: DeedBook, usage: Usage) -> list[BlockView]:
    """List one space as aligned prefixes with owner and free addresses, ascending."""
    used = usage.of(space.network).used
    runs: list[tuple[HostId | None, int, int]] = []
    for owner, block in book.blocks(space.network):
        start, end = space.part(block.start, block.end)
        if (
            runs and runs[-1][0] == owner and runs[-1][2] == start
        ):  # by another deed: one address came back, say
            runs[-1] = (owner, runs[-1][1], end)
        elif start < end:
            runs.append((owner, start, end))
    return [
        BlockView(
            space.block_text(start, size), owner, _free(space, used, start, start + size) if owner else 0
        )
        for owner, first, last in runs
        for start, size in aligned(first, last)
    ]
