"""From a view of the cluster to exactly what the kernel should hold."""

from itertools import permutations

import msgspec
import pytest

from meshd.model import Network, Subnet
from meshd.plan import names
from meshd.plan.desired import View, desired, desired_network, desired_parts, member_elements
from meshd.plan.elements import element
from meshd.plan.firewall import link_local
from meshd.plan.objects import Addr, FdbKey, FdbTarget, Kernel, Link, NeighKey, Nexthop, Port, Vxlan, guest
from tests.plan_world import (
    BLUE,
    BRIDGE,
    HOSTS,
    LAN,
    MARK,
    OVERLAY,
    RED,
    A,
    B,
    C,
    World,
    blue_on_two_hosts,
    facts,
    id_of,
    ip4,
)

V6 = bytes.fromhex("fd000000000000000000000000000042")


def test_one_overlay_on_two_hosts_is_exactly_this():
    kernel = desired_network(blue_on_two_hosts().view(), BLUE)
    assert kernel.elements  # which ones: test_plan_firewall.py
    kernel.elements = {}

    alias = "meshd:c1c2c3c4:" + "11" * 16
    bridge, vxlan, veth = "mo11111111", "mv11111111", "mh" + id_of("web").hex()[:8]
    web, db = names.endpoint_mac(id_of("web")), names.endpoint_mac(id_of("db"))
    single = names.nexthop_ids(HOSTS)[B]
    group = single + 0x800000
    assert kernel == Kernel(
        links={
            bridge: Link(bridge, "bridge", alias, 1450, mac=names.gateway_mac(BLUE)),
            vxlan: Link(
                vxlan,
                "vxlan",
                alias,
                1450,
                mac=names.vtep_mac(BLUE, A),
                master=bridge,
                port=Port(
                    learning=False,
                    flood=False,
                    mcast_flood=False,
                    bcast_flood=False,
                    neigh_suppress=True,
                    locked=True,
                ),
                vxlan=Vxlan(5001, bytes([192, 0, 2, 1]), 4789),
            ),
            veth: Link(
                veth,
                "veth",
                f"{alias}:{id_of('web').hex()[:8]}",
                1450,
                master=bridge,
                port=Port(
                    learning=False, flood=False, mcast_flood=True, bcast_flood=True, neigh_suppress=False
                ),
            ),
        },
        addrs={Addr(bridge, bytes([10, 1, 0, 1]), 20)},
        nexthops={
            single: Nexthop(single, via=bytes([192, 0, 2, 2])),
            group: Nexthop(group, group=(single,)),
        },
        fdb={
            FdbKey(veth, web, "master"): FdbTarget(local=True),
            FdbKey(vxlan, db, "self"): FdbTarget(nhid=group),
            FdbKey(vxlan, db, "master"): FdbTarget(),
        },
        neigh={NeighKey(bridge, bytes([10, 1, 0, 66])): db},
    )


def test_a_kernel_without_fdb_nexthops_gets_plain_rows():
    kernel = desired_network(blue_on_two_hosts(nhid=False).view(), BLUE)
    row = FdbKey("mv11111111", names.endpoint_mac(id_of("db")), "self")
    assert kernel.fdb[row] == FdbTarget(dst=ip4("192.0.2.2"))
    assert kernel.nexthops == {}


def test_an_endpoint_with_two_families_has_a_neighbour_for_each():
    world = blue_on_two_hosts()
    world.networks[BLUE] = msgspec.structs.replace(
        OVERLAY, subnets=(*OVERLAY.subnets, Subnet("fd00::/64", "fd00::1"))
    )
    world.endpoint("db", BLUE, B, "10.1.0.66", V6)
    kernel = desired_network(world.view(), BLUE)
    mac = names.endpoint_mac(id_of("db"))
    assert kernel.neigh == {
        NeighKey("mo11111111", ip4("10.1.0.66")): mac,
        NeighKey("mo11111111", V6): mac,
    }
    assert kernel.addrs == {
        Addr("mo11111111", ip4("10.1.0.1"), 20),
        Addr("mo11111111", bytes.fromhex("fd00" + "00" * 13 + "01"), 64),
        Addr("mo11111111", link_local(names.gateway_mac(BLUE)), 64),  # else the kernel solicits nobody
    }
    assert sum(key.where == "self" for key in kernel.fdb) == 1


