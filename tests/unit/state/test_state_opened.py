"""Subnets that are added to a network: what may be added, who may add, and what two additions that contradict give."""

import ipaddress
import itertools

import msgspec
import pytest

from meshd.errors import BadRequest
from meshd.model import NO_PARENT, Deed, Network, Subnet
from meshd.state.blocks import deal, genesis
from meshd.state.deeds import DeedBook, deed_id, deed_item
from meshd.state.layout import Layout
from meshd.state.opened import V4_START, plan_opening, space_size, with_opened
from meshd.state.subnets import parse_subnets

NET = b"N" * 16
A, B, C = (bytes([letter]) * 16 for letter in b"ABC")
V4 = Subnet("10.1.0.0/24", "10.1.0.1")
V6 = Subnet("fd00:1::/64", "fd00:1::1")
GENESIS = Deed(NET, 0, 256, A, A, NO_PARENT)


def blue(*subnets, **fields):
    return Network("blue", "overlay", subnets or (V4,), **fields)


def plan(network, *texts, gateways=()):
    return plan_opening(NET, network, parse_subnets(texts, "add-subnet"), gateways)


def opening(*texts, after=GENESIS, network=None, owner=A, **changed):
    opens = plan(network or blue(), *texts)
    deed = Deed(NET, opens[0].start, space_size(opens), owner, owner, deed_id(after), opens=opens)
    return msgspec.structs.replace(deed, **changed)


def book_of(*deeds):
    book = DeedBook()
    for deed in deeds:
        assert book.add(deed_item(deed))
    return book


def owner(book, ip, network):
    return book.owner_of(NET, Layout.build(NET, network).index_of(ip))


def test_an_added_v4_subnet_is_a_space_of_its_own_and_shares_the_v6_one():
    network = blue(V4, V6)
    opens = plan(network, "10.2.0.0/24", gateways=("10.2.0.254",))
    start = V4_START + int(ipaddress.ip_address("10.2.0.0"))
    assert opens == (Subnet("10.2.0.0/24", "10.2.0.254", start),)
    layout = Layout.build(NET, with_opened(network, [Deed(NET, start, 256, A, A, NO_PARENT, opens=opens)]))
    assert [space.start for space in layout.spaces] == [0, start]
    assert layout.spaces[1].texts(start + 5) == ("10.2.0.5/24", "fd00:1::100:a02:5/64")
    assert layout.index_of("fd00:1::100:a02:5") == layout.index_of("10.2.0.5")


def test_a_pair_goes_together_and_a_v6_only_network_grows_by_v6():
    (four, six) = plan(blue(V4, V6), "fd00:2::/120", "10.2.0.0/24")
    assert (four.cidr, six.cidr) == ("10.2.0.0/24", "fd00:2::/120")
    assert four.start == six.start
    (alone,) = plan(blue(V6), "fd00:2::/64")
    assert alone.start % 2**24 == 0
    assert space_size((alone,)) == 65536


