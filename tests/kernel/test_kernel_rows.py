"""Hand-packed messages, read by others: pyroute2's decoder and iproute2."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from meshd.config import ROUTE_PROTOCOL
from meshd.kernel import addresses, frames, netlink, nexthops, rows
from meshd.plan.objects import Addr, FdbKey, FdbTarget, NeighKey, Nexthop

MACS = st.binary(min_size=6, max_size=6)
IPS = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
INDEX = {"a": 3, "b": 70_000}
KEYS = st.builds(FdbKey, st.sampled_from(sorted(INDEX)), MACS, st.sampled_from(["self", "master"]))
TARGETS = (
    st.builds(FdbTarget, nhid=st.integers(1, 2**32 - 1))
    | st.builds(FdbTarget, dst=IPS)
    | st.just(FdbTarget(local=True))
)


def decode(message, kind=ndmsg):
    decoded = kind(message)
    decoded.decode()
    assert decoded["header"]["length"] == len(message)
    return decoded


def text(ip):
    return str(ipaddress.ip_address(ip))


@given(st.lists(st.tuples(KEYS, TARGETS), max_size=5), st.booleans())
def test_fdb_rows_read_as_they_were_meant(pairs, replace):
    for (key, target), message in zip(pairs, rows.put_fdb(pairs, INDEX, replace=replace), strict=True):
        row = decode(message)
        how = frames.REPLACE if replace or key.where == "master" else frames.EXCL
        assert row["header"]["type"] == 28
        assert row["header"]["flags"] == 0x1 | 0x400 | how
        assert (row["family"], row["ifindex"]) == (7, INDEX[key.dev])
        assert row.get_attr("NDA_LLADDR") == key.mac.hex(":")
        if key.where == "master":
            assert (row["state"], row["flags"]) == (0x40, 0x04 if target.local else 0x14)
            assert row.get_attr("NDA_DST") is None
        else:
            assert (row["state"], row["flags"]) == (0x80, 0x12)
            assert row.get_attr("NDA_NH_ID") == target.nhid
            if target.nhid is None and target.dst is not None:
                assert target.dst in message  # pyroute2 reads NDA_DST of AF_BRIDGE as a MAC


@given(st.lists(KEYS, max_size=5))
def test_fdb_deletes_name_the_row_and_nothing_else(keys):
    for key, message in zip(keys, rows.del_fdb(keys, INDEX), strict=True):
        row = decode(message)
        assert (row["header"]["type"], row["header"]["flags"]) == (29, 0x1)
        assert (row["family"], row["ifindex"]) == (7, INDEX[key.dev])
        assert row["flags"] == (0x04 if key.where == "master" else 0x02)
        assert [name for name, _ in row["attrs"]] == ["NDA_LLADDR"]
        assert row.get_attr("NDA_LLADDR") == key.mac.hex(":")


@given(st.lists(st.tuples(st.builds(NeighKey, st.sampled_from(sorted(INDEX)), IPS), MACS), max_size=5))
def test_neighbours_read_as_they_were_meant(pairs):
    for (key, mac), message in zip(pairs, rows.put_neigh(pairs, INDEX), strict=True):
        row = decode(message)
        assert (row["header"]["type"], row["header"]["flags"]) == (28, 0x1 | 0x400 | 0x100)
        assert (row["family"], row["ifindex"]) == ({4: 2, 16: 10}[len(key.ip)], INDEX[key.dev])
        assert (row["state"], row["flags"]) == (0x80, 0x10)
        assert row.get_attr("NDA_DST") == text(key.ip)
        assert row.get_attr("NDA_LLADDR") == mac.hex(":")
    for (key, _), message in zip(pairs, rows.del_neigh([key for key, _ in pairs], INDEX), strict=True):
        row = decode(message)
        assert row["header"]["type"] == 29
        assert row.get_attr("NDA_DST") == text(key.ip)


@given(st.builds(Addr, st.just("b"), IPS, st.integers(0, 128)))
def test_addresses_read_as_they_were_meant(addr):
    (message,) = addresses.put([addr], INDEX)
    read = decode(message, ifaddrmsg)
    assert (read["header"]["type"], read["index"], read["prefixlen"]) == (20, INDEX["b"], addr.prefix)
    assert read.get_attr("IFA_LOCAL") == read.get_attr("IFA_ADDRESS") == text(addr.ip)
    assert read.get_attr("IFA_FLAGS") == (0x02 if len(addr.ip) == 16 else None)
    (seen,) = [addresses.parse_event(message, 0, len(message))]
    assert (seen.ip, seen.prefix, seen.protocol) == (addr.ip, addr.prefix, ROUTE_PROTOCOL)


@given(st.lists(st.tuples(KEYS, TARGETS), max_size=20))
def test_what_is_packed_is_what_is_parsed(pairs):
    read = list(rows.parse(b"".join(rows.put_fdb(pairs, INDEX))))
    assert [row.mac for row in read] == [key.mac for key, _ in pairs]
    for row, (key, target) in zip(read, pairs, strict=True):
        expected = (target.nhid, target.dst if target.nhid is None else None)
        assert (row.nhid, row.dst or None) == (expected if key.where == "self" else (None, None))
    only = list(rows.parse(b"".join(rows.put_fdb(pairs, INDEX)), {INDEX["b"]}))
    assert [row.mac for row in only] == [key.mac for key, _ in pairs if key.dev == "b"]


@given(st.binary(max_size=200))
def test_rubbish_ends_a_walk_and_never_raises(data):
    assert sum(1 for _ in rows.parse(data)) <= len(data)
    assert sum(1 for _ in frames.split(data)) <= len(data)
    frames.attributes(data, 0, len(data))


@pytest.fixture
def link(vxlan_bridge):
    opened = vxlan_bridge.call(netlink.Netlink)
    yield opened
    opened.close()


def test_iproute2_shows_the_rows_with_our_marks(link, vxlan_bridge):
    index = {seen["ifname"]: seen["ifindex"] for seen in vxlan_bridge.json("ip", "-j", "link")}
    if not nexthops.supports_fdb_nexthops(link):
        pytest.skip("FDB nexthops (kernel 5.8)")
    remote, local, plain = (bytes((2, 0, 0, 0, 0, n)) for n in (1, 2, 3))
    via, group = Nexthop(1001, via=bytes((192, 0, 2, 2))), Nexthop(1002, group=(1001,))
    fdb = [
        (FdbKey("vx0", remote, "self"), FdbTarget(nhid=group.id)),
        (FdbKey("vx0", plain, "self"), FdbTarget(dst=bytes((192, 0, 2, 3)))),
        (FdbKey("vx0", remote, "master"), FdbTarget()),
        (FdbKey("v0", local, "master"), FdbTarget(local=True)),
    ]
    neigh = [
        (NeighKey("br0", bytes((10, 9, 0, 1))), remote),
        (NeighKey("br0", ipaddress.ip_address("fd00::5").packed), remote),
    ]
    messages = [
        nexthops.put(via),
        nexthops.put(group),
        *rows.put_fdb(fdb, index),
        *rows.put_neigh(neigh, index),
    ]
    assert link.transact(messages) == [None] * len(messages)

    shown = vxlan_bridge.json("bridge", "-d", "-j", "fdb", "show")

    def row(mac, device, *, bridge):
        (found,) = [
            r
            for r in shown
            if r["mac"] == mac.hex(":") and r["ifname"] == device and ("master" in r) == bridge
        ]
        return found

    assert row(remote, "vx0", bridge=False)["nhid"] == 1002
    assert set(row(remote, "vx0", bridge=False)["flags"]) == {"self", "extern_learn"}
    assert row(plain, "vx0", bridge=False)["dst"] == "192.0.2.3"
    assert row(remote, "vx0", bridge=True)["flags"] == ["extern_learn"]
    assert row(local, "v0", bridge=True)["state"] == "static"
    assert row(local, "v0", bridge=True)["flags"] == []
    neighbours = {
        n["dst"]: n for n in vxlan_bridge.json("ip", "-j", "neigh", "show", "nud", "all", "dev", "br0")
    }
    for ip in ("10.9.0.1", "fd00::5"):
        assert neighbours[ip]["lladdr"] == remote.hex(":")
        assert neighbours[ip]["state"] == ["PERMANENT"]
        assert "extern_learn" in neighbours[ip]
    hops = {hop["id"]: hop for hop in vxlan_bridge.json("ip", "-j", "nexthop", "show")}
    assert hops[1001]["gateway"] == "192.0.2.2"
    assert hops[1002]["group"] == [{"id": 1001}]
    assert all(hop["protocol"] == str(ROUTE_PROTOCOL) for hop in hops.values())
    assert set(nexthops.read(link)) == {(via, ROUTE_PROTOCOL, True), (group, ROUTE_PROTOCOL, True)}


def test_a_replaced_nexthop_takes_a_new_address(link, vxlan_bridge):
    if not nexthops.supports_fdb_nexthops(link):
        pytest.skip("FDB nexthops (kernel 5.8)")
    for address in ("192.0.2.2", "192.0.2.3", "2001:db8::3"):
        assert link.transact([nexthops.put(Nexthop(9, via=ipaddress.ip_address(address).packed))]) == [None]
        (hop,) = vxlan_bridge.json("ip", "-j", "nexthop", "show")
        assert hop["gateway"] == address
    assert link.transact([nexthops.delete(9)]) == [None]
    assert nexthops.read(link) == []


def test_asking_for_the_feature_leaves_nothing_behind(link, vxlan_bridge):
    nexthops.supports_fdb_nexthops(link)
    assert vxlan_bridge.json("ip", "-j", "nexthop", "show") == []
