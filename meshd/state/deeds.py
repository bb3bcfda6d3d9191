"""Decides who owns which indices of a network, from nothing but the set of deeds seen (design.md, section 6).
Deeds are immutable, named by their hash and merged by union, so every host that saw the same set decides the
same. Knows no addresses, no endpoints and no liveness: an owner stays the owner while it is dead.

The rule, for one index: start at the genesis deed; while exactly one child of the current deed covers the index,
go to that child; none: the current deed's owner has it; two or more: their donor gave one index away twice (its
state was rolled back or cloned), so nobody may allocate there. A deed that opens a subnet is no child of its parent in
this sense: it is the root of space of its own (state/opened.py), and two that open overlapping subnets contradict each
other in all of it.
"""

import enum
import hashlib
import itertools
from collections.abc import Iterator

import msgspec

from meshd.model import ID_BYTES, NO_PARENT, Deed, HostId, Item, Kind, NetworkId, Version
from meshd.state import opened
from meshd.state.spans import SPACE_END, SpanMap

DeedId = bytes
QUARANTINE: DeedId = b""
"""Stands in a span map where deeds contradict each other."""


class Block(msgspec.Struct, frozen=True):
    """Space that a deed's owner has and has not handed on: ``[start, start + size)``. ``depth``: 0 for genesis."""

    start: int
    size: int
    deed: DeedId
    depth: int

    @property
    def end(self) -> int:
        """The first index after the block."""
        return self.start + self.size


class Quarantine(msgspec.Struct, frozen=True):
    """Space that ``donor`` gave away twice: the two deeds (lower id first) and their owners."""

    start: int
    size: int
    donor: HostId
    deeds: tuple[DeedId, DeedId]
    holders: tuple[HostId, HostId]


class _Standing(enum.Enum):
    WAITING = enum.auto()  # an ancestor has not been seen yet
    HELD = enum.auto()
    INVALID = enum.auto()


def deed_id(deed: Deed) -> DeedId:
    """Hash a deed: 16 bytes of BLAKE2b over fixed-width fields, so that no two deeds share an encoding."""
    hashed = hashlib.blake2b(digest_size=ID_BYTES, person=b"meshd deed 1")
    for part in (deed.network, deed.owner, deed.donor, deed.parent, *deed.heirs):
        hashed.update(part)
    hashed.update(deed.start.to_bytes(8, "big") + deed.size.to_bytes(8, "big") + bytes([len(deed.heirs)]))
    for subnet in deed.opens:
        for text in (subnet.cidr.encode(), subnet.gateway.encode()):
            hashed.update(len(text).to_bytes(2, "big") + text)
        hashed.update(subnet.start.to_bytes(8, "big"))
    return hashed.digest()


def deed_item(deed: Deed) -> Item:
    """Wrap a deed as the item that is stored and gossiped."""
    return Item(Kind.DEED, deed_id(deed), Version(0, 0, bytes(ID_BYTES)), deed)


def _well_formed(deed: Deed) -> bool:
    """Whether the fields are what ``deed_id`` may rely on."""
    ids = (deed.network, deed.owner, deed.donor, deed.parent, *deed.heirs)
    return (
        all(len(part) == ID_BYTES for part in ids)
        and deed.start >= 0 < deed.size <= SPACE_END // 2 - deed.start
    )


class _Ground:
    """One network's space: which deed each index is held by, and whose deeds those are."""

    def __init__(self) -> None:
        self.spans = SpanMap(NO_PARENT)
        self.by_owner: dict[HostId, list[DeedId]] = {}
        self.chain: dict[DeedId, tuple[HostId, ...]] = {}  # owners from the creator down to the deed's own
        self.heirs: set[HostId] = set()
        self.contradicted = False
        self.owned: dict[HostId, list[Block]] = {}
        self.roots: dict[
            DeedId, int
        ] = {}  # the genesis deed and those that open a subnet: how many came before it

    def hold(self, key: DeedId, deed: Deed) -> None:
        """Cut a deed out of its parent. Its own children come later, whatever order they were seen in."""

        root = deed.parent == NO_PARENT or bool(deed.opens)
        of = NO_PARENT if root else deed.parent

        def cut(held: DeedId) -> DeedId:
            if held == of:
                return key
            self.contradicted = True
            return QUARANTINE

        if root:
            self.roots[key] = self.roots.get(deed.parent, -1) + 1
        self.heirs.update(deed.heirs)
        self.chain[key] = (deed.owner,) if root else _lengthened(self.chain[deed.parent], deed.owner)
        self.by_owner.setdefault(deed.owner, []).append(key)
        self.spans.change(deed.start, deed.start + deed.size, cut)
        self.owned.clear()

    def bar(self, deed: Deed) -> None:
        """Give the whole space of a deed to nobody."""
        self.contradicted = True
        self.spans.change(deed.start, deed.start + deed.size, lambda _: QUARANTINE)
        self.owned.clear()


