"""Names, MACs and nexthop ids follow from ids alone."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import NEXTHOP_BASE, VXLAN_PORT
from meshd.plan import names

NETWORK = bytes.fromhex("0123456789abcdef0123456789abcdef")
ENDPOINT = bytes.fromhex("fedcba9876543210fedcba9876543210")
IFNAMSIZ = 16
B2SUM_ZEROS = "aa9596bb83"
B2SUM_GATEWAY = "2614eb6795"  # printf gateway, then 16 zero bytes | b2sum -l 40


@pytest.mark.parametrize(
    ("make", "id_", "name"),
    [
        (names.overlay_bridge, NETWORK, "mo01234567"),
        (names.vxlan, NETWORK, "mv01234567"),
        (names.bridge, NETWORK, "mo01234567"),
        (names.veth, ENDPOINT, "mhfedcba98"),
        (names.peer, ENDPOINT, "mpfedcba98"),
        (names.host, NETWORK, "mox01234567"),
    ],
)
def test_a_device_is_named_by_its_kind_and_eight_digits_of_its_id(make, id_, name):
    assert make(id_) == name
    assert len(name) < IFNAMSIZ
    assert names.is_ours(name)


@pytest.mark.parametrize(
    "name",
    ["lo", "eth0", "mo0123456", "mo012345678", "mo0123456g", "mz01234567", "mo", "mox0123456", "mx01234567"],
)
def test_other_names_are_not_taken_for_ours(name):
    assert not names.is_ours(name)


def test_every_mac_is_unicast_and_locally_administered_and_different():
    macs = {
        names.endpoint_mac(ENDPOINT),
        names.gateway_mac(NETWORK),
        names.vtep_mac(NETWORK, b"a" * 16),
        names.vtep_mac(NETWORK, b"b" * 16),
        names.vtep_mac(ENDPOINT, b"a" * 16),
    }
    assert len(macs) == 5
    assert all(len(mac) == 6 and mac[0] == 2 for mac in macs)


def test_macs_are_the_same_in_every_release():
    # Two releases in one cluster, or one after an upgrade, must agree: these values may never change.
    assert names.endpoint_mac(bytes(16)).hex() == "02" + B2SUM_ZEROS
    assert names.gateway_mac(bytes(16)).hex() == "02" + B2SUM_GATEWAY


def test_the_mark_names_cluster_and_network_and_is_read_back():
    mark = names.cluster_mark(bytes.fromhex("c1c2c3c4" + "00" * 12))
    assert names.alias(mark, NETWORK) == "meshd:c1c2c3c4:0123456789abcdef0123456789abcdef"
    assert names.alias_network(names.alias(mark, NETWORK), mark) == NETWORK
    assert (
        names.alias(mark, NETWORK, b"\x77" * 16) == "meshd:c1c2c3c4:0123456789abcdef0123456789abcdef:77777777"
    )
    assert names.alias_network(names.alias(mark, NETWORK, b"\x77" * 16), mark) == NETWORK
    assert names.alias_network(names.alias("00000000", NETWORK), mark) is None
    assert names.alias_network("meshd:c1c2c3c4:zz", mark) is None
    assert names.alias_network("uplink to rack 4", mark) is None


@given(st.sets(st.binary(min_size=16, max_size=16), max_size=30), st.randoms())
def test_nexthop_ids_do_not_depend_on_the_order_in_which_hosts_were_heard_of(hosts, rng):
    shuffled = list(hosts)
    rng.shuffle(shuffled)
    assert names.nexthop_ids(shuffled) == names.nexthop_ids(sorted(hosts))


def test_hosts_that_hash_alike_get_different_ids_and_the_lower_host_id_keeps_its_own(monkeypatch):
    monkeypatch.setattr(names, "_hash", lambda host: names.NEXTHOP_SLOTS - 1)
    ids = names.nexthop_ids([b"c" * 16, b"a" * 16, b"b" * 16])
    assert ids == {
        b"a" * 16: NEXTHOP_BASE + names.NEXTHOP_SLOTS - 1,
        b"b" * 16: NEXTHOP_BASE,  # wraps around
        b"c" * 16: NEXTHOP_BASE + 1,
    }


def test_nexthops_and_groups_of_many_hosts_never_share_an_id():
    rng = random.Random(1)
    ids = names.nexthop_ids([rng.randbytes(16) for _ in range(5000)])
    groups = {id_ + names.GROUP_OFFSET for id_ in ids.values()}
    assert len(set(ids.values())) == len(groups) == 5000
    assert not set(ids.values()) & groups
    assert all(NEXTHOP_BASE <= id_ < NEXTHOP_BASE + 2**23 for id_ in ids.values())
    assert max(groups) < 2**32


@given(st.tuples(st.integers(1, 65535), st.integers(1, 65535)))
def test_two_clusters_on_one_host_have_no_nexthop_id_in_common(ports):
    hosts = [hashlib.sha256(bytes([n])).digest()[:16] for n in range(50)]
    used = []
    for port in {*ports, VXLAN_PORT}:
        singles = set(names.nexthop_ids(hosts, port).values())
        every = singles | {id_ + names.GROUP_OFFSET for id_ in singles}
        assert len(every) == 100
        assert all(id_ in names.nexthops_of(port) for id_ in every)
        assert all(0 < id_ < 2**32 for id_ in every)
        used.append((port, every))
    for port, _ in used:
        for other, ids in used:
            assert port == other or not any(id_ in names.nexthops_of(port) for id_ in ids)


def test_of_more_hosts_than_ids_the_last_have_none():
    hosts = [n.to_bytes(16, "big") for n in range(16386)]
    ids = names.nexthop_ids(reversed(hosts), 8472)
    assert ids.keys() == set(hosts[:16384])
    assert len(set(ids.values())) == 16384


def test_tables_are_named_by_the_port():
    assert (names.table(VXLAN_PORT), names.table(8472)) == ("meshd", "meshd-8472")
