"""Ops, carried out in order; failures one by one; doing it twice is doing it once."""

import errno

import pytest
from layout import (
    BRIDGE,
    FIREWALL,
    MARK,
    VXLAN,
    differences,
    group_id,
    host_end,
    ip,
    kernel,
    mac,
    nexthop_id,
    program,
    put_all,
)

from meshd.config import NETLINK_BATCH
from meshd.errors import KernelError
from meshd.kernel.apply import describe
from meshd.kernel.namespace import Namespace
from meshd.plan.elements import element
from meshd.plan.objects import Addr, FdbKey, FdbTarget, Kernel, NeighKey, Nexthop
from meshd.plan.ops import (
    DelAddr,
    DelElement,
    DelFdb,
    DelLink,
    DelNeigh,
    DelNexthop,
    PutAddr,
    PutElement,
    PutFdb,
    PutLink,
    PutNeigh,
    PutNexthop,
    RemakeLink,
    SetFirewall,
)

DST = FdbTarget(dst=ip("192.0.2.9"))


@pytest.fixture
def host(netns):
    assert netns.call(program, 0) == []
    with netns.call(Namespace) as namespace:
        if not namespace.supports_fdb_nexthops():
            pytest.skip("FDB nexthops (kernel 5.8)")
        netns.kernel = namespace
        yield netns


def apply(host, *ops):
    return [(op, error) for op, error in host.call(host.kernel.apply, ops)]


def ours(host):
    return host.call(host.kernel.dump, MARK, FIREWALL).ours


def delete_all(desired):
    return [
        SetFirewall(""),
        *map(DelNeigh, desired.neigh),
        *map(DelFdb, desired.fdb),
        *(DelNexthop(n.id) for n in sorted(desired.nexthops.values(), key=lambda n: not n.group)),
        *map(DelAddr, desired.addrs),
        *map(DelLink, desired.links),
    ]


def test_everything_can_be_put_twice_and_deleted_twice(host):
    desired = kernel(0)
    for _ in range(2):
        assert apply(host, *put_all(desired, veth=True)) == []
        assert differences(ours(host), desired) == []
    for _ in range(2):
        assert apply(host, *delete_all(desired)) == []
        assert ours(host) == Kernel()
    assert [link["ifname"] for link in host.json("ip", "-j", "link")] == ["lo"]


