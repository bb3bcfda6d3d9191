"""Decides how a network's space is first dealt out and how an owner hands part of it on: how large a block, and
which. Only the owner may call these about its own space. Knows deeds and which indices are busy; must not know
endpoints, time or how a deed travels.

Never twice: the caller puts the deeds it gets into its own book *before* it awaits anything (so that no
allocation of its own can slip in), journals them, and only then sends them.
"""

import hashlib
from collections.abc import Collection, Sequence

import msgspec

from meshd.config import BLOCK_MAX_FIRST, BLOCK_SHARE, DEAL_SHARE, DEED_DEPTH_MAX, DEED_DEPTH_MAX_ONE
from meshd.errors import Unavailable
from meshd.model import NO_PARENT, Deed, HostId, Item, NetworkId
from meshd.state.confirm import Unconfirmed
from meshd.state.deeds import Block, DeedBook, deed_item
from meshd.state.layout import IndexSpace
from meshd.state.spans import gaps, highest_aligned, power_below

HEIRS = 2  # as many as Deed.heirs may hold


class _Choice(msgspec.Struct, frozen=True):
    """A block that could be handed on, and the leaf block and the gap in it that it is cut from."""

    start: int
    size: int
    leaf: Block
    gap: int

    @property
    def merit(self) -> tuple[int, int, int, int]:
        """Higher is better: large; from a deed high in the chain, so that the receiver can hand on in turn;
        from a tight gap, so that the donor keeps its largest remainder whole; high, since owners allocate
        from below."""
        return self.size, -self.leaf.depth, -self.gap, self.start


def genesis(network_id: NetworkId, size: int, creator: HostId, live_hosts: Sequence[HostId]) -> Item:
    """Make the deed that comes with a network: its creator owns ``[0, size)``.

    Up to two live hosts other than the creator are named heirs, chosen by hash (highest random weight, Thaler
    and Ravishankar 1998) so that no host is heir to every network.
    """

    def weight(host: HostId) -> bytes:
        return hashlib.blake2b(network_id + host, digest_size=16, person=b"meshd heir").digest()

    heirs = sorted({*live_hosts} - {creator}, key=weight)[:HEIRS]
    return deed_item(Deed(network_id, 0, size, creator, creator, NO_PARENT, tuple(heirs)))


