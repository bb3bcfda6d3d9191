"""What a dump takes for ours, for foreign, and for the kernel's own."""

import pytest
import trio
from layout import BRIDGE, MARK, VXLAN, differences, group_id, host_end, kernel, mac, nexthop_id, program

from meshd.kernel.namespace import Namespace
from meshd.plan.objects import Dump, Finding, Kernel
from meshd.plan.ops import PutAddr

OTHER_MARK = "deadbeef"
VETH = host_end(0).name


@pytest.fixture
def host(netns):
    """A host programmed in full."""
    assert netns.call(program, 0) == []
    with netns.call(Namespace) as namespace:
        netns.kernel = namespace
        yield netns


def dump(host, mark=MARK):
    return host.call(host.kernel.dump, mark, kernel(0).firewall)


def foreign(host):
    return {(finding.object, finding.what) for finding in dump(host).foreign}


def test_an_empty_namespace_holds_nothing(netns):
    with netns.call(Namespace) as namespace:
        assert netns.call(namespace.dump, MARK) == Dump(ours=Kernel(), devices={1: "lo"})


def test_all_that_was_programmed_is_ours_and_nothing_is_foreign(host):
    found = dump(host)
    assert differences(found.ours, kernel(0)) == []
    assert found.foreign == []


def test_rows_read_ahead_serve_one_dump_and_what_changes_meanwhile_is_told(host):
    key = next(key for key in kernel(0).fdb if key.where == "self")

    async def told():
        with host.kernel.watch() as watch:
            host.kernel.read_ahead()
            host.kernel._ahead._thread.join()
            host.run("bridge", "fdb", "del", key.mac.hex(":"), "dev", key.dev, "self")
            with trio.fail_after(10):
                async for event in watch:
                    if event.what == "fdb" and event.gone:
                        return

    host.call(trio.run, told)
    assert key in dump(host).ours.fdb, "as it was read"
    assert key not in dump(host).ours.fdb, "the next dump reads anew"


def test_a_mac_that_moves_between_hosts_is_read_by_where_it_is(host):
    """The bridge keeps the marks of both kinds when a row is replaced; the dump must not be confused."""
    there, here = ("mv00010203", "mhe0e0e0e0")
    for device, how in ((there, ["extern_learn"]), (here, ["static"])):
        host.run("bridge", "fdb", "replace", mac(0).hex(":"), "dev", device, "master", *how)
        host.run("bridge", "fdb", "replace", mac(1).hex(":"), "dev", device, "master", *how)
    expected = kernel(0).fdb
    found = {key: target for key, target in dump(host).ours.fdb.items() if key.where == "master"}
    assert {key.dev for key in found} == {here}
    assert all(target.local for target in found.values())
    assert next(key for key in expected if key.dev == here) in found


FOREIGN = {
    ("fdb", f"02:00:00:00:00:77 dev {VXLAN} dst 192.0.2.9 self"): [
        f"bridge fdb add 02:00:00:00:00:77 dev {VXLAN} dst 192.0.2.9 self"
    ],
    ("fdb", f"00:00:00:00:00:00 dev {VXLAN} dst 192.0.2.9 self"): [
        f"bridge fdb append 00:00:00:00:00:00 dev {VXLAN} dst 192.0.2.9 self"
    ],
    ("fdb", f"02:00:00:00:00:77 dev {VXLAN} master"): [
        f"bridge fdb add 02:00:00:00:00:77 dev {VXLAN} master static"
    ],
    ("fdb", f"02:00:00:00:00:77 dev {VETH} master"): [
        f"bridge fdb add 02:00:00:00:00:77 dev {VETH} master permanent"
    ],
    ("neighbour", f"10.77.0.9 dev {BRIDGE} lladdr 02:00:00:00:00:77"): [
        f"ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:77 dev {BRIDGE} nud permanent"
    ],
    ("address", f"10.99.0.1/24 dev {BRIDGE}"): [f"ip addr add 10.99.0.1/24 dev {BRIDGE}"],
    ("address", f"10.99.0.1/24 dev {VETH}"): [f"ip addr add 10.99.0.1/24 dev {VETH}"],
    ("nexthop", f"id {0x90D48000 + 5}"): [
        f"ip nexthop add id {0x90D48000 + 5} via 192.0.2.9 fdb protocol 109"
    ],
    ("nexthop", f"id {0x6D000000 + 5}"): [f"ip nexthop add id {0x6D000000 + 5} via 192.0.2.9 fdb"],
    ("link", "mo99999999"): ["ip link add mo99999999 type bridge"],
    ("link", "odd0"): [
        "ip link add odd0 type bridge",
        f"ip link set odd0 alias meshd:{OTHER_MARK}:000102030405060708090a0b0c0d0e0f",
    ],
}


