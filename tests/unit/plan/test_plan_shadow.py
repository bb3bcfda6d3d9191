"""Change by change, the kernel comes out as if everything had been worked out at once."""

import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.model import HOST_NETNS, Attachment, Network, Subnet
from meshd.plan import elements, names, ops
from meshd.plan.desired import desired, outward
from meshd.plan.objects import Addr, FdbTarget, Kernel, NeighKey, Route
from meshd.plan.shadow import Shadow
from tests.fake_kernel import FakeKernel, refused
from tests.plan_world import (
    BLUE,
    BRIDGE,
    HOSTS,
    LAN,
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


class Bench:
    """A world, a kernel, a shadow, and what the shell does between them."""

    def __init__(self, world, kernel=None):
        self.world, self.kernel, self.shadow = world, kernel or FakeKernel(), Shadow()

    def plug(self, *names_):
        for name in names_:
            self.kernel.plug(names.veth(id_of(name)))

    def change(self, *networks, endpoints=None, deletions=True):
        todo = self.shadow.change(self.world.view(), set(networks), endpoints or {}, deletions=deletions)
        self.shadow.done(todo, self.kernel.apply(todo))
        return todo

    def compare(self, deletions=True, now=0.0):
        found = copy.deepcopy(self.kernel.state)
        todo, repairs = self.shadow.compare(self.world.view(), found, now, deletions=deletions)
        self.shadow.done(todo, self.kernel.apply(todo))
        return repairs


def running():
    bench = Bench(blue_on_two_hosts())
    bench.plug("web")
    bench.compare()
    assert bench.kernel.state == desired(bench.world.view())
    return bench


def test_a_remote_endpoint_costs_its_own_rows_and_no_more():
    bench = running()
    id_ = bench.world.endpoint("cache", BLUE, C, "10.1.0.130")
    todo = bench.change(endpoints={BLUE: {id_}})
    assert [type(op) for op in todo] == [
        ops.PutNexthop,
        ops.PutNexthop,
        ops.PutFdb,
        ops.PutFdb,
        ops.PutNeigh,
    ]
    assert bench.kernel.state == desired(bench.world.view())
    bench.world.release("cache")
    todo = bench.change(endpoints={BLUE: {id_}})
    assert [type(op) for op in todo] == [
        ops.DelNeigh,
        ops.DelFdb,
        ops.DelFdb,
        ops.DelNexthop,
        ops.DelNexthop,
    ]
    assert bench.kernel.state == desired(bench.world.view())


def test_rows_of_a_host_failed_for_days_go_when_deletions_may_and_come_back_with_it():
    bench = running()
    whole = copy.deepcopy(bench.kernel.state)
    bench.world.aged = frozenset({B})
    bench.change(BLUE, deletions=False)
    assert bench.kernel.state == whole
    assert bench.shadow.withheld
    assert bench.compare() == []  # no repair: it was still owed
    assert bench.kernel.state == desired(bench.world.view())
    assert not bench.kernel.state.neigh
    assert not bench.kernel.state.nexthops
    assert bench.shadow.counts() == {"missing": 0, "stale": 0}
    bench.change(endpoints={BLUE: {id_of("db")}})  # its record is told anew meanwhile
    assert not bench.kernel.state.neigh
    bench.world.aged = frozenset()
    bench.change(BLUE)
    assert bench.kernel.state == whole


@pytest.mark.parametrize("device", ["mo11111111", "mv11111111", names.veth(id_of("web"))])
def test_a_renamed_device_gets_its_name_back_and_keeps_all_that_is_on_it(device):
    bench = running()
    bench.kernel.rename(device, "mine0")
    (finding,) = bench.shadow.inspect(bench.world.view(), bench.kernel.dump(""))["missing"]
    assert (finding.what, finding.why) == (f"dev {device}", "is named mine0")
    assert bench.compare() == [ops.RenameLink("mine0", device)]
    assert bench.kernel.state == desired(bench.world.view())
    assert bench.shadow.have == bench.kernel.state
    assert bench.shadow.vanished == {}


def test_two_devices_renamed_at_once_get_their_own_names():
    bench = running()
    bench.kernel.rename("mo11111111", "mine0")
    bench.kernel.rename("mv11111111", "mine1")
    bench.compare()
    assert bench.kernel.state == desired(bench.world.view())


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_of_a_network_that_is_the_lan_a_remote_endpoint_costs_nothing_and_a_local_one_its_device(driver):
    bench = running()
    bench.world.networks[RED] = Network("red", driver, (Subnet("10.9.0.0/24", "10.9.0.1"),))
    id_ = bench.world.endpoint("job", RED, A, "10.9.0.2")
    name = bench.world.attachments[id_].host_if
    bench.kernel.state.links[name] = desired(bench.world.view()).links[name]
    assert bench.change(RED, endpoints={RED: {id_}}) == [], (
        "attach made the device; nothing else is to be done"
    )
    away = bench.world.endpoint("away", RED, C, "10.9.0.3")
    assert bench.change(endpoints={RED: {away}}) == []
    bench.world.release("job")
    assert bench.change(endpoints={RED: {id_}}, deletions=False) == [ops.DelLink(name)]


def test_a_device_on_the_lan_that_was_renamed_before_it_was_moved_is_not_taken_for_gone():
    bench = running()
    bench.world.networks[RED] = Network("red", "macvlan", (Subnet("10.9.0.0/24", "10.9.0.1"),))
    id_ = bench.world.endpoint("job", RED, A, "10.9.0.2")
    name = names.guest(id_)
    bench.world.attachments[id_] = Attachment("boot", 7, "/ns", "eth0", name, name)
    bench.kernel.state.links[name] = desired(bench.world.view()).links[name]
    bench.compare()
    bench.kernel.rename(name, "mine0")
    assert bench.compare() == [ops.RenameLink("mine0", name)]
    assert bench.shadow.vanished == {}
    assert bench.shadow.have == bench.kernel.state == desired(bench.world.view())


def test_an_endpoint_of_a_network_that_is_not_programmed_here_costs_nothing():
    bench = running()
    bench.world.networks[RED] = OVERLAY
    id_ = bench.world.endpoint("far", RED, B, "10.1.0.5")
    assert bench.change(endpoints={RED: {id_}}) == []


def test_a_hosts_new_address_is_one_nexthop():
    bench = running()
    bench.world.hosts[B] = facts(ip4("198.51.100.2"))
    put, op, deleted = bench.change(BLUE)
    assert isinstance(op, ops.PutNexthop)
    assert op.nexthop.via == ip4("198.51.100.2")
    member = [elements.element("members4", ip4(ip)) for ip in ("198.51.100.2", "192.0.2.2")]
    assert [put, deleted] == [ops.PutElement(member[0], b""), ops.DelElement(member[1])]


def test_the_first_local_endpoint_brings_the_network_up_and_the_last_takes_it_down_at_once():
    bench = Bench(blue_on_two_hosts())
    bench.world.release("web")
    bench.compare()
    assert bench.kernel.state == Kernel()
    id_ = bench.world.endpoint("web", BLUE, A, "10.1.0.2")
    bench.plug("web")
    bench.change(endpoints={BLUE: {id_}}, deletions=False)
    assert bench.kernel.state == desired(bench.world.view())
    bench.world.release("web")
    bench.change(endpoints={BLUE: {id_}}, deletions=False)
    assert not bench.kernel.state.links
    assert not bench.kernel.state.fdb
    bench.compare(deletions=True)  # nexthops may be others': they wait
    assert bench.kernel.state == Kernel()


def test_what_only_peers_explained_waits_for_permission():
    bench = running()
    before = copy.deepcopy(bench.kernel.state)
    bench.world.release("db")
    assert bench.change(endpoints={BLUE: {id_of("db")}}, deletions=False) == []
    assert bench.change(BLUE, deletions=False) == []
    assert bench.shadow.withheld
    assert bench.compare(deletions=False) == []
    assert bench.kernel.state == before
    assert bench.shadow.counts()["stale"] == 5
    bench.compare(deletions=True)
    assert bench.kernel.state == desired(bench.world.view())
    assert not bench.shadow.withheld


def test_after_a_restart_with_lost_state_nothing_local_is_deleted_either():
    state = running().kernel.state
    bench = Bench(World(), FakeKernel(state))
    before = copy.deepcopy(state)
    bench.compare(deletions=False)
    bench.change(BLUE, deletions=False)
    assert bench.kernel.state == before


def test_a_restart_with_state_adopts_and_changes_nothing():
    first = running()
    second = Bench(first.world, first.kernel)
    second.kernel.log.clear()
    assert second.compare(deletions=True) == []
    assert second.kernel.log == [[]]


@pytest.mark.parametrize("lose", ["network", "own host"])
def test_a_network_that_cannot_be_worked_out_for_now_is_left_as_it_is(lose):
    bench = running()
    before = copy.deepcopy(bench.kernel.state)
    if lose == "network":
        del bench.world.networks[BLUE]
    else:
        del bench.world.hosts[A]
    bench.change(BLUE)
    bench.compare()
    assert {
        name: getattr(bench.kernel.state, name) for name in ("links", "addrs", "fdb", "neigh", "nexthops")
    } == {name: getattr(before, name) for name in ("links", "addrs", "fdb", "neigh", "nexthops")}
    assert bench.shadow.counts()["missing"] == 1


def test_what_a_stranger_broke_is_a_repair_and_what_we_still_owed_is_none():
    bench = running()
    gone = NeighKey("mo11111111", ip4("10.1.0.66"))
    del bench.kernel.state.neigh[gone]
    bench.world.endpoint("cache", BLUE, C, "10.1.0.130")  # its ``changed`` got lost
    assert bench.compare() == [ops.PutNeigh(gone, names.endpoint_mac(id_of("db")))]
    assert bench.kernel.state == desired(bench.world.view())


def test_a_row_that_a_stranger_added_with_our_mark_is_removed_as_a_repair():
    bench = running()
    key = NeighKey("mo11111111", ip4("10.1.0.99"))
    bench.kernel.state.neigh[key] = bytes(6)
    assert bench.compare() == [ops.DelNeigh(key)]


def test_what_the_kernel_refused_is_kept_shown_and_tried_again_only_by_the_next_comparison():
    bench = Bench(blue_on_two_hosts())
    bench.plug("web")
    row = NeighKey("mo11111111", ip4("10.1.0.66"))
    op = ops.PutNeigh(row, names.endpoint_mac(id_of("db")))
    bench.kernel.refuse = {op: refused(105)}
    bench.compare()
    assert list(bench.shadow.failed) == [op]
    assert bench.shadow.counts() == {"missing": 1, "stale": 0}
    (finding,) = bench.shadow.inspect(bench.world.view(), bench.kernel.dump(""))["missing"]
    assert finding.why == "not in the kernel; the kernel refused: ENOBUFS"
    assert bench.change(BLUE) == []
    assert bench.compare() == []  # refused again: not a repair
    bench.kernel.refuse = {}
    assert bench.compare() == []
    assert bench.shadow.failed == {}
    assert bench.kernel.state == desired(bench.world.view())


def test_a_vanished_link_is_noticed_with_its_time_and_forgotten_when_it_is_back():
    bench = running()
    bench.kernel.state.links.pop(names.veth(id_of("web")))
    bench.compare(now=10.0)
    bench.compare(now=20.0)
    assert bench.shadow.vanished == {id_of("web"): 10.0}
    assert bench.change(BLUE) == []
    bench.plug("web")
    bench.change(endpoints={BLUE: {id_of("web")}})  # attach says: the link is made anew
    assert bench.shadow.vanished == {}
    assert bench.kernel.state == desired(bench.world.view())


def test_a_link_that_was_recorded_but_not_made_is_refused_once_and_taken_when_made():
    bench = running()
    id_ = bench.world.endpoint("new", BLUE, A, "10.1.0.3")
    bench.change(BLUE)
    assert {type(op) for op in bench.shadow.failed} == {ops.PutLink, ops.PutFdb}
    assert bench.change(BLUE) == []
    bench.plug("new")
    bench.change(endpoints={BLUE: {id_}})
    assert bench.kernel.state == desired(bench.world.view())
    assert bench.shadow.failed == {}


def test_what_was_refused_of_an_endpoint_that_went_is_missing_no_more():
    bench = running()
    id_ = bench.world.endpoint("new", BLUE, A, "10.1.0.3")
    bench.change(endpoints={BLUE: {id_}})
    assert {type(op) for op in bench.shadow.failed} == {ops.PutLink, ops.PutFdb}
    bench.world.release("new")
    bench.change(endpoints={BLUE: {id_}})
    assert bench.shadow.counts() == {"missing": 0, "stale": 0}
    assert bench.kernel.state == desired(bench.world.view())


def test_an_attach_has_what_was_refused_of_its_network_tried_again_at_once():
    bench = Bench(blue_on_two_hosts())
    bench.plug("web")
    vxlan = desired(bench.world.view()).links["mv11111111"]
    bench.kernel.refuse = {ops.PutLink(vxlan): refused(98)}
    bench.compare()
    assert ops.PutLink(vxlan) in bench.shadow.failed
    assert bench.change(BLUE) == []
    bench.kernel.refuse = {}
    id_ = bench.world.endpoint("second", BLUE, A, "10.1.0.3")
    bench.plug("second")
    bench.change(endpoints={BLUE: {id_}})
    assert bench.shadow.failed == {}
    assert bench.kernel.state == desired(bench.world.view())


def test_endpoints_without_rows_are_missing_in_what_people_see():
    bench = running()
    del bench.world.hosts[B]
    bench.compare()
    (finding,) = bench.shadow.inspect(bench.world.view(), bench.kernel.dump(""))["missing"]
    assert finding.object == "endpoint"
    assert "host unknown yet" in finding.why


def test_a_nexthop_that_another_network_uses_outlives_its_last_row_in_one():
    bench = running()
    bench.world.networks[RED] = OVERLAY
    bench.world.endpoint("red-web", RED, A, "10.1.0.2")
    bench.world.endpoint("red-db", RED, B, "10.1.0.66")
    bench.plug("red-web")
    bench.change(RED)
    bench.world.release("red-db")
    bench.change(endpoints={RED: {id_of("red-db")}})
    assert bench.kernel.state == desired(bench.world.view())
    assert bench.kernel.state.nexthops


@pytest.mark.parametrize("goes", [0, 1])
def test_when_one_of_two_claimants_goes_the_other_has_the_rows(goes):
    bench = running()
    rival = bench.world.endpoint("rival", BLUE, C, "10.1.0.66")
    bench.change(endpoints={BLUE: {rival}})
    assert bench.kernel.state == desired(bench.world.view())
    names_ = sorted(["db", "rival"], key=id_of)
    bench.world.release(names_[goes])
    bench.change(endpoints={BLUE: {id_of(names_[goes])}})
    assert bench.kernel.state == desired(bench.world.view())
    left = names.endpoint_mac(id_of(names_[1 - goes]))
    assert bench.kernel.state.neigh == {NeighKey("mo11111111", ip4("10.1.0.66")): left}


def test_a_network_that_was_down_once_has_its_peers_rows_protected_again():
    bench = running()
    web = bench.world.endpoints[id_of("web")]
    bench.world.release("web")
    bench.change(endpoints={BLUE: {id_of("web")}}, deletions=False)
    assert not bench.kernel.state.links
    bench.world.endpoint("web", BLUE, A, *web.ips)
    bench.plug("web")
    bench.change(endpoints={BLUE: {id_of("web")}}, deletions=False)
    bench.world.release("db")
    bench.change(endpoints={BLUE: {id_of("db")}}, deletions=False)
    assert NeighKey("mo11111111", ip4("10.1.0.66")) in bench.kernel.state.neigh


def test_hosts_whose_nexthop_ids_move_get_all_their_rows_moved(monkeypatch):
    monkeypatch.setattr(names, "_hash", lambda host: 7)
    bench = Bench(blue_on_two_hosts(hosts={A: HOSTS[A], C: HOSTS[C]}))
    bench.world.endpoint("cache", BLUE, C, "10.1.0.130")
    bench.plug("web")
    bench.compare()
    bench.world.hosts[B] = HOSTS[B]  # sorts before C and takes its slot
    bench.change(endpoints={BLUE: {id_of("db")}})
    assert bench.kernel.state == desired(bench.world.view())
    vias = {n.id: n.via for n in bench.kernel.state.nexthops.values() if n.via}
    row = next(
        k for k in bench.kernel.state.fdb if k.mac == names.endpoint_mac(id_of("cache")) and k.where == "self"
    )
    group = bench.kernel.state.fdb[row].nhid
    assert vias[group - names.GROUP_OFFSET] == HOSTS[C].vtep


def test_the_hosts_own_endpoint_brings_a_pair_that_is_made_like_any_device_and_goes_with_it():
    world = blue_on_two_hosts()
    world.networks[BLUE] = msgspec.structs.replace(OVERLAY, host_access=True)
    bench = Bench(world)
    bench.plug("web")
    bench.compare()
    own = world.endpoint("self", BLUE, A, "10.1.0.9")
    far = names.host(BLUE)
    world.attachments[own] = Attachment("boot", HOST_NETNS, "", far, names.veth(own), far)
    bench.change(endpoints={BLUE: {own}})
    state = bench.kernel.state
    assert state == desired(world.view())
    assert {addr for addr in state.addrs if addr.dev == far} == {Addr(far, ip4("10.1.0.9"), 20)}
    assert {addr for addr in state.addrs if addr.dev != far} == {
        Addr(names.overlay_bridge(BLUE), ip4("10.1.0.1"), 32)
    }
    both = [name.encode() for name in (far, names.overlay_bridge(BLUE))]
    assert {elements.element("bridges", name) for name in both} <= state.elements.keys()
    assert {elements.element("same", a, b) for a in both for b in both} <= state.elements.keys()
    assert (
        elements.element("ports", names.veth(own).encode()) not in state.elements
    )  # it forwards what others send
    assert elements.element("own", names.veth(own).encode()) in state.elements
    del state.links[far], state.links[names.veth(own)]
    state.addrs = {addr for addr in state.addrs if addr.dev != far}
    state.fdb = {key: target for key, target in state.fdb.items() if key.dev != names.veth(own)}
    assert bench.compare()
    assert bench.shadow.vanished == {}
    assert state == desired(world.view())
    world.release("self")
    bench.change(endpoints={BLUE: {own}}, deletions=False)
    assert not {far, names.veth(own)} & state.links.keys()
    world.release("web")
    bench.change(BLUE, deletions=True)
    assert state == desired(world.view())


def test_a_port_published_on_the_loopback_reaches_a_network_by_whatever_device_has_its_route():
    world = blue_on_two_hosts()
    web = id_of("web")
    world.endpoints[web] = msgspec.structs.replace(world.endpoints[web], published=("127.0.0.1:8080:80/tcp",))
    assert desired(world.view()).links[names.overlay_bridge(BLUE)].localnet
    own, far = world.endpoint("self", BLUE, A, "10.1.0.9"), names.host(BLUE)
    world.attachments[own] = Attachment("boot", HOST_NETNS, "", far, names.veth(own), far)
    links = desired(world.view()).links
    assert {name for name, link in links.items() if link.localnet} == {far, names.overlay_bridge(BLUE)}


def test_the_hosts_own_device_leads_to_every_subnet_also_to_one_that_is_added():
    bench = running()
    own, far = bench.world.endpoint("self", BLUE, A, "10.1.0.9"), names.host(BLUE)
    bench.world.attachments[own] = Attachment("boot", HOST_NETNS, "", far, names.veth(own), far)
    bench.change(endpoints={BLUE: {own}})
    assert bench.kernel.state.routes == set()
    more = (
        Subnet("10.9.0.0/24", "10.9.0.1"),
        Subnet("fd09::/64", "fd09::1"),
    )  # the host has no v6 address there
    network = bench.world.networks[BLUE]
    bench.world.networks[BLUE] = msgspec.structs.replace(network, subnets=(*network.subnets, *more))
    bench.change(BLUE)
    assert bench.kernel.state.routes == {Route(far, ip4("10.9.0.0"), ip4("10.1.0.9"), 24)}
    bench.world.release("self")
    bench.change(endpoints={BLUE: {own}})
    assert bench.kernel.state.routes == set()


def test_a_host_that_comes_with_an_endpoint_of_its_own_is_let_in_by_that_delta_alone():
    bench = running()
    host = bytes([0xFF]) * len(B)  # sorts last: no other host's nexthop moves
    bench.world.hosts[host] = facts(ip4("192.0.2.77"))
    bench.world.endpoint("new", BLUE, host, "10.1.0.77")
    todo = bench.change(endpoints={BLUE: {id_of("new")}})
    assert ops.PutElement(elements.element("members4", ip4("192.0.2.77")), b"") in todo
    assert bench.kernel.state == desired(bench.world.view())


def test_elements_that_may_not_go_yet_are_counted_until_they_do():
    bench = running()
    stray = elements.element("vnis", b"\0\0\x07")
    bench.kernel.state.elements[stray] = b""
    bench.compare(deletions=False)
    assert bench.shadow.withheld
    assert bench.shadow.counts()["stale"] == 1
    bench.compare()
    assert stray not in bench.kernel.state.elements
    assert bench.shadow.counts()["stale"] == 0


# --- property ---------------------------------------------------------------------------------------------------
NETWORKS = {BLUE: OVERLAY, RED: msgspec.structs.replace(OVERLAY, broadcast=True), LAN: BRIDGE}
IPS = ["10.1.0.5", "10.1.0.6", "10.1.0.7"]
STEPS = st.one_of(
    st.tuples(
        st.just("endpoint"),
        st.sampled_from("abcd"),
        st.sampled_from(sorted(NETWORKS)),
        st.sampled_from([A, B, C]),
        st.sampled_from(IPS),
    ),
    st.tuples(st.just("release"), st.sampled_from(["a", "b", "c", "d", f"self{BLUE[0]}", f"self{RED[0]}"])),
    st.tuples(st.just("publish"), st.sampled_from("abcd"), st.booleans()),
    st.tuples(st.just("self"), st.sampled_from([BLUE, RED])),
    st.tuples(st.just("host"), st.sampled_from([B, C]), st.sampled_from([None, "192.0.2.8", "192.0.2.1"])),
    st.tuples(st.just("network"), st.sampled_from(sorted(NETWORKS)), st.booleans()),
    st.tuples(st.just("compare")),
)


def take(bench, step, networks, endpoints):
    """Do a step to the world and say which changes a daemon would announce."""
    world = bench.world
    match step:
        case ("endpoint", name, network, host, ip):
            if network == LAN and host != A:
                return
            if network not in world.networks:
                return  # what then stays as it is has a test of its own
            before = world.endpoints.get(id_of(name))
            if before is None and names.veth(id_of(name)) in bench.kernel.state.links:
                return  # its old link is still to be deleted, and no id is given twice
            if before is not None:
                endpoints.setdefault(before.network, set()).add(id_of(name))
            moved_in = before is None or before.network != network or before.host != A
            world.endpoint(name, network, host, ip)
            if host == A and moved_in:
                bench.plug(name)
            endpoints.setdefault(network, set()).add(id_of(name))
        case ("publish", name, there) if id_of(name) in world.endpoints:
            before = world.endpoints[id_of(name)]
            ports = (f"127.0.0.1:{ord(name)}:80/tcp",) if there else ()
            world.endpoints[id_of(name)] = msgspec.structs.replace(before, published=ports)
            endpoints.setdefault(before.network, set()).add(id_of(name))
        case ("self", network) if network in world.networks:  # the host's own endpoint there
            own, far = f"self{network[0]}", names.host(network)
            world.endpoint(own, network, A, f"10.1.0.{network[0]}")
            veth = names.veth(id_of(own))
            world.attachments[id_of(own)] = Attachment("boot", HOST_NETNS, "", far, veth, far)
            endpoints.setdefault(network, set()).add(id_of(own))
        case ("release", name):
            before = world.endpoints.get(id_of(name))
            world.release(name)
            if before is not None:
                endpoints.setdefault(before.network, set()).add(id_of(name))
        case ("host", host, vtep):
            world.hosts.pop(host, None)
            if vtep:
                world.hosts[host] = facts(ip4(vtep))
            networks |= set(NETWORKS)
        case ("network", network, there):
            in_use = any(endpoint.network == network for endpoint in world.endpoints.values())
            if there:
                world.networks[network] = NETWORKS[network]
            elif not in_use:
                world.networks.pop(network, None)
            networks.add(network)
    for name in [name for name, link in bench.kernel.state.links.items() if link.alias == ""]:
        if all(attachment.host_if != name for attachment in world.attachments.values()):
            del bench.kernel.state.links[name]  # gone again before anybody saw it: attach rolls back
            for key in [key for key in bench.kernel.state.fdb if key.dev == name]:
                del bench.kernel.state.fdb[key]


def compared(kernel):
    """What of a kernel is compared: ``narrow`` is only where it is wanted."""
    links = {name: msgspec.structs.replace(link, narrow=False) for name, link in kernel.links.items()}
    return msgspec.structs.replace(kernel, links=links)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(STEPS, st.booleans()), min_size=5, max_size=40), st.booleans())
