"""Subnets, gateways, ranges and exclusions: each bad input with the line it is refused with."""

import ipaddress

import pytest

from meshd.errors import BadRequest, Conflict
from meshd.model import Network
from meshd.state.layout import Layout
from meshd.state.pools import Taken
from meshd.state.subnets import Wanted, check_free, lay_out, parse_subnets

ID = b"N" * 16


def plan(*subnets, **wanted):
    return lay_out(ID, Network("blue", "overlay", ()), parse_subnets(subnets), Wanted(subnets, **wanted))


ELSEWHERE = "choose another, or leave --subnet out"


@pytest.mark.parametrize(
    ("subnet", "line", "hint"),
    [
        ("10.1.0.0", "subnet '10.1.0.0' has no prefix length", "write it like 10.1.0.0/24"),
        ("10.1.0.5/20", "subnet 10.1.0.5/20 has host bits set", "the prefix is 10.1.0.0/20"),
        ("fd00::5/64", "subnet fd00::5/64 has host bits set", "the prefix is fd00::/64"),
        ("ten/8", "subnet 'ten/8' is not an address with a prefix length", "write it like 10.1.0.0/24"),
        ("10.1.0.0/33", "subnet '10.1.0.0/33' is not an address with a prefix length", "write it like 10.1.0.0/24"),
        (
            "10.1.0.0/255.255.0.0",
            "subnet '10.1.0.0/255.255.0.0' is not an address with a prefix length",
            "write it like 10.1.0.0/24",
        ),
        ("10.1.0.0/-1", "subnet '10.1.0.0/-1' is not an address with a prefix length", "write it like 10.1.0.0/24"),
        (
            "fd00::%eth0/64",
            "subnet 'fd00::%eth0/64' is not an address with a prefix length",
            "write it like 10.1.0.0/24",
        ),
        ("9" * 5000, f"subnet '{'9' * 80}' has no prefix length", "write it like 10.1.0.0/24"),
        ("", "subnet '' has no prefix length", "write it like 10.1.0.0/24"),
        ("10.1.0.0/32", "subnet 10.1.0.0/32 has no room for a gateway and an endpoint", "use a /30 or a larger one"),
        ("10.1.0.0/31", "subnet 10.1.0.0/31 has no room for a gateway and an endpoint", "use a /30 or a larger one"),
        ("fd00::/127", "subnet fd00::/127 has no room for a gateway and an endpoint", "use a /126 or a larger one"),
        ("10.0.0.0/7", "subnet 10.0.0.0/7 is too large: at most a /8", "use a part of it"),
        ("0.0.0.0/0", "subnet 0.0.0.0/0 is too large: at most a /8", "use a part of it"),
        ("0.1.0.0/16", "subnet 0.1.0.0/16 cannot be used: 0.0.0.0/8 is this-network addresses (RFC 1122)", ELSEWHERE),
        ("127.0.0.0/24", "subnet 127.0.0.0/24 cannot be used: 127.0.0.0/8 is loopback addresses", ELSEWHERE),
        ("169.254.0.0/16", "subnet 169.254.0.0/16 cannot be used: 169.254.0.0/16 is link-local addresses", ELSEWHERE),
        ("224.0.0.0/24", "subnet 224.0.0.0/24 cannot be used: 224.0.0.0/4 is multicast addresses", ELSEWHERE),
        ("255.255.255.0/24", "subnet 255.255.255.0/24 cannot be used: 240.0.0.0/4 is reserved addresses (RFC 1112)", ELSEWHERE),
        ("fe80::/64", "subnet fe80::/64 cannot be used: fe80::/10 is link-local addresses", ELSEWHERE),
        ("ff02::/64", "subnet ff02::/64 cannot be used: ff00::/8 is multicast addresses", ELSEWHERE),
        ("::/96", "subnet ::/96 cannot be used: ::/8 is loopback and IPv4-mapped addresses (RFC 4291)", ELSEWHERE),
        ("::/0", "subnet ::/0 cannot be used: ::/8 is loopback and IPv4-mapped addresses (RFC 4291)", ELSEWHERE),
    ],
)  # fmt: skip
def test_a_subnet_that_cannot_be_used_is_refused_showing_what_is_right(subnet, line, hint):
    with pytest.raises(BadRequest) as caught:
        parse_subnets([subnet])
    assert (caught.value.what, caught.value.hint) == (line, hint)