def test_a_v6_underlay_gives_v6_tunnels():
    vteps = {A: bytes.fromhex("20010db8" + "00" * 11 + "01"), B: bytes.fromhex("20010db8" + "00" * 11 + "02")}
    world = blue_on_two_hosts(hosts={host: facts(vtep) for host, vtep in vteps.items()})
    kernel = desired_network(world.view(), BLUE)
    assert kernel.links["mv11111111"].vxlan.local == vteps[A]
    assert vteps[B] in {nexthop.via for nexthop in kernel.nexthops.values()}


def test_a_bridge_network_needs_neither_endpoints_nor_hosts_nor_tunnels():
    world = World(hosts={})
    world.networks[LAN] = BRIDGE
    kernel = desired_network(world.view(), LAN)
    assert list(kernel.links) == ["mo33333333"]
    assert kernel.links["mo33333333"].mac == names.gateway_mac(LAN)
    assert kernel.addrs == {Addr("mo33333333", ip4("172.20.0.1"), 24)}
    assert not kernel.fdb
    assert not kernel.nexthops


def test_a_bridge_network_switches_between_its_endpoints():
    world = World()
    world.networks[LAN] = BRIDGE
    id_ = world.endpoint("job", LAN, A, "172.20.0.2")
    kernel = desired_network(world.view(), LAN)
    veth = names.veth(id_)
    assert kernel.links[veth].master == "mo33333333"
    assert kernel.fdb == {FdbKey(veth, names.endpoint_mac(id_), "master"): FdbTarget(local=True)}
    assert not kernel.neigh


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_of_a_network_that_is_the_lan_only_own_endpoints_devices_are_wanted(driver):
    world = World()
    world.networks[RED] = Network("red", driver, (Subnet("10.9.0.0/24", "10.9.0.1"),))
    world.endpoint("job", RED, A, "10.9.0.2")
    world.endpoint("away", RED, B, "10.9.0.3")
    (link,) = desired(world.view()).links.values()
    ((id_, attachment),) = world.view().attachments.items()
    assert link == guest(attachment.host_if, driver, names.guest_alias(world.view().cluster, RED, id_))
    assert names.alias_network(link.alias, world.view().cluster) == RED
    assert names.alias_endpoint(link.alias, world.view().cluster) == id_
    assert desired(world.view()) == Kernel(links={link.name: link}), "no bridge, no address, no row, no fence"


@pytest.mark.parametrize("driver", ["none", "host"])
def test_a_network_without_a_bridge_of_ours_needs_nothing(driver):
    world = World()
    world.networks[RED] = Network("red", driver, (Subnet("10.9.0.0/24", "10.9.0.1"),))
    world.endpoint("job", RED, A, "10.9.0.2")
    assert desired(world.view()) == Kernel()


def test_endpoints_that_are_kept_apart_have_isolated_ports_and_no_way_by_the_gateway():
    world = World()
    world.networks[LAN] = msgspec.structs.replace(BRIDGE, options={"isolate-ports": "yes"})
    pair = [world.endpoint(name, LAN, A, f"172.20.0.{n}") for n, name in enumerate(("one", "two"), 2)]
    found = desired(world.view())
    assert [found.links[names.veth(id_)].port for id_ in pair] == [Port(isolated=True)] * 2
    bridge = names.bridge(LAN).encode()
    assert element("apart", bridge, bridge) in found.elements
    assert element("same", bridge, bridge) not in found.elements
    world.networks[LAN] = BRIDGE
    found = desired(world.view())
    assert [found.links[names.veth(id_)].port for id_ in pair] == [Port()] * 2
    assert not [of for of in found.elements if of.set == "apart"]


def test_an_overlay_without_a_local_endpoint_is_not_programmed():
    world = blue_on_two_hosts()
    world.release("web")
    assert desired(world.view()) == Kernel()


