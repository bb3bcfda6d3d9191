"""macvlan devices on a real LAN of namespaces: made, found again in the container, deleted there; parents as they
are; and whether somebody on the LAN has an address."""

import errno
import ipaddress
import time

import pytest

from meshd.errors import Unavailable
from meshd.kernel import conflict
from meshd.kernel.lan import Guest
from meshd.kernel.namespace import Namespace
from meshd.plan import names
from meshd.plan.diff import diff, findings
from meshd.plan.objects import Addr, Dump, Kernel, Link, Route, guest
from meshd.plan.ops import DelLink, DelRoute, PutAddr, PutLink, PutRoute, RemakeLink, RenameLink

MARK, NETWORK = "0badcafe", bytes(range(16))
ENDPOINTS = [bytes([0xE0 + n]) * 16 for n in range(3)]
GIVE_UP_S = 10.0


def packed(*texts):
    return [ipaddress.ip_address(text).packed for text in texts]


def mac(n):
    return names.endpoint_mac(ENDPOINTS[n])


def alias(n):
    return names.guest_alias(MARK, NETWORK, ENDPOINTS[n])


class LanHost:
    """A host with eth0 on a LAN, and a stranger there who has 192.0.2.9 and 2001:db8::9."""

    def __init__(self, make_netns):
        self.ns, self.stranger, self.make_netns = make_netns(), make_netns(), make_netns
        self.ns.run(
            "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.stranger.name
        )
        for ns, number in ((self.ns, 1), (self.stranger, 9)):
            ns.run("ip", "link", "set", "eth0", "up")
            ns.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
            ns.run("ip", "addr", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        self.kernel = self.ns.call(Namespace)
        self.lan = self.kernel.lan

    def index(self):
        return self.lan.parent("eth0").index

    def make(self, n, mode="bridge", **changes):
        told = {"name": names.guest(ENDPOINTS[n]), "kind": "macvlan", "mode": mode, "alias": alias(n),
                "parent": self.index(), "mtu": 1500, "mac": mac(n)}  # fmt: skip
        self.lan.make_guest(Guest(**{**told, **changes}))

    def into_container(self, n, ip):
        """What the caller does."""
        container = self.make_netns()
        self.ns.run("ip", "link", "set", names.guest(ENDPOINTS[n]), "netns", container.name, "name", "eth5")
        container.run("ip", "addr", "add", ip, "dev", "eth5")
        container.run("ip", "link", "set", "eth5", "up")
        return container

    def found(self):
        return Kernel(links=self.kernel.dump(MARK).ours.links)


@pytest.fixture
def host(make_netns):
    made = LanHost(make_netns)
    yield made
    made.kernel.close()


def wanted(*numbers):
    return Kernel(links={
        names.guest(ENDPOINTS[n]): guest(names.guest(ENDPOINTS[n]), "macvlan", alias(n)) for n in numbers
    })  # fmt: skip


def pings(ns, ip):
    return ns.run("ping", "-c", "1", "-W", "1", ip, check=False).returncode == 0


def test_a_device_is_made_down_marked_and_without_any_address(host):
    host.make(0)
    name = names.guest(ENDPOINTS[0])
    (seen,) = host.ns.json("ip", "-d", "-j", "link", "show", "dev", name)
    assert (seen["address"], seen["ifalias"], seen["mtu"]) == (mac(0).hex(":"), alias(0), 1500)
    assert (seen["linkinfo"]["info_kind"], seen["linkinfo"]["info_data"]["mode"]) == ("macvlan", "bridge")
    assert (seen["link"], seen["inet6_addr_gen_mode"], "UP" in seen["flags"]) == ("eth0", "none", False)
    assert host.ns.json("ip", "-j", "addr", "show", "dev", name)[0]["addr_info"] == []
    assert host.found() == wanted(0)


@pytest.mark.parametrize(("mode", "meet"), [("bridge", True), ("private", False), ("vepa", False)])
def test_endpoints_reach_the_lan_and_each_other_as_the_mode_says(host, mode, meet):
    containers = []
    for n in (0, 1):
        host.make(n, mode)
        containers.append(host.into_container(n, f"192.0.2.{20 + n}/24"))
    assert all(pings(container, "192.0.2.9") for container in containers)
    assert (
        pings(containers[0], "192.0.2.21") is meet
    )  # a veth's far end reflects nothing: vepa's pairs do not meet


def test_a_passthru_device_has_its_parents_mac_and_is_alone(host):
    host.make(0, "passthru", mac=None)
    assert pings(host.into_container(0, "192.0.2.20/24"), "192.0.2.9")
    with pytest.raises(Exception, match="macvlan device"):
        host.make(1, "passthru", mac=None)
    assert host.found() == wanted(0)


def test_a_device_in_a_container_is_seen_from_outside_until_its_namespace_ends(host):
    host.make(0)
    host.make(1)
    container = host.into_container(0, "192.0.2.20/24")
    assert host.ns.run("ip", "link", "show", names.guest(ENDPOINTS[0]), check=False).returncode != 0
    assert host.found() == wanted(0, 1)
    with host.ns.call(Namespace) as restarted:
        assert restarted.dump(MARK).ours.links == wanted(0, 1).links, (
            "another daemon finds what an earlier one made"
        )
        assert restarted.dump("deadbeef").ours.links == {}, "not one of another cluster"
    container.close()
    until = time.monotonic() + GIVE_UP_S  # the kernel ends a namespace in the background
    while host.found() != wanted(1) and time.monotonic() < until:
        time.sleep(0.02)
    assert host.found() == wanted(1)


def test_a_device_in_a_container_is_deleted_from_outside_and_nothing_else_is(host):
    host.make(0)
    container = host.into_container(0, "192.0.2.20/24")
    container.run("ip", "link", "add", "eth6", "type", "veth", "peer", "name", "eth7")
    host.kernel.delete_link(names.guest(ENDPOINTS[0]))
    assert {link["ifname"] for link in container.json("ip", "-j", "link")} == {"lo", "eth6", "eth7"}
    host.kernel.delete_link(names.guest(ENDPOINTS[0]))  # what is gone is a success
    assert host.found() == Kernel()


def test_the_reconcilers_deletion_finds_it_in_the_container_too(host):
    host.make(0)
    container = host.into_container(0, "192.0.2.20/24")
    assert host.kernel.apply([DelLink(names.guest(ENDPOINTS[0]))]) == []
    assert {link["ifname"] for link in container.json("ip", "-j", "link")} == {"lo"}


@pytest.mark.parametrize("deleted", [False, True])
def test_a_device_renamed_before_it_was_moved_gets_its_name_back_or_goes(host, deleted):
    host.make(0)
    name = names.guest(ENDPOINTS[0])
    host.ns.run("ip", "link", "set", name, "name", "mine0")
    todo = diff(Kernel() if deleted else wanted(0), host.found(), deletions=True)
    assert todo == [DelLink("mine0") if deleted else RenameLink("mine0", name)]
    assert host.kernel.apply(todo) == []
    assert host.found() == (Kernel() if deleted else wanted(0))


def test_a_parent_is_told_as_it_is(host):
    host.ns.run("ip", "link", "add", "br0", "type", "bridge")
    host.ns.run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    host.ns.run("ip", "link", "set", "p0", "master", "br0")
    host.ns.run("ip", "link", "set", "p1", "mtu", "1400", "promisc", "on")
    eth0, lo, port, other = (host.lan.parent(name) for name in ("eth0", "lo", "p0", "p1"))
    assert (eth0.missing, eth0.up, eth0.loopback, eth0.master, eth0.mtu) == (False, True, False, "", 1500)
    assert {"192.0.2.1/24", "2001:db8::1/64"} <= set(eth0.addresses)
    assert (eth0.promiscuous, eth0.wireless) == (False, False)
    assert lo.loopback
    assert (port.master, port.master_kind, port.up) == ("br0", "bridge", False)
    assert (other.mtu, other.promiscuous) == (1400, True)
    assert host.lan.parent("eth9").missing


def test_a_parent_that_nobody_names_is_the_default_routes_device(host):
    with pytest.raises(Unavailable, match="no default route"):
        host.lan.parent(None)
    host.ns.run("ip", "-6", "route", "add", "default", "via", "2001:db8::9")
    assert host.lan.parent(None).name == "eth0"
    host.ns.run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    host.ns.run("ip", "link", "set", "p0", "up")
    host.ns.run("ip", "addr", "add", "198.51.100.1/24", "dev", "p0")
    host.ns.run("ip", "route", "add", "default", "via", "198.51.100.2", "metric", "50")
    assert host.lan.parent(None).name == "p0", "v4 before v6"
    host.ns.run("ip", "route", "add", "default", "via", "192.0.2.9", "metric", "20")
    assert host.lan.parent(None).name == "eth0", "the least metric"


def test_who_has_an_address_on_the_lan_answers_with_its_mac(host):
    (stranger,) = host.stranger.json("ip", "-j", "link", "show", "dev", "eth0")
    held, free = packed("192.0.2.9", "2001:db8::9"), packed("192.0.2.77", "2001:db8::77")
    index = host.index()
    assert host.lan.ask(index, [*held, *free]) == {}
    until = time.monotonic() + GIVE_UP_S
    while len(host.lan.answers(index, held)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    answers = host.lan.answers(index, [*held, *free])
    assert {ip: mac.hex(":") for ip, mac in answers.items()} == dict.fromkeys(held, stranger["address"])
    host.lan.forget(index, [*held, *free])
    assert [
        row for row in host.ns.json("ip", "-j", "neigh") if row["dst"] in ("192.0.2.9", "192.0.2.77")
    ] == []


def test_an_entry_that_somebody_fixed_is_an_answer_and_stays(host):
    host.ns.run(
        "ip", "neigh", "add", "192.0.2.50", "lladdr", "02:00:00:00:00:50", "dev", "eth0", "nud", "permanent"
    )
    asked = packed("192.0.2.50", "192.0.2.51")
    assert host.lan.ask(host.index(), asked) == {asked[0]: bytes.fromhex("020000000050")}
    host.lan.forget(host.index(), asked)
    assert [row["dst"] for row in host.ns.json("ip", "-j", "neigh") if "PERMANENT" in row["state"]] == [
        "192.0.2.50"
    ]


def test_asking_names_the_hosts_own_mac_beside_its_address(host):
    """On the new device the kernel would name the host's address beside that device's MAC, and the LAN would send
    what is the host's to the container."""
    host.make(0)
    host.lan.ask(host.index(), packed("192.0.2.9"))
    until = time.monotonic() + GIVE_UP_S
    while not host.lan.answers(host.index(), packed("192.0.2.9")) and time.monotonic() < until:
        time.sleep(0.01)
    (eth0,) = host.ns.json("ip", "-j", "link", "show", "dev", "eth0")
    (row,) = [row for row in host.stranger.json("ip", "-j", "neigh") if row["dst"] == "192.0.2.1"]
    assert row["lladdr"] == eth0["address"]


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "vlan"])
def test_a_kind_that_the_kernel_lacks_is_refused_by_name_and_leaves_nothing(host, kind):
    """The oracle is ip(8): where it can make one, so can we."""
    has = host.ns.run("ip", "link", "add", "link", "eth0", "name", "t0", "type", kind, *(
        ("id", "9") if kind == "vlan" else ()), check=False)  # fmt: skip
    there = has.returncode == 0
    assert there or "Unknown device type" in has.stderr
    assert host.lan.supports(kind) is there
    host.ns.run("ip", "link", "del", "t0", check=False)
    before = host.ns.json("ip", "-j", "link")
    if there:
        return
    make = {
        "vlan": lambda: host.lan.make_vlan("eth0.9", host.index(), 9, names.alias(MARK, NETWORK)),
        "ipvlan": lambda: host.make(0, "l2", kind=kind, mac=None),
        "macvlan": lambda: host.make(0),
    }
    with pytest.raises(Unavailable) as caught:
        make[kind]()
    assert "CONFIG_" in caught.value.what
    assert host.ns.json("ip", "-j", "link") == before