@pytest.mark.parametrize(
    ("network", "texts", "line"),
    [
        (blue(V4, V6), ("fd00:2::/64",), "subnet fd00:2::/64 would have no IPv4 addresses to go with it, as network blue has"),
        (blue(V4, Subnet("fd00:1::/120", "fd00:1::1")), ("10.2.0.0/24",), "subnet 10.2.0.0/24 would have no IPv6 addresses to go with it, as network blue has"),
        (blue(), ("10.2.0.0/24", "10.3.0.0/24"), "2 subnets at once (10.2.0.0/24, 10.3.0.0/24)"),
        (blue(), ("10.2.0.0/24", "fd00:2::/124"), "subnet fd00:2::/124 holds fewer addresses than 10.2.0.0/24"),
        (blue(*(Subnet(f"10.{n}.0.0/30", f"10.{n}.0.1", 4 * n) for n in range(16))), ("10.99.0.0/24",), "network blue has 16 subnets; at most 16"),
        (blue(), (), "no subnet was named"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_refused(network, texts, line):
    with pytest.raises(BadRequest) as caught:
        plan(network, *texts)
    assert caught.value.what == line


def test_a_deed_that_opens_a_subnet_gives_its_space_to_the_creator_to_hand_on():
    root = opening("10.2.0.0/24")
    network = with_opened(blue(), [root])
    space = Layout.build(NET, network).spaces[1]
    dealt = deal(deed_item(root), space, [A, B])
    book = book_of(GENESIS, root, *(item.body for item in dealt))
    assert (owner(book, "10.2.0.5", network), owner(book, "10.2.0.200", network)) == (A, B)
    assert owner(book, "10.1.0.5", network) == A
    assert [block.depth for block in book.owned(NET, A)] == [0, 0]
    assert [block.depth for block in book.owned(NET, B)] == [1]
    assert not book.quarantined(NET)


def test_added_subnets_stay_in_the_order_of_their_addition_whatever_order_their_deeds_came_in():
    first = opening("10.9.0.0/24")
    second = opening("10.2.0.0/24", after=first)
    third = opening("10.5.0.0/24", after=second)
    for order in itertools.permutations((GENESIS, first, second, third)):
        book = book_of(*order)
        assert book.opened(NET) == [first, second, third]
        assert book.last_root(NET) == (deed_id(third), third)
    assert book_of(first, second).opened(NET) == []
    assert book_of(first).last_root(NET) is None


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        (opening("10.2.0.0/24", owner=B), "opens a subnet without being the creator's"),
        (opening("10.2.0.0/24", owner=B, donor=A), "opens a subnet without being the creator's"),
        (opening("10.2.0.0/24", opens=(Subnet("ten", "10.2.0.1", 5),)), "opens what is no subnet"),
        (opening("10.2.0.0/24", opens=(Subnet("10.2.0.0/24", "10.3.0.1", 5),)), "its gateway is in another subnet"),
        (opening("10.2.0.0/24", start=0), "its space is not that of its subnets"),
        (opening("10.2.0.0/24", size=512), "its space is not that of its subnets"),
        (opening("10.2.0.0/24", opens=(Subnet("10.2.0.0/24", "10.2.0.1", 7),)), "its space is not that of its subnets"),
    ],
)  # fmt: skip
def test_a_deed_that_may_not_open_what_it_says_counts_for_nobody(deed, why):
    book = book_of(GENESIS, deed)
    assert book.invalid == {deed_id(deed): why}
    assert book.opened(NET) == []


def test_only_a_root_is_followed_by_a_deed_that_opens():
    dealt = Deed(NET, 128, 128, A, A, deed_id(GENESIS))
    book = book_of(GENESIS, dealt, opening("10.2.0.0/24", after=dealt))
    assert book.opened(NET) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("10.2.0.0/24",), ("10.2.0.0/23",)),
        (("10.2.0.0/24", "fd00:2::/64"), ("10.3.0.0/24", "fd00:2::/64")),
        (("10.2.0.0/24", "fd00:2::/48"), ("10.3.0.0/24", "fd00:2:0:1::/64")),
    ],
)
def test_overlapping_subnets_of_a_cloned_creator_are_given_to_nobody_and_named(one, other):
    """Whatever order the deeds came in, those that hand the space on included."""
    first, second = opening(*one), opening(*other)
    dealt = Deed(NET, first.start + 128, 64, B, A, deed_id(first))
    deeds = (GENESIS, first, second, dealt)
    for order in itertools.permutations(deeds):
        book = book_of(*order)
        for deed in (first, second):
            assert book.owner_of(NET, deed.start) is None
            assert book.owner_of(NET, deed.start + 130) is None
            assert book.owner_of(NET, deed.start + deed.size - 1) is None
        assert not book.owned(NET, B)
        assert book.owner_of(NET, 5) == A
        found = [
            each for each in book.quarantined(NET) if set(each.deeds) == {deed_id(first), deed_id(second)}
        ]
        assert [each.donor for each in found] == [A]


def test_other_subnets_of_a_creator_that_forgot_are_no_contradiction():
    book = book_of(GENESIS, opening("10.2.0.0/24"), opening("10.3.0.0/24"))
    assert len(book.opened(NET)) == 2
    assert not book.quarantined(NET)


def test_a_deed_that_opens_nothing_has_the_id_that_it_always_had():
    assert deed_id(GENESIS).hex() == "24f3e2ef9299c9cd1fd2713895869ae1"


def test_a_genesis_deed_covers_all_spaces_of_a_network_made_with_several_subnets():
    network = blue(V4, Subnet("10.2.0.0/25", "10.2.0.1", 256))
    layout = Layout.build(NET, network)
    root = genesis(NET, layout.end, A, [A, B])
    dealt = [item for space in layout.spaces for item in deal(root, space, [A, B])]
    book = book_of(root.body, *(item.body for item in dealt))
    assert [owner(book, ip, network) for ip in ("10.1.0.9", "10.1.0.209", "10.2.0.9", "10.2.0.109")] == [
        A,
        B,
        A,
        B,
    ]