def test_a_failed_hosts_rows_stay_because_membership_is_no_input():
    # The view has no place where a verdict could enter; a failed host's records are what they were.
    assert not {name for name in View.__struct_fields__ if "alive" in name or "member" in name}
    world = blue_on_two_hosts()
    assert NeighKey("mo11111111", ip4("10.1.0.66")) in desired(world.view()).neigh
    world.release("db")  # released: that is a record
    assert desired(world.view()).neigh == {}


def test_an_internal_networks_bridge_has_no_address_but_its_endpoints_reach_each_other():
    world = blue_on_two_hosts()
    world.networks[BLUE] = msgspec.structs.replace(OVERLAY, internal=True)
    kernel = desired_network(world.view(), BLUE)
    assert kernel.addrs == set()
    assert len(kernel.fdb) == 3
    assert len(kernel.neigh) == 1


def test_an_endpoint_that_moved_here_has_no_remote_rows_left():
    world = blue_on_two_hosts()
    world.endpoint("db", BLUE, A, "10.1.0.66")
    kernel = desired_network(world.view(), BLUE)
    assert kernel.neigh == {}
    assert {key.where for key in kernel.fdb} == {"master"}
    assert all(target.local for target in kernel.fdb.values())


def without_host(world):
    del world.hosts[B]


def on_the_other_family(world):
    world.hosts[B] = facts(bytes(15) + b"\x02")


def with_the_same_address(world):
    world.endpoint("twin", BLUE, C, "10.1.0.66")


def with_a_local_address(world):
    world.endpoint("db", BLUE, B, "10.1.0.2")


def with_a_local_mac(world):
    world.endpoint("db", BLUE, B, "10.1.0.66", mac=names.endpoint_mac(id_of("web")))


@pytest.mark.parametrize(
    ("spoil", "left_out", "word"),
    [
        (without_host, "db", "host unknown yet"),
        (on_the_other_family, "db", "other family"),
        (with_the_same_address, max("db", "twin", key=id_of), "another endpoint's"),
        (with_a_local_address, "db", "another endpoint's"),
        (with_a_local_mac, "db", "another endpoint's"),
    ],
)
def test_an_endpoint_that_cannot_be_reached_has_no_rows_and_a_finding(spoil, left_out, word):
    world = blue_on_two_hosts()
    spoil(world)
    part = desired_parts(world.view())[BLUE]
    (finding,) = part.omitted.values()
    assert id_of(left_out).hex() in finding.what
    assert word in finding.why
    row = FdbKey("mv11111111", world.endpoints[id_of(left_out)].mac, "self")
    assert row not in part.kernel.fdb
    survivors = {"db", "twin"} & {name for name in ("db", "twin") if id_of(name) in world.endpoints} - {
        left_out
    }
    assert len(part.kernel.neigh) == len(survivors)


def test_a_record_of_this_machine_under_another_identity_is_skipped_without_alarm():
    world = blue_on_two_hosts()
    world.hosts[B] = facts(HOSTS[A].vtep)
    part = desired_parts(world.view())[BLUE]
    assert part.omitted == {}
    assert part.kernel.neigh == {}


def test_what_is_not_known_yet_is_marked_so_that_nothing_is_torn_down_for_it():
    world = blue_on_two_hosts()
    del world.networks[BLUE]
    assert desired_parts(world.view())[BLUE].unknown
    world.networks[BLUE] = OVERLAY
    del world.hosts[A]
    assert desired_parts(world.view())[BLUE].unknown
    world.release("web")
    assert not desired_parts(world.view())[BLUE].unknown


@pytest.mark.parametrize(
    ("network", "vtep", "mtu"),
    [
        (msgspec.structs.replace(OVERLAY, mtu=1300), ip4("192.0.2.1"), 1300),
        (msgspec.structs.replace(OVERLAY, mtu=0), ip4("192.0.2.1"), 1450),
        (msgspec.structs.replace(OVERLAY, mtu=0), bytes(15) + b"\x01", 1430),
    ],
)
def test_every_device_has_the_networks_mtu_or_what_the_underlay_leaves(network, vtep, mtu):
    world = blue_on_two_hosts()
    world.networks[BLUE] = network
    world.hosts[A] = facts(vtep)
    assert {link.mtu for link in desired_network(world.view(), BLUE).links.values()} == {mtu}