def test_a_refused_device_leaves_nothing(host):
    with pytest.raises(Exception, match="macvlan device") as caught:
        host.make(0, mtu=9000)  # more than the parent has
    assert caught.value.errno == errno.EINVAL
    assert host.found() == Kernel()


def test_states_that_count_as_answered_are_those_that_follow_an_answer():
    incomplete, failed = 0x01, 0x20
    assert not conflict.NUD_ANSWERED & (incomplete | failed)


# --- the host's own device ---------------------------------------------------------------------------------------
SHIM = names.shim(NETWORK)


def with_shim(*reached, parent="eth0", mode="bridge"):
    """What is wanted where the host is 192.0.2.50 and 2001:db8::50 on the network, and has the ways ``reached``."""
    link = Link(
        SHIM, "macvlan", names.alias(MARK, NETWORK), 1500, mac=mac(2), narrow=True, parent=parent, mode=mode
    )
    own = {len(ip): ip for ip in packed("192.0.2.50", "2001:db8::50")}
    addrs = {Addr(SHIM, ip, 8 * len(ip)) for ip in own.values()}
    return Kernel(
        links={SHIM: link}, addrs=addrs, routes={Route(SHIM, ip, own[len(ip)]) for ip in packed(*reached)}
    )


def held(host):
    ours = host.kernel.dump(MARK).ours
    return Kernel(links=ours.links, addrs=ours.addrs, routes=ours.routes)


