"""How space is dealt out at creation and handed on later."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import DEED_DEPTH_MAX_ONE
from meshd.errors import Unavailable
from meshd.model import NO_PARENT, Deed, Network, Subnet
from meshd.state.addresses import choose
from meshd.state.blocks import block_size, deal, genesis, hand_on
from meshd.state.confirm import Unconfirmed
from meshd.state.deeds import DeedBook, deed_item
from meshd.state.layout import Layout
from meshd.state.usage import Usage

NET = b"N" * 16
A, B, C, D = (bytes([letter]) * 16 for letter in b"ABCD")


def space(cidr="10.1.0.0/20", **fields):
    gateway = cidr.replace(".0/", ".1/").partition("/")[0]
    return Layout.build(NET, Network("blue", "overlay", (Subnet(cidr, gateway),), **fields)).spaces[0]


def book_of(*items):
    book = DeedBook()
    for item in items:
        assert book.add(item)
    return book


def spans(items):
    return [(item.body.owner, item.body.start, item.body.size) for item in items]


def hosts(count):
    return [bytes([n, 1]) * 8 for n in range(count)]


def test_genesis_gives_the_pool_to_the_creator_and_names_two_other_live_hosts():
    deed = genesis(NET, 256, A, [A, B, C, D]).body
    assert (deed.start, deed.size, deed.owner, deed.donor, deed.parent) == (0, 256, A, A, NO_PARENT)
    assert len(set(deed.heirs)) == 2
    assert A not in deed.heirs
    assert deed.heirs == genesis(NET, 256, A, [D, C, B, A, B]).body.heirs


def test_a_lone_creator_has_no_heirs():
    assert genesis(NET, 256, A, [A]).body.heirs == ()


def test_heirs_differ_between_networks():
    drawn = {genesis(bytes([n]) * 16, 256, A, hosts(20)).body.heirs for n in range(20)}
    assert len(drawn) > 10


@pytest.mark.parametrize(
    ("cidr", "fields", "others", "expected"),
    [
        ("10.1.0.0/20", {}, 1, [(2048, 2048)]),
        ("10.1.0.0/20", {}, 2, [(3072, 1024), (2048, 1024)]),
        ("10.1.0.0/20", {}, 3, [(3584, 512), (3072, 512), (2560, 512)]),
        ("10.1.0.0/24", {"ip_range": ("10.1.0.64/26",)}, 2, [(112, 16), (96, 16)]),
        ("10.1.0.0/30", {}, 1, [(2, 2)]),
        ("10.1.0.0/29", {}, 4, [(6, 1), (5, 1), (4, 1)]),  # 7 is the broadcast address
        ("10.1.0.0/29", {}, 5, []),
        ("10.1.0.0/20", {}, 0, []),
    ],
)
def test_half_the_range_is_dealt_in_equal_aligned_chunks(cidr, fields, others, expected):
    first = genesis(NET, space(cidr).size, A, [A])
    dealt = deal(first, space(cidr, **fields), [A, *hosts(others)])
    assert [(start, size) for _, start, size in spans(dealt)] == expected
    assert [host for host, _, _ in spans(dealt)] == hosts(others)[: len(expected)]
    assert {item.body.parent for item in dealt} <= {first.id}
    book = book_of(first, *dealt)
    assert not book.invalid
    assert not book.quarantined(NET)


@given(st.integers(2, 16), st.integers(0, 300))
def test_a_deal_never_exceeds_half_and_never_overlaps(bits, count):
    subnet = space(f"10.1.0.0/{32 - bits}")
    first = genesis(NET, subnet.size, A, [])
    dealt = deal(first, subnet, hosts(min(count, 256)))
    book = book_of(first, *dealt)
    assert not book.quarantined(NET)
    assert sum(item.body.size for item in dealt) <= subnet.size // 2
    assert all(subnet.usable(i.body.start, i.body.start + i.body.size) for i in dealt)


@pytest.mark.parametrize(
    ("cidr", "live", "size"),
    [("10.1.0.0/16", 3, 64), ("10.1.0.0/20", 3, 64), ("10.1.0.0/24", 3, 8), ("10.1.0.0/29", 3, 1), ("10.1.0.0/20", 0, 64)],
)  # fmt: skip
def test_a_first_block_is_a_share_of_the_pool_and_at_most_a_26(cidr, live, size):
    assert block_size(DeedBook(), space(cidr), B, live) == size


def test_blocks_double_with_demand_and_single_addresses_are_no_demand():
    subnet, book = space("10.1.0.0/16"), book_of(genesis(NET, 65536, A, []))
    given_ = []
    busy = set()
    for _ in range(4):
        (item,) = hand_on(book, subnet, A, B, busy=busy, live=3)
        book.add(item)
        given_.append(item.body.size)
        busy.add(item.body.start)  # B has begun to use it
        book.add(hand_on(book, subnet, A, B, exact=1000 + len(given_), busy=busy, live=3)[0])
    assert given_ == [64, 128, 256, 512]


def test_an_owner_keeps_at_least_half_of_what_it_has_free():
    subnet, book = space("10.1.0.0/28"), book_of(genesis(NET, 16, A, []))
    book.add(deed_item(Deed(NET, 8, 8, B, A, genesis(NET, 16, A, []).id)))
    (item,) = hand_on(book, subnet, B, C, size=8, busy=(), live=1)
    assert item.body.size == 2
    (item,) = hand_on(book, subnet, B, C, size=1, busy=(), live=1)
    assert item.body.size == 1


def test_the_last_free_address_is_handed_on():
    subnet, book = space("10.1.0.0/29"), book_of(genesis(NET, 8, A, []))
    (item,) = hand_on(book, subnet, A, B, busy={2, 3, 4, 6}, live=3)
    assert spans([item]) == [(B, 5, 1)]


def test_a_block_is_cut_around_used_addresses_from_the_tightest_gap():
    subnet, book = space("10.1.0.0/24"), book_of(genesis(NET, 256, A, []))
    busy = {index for index in range(256) if not (32 <= index < 42 or 128 <= index < 200)}
    (item,) = hand_on(book, subnet, A, B, busy=busy, live=4)
    assert spans([item]) == [(B, 32, 8)]


def test_a_block_comes_from_within_the_ip_range():
    subnet, book = space("10.1.0.0/24", ip_range=("10.1.0.64/26",)), book_of(genesis(NET, 256, A, []))
    (item,) = hand_on(book, subnet, A, B, busy=(), live=1)
    assert spans([item]) == [(B, 120, 8)]
    with pytest.raises(Unavailable):
        hand_on(book, subnet, A, B, busy=set(range(64, 128)), live=1)


@given(st.sets(st.integers(0, 63)), st.integers(1, 9), st.integers(0, 64))
def test_a_hand_on_is_aligned_and_never_holds_a_busy_or_reserved_index(busy, live, size):
    subnet, book = space("10.1.0.0/26"), book_of(genesis(NET, 64, A, []))
    free = set(range(64)) - busy - set(subnet.reserved)
    try:
        (item,) = hand_on(book, subnet, A, B, size=size, busy=busy, live=live)
    except Unavailable:
        assert not free
        return
    deed = item.body
    assert set(range(deed.start, deed.start + deed.size)) <= free
    assert deed.start % deed.size == 0
    assert deed.size & (deed.size - 1) == 0
    assert deed.size <= max(1, len(free) // 2, 1)
    assert not size or deed.size <= size
    book.add(item)
    assert book.owner_of(NET, deed.start) == B


def test_asked_again_the_same_unused_block_is_named_again():
    subnet, book = space(), book_of(genesis(NET, 4096, A, []))
    first = hand_on(book, subnet, A, B, busy=(), live=3)
    book.add(first[0])
    assert hand_on(book, subnet, A, B, busy=(), live=3) == first
    assert hand_on(book, subnet, A, B, busy={first[0].body.start}, live=3) != first
    assert hand_on(book, subnet, A, C, busy=(), live=3) != first


def test_a_block_whose_receiver_has_handed_some_on_is_not_named_again():
    subnet, book = space(), book_of(genesis(NET, 4096, A, []))
    (first,) = hand_on(book, subnet, A, B, busy=(), live=3)
    book.add(first)
    (second,) = hand_on(book, subnet, B, C, busy=(), live=3)
    book.add(second)
    assert hand_on(book, subnet, A, B, busy=(), live=3) != [first]


def test_exactly_one_address_is_handed_on_and_asking_again_names_the_same_deed():
    subnet, book = space(), book_of(genesis(NET, 4096, A, []))
    (item,) = hand_on(book, subnet, A, B, exact=77, busy={76, 78}, live=3)
    assert spans([item]) == [(B, 77, 1)]
    book.add(item)
    assert hand_on(book, subnet, A, B, exact=77, busy={77}, live=3) == [item]


def moved(book, me, to, alive):
    """Hand one address on as often as it takes until ``to`` has it; return how many deeds that took."""
    for deeds in range(1, 10):
        (item,) = hand_on(book, space(), me, to, exact=77, busy=(), live=4, alive=alive)
        again = hand_on(book, space(), me, item.body.owner, exact=77, busy=(), live=4, alive=alive)
        assert book.add(item)
        book.confirm(item.id)
        assert again == [item]
        me = item.body.owner
        if me == to:
            return deeds
    raise AssertionError("it never arrived")


def test_one_address_may_move_among_all_hosts_for_ever_and_its_chain_stays_at_two():
    book = book_of(genesis(NET, 4096, A, []))
    book.add(deed_item(Deed(NET, 64, 64, B, A, book.held_by(NET, A)[0][0])))
    at, took = B, []
    for to in [C, D, C, B, A, D, B, *([C, D] * 100)]:
        took.append(moved(book, at, to, alive={A, B, C, D}))
        at = to
        owner, leaf = book.block_of(NET, 77)
        assert (owner, leaf.depth <= 2) == (to, True)
        assert len(book.chain(leaf.deed)) == leaf.depth + 1
    assert took[:4] == [1, 2, 2, 1], "by way of the block's owner, which takes it back first"


def test_where_the_blocks_owner_is_not_alive_the_next_one_up_takes_it_back_or_else_the_chain_grows():
    book = book_of(genesis(NET, 4096, A, []))
    book.add(deed_item(Deed(NET, 64, 64, B, A, book.held_by(NET, A)[0][0])))
    moved(book, B, C, alive={A, B, C})
    (back,) = hand_on(book, space(), C, D, exact=77, busy=(), live=3, alive={A, C, D})
    assert back.body.owner == A
    (on,) = hand_on(book, space(), C, D, exact=77, busy=(), live=2, alive={C, D})
    assert on.body.owner == D
    book.add(on)
    assert book.block_of(NET, 77)[1].depth == 3
    assert book.witnesses(on.id) == {A, B}


def test_a_chain_of_hosts_that_are_all_gone_ends_at_its_limit():
    book = book_of(genesis(NET, 4096, A, []))
    at = A
    for number in range(DEED_DEPTH_MAX_ONE):
        to = bytes([1, number]) * 8
        (item,) = hand_on(book, space(), at, to, exact=77, busy=(), live=1)
        book.add(item)
        book.confirm(item.id)
        at = to
    with pytest.raises(Unavailable, match="was handed on 64 times"):
        hand_on(book, space(), at, B, exact=77, busy=(), live=1)
    with pytest.raises(Unavailable, match="that cannot be handed on again"):
        choose(space(), book, Usage(), B, 0.0, want=77)


def test_space_that_is_not_confirmed_is_not_handed_on():
    first = genesis(NET, 4096, A, [C, D])
    dealt = deed_item(Deed(NET, 1024, 1024, B, A, first.id))
    book = book_of(first, dealt)
    for exact in (None, 1100):
        with pytest.raises(Unconfirmed) as caught:
            hand_on(book, space(), B, C, exact=exact, busy=(), live=3)
        assert caught.value.deeds == {dealt.id}
    book.confirm(dealt.id)
    assert hand_on(book, space(), B, C, busy=(), live=3)


def test_an_exact_block_may_lie_outside_the_ip_range():
    subnet, book = space("10.1.0.0/24", ip_range=("10.1.0.64/26",)), book_of(genesis(NET, 256, A, []))
    assert spans(hand_on(book, subnet, A, B, exact=9, size=3, busy=(), live=1)) == [(B, 9, 3)]


def deep_book():
    first = genesis(NET, 4096, A, [])
    to_b = deed_item(Deed(NET, 1024, 1024, B, A, first.id))
    to_c = deed_item(Deed(NET, 1024, 512, C, B, to_b.id))
    return book_of(first, to_b, to_c)


@pytest.mark.parametrize(
    ("me", "args", "busy", "line"),
    [
        (A, {"exact": 5}, {5}, "10.1.0.5 of network blue is in use or was just released"),
        (A, {"exact": 4, "size": 4}, {6}, "10.1.0.6 of network blue is in use or was just released"),
        (A, {"exact": 1}, (), "10.1.0.1 of network blue is reserved: the gateway"),
        (A, {"exact": 1030}, (), "10.1.4.6 of network blue is not this host's to hand on"),
        (
            A,
            {"exact": 1020, "size": 8},
            (),
            "10.1.3.252 to 10.1.4.3 of network blue is not this host's to hand on",
        ),
        (A, {"exact": 4096}, (), "10.1.16.0 of network blue is not this host's to hand on"),
        (
            C,
            {"exact": 1030, "size": 2},
            (),
            "10.1.4.6 to 10.1.4.7 of network blue was handed on 2 times and stays where it is",
        ),
        (C, {}, (), "this host's addresses of network blue were handed on 2 times and stay here"),
        (D, {}, (), "this host owns no address of network blue"),
        (A, {}, range(4096), "this host has no free address of network blue to hand on"),
    ],
)
def test_what_cannot_be_handed_on_is_refused_with_the_reason(me, args, busy, line):
    with pytest.raises(Unavailable) as caught:
        hand_on(deep_book(), space(), me, b"Z" * 16, busy=busy, live=3, **args)
    assert caught.value.what == line


def test_the_chain_grows_to_two_and_prefers_space_that_can_be_handed_on_in_turn():
    book = deep_book()
    (item,) = hand_on(book, space(), B, D, busy=(), live=3)
    assert book.deed(item.body.parent).owner == B