def test_any_changes_in_any_batches_end_where_a_fresh_computation_would(steps, nhid):
    world = World(nhid=nhid)
    world.networks.update(NETWORKS)
    bench = Bench(world)
    bench.compare()
    networks, endpoints = set(), {}
    for step, flush in [*steps, (("none",), True)]:
        take(bench, step, networks, endpoints)
        if flush:
            bench.change(*networks, endpoints=endpoints)
            networks, endpoints = set(), {}
            assert bench.shadow.failed == {}
            assert compared(bench.kernel.state) == compared(desired(world.view()))
            if step[0] == "compare":
                assert bench.compare() == []  # the shadow was right about everything
    assert bench.compare() == []
    assert compared(bench.kernel.state) == compared(desired(world.view()))
    assert all(
        target != FdbTarget() or key.where == "master" for key, target in bench.kernel.state.fdb.items()
    )


class Counted(dict):
    """A mapping that counts what is read of it. Iterating counts every entry."""

    def __init__(self, *args):
        super().__init__(*args)
        self.visited = 0

    def __getitem__(self, key):
        self.visited += 1
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.visited += 1
        return super().get(key, default)

    def items(self):
        self.visited += len(self)
        return super().items()

    def values(self):
        self.visited += len(self)
        return super().values()

    def copy(self):
        self.visited += len(self)
        return Counted(self)