def brought_to(host, want):
    """Carry out what is missing; return it, and what is still missing then."""
    todo = diff(want, held(host), deletions=True)
    assert host.kernel.apply(todo) == []
    return todo, diff(want, held(host), deletions=True)


def test_the_hosts_own_device_its_addresses_and_routes_are_made_seen_and_put_right(host):
    want = with_shim("192.0.2.60", "2001:db8::60")
    todo, left = brought_to(host, want)
    assert [type(op) for op in todo] == [PutLink, PutAddr, PutAddr, PutRoute, PutRoute]
    assert left == []
    shown = host.ns.json("ip", "-j", "-d", "link", "show", "dev", SHIM)[0]
    assert (shown["link"], shown["linkinfo"]["info_data"]["mode"], shown["address"]) == (
        "eth0",
        "bridge",
        mac(2).hex(":"),
    )
    (route,) = host.ns.json("ip", "-j", "route", "get", "192.0.2.60")
    assert (route["dev"], route["prefsrc"]) == (SHIM, "192.0.2.50")
    host.ns.run("ip", "route", "del", "192.0.2.60", "dev", SHIM)
    host.ns.run("ip", "-6", "route", "del", "2001:db8::60", "dev", SHIM)
    (what,) = {finding.object for finding in findings(want, Dump(held(host)))["missing"]}
    assert what == "route"
    assert {type(op) for op in brought_to(host, want)[0]} == {PutRoute}
    todo, left = brought_to(host, with_shim("192.0.2.61"))
    assert [type(op) for op in todo] == [PutRoute, DelRoute, DelRoute]
    assert left == []
    host.ns.run("ip", "route", "add", "192.0.2.77", "dev", SHIM)
    (foreign,) = host.kernel.dump(MARK).foreign
    assert (foreign.object, foreign.what) == ("route", f"192.0.2.77/32 dev {SHIM}")
    todo, left = brought_to(host, Kernel())
    assert (todo, left) == ([DelLink(SHIM)], [])


def test_a_shim_goes_with_its_parent_and_is_made_again_when_that_is_back(host):
    want = with_shim("192.0.2.60")
    brought_to(host, want)
    host.ns.run("ip", "link", "del", "eth0")
    assert held(host) == Kernel()
    refused = host.kernel.apply(diff(want, Kernel(), deletions=True))
    told = next(error for op, error in refused if isinstance(op, PutLink))
    assert told.what == "its parent eth0 is not on this host; made again once it is back"
    host.ns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth9")
    host.ns.run("ip", "link", "set", "eth0", "up")
    assert brought_to(host, want)[1] == []


def test_a_shim_on_another_parent_or_in_another_mode_is_made_anew(host):
    brought_to(host, with_shim())
    host.ns.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth9")
    host.ns.run("ip", "link", "set", "eth1", "up")
    for want in (with_shim(parent="eth1"), with_shim(parent="eth1", mode="vepa")):
        todo, left = brought_to(host, want)
        assert [type(op) for op in todo] == [RemakeLink, PutAddr, PutAddr]
        assert left == []
