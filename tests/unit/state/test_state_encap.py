"""VXLAN numbers and MTUs."""

import pytest

from meshd.config import VNI_MAX, VNI_MIN
from meshd.errors import BadRequest, Conflict
from meshd.model import HostFacts, Item, Kind, Network, Subnet, Version
from meshd.state.encap import plan_mtu, plan_vni

A, B, C = (bytes([letter]) * 16 for letter in b"ABC")


def network(name, vni):
    body = Network(name, "overlay", (Subnet("10.0.0.0/24", "10.0.0.1"),), vni=vni)
    return Item(Kind.NETWORK, name.encode().ljust(16), Version(1, 0, A), body)


def host(name, mtu, v6=False):
    return HostFacts(name, bytes(16 if v6 else 4), 4789, mtu)


def test_a_vni_follows_from_the_id_and_keeps_off_low_numbers():
    drawn = [plan_vni(bytes([n]) * 16, None, []) for n in range(100)]
    assert drawn == [plan_vni(bytes([n]) * 16, None, []) for n in range(100)]
    assert len(set(drawn)) > 95
    assert all(VNI_MIN <= vni <= VNI_MAX for vni in drawn)


def test_a_vni_in_use_is_stepped_over():
    first = plan_vni(A, None, [])
    assert plan_vni(A, None, [network("blue", first), network("red", first + 1)]) == first + 2


def test_a_vni_that_a_strangers_device_has_is_stepped_over_or_refused_with_its_name():
    first = plan_vni(A, None, [])
    taken = {first: "device vx0 of this host", 42: "device vx1 of this host"}
    assert plan_vni(A, None, [], taken) == first + 1
    with pytest.raises(Conflict, match="vni 42 is used by device vx1 of this host"):
        plan_vni(A, 42, [], taken)


def test_an_explicit_vni_may_be_low():
    assert plan_vni(A, 1, [network("blue", 2)]) == 1
    assert plan_vni(A, VNI_MAX, []) == VNI_MAX


@pytest.mark.parametrize(
    ("vni", "error", "line"),
    [
        (0, BadRequest, "vni 0 is not between 1 and 16777215"),
        (-5, BadRequest, "vni -5 is not between 1 and 16777215"),
        (2**24, BadRequest, "vni 16777216 is not between 1 and 16777215"),
        (77, Conflict, "vni 77 is used by network blue"),
    ],
)
def test_an_impossible_vni_is_refused(vni, error, line):
    with pytest.raises(error) as caught:
        plan_vni(A, vni, [network("blue", 77)])
    assert caught.value.what == line


@pytest.mark.parametrize(
    ("driver", "wanted", "hosts", "mtu"),
    [
        ("overlay", None, {}, 1450),
        ("overlay", None, {A: host("host1", 1500), B: host("host2", 9000)}, 1450),
        ("overlay", None, {A: host("host1", 1500), B: host("host2", 1400)}, 1350),
        ("overlay", None, {A: host("host1", 1500, v6=True), B: host("host2", 1490)}, 1430),
        ("overlay", None, {A: host("host1", 1500), B: host("host2", 0)}, 1450),
        ("overlay", 1300, {A: host("host1", 1500)}, 1300),
        ("overlay", 8950, {A: host("host1", 9000)}, 8950),
        ("bridge", None, {}, 1500),
        ("bridge", None, {A: host("host1", 9000), B: host("host2", 1400)}, 9000),
        ("bridge", None, {A: host("host1", 0)}, 1500),
        ("bridge", 9000, {A: host("host1", 1500)}, 9000),
    ],
)
def test_the_mtu_is_what_the_narrowest_underlay_leaves(driver, wanted, hosts, mtu):
    assert plan_mtu(driver, wanted, ipv6=False, creator=A, hosts=hosts) == mtu


@pytest.mark.parametrize(
    ("driver", "wanted", "ipv6", "hosts", "line"),
    [
        (
            "overlay",
            1451,
            False,
            {A: host("host1", 9000), B: host("host2", 1500)},
            "mtu 1451 does not fit: host2's underlay has 1500 bytes, of which VXLAN takes 50",
        ),
        (
            "overlay",
            1431,
            False,
            {A: host("host1", 1500, v6=True)},
            "mtu 1431 does not fit: host1's underlay has 1500 bytes, of which VXLAN takes 70",
        ),
        ("overlay", 1500, False, {}, "mtu 1500 does not fit: an underlay of 1500 bytes is assumed"),
        ("overlay", 575, False, {}, "mtu 575 is too small: IPv4 (RFC 791) needs 576"),
        ("overlay", 1279, True, {}, "mtu 1279 is too small: IPv6 (RFC 8200) needs 1280"),
        (
            "overlay",
            None,
            True,
            {A: host("host1", 1300)},
            "mtu 1250 is too small: IPv6 (RFC 8200) needs 1280, but host1's underlay has 1300 bytes, of which VXLAN takes 50",
        ),
        ("bridge", 65536, False, {}, "mtu 65536 is above 65535"),
        ("bridge", 0, False, {}, "mtu 0 is too small: IPv4 (RFC 791) needs 576"),
    ],
)  # fmt: skip
def test_an_mtu_that_cannot_work_is_refused_with_the_numbers(driver, wanted, ipv6, hosts, line):
    with pytest.raises(BadRequest) as caught:
        plan_mtu(driver, wanted, ipv6=ipv6, creator=A, hosts=hosts)
    assert caught.value.what == line


def test_the_smallest_mtus_are_allowed():
    assert plan_mtu("overlay", 576, ipv6=False, creator=A, hosts={}) == 576
    assert plan_mtu("overlay", 1280, ipv6=True, creator=A, hosts={}) == 1280