@pytest.mark.parametrize("finding", FOREIGN, ids=" ".join)
def test_what_others_put_on_our_devices_is_foreign_and_not_ours(host, finding):
    for command in FOREIGN[finding]:
        host.run(*command.split())
    found = dump(host)
    assert [(f.object, f.what) for f in found.foreign] == [finding]
    assert differences(found.ours, kernel(0)) == []


NOBODYS = [
    f"ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:77 dev {BRIDGE} nud reachable",
    f"ip neigh add fd77::9 dev {BRIDGE} nud failed",
    "ip link add dummybr type bridge",
    "bridge fdb add 02:00:00:00:00:77 dev x0 self permanent",
    "bridge fdb add 02:00:00:00:00:78 dev x0 master static",
    "ip neigh add 10.5.5.5 lladdr 02:00:00:00:00:77 dev x1 nud permanent",
    "ip addr add 10.98.0.1/24 dev x1",
    "ip nexthop add id 7 via 192.0.2.9 fdb",
]


@pytest.mark.parametrize("command", NOBODYS)
def test_what_the_kernel_learns_and_what_others_do_elsewhere_does_not_count(host, command):
    host.run("ip", "link", "add", "br9", "type", "bridge")
    host.run("ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1")
    host.run("ip", "link", "set", "x0", "master", "br9")
    host.run(*command.split())
    found = dump(host)
    assert found.foreign == []
    assert differences(found.ours, kernel(0)) == []


def test_another_clusters_devices_are_foreign(host):
    found = dump(host, OTHER_MARK)
    assert found.ours.links == {}
    assert found.ours.fdb == {}
    assert {(f.object, f.what) for f in found.foreign} == {
        ("link", BRIDGE),
        ("link", VXLAN),
        ("link", VETH),
        ("link", "mpe0e0e0e0"),
    }


def test_a_row_taken_over_by_somebody_is_foreign_and_missing(host):
    host.run("bridge", "fdb", "del", mac(1).hex(":"), "dev", VXLAN, "self")
    host.run("bridge", "fdb", "add", mac(1).hex(":"), "dev", VXLAN, "self", "dst", "192.0.2.66")
    found = dump(host)
    assert [f.object for f in found.foreign] == ["fdb"]
    assert {key.where for key in found.ours.fdb if key.mac == mac(1)} == {"master"}


def test_a_second_address_for_a_mac_is_foreign(host):
    key = "01:00:5e:00:00:05"  # append does nothing for a unicast MAC
    host.run("bridge", "fdb", "append", key, "dev", VXLAN, "self", "dst", "192.0.2.2", "extern_learn")
    host.run("bridge", "fdb", "append", key, "dev", VXLAN, "self", "dst", "192.0.2.66", "extern_learn")
    found = dump(host)
    assert [f.why for f in found.foreign] == ["is a second address for one MAC"]
    assert len([k for k in found.ours.fdb if k.mac.hex(":") == key]) == 1


def test_an_address_taken_over_from_somebody_becomes_ours(host):
    (v4, v6) = sorted(kernel(0).addrs, key=lambda addr: len(addr.ip))
    host.run("ip", "addr", "replace", "10.99.0.1/24", "dev", BRIDGE)
    host.run("ip", "addr", "replace", "fd99::1/64", "dev", BRIDGE)
    taken = [
        type(v4)(BRIDGE, b"\x0a\x63\x00\x01", 24),
        type(v6)(BRIDGE, b"\xfd\x99" + bytes(13) + b"\x01", 64),
    ]
    assert len(foreign(host)) == 2
    assert host.call(host.kernel.apply, [PutAddr(addr) for addr in taken]) == []
    assert set(taken) <= dump(host).ours.addrs
    assert foreign(host) == set()


def test_a_finding_says_why(host):
    host.run("ip", "nexthop", "del", "id", str(group_id(1)))
    host.run("ip", "nexthop", "replace", "id", str(nexthop_id(1)), "via", "192.0.2.9", "fdb")
    (finding,) = dump(host).foreign
    why = "has an id of ours, without our protocol number"
    assert finding == Finding("nexthop", f"id {nexthop_id(1)}", why)