def deal(genesis_item: Item, space: IndexSpace, hosts: Sequence[HostId]) -> list[Item]:
    """Deal DEAL_SHARE of a new network's automatic range to the live hosts, so that the first attach anywhere
    waits for nobody and the creator's loss strands little.

    Equal aligned chunks from the top of the range, at most one a host, none without a usable index; the
    creator, if among ``hosts``, keeps the rest. Empty where a chunk would be less than one index.
    """
    deed = genesis_item.body
    if not isinstance(deed, Deed):
        raise TypeError("deal takes the item that genesis made")
    others = [host for host in dict.fromkeys(hosts) if host != deed.owner]
    low, high = space.auto
    share = int((high - low) * DEAL_SHARE)
    chunk = power_below(share // len(others)) if others else 0
    if not chunk:
        return []
    starts = [at for at in range(high - chunk, high - share - 1, -chunk) if space.usable(at, at + chunk)]
    return [
        deed_item(Deed(deed.network, start, chunk, host, deed.owner, genesis_item.id))
        for host, start in zip(others, starts, strict=False)
    ]


def block_size(book: DeedBook, space: IndexSpace, to: HostId, live: int) -> int:
    """Size the next block for ``to``: min(BLOCK_MAX_FIRST, pool / (BLOCK_SHARE * live)), doubled for every block
    it was given before (one-address deeds say nothing about demand). A power of two, at least 1."""
    pool = space.auto[1] - space.auto[0]
    first = max(1, min(BLOCK_MAX_FIRST, power_below(pool // (BLOCK_SHARE * max(1, live)))))
    given = sum(deed.parent != NO_PARENT and deed.size > 1 for _, deed in book.held_by(space.network, to))
    return min(first << min(given, 64), power_below(pool))


def hand_on(
    book: DeedBook,
    space: IndexSpace,
    me: HostId,
    to: HostId,
    *,
    size: int = 0,
    exact: int | None = None,
    busy: Collection[int],
    live: int,
    alive: Collection[HostId] = (),
) -> list[Item]:
    """Hand part of my space on to ``to``.

    ``exact``: hand on just ``[exact, exact + max(1, size))``. Otherwise a block of ``block_size``, of at most
    ``size`` (0: no limit) and at most half of what I have free, in the automatic range.
    ``busy``: every index in use or cooling down, as far as known; none is ever handed on.
    ``live``: how many hosts are alive; ``alive``: those that are known to be.

    One address that ``to`` cannot have from here without a chain of more than DEED_DEPTH_MAX is given back to an owner
    up the chain that is alive, who can hand it on: the deed returned is that owner's, and ``to`` asks it. So addresses
    may move for ever and their chains stay short. Asked again for what ``to`` was given and shows no use of (its answer was lost), gives
    the same deed. Raises Unavailable, Unconfirmed where it is only not usable yet; with nothing changed.
    """
    if exact is not None:
        return [_exactly(book, space, me, to, exact, exact + max(1, size), busy, alive)]
    unused = _given_and_unused(book, space, me, to, busy)
    if unused is not None:
        return [unused]
    barriers = sorted({*busy, *space.reserved})
    free: list[tuple[Block, int, int]] = []
    waiting: list[Block] = []
    for leaf in book.owned(space.network, me):
        found = [(leaf, *gap) for gap in gaps(*space.auto_part(leaf.start, leaf.end), barriers)]
        if leaf.depth < DEED_DEPTH_MAX and found and book.valid(leaf.deed):
            free += found
        elif leaf.depth < DEED_DEPTH_MAX and found:
            waiting.append(leaf)
    if not free and waiting:
        raise Unconfirmed(f"space of network {space.name}", [leaf.deed for leaf in waiting])
    if not free:
        raise Unavailable(_nothing_to_give(book, space, me), "ask another owner, or remove endpoints")
    spare = sum(end - start for _, start, end in free)
    most = max(1, min(block_size(book, space, to, live), size or spare, spare // 2))
    choices = [
        _Choice(*cut, leaf, end - start)
        for leaf, start, end in free
        if (cut := highest_aligned(start, end, most)) is not None
    ]
    best = max(choices, key=lambda choice: choice.merit)
    return [deed_item(Deed(space.network, best.start, best.size, to, me, best.leaf.deed))]


def _exactly(
    book: DeedBook,
    space: IndexSpace,
    me: HostId,
    to: HostId,
    start: int,
    end: int,
    busy: Collection[int],
    alive: Collection[HostId],
) -> Item:
    """Hand on exactly ``[start, end)``, or give it back."""
    what = space.text(start) if end - start == 1 else f"{space.text(start)} to {space.text(end - 1)}"
    whole = {(block.deed, block.size) for block in book.owned(space.network, to)}
    for key, deed in book.held_by(space.network, to):
        named = (deed.donor, deed.start, deed.start + deed.size) == (me, start, end)
        if named and deed.parent != NO_PARENT and (key, deed.size) in whole:  # else it has come back since
            return deed_item(deed)
    leaf = next((b for b in book.owned(space.network, me) if b.start <= start and end <= b.end), None)
    if leaf is None:
        raise Unavailable(f"{what} of network {space.name} is not this host's to hand on")
    chain = book.chain(leaf.deed)
    if to not in chain and leaf.depth >= DEED_DEPTH_MAX and end - start == 1:
        upward = [host for host in reversed(chain[:DEED_DEPTH_MAX]) if host in alive and host != me]
        to = upward[0] if upward else to
    most = DEED_DEPTH_MAX_ONE if end - start == 1 else DEED_DEPTH_MAX
    if leaf.depth >= most and to not in chain:
        raise Unavailable(f"{what} of network {space.name} was handed on {most} times and stays where it is")
    taken = min((index for index in busy if start <= index < end), default=None)
    if taken is not None:
        raise Unavailable(f"{space.text(taken)} of network {space.name} is in use or was just released")
    if not space.usable(start, end):
        raise Unavailable(f"{what} of network {space.name} is reserved: {space.why_reserved(start)}")
    if not book.valid(leaf.deed):
        raise Unconfirmed(f"{what} of network {space.name}", [leaf.deed])
    return deed_item(Deed(space.network, start, end - start, to, me, leaf.deed))


def _given_and_unused(
    book: DeedBook, space: IndexSpace, me: HostId, to: HostId, busy: Collection[int]
) -> Item | None:
    """Find a block that I gave to ``to``, still whole, without any busy index: ``to`` has not heard of it."""
    whole = {(block.deed, block.size) for block in book.owned(space.network, to)}
    for key, deed in book.held_by(space.network, to):
        if deed.donor == me and deed.parent != NO_PARENT and deed.size > 1 and (key, deed.size) in whole:
            start, end = deed.start, deed.start + deed.size
            auto = space.auto_part(start, end)
            if space.usable(*auto) and not any(start <= index < end for index in busy):
                return deed_item(deed)
    return None


def _nothing_to_give(book: DeedBook, space: IndexSpace, me: HostId) -> str:
    """Say why nothing can be handed on."""
    leaves = book.owned(space.network, me)
    if not leaves:
        return f"this host owns no address of network {space.name}"
    if all(leaf.depth >= DEED_DEPTH_MAX for leaf in leaves):
        return f"this host's addresses of network {space.name} were handed on {DEED_DEPTH_MAX} times and stay here"
    return f"this host has no free address of network {space.name} to hand on"
