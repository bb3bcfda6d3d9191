"""An index and the addresses it stands for, in both families."""

import ipaddress

import pytest

from meshd.errors import BadRequest
from meshd.model import Item, Kind, Network, Removed, Subnet, Version
from meshd.state.layout import Layout

ID = bytes(range(16))
V4 = Subnet("10.1.0.0/24", "10.1.0.1")
V6 = Subnet("fd00:1::/64", "fd00:1::1")


def space(*subnets, **fields):
    return Layout.build(ID, Network("blue", "overlay", subnets, **fields)).spaces[0]


def laid(*subnets, **fields):
    return Layout.build(ID, Network("blue", "overlay", subnets, **fields))


def packed(text):
    return ipaddress.ip_address(text).packed


def test_one_index_serves_both_families_v4_first():
    dual = space(V6, V4)
    assert dual.size == 256
    assert dual.ips(9) == (packed("10.1.0.9"), packed("fd00:1::9"))
    assert dual.texts(9) == ("10.1.0.9/24", "fd00:1::9/64")
    assert dual.text(9) == "10.1.0.9"


def test_a_network_that_changed_is_laid_out_as_it_is_now():
    def item(*subnets):
        return Item(Kind.NETWORK, ID, Version(0, 0, ID), Network("blue", "overlay", subnets))

    before, after = item(V4), item(V4, V6)
    assert [len(Layout.of(one).ips(9)) for one in (before, after, before, before)] == [1, 2, 1, 1]


def test_text_and_packed_addresses_of_either_family_give_the_same_index():
    dual = laid(V4, V6)
    assert {
        dual.index_of(ip) for ip in ("10.1.0.9", packed("10.1.0.9"), "fd00:1::9", packed("fd00:1::9"))
    } == {9}
    assert dual.index_of_all(["fd00:1::9", "10.1.0.9"]) == 9
    assert dual.index_of_all([]) is None


def test_every_index_comes_back_from_its_addresses():
    dual = laid(V4, V6)
    assert [dual.index_of_all(dual.ips(index)) for index in range(256)] == list(range(256))


def test_a_v6_only_network_hands_out_the_first_65536_addresses():
    only6 = space(V6)
    assert only6.size == 65536
    assert only6.text(65535) == "fd00:1::ffff"


@pytest.mark.parametrize(
    ("subnets", "ip", "line"),
    [
        ((V4, V6), "10.2.0.9", "10.2.0.9 is in no subnet of network blue (10.1.0.0/24, fd00:1::/64)"),
        ((V4, V6), "fd00:2::1", "fd00:2::1 is in no subnet of network blue (10.1.0.0/24, fd00:1::/64)"),
        (
            (V4, V6),
            "fd00:1::100",
            "fd00:1::100 is beyond what network blue hands out of fd00:1::/64: fd00:1::1 to fd00:1::ff",
        ),
        ((V6,), "10.1.0.9", "10.1.0.9 is in no subnet of network blue (fd00:1::/64)"),
        ((V6,), "fd00:1::9%eth0", "'fd00:1::9%eth0' is not an IPv4 or IPv6 address"),
        ((V4,), "9" * 5000, f"'{'9' * 80}' is not an IPv4 or IPv6 address"),
        ((V4,), "ten", "'ten' is not an IPv4 or IPv6 address"),
        ((V4,), b"abc", "b'abc' is not an IPv4 or IPv6 address"),
    ],
)
def test_an_address_that_is_no_index_is_refused_naming_the_subnets(subnets, ip, line):
    with pytest.raises(BadRequest) as caught:
        laid(*subnets).index_of(ip)
    assert caught.value.what == line


def test_two_addresses_with_different_numbers_do_not_go_together():
    with pytest.raises(BadRequest) as caught:
        laid(V4, V6).index_of_all(["10.1.0.9", "fd00:1::8"])
    assert "10.1.0.9 and fd00:1::8 do not go together" in caught.value.what
    assert caught.value.hint == "with 10.1.0.9 goes 10.1.0.9, fd00:1::9"


def test_two_addresses_of_one_family_are_too_many():
    with pytest.raises(BadRequest) as caught:
        laid(V4, V6).index_of_all(["10.1.0.9", "10.1.0.10"])
    assert "10.1.0.9 and 10.1.0.10 are too many: an endpoint has one address of a family" in caught.value.what
    assert caught.value.hint == "give one --ip, or one for IPv4 and one for IPv6"