def test_a_local_endpoint_of_an_earlier_boot_has_no_link_but_keeps_the_network():
    world = blue_on_two_hosts()
    world.attachments.clear()
    kernel = desired_network(world.view(), BLUE)
    assert {link.kind for link in kernel.links.values()} == {"bridge", "vxlan"}
    assert len(kernel.neigh) == 1


def test_the_whole_is_its_networks_and_a_firewall():
    world = blue_on_two_hosts()
    world.networks[LAN] = BRIDGE
    view = world.view()
    whole, blue, lan = desired(view), desired_network(view, BLUE), desired_network(view, LAN)
    assert whole.links == blue.links | lan.links
    assert whole.addrs == blue.addrs | lan.addrs
    assert whole.fdb == blue.fdb | lan.fdb
    assert whole.elements == blue.elements | lan.elements | member_elements(view)
    assert whole.firewall.startswith("table inet meshd {")
    assert all(link.alias.startswith(f"meshd:{MARK}:") for link in whole.links.values())


def test_frames_for_all_go_once_to_each_host_with_endpoints_there_where_asked_for():
    world = blue_on_two_hosts()
    world.endpoint("db2", BLUE, B, "10.1.0.67")
    world.networks[BLUE] = msgspec.structs.replace(OVERLAY, broadcast=True)
    kernel = desired_network(world.view(), BLUE)
    device = names.vxlan(BLUE)
    copies = {key: target for key, target in kernel.fdb.items() if key.mac == bytes(6)}
    assert copies == {FdbKey(device, bytes(6), "self", ip4("192.0.2.2")): FdbTarget(dst=ip4("192.0.2.2"))}
    port = kernel.links[device].port
    assert (port.bcast_flood, port.mcast_flood, port.flood, port.neigh_suppress) == (True, True, False, True)


def test_who_keeps_an_address_that_several_claim_does_not_depend_on_the_order_of_arrival():
    world = blue_on_two_hosts()
    world.endpoint("here", BLUE, B, "10.1.0.2")  # a local endpoint's: that keeps it
    for name, host, ips in (
        ("x", B, ["10.1.0.9", "10.1.0.8"]),
        ("y", C, ["10.1.0.8"]),
        ("z", C, ["10.1.0.9"]),
    ):
        world.endpoint(name, BLUE, host, *ips)
    expected = desired_parts(world.view())[BLUE]
    assert {id_of(name) for name in ("x", "y", "z")} - expected.disputed
    for order in permutations(sorted(world.endpoints)):
        world.endpoints = {id_: world.endpoints[id_] for id_ in order}
        part = desired_parts(world.view())[BLUE]
        assert (part.kernel, part.omitted, part.disputed) == (
            expected.kernel,
            expected.omitted,
            expected.disputed,
        )


def test_a_network_with_virtual_addresses_lets_every_port_claim_them_and_its_tunnel_carry_the_claims():
    world = blue_on_two_hosts()
    plain = desired_network(world.view(), BLUE)
    options = {"vip": "10.1.0.240,fd00::f0"}
    world.networks[BLUE] = msgspec.structs.replace(world.networks[BLUE], options=options, broadcast=True)
    kernel = desired_network(world.view(), BLUE)
    port = ("mh" + id_of("web").hex()[:8]).encode()
    more = {
        element("ips4", port, names.endpoint_mac(id_of("web")) + b"\x08\x00", ip4("10.1.0.240")),
        element("targets4", port, ip4("10.1.0.240")),
        element("vips4", ip4("10.1.0.240")),
        element("vips6", bytes.fromhex("fd0000000000000000000000000000f0")),
    }  # web has no v6 address, so it has no business with a v6 one
    assert set(kernel.elements) - set(plain.elements) == more
    tunnel = kernel.links["mv11111111"].port
    assert (tunnel.neigh_suppress, tunnel.bcast_flood, tunnel.flood, tunnel.locked) == (
        False,
        True,
        False,
        True,
    )
