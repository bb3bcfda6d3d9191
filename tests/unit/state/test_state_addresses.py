"""Which address an endpoint gets, in what order, and what is said where there is none."""

import pytest

from meshd.config import COOLDOWN_S
from meshd.errors import BadRequest, Conflict, Unavailable
from meshd.model import Deed, Endpoint, Item, Kind, Network, Released, Subnet, Version
from meshd.state.addresses import BlockView, Holding, NeedBlock, blocks_view, choose, holdings, low_water
from meshd.state.blocks import genesis
from meshd.state.confirm import Unconfirmed
from meshd.state.deeds import DeedBook, deed_item
from meshd.state.layout import Layout
from meshd.state.usage import Usage

NET = b"N" * 16
A, B, C, D = (bytes([letter]) * 16 for letter in b"ABCD")
NAMES = {A: "host1", B: "host2", C: "host3", D: "host4"}.get


class World:
    """One host's view of one /28: 0 and 15 unusable, gateway 1."""

    def __init__(self, *deeds, cidr="10.1.0.0/28", **fields):
        self.space = Layout.build(
            NET, Network("blue", "overlay", (Subnet(cidr, "10.1.0.1"),), **fields)
        ).spaces[0]
        self.book, self.usage = DeedBook(), Usage()
        self.genesis = genesis(NET, self.space.size, A, [])
        self.book.add(self.genesis)
        for start, size, owner in deeds:
            self.hand(start, size, owner, A, self.genesis.id)

    def hand(self, start, size, owner, donor, parent):
        item = deed_item(Deed(NET, start, size, owner, donor, parent))
        assert self.book.add(item)
        return item.id

    def use(self, *indices):
        for index in indices:
            body = Endpoint(NET, A, "web", index, (), bytes(6), "eth0")
            self.usage.observe(Item(Kind.ENDPOINT, index.to_bytes(16, "big"), Version(1, 1, A), body), 0.0)

    def release(self, index, now):
        item = Item(
            Kind.ENDPOINT, index.to_bytes(16, "big"), Version(1, 2, A), Released(NET, index), dead=True
        )
        self.usage.observe(item, now)

    def choose(self, me=A, now=1000.0, **args):
        return choose(self.space, self.book, self.usage, me, now, name_of=NAMES, **args)


def test_the_lowest_address_that_was_never_used_comes_first():
    world = World()
    assert world.choose() == 2
    world.use(2, 3)
    world.release(2, 0.0)
    assert world.choose() == 4


def test_then_the_least_recently_released_that_has_cooled():
    world = World()
    world.use(*range(2, 15))
    world.release(9, 700.0)
    world.release(5, 800.0)
    world.release(7, 995.0)
    assert world.choose() == 9
    world.use(9)
    assert world.choose() == 5


def test_a_cooling_address_is_the_last_resort_after_every_owner_was_tried():
    world = World((8, 8, B))
    world.use(*range(2, 8))
    world.release(6, 990.0)
    world.release(4, 995.0)
    with pytest.raises(NeedBlock) as caught:
        world.choose()
    assert caught.value.owners == [B]
    assert world.choose(tried={B}) == 6
    assert world.choose(now=990.0 + COOLDOWN_S) == 6


def test_reserved_and_excluded_addresses_are_never_chosen():
    world = World(exclude=("10.1.0.2", "10.1.0.4"))
    got = []
    for _ in range(11):
        got.append(world.choose())
        world.use(got[-1])
    assert got == [3, *range(5, 15)]
    with pytest.raises(Unavailable):
        world.choose()


def test_an_excluded_address_stays_out_even_after_it_was_released():
    world = World(exclude=("10.1.0.2",))
    world.use(*range(3, 15))
    world.release(2, 0.0)
    with pytest.raises(Unavailable, match="full"):
        world.choose()


def test_automatic_choice_keeps_to_the_ip_range_and_an_explicit_one_need_not():
    world = World(ip_range=("10.1.0.8/30",))
    assert world.choose() == 8
    assert world.choose(want=3) == 3