def test_several_subnets_follow_each_other_and_those_of_a_number_go_together():
    network = plan("10.1.0.0/26", "fd00::/64", "10.2.0.0/24", "fd01::/120", gateways=("10.2.0.9",))
    assert [(s.cidr, s.gateway, s.start) for s in network.subnets] == [
        ("10.1.0.0/26", "10.1.0.1", 0),
        ("10.2.0.0/24", "10.2.0.9", 256),
        ("fd00::/64", "fd00::1", 0),
        ("fd01::/120", "fd01::1", 256),
    ]


def test_the_last_v6_subnet_goes_with_all_v4_subnets_that_are_left():
    network = plan("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "fd00::/64")
    layout = Layout.build(ID, network)
    assert [space.texts(space.start + 5) for space in layout.spaces] == [
        ("10.1.0.5/24", "fd00::5/64"),
        ("10.2.0.5/24", "fd00::105/64"),
        ("10.3.0.5/24", "fd00::205/64"),
    ]


@pytest.mark.parametrize(
    ("subnets", "line"),
    [
        (("10.1.0.0/24", "10.1.0.0/25"), "subnet 10.1.0.0/24 overlaps subnet 10.1.0.0/25"),
        (("fd00::/64", "fd00::/48"), "subnet fd00::/64 overlaps subnet fd00::/48"),
        (("fd00::/64", "10.1.0.0/24", "10.1.0.0/24"), "subnet 10.1.0.0/24 overlaps subnet 10.1.0.0/24"),
        (
            ("10.1.0.0/24", "fd00::/64", "fd01::/64"),
            "2 IPv6 subnets for 1 IPv4 ones: an endpoint has an address of each family",
        ),
        (
            ("10.1.0.0/24", "10.2.0.0/24", "fd00::/120"),
            "subnet fd00::/120 holds fewer addresses than 10.1.0.0/24 and 10.2.0.0/24",
        ),
        (tuple(f"10.{n}.0.0/24" for n in range(17)), "17 subnets; a network has at most 16"),
    ],
)
def test_several_subnets_that_do_not_go_together_are_refused(subnets, line):
    with pytest.raises(BadRequest) as caught:
        plan(*subnets)
    assert caught.value.what == line


def test_the_v4_subnet_comes_first_and_the_gateway_is_the_first_address():
    network = plan("fd00::/64", "10.1.0.0/24")
    assert [(s.cidr, s.gateway) for s in network.subnets] == [
        ("10.1.0.0/24", "10.1.0.1"),
        ("fd00::/64", "fd00::1"),
    ]


def test_the_default_gateway_is_the_first_that_is_not_excluded():
    assert plan("10.1.0.0/24", exclude=("10.1.0.1", "10.1.0.2")).subnets[0].gateway == "10.1.0.3"


def test_a_30_and_an_8_work():
    small = Layout.build(ID, plan("10.1.0.0/30")).spaces[0]
    assert small.usable(0, 4) == 1
    assert Layout.build(ID, plan("10.0.0.0/8")).end == 2**24


def test_what_was_given_is_kept_in_canonical_form_without_repeats():
    network = plan(
        "10.1.0.0/24",
        "fd00::/64",
        gateways=("fd00:0::5", "10.1.0.254"),
        exclude=("10.1.0.9", "fd00:0:0::9", "10.1.0.9"),
        ip_range=("10.1.0.128/25",),
    )
    assert [s.gateway for s in network.subnets] == ["10.1.0.254", "fd00::5"]
    assert network.exclude == ("10.1.0.9", "fd00::9")
    assert network.ip_range == ("10.1.0.128/25",)


NET30 = "10.1.0.0/30"


@pytest.mark.parametrize(
    ("subnets", "wanted", "line"),
    [
        (("10.1.0.0/24",), {"gateways": ("x",)}, "gateway 'x' is not an IPv4 or IPv6 address"),
        (("10.1.0.0/24",), {"gateways": ("10.1.0.1/24",)}, "gateway '10.1.0.1/24' is not an IPv4 or IPv6 address"),
        (("fd00::/64",), {"gateways": ("fd00::1%x",)}, "gateway 'fd00::1%x' is not an IPv4 or IPv6 address"),
        (("10.1.0.0/24",), {"gateways": ("10.2.0.1",)}, "gateway 10.2.0.1 is outside the subnets (10.1.0.0/24)"),
        (("10.1.0.0/24",), {"gateways": ("fd00::1",)}, "gateway fd00::1 is outside the subnets (10.1.0.0/24)"),
        (("10.1.0.0/24",), {"gateways": ("10.1.0.0",)}, "gateway 10.1.0.0 is the own address of subnet 10.1.0.0/24"),
        (
            ("10.1.0.0/24",),
            {"gateways": ("10.1.0.255",)},
            "gateway 10.1.0.255 is the broadcast address of subnet 10.1.0.0/24",
        ),
        (
            ("10.1.0.0/24",),
            {"gateways": ("10.1.0.1", "10.1.0.2")},
            "two gateways for subnet 10.1.0.0/24 (10.1.0.1, 10.1.0.2)",
        ),
        (("10.1.0.0/24",), {"gateways": ("10.1.0.9",), "exclude": ("10.1.0.9",)}, "gateway 10.1.0.9 is also excluded"),
        (("10.1.0.0/24",), {"exclude": ("10.1.0",)}, "excluded address '10.1.0' is not an IPv4 or IPv6 address"),
        (
            ("10.1.0.0/24", "fd00::/64"),
            {"exclude": ("10.2.0.1",)},
            "excluded address 10.2.0.1 is outside the subnets (10.1.0.0/24, fd00::/64)",
        ),
        (("10.1.0.0/16",), {"exclude": ("10.1.0.9",) * 257}, "257 excluded addresses; at most 256"),
        ((NET30,), {"exclude": ("10.1.0.1", "10.1.0.2")}, "no address of subnet 10.1.0.0/30 is left for the gateway"),
        ((NET30,), {"exclude": ("10.1.0.2",)}, "no address is left to give out in 10.1.0.0/30"),
        (
            ("10.1.0.0/24",),
            {"ip_range": ("10.1.0.0/31",)},
            "no address is left to give out in 10.1.0.0/31",
        ),
        (("10.1.0.0/24",), {"ip_range": ("10.1.0.9/25",)}, "ip-range 10.1.0.9/25 has host bits set"),
        (("10.1.0.0/24",), {"ip_range": ("10.1.0.0",)}, "ip-range '10.1.0.0' has no prefix length"),
        (("10.1.0.0/24",), {"ip_range": ("10.1.0.0/23",)}, "ip-range 10.1.0.0/23 is outside the subnets (10.1.0.0/24)"),
        (("10.1.0.0/24",), {"ip_range": ("fd00::/80",)}, "ip-range fd00::/80 is outside the subnets (10.1.0.0/24)"),
        (
            ("10.1.0.0/24",),
            {"ip_range": ("10.1.0.0/25", "10.1.0.128/25")},
            "two ip-ranges in subnet 10.1.0.0/24 (10.1.0.0/25, 10.1.0.128/25); one is supported",
        ),
        (("10.1.0.0/16", "fd00::/120"), {}, "subnet fd00::/120 holds fewer addresses than 10.1.0.0/16"),
        (
            ("10.1.0.0/24", "fd00::/64"),
            {"ip_range": ("10.1.0.0/25", "fd00::80/121")},
            "network blue: no address lies in every ip-range (10.1.0.0/25, fd00::80/121)",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_subnets_is_refused(subnets, wanted, line):
    with pytest.raises(BadRequest) as caught:
        plan(*subnets, **wanted)
    assert caught.value.what == line


def test_an_overlap_names_whom_it_overlaps():
    taken = [Taken(ipaddress.ip_network("10.0.0.0/8"), "route 10.0.0.0/8 of host2")]
    check_free(parse_subnets(["11.0.0.0/24", "fd00::/64"]), taken)
    with pytest.raises(Conflict) as caught:
        check_free(parse_subnets(["10.1.0.0/24"]), taken)
    assert caught.value.what == "subnet 10.1.0.0/24 overlaps route 10.0.0.0/8 of host2"
    assert caught.value.hint == "choose another, or leave --subnet out"
