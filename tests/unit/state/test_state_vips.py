"""Addresses that endpoints take by themselves: what ``--opt vip=`` may say, and that nobody is given one."""

import ipaddress

import pytest

from meshd.errors import BadRequest
from meshd.model import Network, Subnet
from meshd.state.layout import Layout
from meshd.state.subnets import Wanted, lay_out, parse_subnets
from meshd.state.vips import packed, parse

ID = b"N" * 16


def plan(vip, *subnets, **wanted):
    network = Network("blue", "overlay", (), options={"vip": vip})
    return lay_out(ID, network, parse_subnets(subnets), Wanted(subnets, **wanted))


def test_addresses_and_prefixes_of_both_families_may_be_named():
    network = plan("10.1.0.9, 10.1.0.240/30,fd00::99", "10.1.0.0/24", "fd00::/64")
    named = [str(ipaddress.ip_address(ip)) for ip in packed(network)]
    assert named == ["10.1.0.9", "10.1.0.240", "10.1.0.241", "10.1.0.242", "10.1.0.243", "fd00::99"]
    space = Layout.build(ID, network).spaces[0]
    assert [index for index in space.reserved if "virtual" in (space.why_reserved(index) or "")] == [
        9, 0x99, 240, 241, 242, 243
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("vip", "line"),
    [
        ("", "option vip: '' is neither an address nor a prefix without host bits"),
        ("yes", "option vip: 'yes' is neither an address nor a prefix without host bits"),
        ("10.1.0.5/24", "option vip: '10.1.0.5/24' is neither an address nor a prefix without host bits"),
        ("fe80::1%eth0", "option vip: 'fe80::1%eth0' is neither an address nor a prefix without host bits"),
        ("10.1.0.0/25", "option vip names more than 64 addresses"),
        ("10.2.0.5", "virtual address 10.2.0.5 is outside the subnets (10.1.0.0/24)"),
        ("10.1.0.1", "virtual address 10.1.0.1 is the gateway, which is every host's"),
        ("10.1.0.255", "virtual address 10.1.0.255 is the broadcast address of subnet 10.1.0.0/24"),
        ("10.1.0.0", "virtual address 10.1.0.0 is the own address of subnet 10.1.0.0/24"),
    ],
)
def test_what_cannot_be_a_virtual_address_is_refused(vip, line):
    with pytest.raises(BadRequest) as caught:
        plan(vip, "10.1.0.0/24")
    assert caught.value.what == line


def test_the_default_gateway_is_not_one_of_them():
    assert plan("10.1.0.1", "10.1.0.0/24", gateways=("10.1.0.254",)).subnets[0].gateway == "10.1.0.254"


def test_a_record_that_cannot_be_read_names_none():
    assert (
        packed(Network("blue", "overlay", (Subnet("10.1.0.0/24", "10.1.0.1"),), options={"vip": "rubbish"}))
        == ()
    )
    assert packed(Network("blue", "overlay", (Subnet("10.1.0.0/24", "10.1.0.1"),))) == ()
    assert len(parse("10.1.0.0/26")) == 64