def test_space_that_cannot_be_handed_on_is_used_first():
    world = World((4, 2, C), (8, 4, B))
    twice = world.hand(8, 2, C, B, world.book.held_by(NET, B)[0][0])
    world.book.confirm(twice)
    assert world.choose(C) == 8


def test_space_that_came_back_is_as_it_was_before():
    world = World((8, 4, B))
    world.hand(8, 2, A, B, world.book.held_by(NET, B)[0][0])
    assert world.choose() == 2


def test_space_whose_witnesses_have_not_spoken_is_not_used_and_not_asked_for_elsewhere():
    world = World((8, 4, B), (12, 2, D))
    twice = world.hand(8, 2, C, B, world.book.held_by(NET, B)[0][0])
    for want in (None, 9):
        with pytest.raises(Unconfirmed) as caught:
            world.choose(C, want=want)
        assert caught.value.deeds == {twice}
    with pytest.raises(NeedBlock):
        world.choose(C, tried={C})
    world.book.confirm(twice)
    assert world.choose(C, want=9) == 9


def test_own_space_alone_is_chosen_from():
    world = World((8, 4, B), (12, 4, C))
    assert [world.choose(me) for me in (A, B, C)] == [2, 8, 12]


def test_a_host_without_space_is_told_whom_to_ask_most_free_first():
    world = World((4, 2, B), (8, 8, C))
    world.use(8, 9, 10)
    with pytest.raises(NeedBlock) as caught:
        world.choose(D)
    need = caught.value
    assert (need.network, need.exact, need.size) == (NET, None, 16)
    assert need.owners == [A, C, B]
    with pytest.raises(NeedBlock) as caught:
        world.choose(D, tried={A, C})
    assert caught.value.owners == [B]


def test_an_owner_that_cannot_hand_on_is_not_asked_but_named():
    world = World((8, 4, B))
    world.hand(8, 4, C, B, world.book.held_by(NET, B)[0][0])
    with pytest.raises(NeedBlock) as caught:
        world.choose(D)
    assert caught.value.owners == [A]
    with pytest.raises(Unavailable) as failed:
        world.choose(D, tried={A})
    assert failed.value.what == "no free address of network blue in reach: host1 holds 9, host3 holds 4"
    assert failed.value.hint == "bring host1 back, or remove endpoints here"


def test_a_long_list_of_owners_is_cut_short():
    world = World((4, 1, B), (5, 1, C), (6, 1, D), (7, 1, b"E" * 16))
    with pytest.raises(Unavailable) as caught:
        choose(world.space, world.book, world.usage, b"F" * 16, 0.0, tried={A, B, C, D, b"E" * 16})
    assert caught.value.what == (
        "no free address of network blue in reach: 41414141 holds 9, 42424242 holds 1, 43434343 holds 1, "
        "2 more hosts hold some"
    )


def test_a_full_network_says_so():
    world = World()
    world.use(*range(2, 15))
    with pytest.raises(Unavailable) as caught:
        world.choose()
    assert caught.value.what == "network blue is full: all 13 addresses are in use"


def test_before_the_first_deed_has_arrived_nobody_is_known_to_own_anything():
    world = World()
    for args in ({}, {"want": 9}):
        with pytest.raises(Unavailable, match=r"nobody is known to own .* yet"):
            choose(world.space, DeedBook(), world.usage, A, 0.0, **args)


def test_an_explicit_address_in_own_space_is_taken_even_while_it_cools():
    world = World()
    world.use(9)
    world.release(9, 999.0)
    assert world.choose(want=9) == 9


def test_an_explicit_address_elsewhere_needs_exactly_that_one_from_its_owner():
    with pytest.raises(NeedBlock) as caught:
        World((8, 8, B)).choose(want=9)
    assert (caught.value.owners, caught.value.exact, caught.value.size) == ([B], 9, 1)
    assert caught.value.what == "10.1.0.9 of network blue is in a block of host2"


