"""Who owns what follows from the set of deeds alone: against an oracle that walks the rule index by index."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.model import NO_PARENT, Deed, Item, Kind, Version
from meshd.state.deeds import Block, DeedBook, deed_id, deed_item

NET, OTHER = b"N" * 16, b"O" * 16
A, B, C, D = (bytes([letter]) * 16 for letter in b"ABCD")
SIZE = 32
GENESIS = Deed(NET, 0, SIZE, A, A, NO_PARENT)


def child(parent, start, size, owner, donor=None):
    return Deed(parent.network, start, size, owner, parent.owner if donor is None else donor, deed_id(parent))


def book_of(*deeds):
    book = DeedBook()
    for deed in deeds:
        assert book.add(deed_item(deed))
    return book


def owners(book, network=NET):
    return [book.owner_of(network, index) for index in range(SIZE)]


def oracle(deeds, index, network=NET):
    """The rule as the module states it, by brute force: (owner or None, whether contradicted)."""
    legal = {
        NO_PARENT: [d for d in deeds if d.parent == NO_PARENT and d.donor == d.owner and d.start == 0 and d.network == network]
    }  # fmt: skip
    frontier = list(legal[NO_PARENT])
    while frontier:
        parent = frontier.pop()
        legal[deed_id(parent)] = [
            d
            for d in deeds
            if d.parent == deed_id(parent)
            and d.network == parent.network
            and d.donor == parent.owner
            and parent.start <= d.start
            and d.start + d.size <= parent.start + parent.size
        ]
        frontier += legal[deed_id(parent)]
    here, owner = NO_PARENT, None
    while covering := [d for d in legal[here] if d.start <= index < d.start + d.size]:
        if len(covering) > 1:
            return None, True
        here, owner = deed_id(covering[0]), covering[0].owner
    return owner, False


@st.composite
def deed_sets(draw):
    """Up to a dozen deeds, most of them right; some from the wrong donor, outside, overlapping or orphaned."""
    made = [GENESIS]
    if draw(st.integers(0, 9)) == 0:
        made.append(Deed(NET, 0, SIZE, B, B, NO_PARENT))
    for _ in range(draw(st.integers(0, 11))):
        parent = draw(st.sampled_from(made))
        start, size = draw(st.integers(0, SIZE - 1)), draw(st.integers(1, 8))
        wrong = draw(st.integers(0, 9)) == 0
        donor = draw(st.sampled_from([A, B, C])) if wrong else parent.owner
        if not wrong:
            start = parent.start + start % parent.size
            size = min(size, parent.start + parent.size - start)
        made.append(child(parent, start, size, draw(st.sampled_from([A, B, C, D])), donor))
    missing = draw(st.integers(0, len(made)))
    return [deed for at, deed in enumerate(dict.fromkeys(made)) if at != missing]


@given(deed_sets(), st.randoms(use_true_random=False))
def test_books_that_saw_all_deeds_agree_in_whatever_order_they_came(deeds, rng):
    expected = [oracle(deeds, index) for index in range(SIZE)]
    for _ in range(2):
        order = [*deeds, *(d for d in deeds if rng.random() < 0.3)]
        rng.shuffle(order)
        book = book_of(*order)
        assert owners(book) == [owner for owner, _ in expected]
        quarantined = {i for q in book.quarantined(NET) for i in range(q.start, q.start + q.size)}
        reached = {index for index, (_, contradicted) in enumerate(expected) if contradicted}
        assert reached <= quarantined
        assert all(book.owner_of(NET, index) is None for index in quarantined)
        owned = [
            (i, host) for host in (A, B, C, D) for b in book.owned(NET, host) for i in range(b.start, b.end)
        ]
        assert sorted(owned) == [(index, owner) for index, (owner, _) in enumerate(expected) if owner]
        assert len(book) == len(deeds)


@given(deed_sets(), st.randoms(use_true_random=False))
def test_what_is_invalid_does_not_depend_on_the_order(deeds, rng):
    first = book_of(*deeds).invalid
    rng.shuffle(deeds)
    assert book_of(*deeds).invalid == first


def test_blocks_list_all_space_once_with_owner_and_depth():
    to_b = child(GENESIS, 8, 8, B)
    book = book_of(GENESIS, to_b, child(to_b, 12, 4, C))
    assert [(owner, block.start, block.size, block.depth) for owner, block in book.blocks(NET)] == [
        (A, 0, 8, 0),
        (B, 8, 4, 1),
        (C, 12, 4, 2),
        (A, 16, 16, 0),
    ]
    assert book.owned(NET, A) == [Block(0, 8, deed_id(GENESIS), 0), Block(16, 16, deed_id(GENESIS), 0)]
    assert book.block_of(NET, 9) == (B, Block(9, 1, deed_id(to_b), 1))
    assert book.held_by(NET, B) == [(deed_id(to_b), to_b)]


def test_a_deed_without_its_parent_counts_for_nobody_until_the_parent_is_there():
    to_b = child(GENESIS, 0, 16, B)
    to_c = child(to_b, 0, 8, C)
    book = book_of(to_c, to_b)
    assert owners(book) == [None] * SIZE
    assert list(book.blocks(NET)) == []
    assert book.owned(NET, C) == []
    assert book.invalid == {}
    book.add(deed_item(GENESIS))
    assert owners(book) == [C] * 8 + [B] * 8 + [A] * 16


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (child(GENESIS, 24, 16, B), "outside its parent"),
        (child(GENESIS, 0, 8, B, donor=C), "its donor does not own the parent"),
        (msgspec.structs.replace(child(GENESIS, 0, 8, B), network=OTHER), "its parent is of another network"),
        (Deed(OTHER, 0, 8, B, A, NO_PARENT), "genesis by another than the creator"),
        (Deed(OTHER, 8, 8, A, A, NO_PARENT), "genesis by another than the creator"),
    ],
)
def test_a_deed_that_cannot_be_right_is_kept_and_reported_but_counts_for_nobody(bad, why):
    grandchild = child(bad, bad.start, 1, D)
    book = book_of(grandchild, bad, GENESIS)
    assert owners(book) == [A] * SIZE
    assert owners(book, OTHER) == [None] * SIZE
    assert book.invalid == {deed_id(bad): why, deed_id(grandchild): "its parent is invalid"}
    assert book.deed(deed_id(bad)) == bad


def test_an_item_whose_id_is_not_its_hash_is_refused():
    book = DeedBook()
    good = deed_item(GENESIS)
    assert not book.add(msgspec.structs.replace(good, id=bytes(16)))
    assert not book.add(msgspec.structs.replace(good, kind=Kind.NETWORK))
    assert not book.add(msgspec.structs.replace(good, dead=True))
    assert not book.add(msgspec.structs.replace(good, body=None))
    assert len(book) == 0
    assert book.add(good)
    assert not book.add(msgspec.structs.replace(good, body=child(GENESIS, 0, 1, B)))
    assert owners(book) == [A] * SIZE


@pytest.mark.parametrize(
    "malformed",
    [
        Deed(NET, 0, 0, A, A, NO_PARENT),
        Deed(NET, 0, 2**63, A, A, NO_PARENT),
        Deed(NET, -1, 8, A, A, NO_PARENT),
        Deed(NET, 0, 8, A[:15], A[:15], NO_PARENT),
        Deed(NET, 0, 8, A, A, NO_PARENT, (B[:3],)),
    ],
)
def test_a_malformed_deed_is_refused_before_it_is_hashed(malformed):
    assert not DeedBook().add(Item(Kind.DEED, bytes(16), Version(0, 0, bytes(16)), malformed))


def test_every_field_is_in_the_hash():
    variants = [
        GENESIS,
        msgspec.structs.replace(GENESIS, network=OTHER),
        msgspec.structs.replace(GENESIS, start=1),
        msgspec.structs.replace(GENESIS, size=1),
        msgspec.structs.replace(GENESIS, owner=B),
        msgspec.structs.replace(GENESIS, donor=B),
        msgspec.structs.replace(GENESIS, parent=B),
        msgspec.structs.replace(GENESIS, heirs=(B,)),
        msgspec.structs.replace(GENESIS, heirs=(B, C)),
        msgspec.structs.replace(GENESIS, heirs=(C, B)),
    ]
    assert len({deed_id(deed) for deed in variants}) == len(variants)


def test_the_hash_of_a_deed_is_fixed_for_all_versions():
    """A changed encoding would make every deed on disk and in the cluster void."""
    assert deed_id(GENESIS).hex() == "fe75b5f9a98cdf5893e488465dc579aa"


def test_overlapping_children_of_one_parent_are_quarantined_and_the_rest_stays_theirs():
    to_b, to_c = child(GENESIS, 0, 8, B), child(GENESIS, 4, 8, C)
    book = book_of(GENESIS, to_b, to_c)
    assert owners(book) == [B] * 4 + [None] * 4 + [C] * 4 + [A] * 20
    (found,) = book.quarantined(NET)
    assert (found.start, found.size, found.donor) == (4, 4, A)
    assert dict(zip(found.deeds, found.holders, strict=True)) == {deed_id(to_b): B, deed_id(to_c): C}
    assert (None, 4, 4) in [(owner, block.start, block.size) for owner, block in book.blocks(NET)]


def test_what_was_handed_on_from_a_contradicted_block_is_quarantined_too():
    to_b, to_c = child(GENESIS, 0, 8, B), child(GENESIS, 0, 8, C)
    book = book_of(GENESIS, to_b, child(to_b, 0, 4, D), to_c)
    assert owners(book) == [None] * 8 + [A] * 24
    assert book.owned(NET, D) == []


def test_two_genesis_deeds_of_one_network_quarantine_all_they_share():
    book = book_of(GENESIS, Deed(NET, 0, 16, B, B, NO_PARENT))
    assert owners(book) == [None] * 16 + [A] * 16


def test_networks_do_not_touch_each_other():
    book = book_of(GENESIS, Deed(OTHER, 0, 8, B, B, NO_PARENT))
    assert book.owned(OTHER, B)[0].size == 8
    assert owners(book) == [A] * SIZE
    assert book.quarantined(NET) == book.quarantined(OTHER) == []


def test_space_handed_back_is_the_donors_again():
    to_b = child(GENESIS, 0, 16, B)
    book = book_of(GENESIS, to_b, child(to_b, 8, 8, A))
    assert owners(book) == [B] * 8 + [A] * 24