def test_own_address_broadcast_gateways_and_exclusions_are_reserved_with_their_reason():
    dual = space(V4, Subnet("fd00:1::/64", "fd00:1::5"), exclude=("10.1.0.7", "fd00:1::8", "10.1.0.7"))
    assert {index: dual.why_reserved(index) for index in dual.reserved} == {
        0: "the subnet's own address",
        1: "the gateway",
        5: "the gateway",
        7: "excluded",
        8: "excluded",
        255: "the broadcast address",
    }
    assert dual.why_reserved(6) is None
    assert dual.usable(0, 256) == 250
    assert dual.usable(5, 9) == 1
    assert dual.usable(5, 5) == 0


def test_a_v6_only_network_has_no_broadcast_address():
    assert space(V6).reserved == (0, 1)


def test_a_gateway_beyond_the_index_space_needs_no_reservation():
    assert space(Subnet("fd00:1::/64", "fd00:1::ffff:ffff")).reserved == (0,)


@pytest.mark.parametrize(
    ("ip_range", "auto"),
    [
        ((), (0, 256)),
        (("10.1.0.64/26",), (64, 128)),
        (("fd00:1::80/121",), (128, 256)),
        (("10.1.0.64/26", "fd00:1::60/123"), (96, 128)),
    ],
)
def test_ip_range_bounds_automatic_choice_in_either_family(ip_range, auto):
    dual = space(V4, V6, ip_range=ip_range)
    assert dual.auto == auto
    assert set(range(*dual.auto_part(100, 110))) == set(range(*auto)) & set(range(100, 110))
    assert laid(V4, V6, ip_range=ip_range).index_of("10.1.0.9") == 9


def test_ranges_that_share_no_number_are_refused():
    with pytest.raises(BadRequest, match="no address lies in every ip-range"):
        space(V4, V6, ip_range=("10.1.0.64/26", "fd00:1::80/121"))


@pytest.mark.parametrize(
    ("subnets", "line"),
    [
        ((), "network blue has no subnet"),
        (
            (V4, Subnet("10.2.0.0/24", "10.2.0.1", 128)),
            "network blue has subnets that share indices (10.1.0.0/24, 10.2.0.0/24)",
        ),
        (
            (V6, Subnet("fd00:2::/64", "fd00:2::1", 65535)),
            "network blue has subnets that share indices (fd00:1::/64, fd00:2::/64)",
        ),
        ((Subnet("10.1.0.0/24", "gate"),), "network blue: 'gate' is not an IPv4 or IPv6 address"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(subnets, line):
    with pytest.raises(BadRequest) as caught:
        space(*subnets)
    assert caught.value.what == line


SECOND = Subnet("10.2.0.0/25", "10.2.0.9", 256)


def test_each_subnet_has_its_space_and_the_v6_one_goes_with_all_that_it_has_room_for():
    layout = laid(V4, V6, SECOND, exclude=("10.2.0.7", "fd00:1::108"), ip_range=("10.2.0.64/26",))
    first, second = layout.spaces
    assert [(s.start, s.size, s.auto) for s in layout.spaces] == [(0, 256, (0, 256)), (256, 128, (320, 384))]
    assert second.texts(300) == ("10.2.0.44/25", "fd00:1::12c/64")
    assert {index - 256: second.why_reserved(index) for index in second.reserved} == {
        0: "the subnet's own address",
        7: "excluded",
        8: "excluded",
        9: "the gateway",
        127: "the broadcast address",
    }
    assert 7 not in first.reserved
    assert layout.index_of_all(["10.2.0.44", "fd00:1::12c"]) == 300
    assert [layout.length_of(packed(ip)) for ip in ("10.1.0.9", "10.2.0.9", "fd00:1::7", "10.9.0.0")] == [
        24, 25, 64, 32
    ]  # fmt: skip
    assert (layout.space_at(300), layout.space_at(255), layout.space_at(384)) == (second, first, None)
    with pytest.raises(BadRequest, match="fd00:1::ff and fd00:1::101 to fd00:1::17f"):
        layout.index_of("fd00:1::200")


def test_a_blocks_part_in_a_space_is_named_by_its_subnet():
    second = laid(V4, SECOND).spaces[1]
    assert second.part(0, 512) == (256, 384)
    assert second.block_text(320, 64) == "10.2.0.64/26"


def test_a_removed_network_has_no_layout():
    with pytest.raises(BadRequest, match="network 00010203 is removed"):
        Layout.of(Item(Kind.NETWORK, ID, Version(1, 0, ID), Removed("blue"), dead=True))


def test_an_aligned_block_is_named_by_its_prefix():
    assert space(V4, V6).block_text(64, 32) == "10.1.0.64/27"
    assert space(V6).block_text(0x100, 256) == "fd00:1::100/120"