def cost_of_one(size):
    """Ops and visited endpoints and rows when one remote endpoint comes and goes among ``size``."""
    bench = running()
    for number in range(size):
        bench.world.endpoint(f"many{number}", BLUE, B, bytes((10, 1, 1 + number // 250, 1 + number % 250)))
    bench.compare()
    bench.world.endpoints = endpoints = Counted(bench.world.endpoints)
    have, part = bench.shadow.have, bench.shadow._want[BLUE]
    have.fdb, have.neigh = Counted(have.fdb), Counted(have.neigh)
    part.kernel.fdb, part.kernel.neigh = Counted(part.kernel.fdb), Counted(part.kernel.neigh)
    part.claims, part.remote = Counted(part.claims), Counted(part.remote)
    counted = (endpoints, have.fdb, have.neigh, part.kernel.fdb, part.kernel.neigh, part.claims, part.remote)
    costs = []
    for there in (True, False):
        id_ = id_of("one")
        if there:
            bench.world.endpoint("one", BLUE, C, "10.1.15.1")
        else:
            bench.world.release("one")
        for mapping in counted:
            mapping.visited = 0
        view = bench.world.view().narrow({id_})
        todo = bench.shadow.change(view, set(), {BLUE: {id_}}, deletions=True)
        bench.shadow.done(todo, bench.kernel.apply(todo))
        bench.shadow.counts()
        costs.append((len(todo), [mapping.visited for mapping in counted]))
    return costs


def test_an_endpoint_that_comes_or_goes_costs_the_same_among_ten_and_among_two_thousand():
    few, many = cost_of_one(10), cost_of_one(2000)
    assert few == many
    assert [ops_ for ops_, _ in many] == [5, 5]  # host C's nexthop and group, two FDB rows, a neighbour
    assert all(sum(visited) < 100 for _, visited in many)


def test_a_link_made_anew_under_its_name_before_anybody_looked_gets_all_its_settings():
    bench = running()
    bench.world.release("web")
    bench.world.endpoint("web", BLUE, A, "10.1.0.2")  # by the same address it is the same endpoint again
    bench.plug("web")
    for key in [key for key in bench.kernel.state.fdb if key.dev == names.veth(id_of("web"))]:
        del bench.kernel.state.fdb[key]
    bench.change(endpoints={BLUE: {id_of("web")}})
    assert bench.kernel.state == desired(bench.world.view())


@pytest.mark.parametrize("here", [A, C])
def test_of_two_that_come_together_and_claim_one_address_only_one_has_rows(here):
    for first, second in (("x", "y"), ("y", "x")):
        bench = running()
        bench.world.endpoint(first, BLUE, here, "10.1.0.9")
        bench.world.endpoint(second, BLUE, B, "10.1.0.9")
        if here == A:
            bench.plug(first)
        bench.change(endpoints={BLUE: {id_of(first), id_of(second)}})
        assert bench.kernel.state == desired(bench.world.view())


def cost_of_one_here(remotes, locals_):
    """Ops and visited endpoints and rows when one more local endpoint comes and goes, and which devices there are."""
    bench = running()
    for number in range(remotes):
        bench.world.endpoint(f"many{number}", BLUE, B, bytes((10, 1, 1 + number // 250, 1 + number % 250)))
    for number in range(locals_):
        bench.world.endpoint(f"local{number}", BLUE, A, bytes((10, 1, 12 + number // 250, 1 + number % 250)))
        bench.plug(f"local{number}")
    bench.compare()
    assert bench.kernel.state == desired(bench.world.view())
    have, part = bench.shadow.have, bench.shadow._want[BLUE]
    for kernel in (have, part.kernel):
        kernel.fdb, kernel.neigh, kernel.elements = map(Counted, (kernel.fdb, kernel.neigh, kernel.elements))
    part.claims, part.remote, part.ends = map(Counted, (part.claims, part.remote, part.ends))
    kernels_ = [getattr(kernel, of) for kernel in (have, part.kernel) for of in ("fdb", "neigh", "elements")]
    counted = [*kernels_, part.claims, part.remote, part.ends]
    bench.world.endpoints = Counted(bench.world.endpoints)
    costs = []
    for there in (True, False):
        id_ = id_of("one")
        if there:
            bench.world.endpoint("one", BLUE, A, "10.1.15.1")
            bench.plug("one")
        else:
            bench.world.release("one")
        bench.world.endpoints.visited = 0
        for mapping in counted:
            mapping.visited = 0
        view = bench.world.view().narrow({id_})
        todo = bench.shadow.change(view, set(), {BLUE: {id_}}, deletions=True)
        bench.shadow.done(todo, bench.kernel.apply(todo))
        costs.append((len(todo), [m.visited for m in (bench.world.endpoints, *counted)]))
        assert bench.shadow._want[BLUE] is part, "the network was not worked out anew"
    assert bench.kernel.state == desired(bench.world.view())
    return costs


def test_a_local_endpoint_costs_the_same_whatever_there_is_here_and_elsewhere():
    few = cost_of_one_here(10, 10)
    assert few == cost_of_one_here(1500, 10) == cost_of_one_here(10, 300)
    assert all(sum(visited) < 150 for _, visited in few)


def test_an_endpoint_costs_the_same_where_thousands_have_no_rows_since_their_host_is_unknown():
    visited = []
    for size in (10, 2000):
        bench, unknown = running(), b"?" * 16
        many = {
            bench.world.endpoint(f"m{n}", BLUE, unknown, bytes((10, 1, 1 + n // 250, n % 250)))
            for n in range(size)
        }
        bench.change(endpoints={BLUE: many})
        part = bench.shadow._want[BLUE]
        part.omitted = Counted(part.omitted)
        bench.change(endpoints={BLUE: {bench.world.endpoint("one", BLUE, B, "10.1.15.1")}})
        visited.append(part.omitted.visited)
    assert visited[0] == visited[1] < 10


def test_a_narrow_view_suffices_also_where_the_network_has_to_be_worked_out_as_a_whole():
    bench = running()
    bench.world.endpoint("rival", BLUE, C, "10.1.0.66")  # db's address: who keeps it depends on all
    id_ = id_of("rival")
    todo = bench.shadow.change(bench.world.view().narrow({id_}), set(), {BLUE: {id_}}, deletions=True)
    bench.shadow.done(todo, bench.kernel.apply(todo))
    assert bench.kernel.state == desired(bench.world.view())


def test_what_goes_outward_is_told_without_a_look_at_other_hosts_endpoints():
    world = blue_on_two_hosts()
    world.endpoints = Counted(world.endpoints)
    assert (outward(world.view(), 4), outward(world.view(), 6)) == (["blue"], [])
    assert world.endpoints.visited == 2  # web, once a family; db never


def test_a_host_without_a_nexthop_id_has_rows_that_name_its_address(monkeypatch):
    """On a port of its own a cluster has 16,384 ids; with one more host nothing may end."""
    monkeypatch.setattr(names, "nexthops_of", lambda port: names.NexthopIds(names.NEXTHOP_BASE, 3))
    world, shadow, kernel = blue_on_two_hosts(), Shadow(), FakeKernel()
    kernel.plug(names.veth(id_of("web")))
    first = b"\0" * 16  # takes the last of the ids from C
    world.endpoint("cache", BLUE, C, "10.1.0.67")
    todo, _ = shadow.compare(world.view(), kernel.dump("").ours, 0.0, deletions=True)
    shadow.done(todo, kernel.apply(todo))
    world.hosts[first] = facts(ip4("192.0.2.9"), "new")
    todo = shadow.change(world.view(), set(), {}, deletions=True)
    assert kernel.apply(todo) == []
    rows = {key.mac: target for key, target in kernel.state.fdb.items() if key.where == "self"}
    assert rows[names.endpoint_mac(id_of("cache"))].dst == ip4("192.0.2.3")
    assert rows[names.endpoint_mac(id_of("db"))].nhid is not None
    assert kernel.state == desired(world.view())