def _lengthened(chain: tuple[HostId, ...], owner: HostId) -> tuple[HostId, ...]:
    """Add an owner to a chain. Space that comes back to one who had it is as it was then: what lay between is undone."""
    return (*chain[: chain.index(owner)], owner) if owner in chain else (*chain, owner)


class DeedBook:
    """Every deed seen, and what follows from them. ``add`` costs O(log n) of its own network's deeds."""

    def __init__(self) -> None:
        self._deeds: dict[DeedId, Deed] = {}
        self._children: dict[DeedId, list[DeedId]] = {}
        self._standing: dict[DeedId, _Standing] = {}
        self._grounds: dict[NetworkId, _Ground] = {}
        self.invalid: dict[DeedId, str] = {}
        """Deeds that are kept but count for nobody, with the reason."""
        self.confirmed: set[DeedId] = set()
        """Deeds of this host's that all witnesses have (state/confirm.py)."""

    def __len__(self) -> int:
        return len(self._deeds)

    def add(self, item: Item) -> bool:
        """Take a DEED item, in any order and any number of times. False, and nothing changed, where it is no
        deed or its id is not its hash."""
        deed = item.body
        if item.kind != Kind.DEED or item.dead or not isinstance(deed, Deed) or not _well_formed(deed):
            return False
        if item.id in self._deeds:
            return self._deeds[item.id] == deed
        if deed_id(deed) != item.id:
            return False
        self._deeds[item.id] = deed
        self._standing[item.id] = _Standing.WAITING
        self._children.setdefault(deed.parent, []).append(item.id)
        self._settle(item.id)
        return True

    def _settle(self, first: DeedId) -> None:
        """Decide a deed, then all that waited for it, parents before children."""
        undecided = [first]
        while undecided:
            key = undecided.pop()
            deed = self._deeds[key]
            why = self._fault(deed)
            if why is None:
                continue
            if why:
                self._standing[key] = _Standing.INVALID
                self.invalid[key] = why
            else:
                self._standing[key] = _Standing.HELD
                self._hold(key, deed)
            undecided.extend(self._children.get(key, ()))

    def _hold(self, key: DeedId, deed: Deed) -> None:
        ground = self._grounds.setdefault(deed.network, _Ground())
        others = [self._deeds[root] for root in ground.roots] if deed.opens else []
        rivals = [other for other in others if opened.overlap(deed, other)]
        ground.hold(key, deed)
        for each in (deed, *rivals) if rivals else ():
            ground.bar(each)

    def _fault(self, deed: Deed) -> str | None:
        """Say what is wrong with a deed: "" nothing, None not yet known."""
        if deed.parent == NO_PARENT:
            sound = deed.donor == deed.owner and deed.start == 0 and not deed.opens
            return "" if sound else "genesis by another than the creator"
        parent = self._deeds.get(deed.parent)
        if parent is None or self._standing[deed.parent] is _Standing.WAITING:
            return None
        if self._standing[deed.parent] is _Standing.INVALID:
            return "its parent is invalid"
        if deed.network != parent.network:
            return "its parent is of another network"
        if deed.opens:
            return opened.fault(deed, parent, of_root=bool(parent.opens) or parent.parent == NO_PARENT)
        faults = (
            (deed.donor != parent.owner, "its donor does not own the parent"),
            (deed.start < parent.start, "outside its parent"),
            (deed.start + deed.size > parent.start + parent.size, "outside its parent"),
        )
        return next((why for wrong, why in faults if wrong), "")

    def deed(self, key: DeedId) -> Deed | None:
        """Give a deed by its id, whatever its standing."""
        return self._deeds.get(key)

    def held_by(self, network: NetworkId, host: HostId) -> list[tuple[DeedId, Deed]]:
        """Give the deeds in force whose owner is ``host``, whether it has handed their space on or not."""
        ground = self._grounds.get(network)
        return [(key, self._deeds[key]) for key in ground.by_owner.get(host, ())] if ground else []

    def held(self, key: DeedId) -> bool:
        """Whether a deed is in force, as far as is known: well-formed, and all its ancestors seen."""
        return self._standing.get(key) is _Standing.HELD

    def sound(self, key: DeedId) -> bool:
        """Whether a deed is in force and no other is known for any of its space by its donor."""
        if not self.held(key):
            return False
        deed = self._deeds[key]
        spans = self._grounds[deed.network].spans
        return all(of != QUARANTINE for _, _, of in spans.within(deed.start, deed.start + deed.size))

    def chain(self, key: DeedId) -> tuple[HostId, ...]:
        """Give the owners from the creator down to the deed's own, each once; nobody for a deed not in force."""
        deed = self._deeds.get(key)
        return self._grounds[deed.network].chain[key] if deed is not None and self.held(key) else ()

    def witnesses(self, key: DeedId) -> frozenset[HostId]:
        """Give the hosts that must have a deed on disk before its owner uses it: whoever the space may come back to.
        Nobody for a genesis deed; the donor had it on disk before anybody heard of it."""
        deed = self._deeds.get(key)
        if deed is None or deed.parent == NO_PARENT or not self.held(key):
            return frozenset()
        ground = self._grounds[deed.network]
        return frozenset(ground.heirs.union(ground.chain[deed.parent]) - {deed.donor, deed.owner})

    def confirm(self, key: DeedId) -> None:
        """All witnesses of a deed of this host's have it: what it gives may be used from now on."""
        self.confirmed.add(key)

    def valid(self, key: DeedId) -> bool:
        """Whether the owner of a deed, if it is this host, may use what it gives."""
        return key in self.confirmed or not self.witnesses(key)

    def opened(self, network: NetworkId) -> list[Deed]:
        """Give the deeds that have opened subnets of a network, in the order of their opening."""
        ground = self._grounds.get(network)
        ordered = sorted((number, key) for key, number in ground.roots.items()) if ground else []
        return [self._deeds[key] for _, key in ordered if self._deeds[key].opens]

    def last_root(self, network: NetworkId) -> tuple[DeedId, Deed] | None:
        """Give the deed that the next one which opens a subnet follows; None where no genesis deed is known."""
        ground = self._grounds.get(network)
        last = max(((number, key) for key, number in ground.roots.items()), default=None) if ground else None
        return None if last is None else (last[1], self._deeds[last[1]])

    def blocks(self, network: NetworkId) -> Iterator[tuple[HostId | None, Block]]:
        """Give all space in ascending order with its owner; None (deed b"", depth 0) where quarantined."""
        ground = self._grounds.get(network)
        for start, end, key in ground.spans.within(0, SPACE_END) if ground else ():
            if key == QUARANTINE:
                yield None, Block(start, end - start, key, 0)
            elif key != NO_PARENT and ground:
                yield self._deeds[key].owner, Block(start, end - start, key, len(ground.chain[key]) - 1)

    def owned(self, network: NetworkId, host: HostId) -> list[Block]:
        """Give the space that is ``host``'s, ascending; it may use what is of ``valid`` deeds."""
        ground = self._grounds.get(network)
        if ground is None:
            return []
        if host not in ground.owned:
            blocks = [
                Block(start, end - start, key, len(ground.chain[key]) - 1)
                for key in ground.by_owner.get(host, ())
                for deed in (self._deeds[key],)
                for start, end, held in ground.spans.within(deed.start, deed.start + deed.size)
                if held == key
            ]
            ground.owned[host] = sorted(blocks, key=lambda block: block.start)
        return list(ground.owned[host])

    def block_of(self, network: NetworkId, index: int) -> tuple[HostId, Block] | None:
        """Give the owner of an index and the deed's leaf block of one index there; None where nobody has it."""
        ground = self._grounds.get(network)
        key = ground.spans.at(index) if ground else NO_PARENT
        if ground is None or key in (NO_PARENT, QUARANTINE):
            return None
        return self._deeds[key].owner, Block(index, 1, key, len(ground.chain[key]) - 1)

    def owner_of(self, network: NetworkId, index: int) -> HostId | None:
        """Give the host that may allocate an index; None: not known yet, outside the pool or quarantined."""
        found = self.block_of(network, index)
        return found[0] if found else None

    def quarantined(self, network: NetworkId) -> list[Quarantine]:
        """Give every pair of deeds that contradict each other. Cheap where there are none."""
        ground = self._grounds.get(network)
        if ground is None or not ground.contradicted:
            return []
        families: dict[DeedId, list[DeedId]] = {}
        for key in ground.chain:
            root = key in ground.roots
            families.setdefault(NO_PARENT if root else self._deeds[key].parent, []).append(key)
        found = [pair for keys in families.values() for pair in self._contradictions(keys)]
        shown = {pair.deeds for pair in found}
        opening = sorted(key for key in ground.roots if self._deeds[key].opens)
        for first, second in itertools.combinations(opening, 2):
            one, other = self._deeds[first], self._deeds[second]
            if (first, second) not in shown and opened.overlap(one, other):
                pair = Quarantine(one.start, one.size, one.donor, (first, second), (one.owner, other.owner))
                found.append(pair)
        return found

    def _contradictions(self, siblings: list[DeedId]) -> Iterator[Quarantine]:
        ordered = sorted((self._deeds[key].start, key) for key in siblings)
        for at, (start, key) in enumerate(ordered):
            end = start + self._deeds[key].size
            for other_start, other in ordered[at + 1 :]:
                if other_start >= end:
                    break
                pair = (min(key, other), max(key, other))
                holders = (self._deeds[pair[0]].owner, self._deeds[pair[1]].owner)
                overlap = min(end, other_start + self._deeds[other].size) - other_start
                yield Quarantine(other_start, overlap, self._deeds[key].donor, pair, holders)
