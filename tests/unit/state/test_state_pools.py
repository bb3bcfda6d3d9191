"""Default prefixes: out of the pools, clear of all that is taken."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import Unavailable
from meshd.state.pools import Taken, default_v4, default_v6, overlaps, prefix_taken, ula48

NETS = [bytes([n]) * 16 for n in range(60)]
POOL = ["10.128.0.0/9"]


def net(text):
    return ipaddress.ip_network(text)


def taken(*texts):
    return [Taken(net(text), f"network {text}") for text in texts]


@pytest.mark.parametrize(("driver", "length"), [("overlay", 20), ("bridge", 24)])
def test_a_default_subnet_is_cut_from_the_pool_by_hash_of_the_id(driver, length):
    chosen = [default_v4(network, driver, POOL, []) for network in NETS]
    assert {prefix.prefixlen for prefix in chosen} == {length}
    assert all(prefix.subnet_of(net(POOL[0])) for prefix in chosen)
    assert len(set(chosen)) > 50
    assert chosen == [default_v4(network, driver, POOL, []) for network in NETS]


@given(
    st.binary(min_size=16, max_size=16),
    st.lists(st.tuples(st.integers(0, 1023), st.integers(22, 32)), max_size=30),
    st.sampled_from(
        [["10.0.0.0/22"], ["10.0.0.0/23", "10.0.3.0/24", "10.0.2.0/26"], ["10.0.2.0/25", "10.0.0.0/24"]]
    ),
)
def test_a_default_is_free_and_is_found_wherever_one_is_free(network, used, pools):
    blocked = [
        Taken(ipaddress.ip_network((int(ipaddress.ip_address("10.0.0.0")) + at, length), strict=False), "x")
        for at, length in used
    ]
    candidates = {
        candidate
        for pool in map(net, pools)
        for candidate in (pool.subnets(new_prefix=24) if pool.prefixlen < 24 else [pool])
        if not any(candidate.overlaps(t.prefix) for t in blocked)
    }
    try:
        assert default_v4(network, "bridge", pools, blocked) in candidates
    except Unavailable:
        assert not candidates


def test_every_free_prefix_of_a_pool_is_given_before_none_is_left():
    given_ = []
    for network in NETS[:16]:
        given_.append(
            default_v4(network, "overlay", ["10.0.0.0/16"], [Taken(prefix, "") for prefix in given_])
        )
    assert len(set(given_)) == 16
    with pytest.raises(Unavailable) as caught:
        default_v4(NETS[20], "overlay", ["10.0.0.0/16"], [Taken(prefix, "") for prefix in given_])
    assert (
        caught.value.what
        == "no subnet is free: all 16 prefixes in pools.v4 (10.0.0.0/16) overlap networks or routes"
    )
    assert caught.value.hint == "give --subnet, remove networks, or add to pools.v4 in the configuration"


def test_an_empty_pool_is_named():
    with pytest.raises(Unavailable, match=r"no subnet: pools\.v4 is empty"):
        default_v4(NETS[0], "overlay", [], [])


def test_a_pool_smaller_than_a_subnet_is_given_whole():
    assert default_v4(NETS[0], "overlay", ["192.168.7.0/24"], []) == net("192.168.7.0/24")


def test_the_v6_default_is_a_64_of_the_pool_or_of_the_clusters_ula():
    secret = b"s" * 32
    assert default_v6(NETS[0], ["2001:db8::/60"], secret, []).subnet_of(net("2001:db8::/60"))
    chosen = default_v6(NETS[0], [], secret, [])
    assert chosen.prefixlen == 64
    assert chosen.subnet_of(ula48(secret))
    assert default_v6(NETS[0], [], secret, [Taken(chosen, "x")]) != chosen


def test_a_half_taken_v6_pool_is_searched_in_steps_of_what_is_taken():
    """A /16 has 2**48 prefixes; probing one by one would not end."""
    low, high = net("fd00::/16").subnets(new_prefix=17)
    for network in NETS:
        assert default_v6(network, ["fd00::/16"], b"", [Taken(low, "x")]).subnet_of(high)


def test_ula48_follows_from_the_secret_and_is_locally_assigned():
    assert ula48(b"a" * 32) == ula48(b"a" * 32) != ula48(b"b" * 32)
    assert ula48(b"a" * 32).subnet_of(net("fd00::/8"))
    assert ula48(b"a" * 32).prefixlen == 48


def test_overlap_names_the_first_that_it_meets_in_its_own_family():
    known = taken("10.0.0.0/16", "fd00::/64", "10.1.0.0/24")
    assert overlaps(net("10.1.0.0/16"), known).what == "network 10.1.0.0/24"
    assert overlaps(net("fd00::/48"), known).what == "network fd00::/64"
    assert overlaps(net("10.2.0.0/16"), known) is None


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", None),
        ("::/0", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_default_routes_and_nonsense_take_nothing(text, prefix):
    found = prefix_taken(text, "route")
    assert found == (Taken(net(prefix), "route") if prefix else None)