@pytest.mark.parametrize(
    ("want", "error", "line"),
    [
        (
            0,
            BadRequest,
            "10.1.0.0 of network blue cannot be given to an endpoint: it is the subnet's own address",
        ),
        (1, BadRequest, "10.1.0.1 of network blue cannot be given to an endpoint: it is the gateway"),
        (
            15,
            BadRequest,
            "10.1.0.15 of network blue cannot be given to an endpoint: it is the broadcast address",
        ),
        (3, BadRequest, "10.1.0.3 of network blue cannot be given to an endpoint: it is excluded"),
        (4, Conflict, "10.1.0.4 of network blue is in use by endpoint 00000000000000000000000000000004"),
        (10, Unavailable, "10.1.0.10 of network blue is in a block of host2, which did not hand it on"),
        (12, Unavailable, "10.1.0.12 of network blue is quarantined: host1 gave it to both host3 and host4"),
    ],
)
def test_an_explicit_address_that_cannot_be_had_says_why(want, error, line):
    world = World((8, 4, B), (12, 2, C), (12, 4, D), exclude=("10.1.0.3",))
    world.hand(8, 2, C, B, world.book.held_by(NET, B)[0][0])
    world.use(4)
    with pytest.raises(error) as caught:
        world.choose(want=want, tried={B})
    told = caught.value.what
    assert told in (line, line.replace("host3 and host4", "host4 and host3"))
    assert not isinstance(caught.value, NeedBlock)


def test_quarantined_space_is_chosen_by_nobody():
    world = World((8, 8, B), (8, 8, C))
    for me in (B, C):
        with pytest.raises(NeedBlock) as caught:
            world.choose(me)
        assert caught.value.owners == [A]


@pytest.mark.parametrize(
    ("used", "released", "expected"),
    [((8,), (), False), ((8, 9, 10), (), False), ((8, 9, 10, 11), (), True), ((8, 9, 10), (11,), True)],
)
def test_low_water_is_a_quarter_of_own_space_with_cooling_counted_as_taken(used, released, expected):
    world = World((8, 4, B))
    world.use(*used)
    for index in released:
        world.release(index, 990.0)
    assert low_water(world.space, world.book, world.usage, B, 1000.0) is expected


def test_a_host_with_no_automatic_space_is_at_low_water():
    world = World((8, 4, B), ip_range=("10.1.0.0/29",))
    assert low_water(world.space, world.book, world.usage, B, 0.0)
    assert low_water(world.space, world.book, world.usage, D, 0.0)


def test_reserved_addresses_are_neither_free_nor_taken():
    world = World((14, 2, B))  # 15 is the broadcast address
    assert not low_water(world.space, world.book, world.usage, B, 0.0)
    world.use(14)
    assert low_water(world.space, world.book, world.usage, B, 0.0)


def test_holdings_and_blocks_add_up():
    world = World((4, 4, B), (8, 8, C))
    world.use(2, 4, 5, 9)
    assert holdings(world.space, world.book, world.usage) == [
        Holding(C, 6, 6),
        Holding(B, 2, 2),
        Holding(A, 1, 1),
    ]
    assert blocks_view(world.space, world.book, world.usage) == [
        BlockView("10.1.0.0/30", A, 1),
        BlockView("10.1.0.4/30", B, 2),
        BlockView("10.1.0.8/29", C, 6),
    ]


def test_blocks_that_are_no_prefix_are_cut_into_prefixes_and_quarantine_has_no_owner():
    world = World((9, 1, B), (12, 2, C), (12, 4, D))
    assert blocks_view(world.space, world.book, world.usage) == [
        BlockView("10.1.0.0/29", A, 6),
        BlockView("10.1.0.8/32", A, 1),
        BlockView("10.1.0.9/32", B, 1),
        BlockView("10.1.0.10/31", A, 2),
        BlockView("10.1.0.12/31", None, 0),
        BlockView("10.1.0.14/31", D, 1),
    ]