DAMAGE = {
    "a self row": ["bridge fdb del {remote} dev {vxlan} self"],
    "a master row": ["bridge fdb del {remote} dev {vxlan} master"],
    "a local row": ["bridge fdb del {local} dev {veth} master"],
    "a neighbour": ["ip neigh del 10.77.0.3 dev {bridge}"],
    "a v6 neighbour": ["ip neigh del fd77::3 dev {bridge}"],
    "an address": ["ip addr del 10.77.0.1/24 dev {bridge}"],
    "a v6 address": ["ip addr del fd77::1/64 dev {bridge}"],
    "the group": ["ip nexthop del id {group}"],
    "the nexthop": ["ip nexthop del id {nexthop}"],
    "the firewall": ["nft delete table inet meshd"],
    "the bridge": ["ip link del {bridge}"],
    "the vxlan device": ["ip link del {vxlan}"],
    "a self row taken over": ["bridge fdb replace {remote} dev {vxlan} self nhid {group}"],
    "a self row given an address": [
        "bridge fdb del {remote} dev {vxlan} self",
        "bridge fdb add {remote} dev {vxlan} self dst 192.0.2.66",
    ],
    "a master row moved": ["bridge fdb replace {remote} dev {veth} master static"],
    "a local row moved": ["bridge fdb replace {local} dev {vxlan} master static"],
    "a local row as the bridge's own": ["bridge fdb replace {local} dev {veth} master permanent"],
    "a neighbour changed": ["ip neigh replace 10.77.0.3 lladdr 02:00:00:00:00:66 dev {bridge} nud permanent"],
    "the nexthop changed": ["ip nexthop replace id {nexthop} via 192.0.2.66 fdb"],
    "all rows": ["bridge fdb flush dev {vxlan} self", "ip neigh flush dev {bridge} nud all"],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_somebody_breaks_shows_and_putting_everything_again_mends_it(host, damage):
    desired = kernel(0)
    words = {
        "remote": mac(1).hex(":"),
        "local": mac(0).hex(":"),
        "veth": host_end(0).name,
        "bridge": BRIDGE,
        "vxlan": VXLAN,
        "group": group_id(1),
        "nexthop": nexthop_id(1),
    }
    for command in DAMAGE[damage]:
        host.run(*command.format(**words).split())
    assert differences(ours(host), desired) != []
    assert apply(host, *put_all(desired, veth=True)) == []
    assert differences(ours(host), desired) == []


def kinds(*targets):
    return [PutFdb(FdbKey(VXLAN, mac(1), "self"), target) for target in targets]


def test_a_self_row_becomes_what_it_should_whatever_it_was(host):
    group = FdbTarget(nhid=group_id(1))
    for put in kinds(DST, FdbTarget(dst=ip("192.0.2.8")), group, DST, group, group):
        assert apply(host, put) == []
        assert ours(host).fdb[put.key] == put.target


def test_a_self_row_that_is_replaced_by_its_like_is_never_absent(host):
    other = Nexthop(nexthop_id(0), via=ip("192.0.2.5"))
    group = Nexthop(group_id(0), group=(other.id,))
    assert apply(host, PutNexthop(other), PutNexthop(group)) == []
    with host.call(lambda: host.kernel.watch(own=True)) as watch:
        assert apply(host, *kinds(FdbTarget(nhid=group.id))) == []
        watch._read()
        assert [(e.what, e.gone, e.mine) for e in watch._queue] == [("fdb", False, True)]
    assert ours(host).fdb[FdbKey(VXLAN, mac(1), "self")] == FdbTarget(nhid=group.id)


def test_deleting_what_is_gone_is_a_success(host):
    missing = [
        DelFdb(FdbKey(VXLAN, b"\x02" * 6, "self")),
        DelFdb(FdbKey(VXLAN, b"\x02" * 6, "master")),
        DelFdb(FdbKey("nosuch0", b"\x02" * 6, "self")),
        DelNeigh(NeighKey(BRIDGE, ip("10.77.0.99"))),
        DelNeigh(NeighKey("nosuch0", ip("fd77::99"))),
        DelAddr(Addr(BRIDGE, ip("10.77.0.99"), 24)),
        DelAddr(Addr("nosuch0", ip("fd77::99"), 64)),
        DelNexthop(12345),
        DelLink("nosuch0"),
    ]
    assert apply(host, *missing) == []


def test_a_port_that_left_its_bridge_has_no_bridge_rows_to_delete(host):
    host.run("ip", "link", "set", VXLAN, "nomaster")
    assert apply(host, DelFdb(FdbKey(VXLAN, mac(1), "master"))) == []


def test_each_failure_names_its_object_and_the_rest_is_done(host):
    good = PutFdb(FdbKey(VXLAN, b"\x02\0\0\0\0\x31", "self"), DST)
    bad = [
        PutFdb(FdbKey("nosuch0", b"\x02\0\0\0\0\x32", "self"), DST),
        PutFdb(FdbKey(VXLAN, b"\x02\0\0\0\0\x33", "self"), FdbTarget(nhid=999)),
        PutNexthop(Nexthop(1000, group=(999,))),
        PutNeigh(NeighKey("nosuch0", ip("10.77.0.9")), mac(1)),
        PutAddr(Addr("nosuch0", ip("10.77.0.9"), 24)),
    ]
    failed = apply(host, *bad[:2], good, *bad[2:])
    assert sorted(describe(op) for op, _ in failed) == sorted(map(describe, bad))
    for op, error in failed:
        assert error.what.startswith(describe(op) + ": ")
        assert error.errno
    words = {describe(op): error.words for op, error in failed}
    assert words["nexthop 1000"] == "Invalid nexthop id"
    assert words["fdb row 02:00:00:00:00:32 dev nosuch0 self"] == "device nosuch0 does not exist"
    assert ours(host).fdb[good.key] == DST


def test_a_port_that_is_not_deleted_stays_guarded(host, monkeypatch):
    """Else whoever is behind it could pretend to be anybody, until the kernel lets it go."""
    veth = host_end(0).name
    guards = {element("ports", veth.encode()): b"", element("macs", veth.encode(), mac(0)): b""}
    other = element("members4", ip("192.0.2.7"))
    assert apply(host, *(PutElement(of, data) for of, data in guards.items()), PutElement(other, b"")) == []
    busy = KernelError(veth, errno=errno.EBUSY, words="busy")
    delete = [DelLink(veth), *map(DelElement, guards), DelElement(other), SetFirewall("")]
    with monkeypatch.context() as patch:
        patch.setattr("meshd.kernel.links.Links.delete", lambda links, names: [busy] * len(names))
        failed = apply(host, *delete)
    assert [op for op, _ in failed] == [delete[0], *delete[1:3], delete[4]]
    assert {error.words for _, error in failed[1:]} == {"what it guards is still there"}
    found = ours(host).elements
    assert guards.keys() <= found.keys()
    assert other not in found
    assert apply(host, *delete) == []
    assert ours(host).firewall == ""


def test_more_rows_than_a_batch_are_all_written_and_all_deleted(host):
    count = 2 * NETLINK_BATCH + 7
    keys = [FdbKey(VXLAN, b"\x02\x07" + n.to_bytes(4, "big"), "self") for n in range(count)]
    group = FdbTarget(nhid=group_id(1))
    before = ours(host).fdb
    assert apply(host, *(PutFdb(key, group) for key in keys)) == []
    assert ours(host).fdb == before | dict.fromkeys(keys, group)
    assert apply(host, *map(DelFdb, keys)) == []
    assert ours(host).fdb == before


def test_deleting_a_group_takes_its_rows_along(host):
    assert apply(host, DelNexthop(group_id(1))) == []
    assert FdbKey(VXLAN, mac(1), "self") not in ours(host).fdb


def test_ops_on_a_device_made_in_the_same_call_find_it(host):
    desired = kernel(0)
    again = [
        RemakeLink(desired.links[VXLAN], "for the test"),
        *(PutFdb(key, target) for key, target in desired.fdb.items() if key.dev == VXLAN),
    ]
    index = host.json("ip", "-j", "link", "show", VXLAN)[0]["ifindex"]
    assert apply(host, *again) == []
    assert host.json("ip", "-j", "link", "show", VXLAN)[0]["ifindex"] != index
    assert differences(ours(host), desired) == []


def test_neighbours_survive_a_bridge_that_loses_its_carrier(host):
    assert apply(host, RemakeLink(kernel(0).links[VXLAN], "for the test")) == []
    assert ours(host).neigh == kernel(0).neigh


def test_a_bridge_that_somebody_deleted_gets_its_ports_back(host):
    """The ports survive without a master (reliability.md, 3.2); their rows on the bridge are gone."""
    host.run("ip", "link", "del", BRIDGE)
    desired = kernel(0)
    assert ours(host).links[VXLAN].master is None
    assert apply(host, *(PutLink(link) for link in desired.links.values())) == []
    assert {link.master for link in ours(host).links.values() if link.kind != "bridge"} == {BRIDGE}


def test_nothing_to_do_is_nothing_done(host):
    assert apply(host) == []


def test_every_op_can_be_named():
    key, row = NeighKey("mo1", ip("fd77::1")), FdbKey("mv1", bytes(6), "self")
    named = {
        describe(PutLink(host_end(0))): "device mhe0e0e0e0",
        describe(RemakeLink(host_end(0), "")): "device mhe0e0e0e0",
        describe(DelLink("mh1")): "device mh1",
        describe(PutAddr(Addr("mo1", ip("10.0.0.1"), 24))): "address 10.0.0.1/24 on mo1",
        describe(DelNexthop(7)): "nexthop 7",
        describe(DelFdb(row)): "fdb row 00:00:00:00:00:00 dev mv1 self",
        describe(DelNeigh(key)): "neighbour fd77::1 dev mo1",
        describe(SetFirewall("")): "firewall tables",
    }
    assert list(named) == list(named.values())


def test_a_link_that_cannot_be_made_fails_alone(host):
    ((op, error),) = apply(host, DelLink("lo"), PutAddr(Addr(BRIDGE, ip("10.77.0.9"), 24)))
    assert op == DelLink("lo")
    assert error.errno == errno.EEXIST
    assert Addr(BRIDGE, ip("10.77.0.9"), 24) in ours(host).addrs
