"""A network card becomes a port of an operator's bridge and leaves it again, with all that the host has on it. What is
there before and after is read by iproute2."""

import concurrent.futures
import errno
import json
import re
import socket
import threading

import pytest

from meshd.errors import KernelError
from meshd.kernel import carried
from meshd.kernel.carried import Device
from meshd.kernel.namespace import Namespace
from meshd.model import Bridge
from meshd.plan import names
from meshd.plan.bridges import Move, lan_link
from meshd.plan.ops import PutLink

MARK, BRIDGE_ID = "0badcafe", bytes(range(16))
OWN_MAC = names.lan_bridge_mac(BRIDGE_ID)

ALL_THERE_IS = """
    addr add 192.0.2.1/24 dev eth0
    addr add 192.0.2.7/24 dev eth0 label eth0:web
    addr add 198.51.100.9/32 dev eth0 scope link
    addr add 203.0.113.4/28 brd + dev eth0 valid_lft 4500 preferred_lft 3500
    addr add 2001:db8::1/64 dev eth0 nodad
    addr add 2001:db8:0:1::9/64 dev eth0 nodad valid_lft 4500 preferred_lft 3500
    addr add 2001:db8:0:2::2/64 dev eth0 nodad noprefixroute
    addr add 10.9.0.1/24 dev eth1
    addr add 2001:db8:9::1/64 dev eth1 nodad
    route add default via 192.0.2.254 metric 100
    route add default via 192.0.2.253 metric 200 mtu 1400
    route add 10.50.0.0/16 via 192.0.2.254 src 192.0.2.7 proto dhcp
    route add 10.51.0.0/16 dev eth0 scope link
    route add 10.52.0.0/16 via 10.77.7.7 dev eth0 onlink
    route add 10.53.0.0/16 via 192.0.2.254 table 100
    route add local 10.60.0.0/24 dev eth0 table local
    route add 10.54.0.0/16 nexthop via 192.0.2.254 weight 3 nexthop via 10.9.0.254 weight 2
    route add default via 2001:db8::fe metric 512 proto ra
    route add 2001:db8:50::/48 via 2001:db8::fe
    route add 2001:db8:51::/48 dev eth0 metric 77
    route add 2001:db8:53::/48 via 2001:db8::fe table 100
    route add 2001:db8:54::/48 nexthop via 2001:db8::fe weight 3 nexthop via 2001:db8:9::fe weight 2
    nexthop add id 77 via 192.0.2.254 dev eth0
    route add 10.55.0.0/16 nhid 77
    neigh add 192.0.2.40 lladdr 02:00:00:00:00:40 dev eth0 nud permanent
    neigh add 2001:db8::40 lladdr 02:00:00:00:00:41 dev eth0 nud permanent
"""


class BridgeHost:
    """A host with the cards eth0 and eth1 and the bridge br0."""

    def __init__(self, make_netns):
        self.ns, self.far = make_netns(), make_netns()
        # else a flag ends while we compare
        self.ns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        for card in ("eth0", "eth1"):
            self.ns.run(
                "ip", "link", "add", card, "type", "veth", "peer", "name", card, "netns", self.far.name
            )
            for ns in (self.ns, self.far):
                ns.run("ip", "link", "set", card, "up")
        self.kernel = self.ns.call(Namespace)
        self.bridging = self.kernel.bridging
        link = lan_link(MARK, BRIDGE_ID, Bridge("br0", OWN_MAC))
        assert self.kernel.apply([PutLink(link)]) == []

    def give(self, script=ALL_THERE_IS):
        assert self.ns.run("ip", "-batch", "-", input=script).stderr == ""
        return self

    def mac(self, dev):
        return self.ns.json("ip", "-j", "link", "show", "dev", dev)[0]["address"]

    def move(self, **more):
        card = self.bridging.card("eth0")
        return Move("eth0", "br0", card.mac, index=card.index, **more)

    def joins(self):
        """Join as the shell does; returns how to leave."""
        eth0, br0 = (self.bridging.card(name) for name in ("eth0", "br0"))
        had, before = (self.bridging.belongings(card.index) for card in (eth0, br0))
        self.bridging.join(self.move())
        return Move("eth0", "br0", OWN_MAC, eth0.index, had.packed, before.packed)

    def master(self):
        return self.ns.json("ip", "-j", "link", "show", "dev", "eth0")[0].get("master", "")

    def on(self, dev, *, link_local=False):
        """Everything on a device, sorted; times and what only the kernel chooses left out; the device's name as DEV."""
        found = []
        for address in self.ns.json("ip", "-j", "addr", "show", "dev", dev)[0]["addr_info"]:
            address.pop("nodad", None)
            address.pop("protocol", None)
            for time in ("valid_life_time", "preferred_life_time"):
                address[time] = address[time] if address[time] > 2**31 else address[time] // 1000
            found.append(("address", address))
        for family in ("-4", "-6"):
            for route in self.ns.json("ip", "-j", "-d", family, "route", "show", "table", "all"):
                ways = [route, *route.get("nexthops", [])]
                kernels = route.get("table") == "local" and route.get("protocol") == "kernel"
                if kernels or not any(way.get("dev") == dev for way in ways) or "multicast" in route.values():
                    continue
                if "expires" in route:
                    route["expires"] //= 1000
                for way in ways:
                    way["flags"] = [flag for flag in way.get("flags", []) if flag == "onlink"]
                route.get("nexthops", []).sort(key=lambda way: way["dev"] != dev)
                found.append(("route", route))
        neighbours = self.ns.json("ip", "-j", "neigh", "show", "dev", dev, "nud", "permanent")
        found += [("neighbour", neighbour) for neighbour in neighbours]
        found += [("nexthop", n) for n in self.ns.json("ip", "-j", "nexthop") if n.get("dev") == dev]
        lines = sorted(json.dumps(one, sort_keys=True) for one in found)
        lines = [re.sub(rf'"{dev}(["$:])', r'"DEV\1', line) for line in lines]
        return [line for line in lines if link_local or "fe80::" not in line]


@pytest.fixture
def host(make_netns):
    made = BridgeHost(make_netns)
    yield made
    made.kernel.close()


def test_all_that_is_on_a_card_moves_to_the_bridge_and_back(host):
    before = host.give().on("eth0", link_local=True)
    assert len(before) > 24
    others = host.on("eth1")
    back = host.joins()
    assert (host.master(), host.mac("br0")) == ("br0", host.mac("eth0"))
    assert host.on("br0", link_local=True) == before
    assert host.on("eth0") == []
    moved = [line.replace("DEV", "br0") if '"DEV"' in line else line for line in others]
    assert len(host.on("eth1")) == len(moved), "the other card's ways are still there"
    assert host.bridging.leave(back) == []
    assert (host.master(), host.mac("br0")) == ("", OWN_MAC.hex(":"))
    assert host.on("eth0", link_local=True) == before
    assert host.on("br0") == []
    assert host.on("eth1") == others


def test_the_bridge_sends_from_the_first_packet_on_and_its_queue_is_as_before(host):
    host.give("addr add 192.0.2.1/24 dev eth0\nlink set br0 txqueuelen 500\n")
    host.give("neigh add 192.0.2.40 lladdr 02:00:00:00:00:40 dev eth0 nud permanent\n")
    sending = host.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    joined = threading.Event()

    def send():
        while not joined.is_set():
            sending.sendto(b"all the time", ("192.0.2.40", 9))

    with sending, concurrent.futures.ThreadPoolExecutor(1) as beside:
        sent = beside.submit(send)
        host.joins()
        joined.set()
        sent.result()
    (link,) = host.ns.json("ip", "-j", "-s", "link", "show", "dev", "br0")
    assert (link["stats64"]["tx"]["dropped"], link["txqlen"]) == (0, 500)


def test_what_the_bridge_had_before_stays_there(host):
    host.give("addr add 192.0.2.1/24 dev eth0\naddr add 10.1.1.1/24 dev br0\n")
    before, own = host.on("eth0"), host.on("br0")
    back = host.joins()
    assert host.on("br0") == sorted([*before, *own]) or len(host.on("br0")) == len([*before, *own])
    assert host.bridging.leave(back) == []
    kept = [line for line in host.on("br0") if '"address"' in line]
    assert kept == [line for line in own if '"address"' in line]
    assert host.on("eth0") == before


def test_what_came_meanwhile_goes_with_the_card(host):
    host.give("addr add 192.0.2.1/24 dev eth0\nroute add default via 192.0.2.254\n")
    back = host.joins()
    host.give(
        "addr del 192.0.2.1/24 dev br0\naddr add 192.0.2.9/24 dev br0 valid_lft 600 preferred_lft 600\n"
    )
    assert host.bridging.leave(back) == []
    assert [line for line in host.on("eth0") if "192.0.2.1/24" in line or '"192.0.2.1"' in line] == []
    assert any('"192.0.2.9"' in line for line in host.on("eth0"))


def test_what_a_deleted_bridge_took_along_is_put_back(host):
    before = host.give("addr add 192.0.2.1/24 dev eth0\nroute add default via 192.0.2.254\n").on("eth0")
    back = host.joins()
    host.ns.run("ip", "link", "del", "br0")
    assert host.on("eth0") == []
    assert (
        host.bridging.leave(Move(**{f: getattr(back, f) for f in back.__struct_fields__} | {"restore": True}))
        == []
    )
    assert host.on("eth0") == before


def test_an_address_that_has_expired_meanwhile_does_not_come_back(host):
    script = (
        "addr add 192.0.2.1/24 dev eth0\naddr add 192.0.2.2/24 dev eth0 valid_lft 600 preferred_lft 600\n"
    )
    back = host.give(script).joins()
    host.ns.run("ip", "link", "del", "br0")
    fields = {f: getattr(back, f) for f in back.__struct_fields__}
    assert host.bridging.leave(Move(**fields | {"restore": True, "elapsed_s": 599})) == []
    (one, two) = [
        a
        for a in host.ns.json("ip", "-j", "addr", "show", "dev", "eth0")[0]["addr_info"]
        if "." in a["local"]
    ]
    assert (one["local"], two["local"], two["valid_life_time"]) == ("192.0.2.1", "192.0.2.2", 1)
    host.ns.run("ip", "addr", "del", "192.0.2.2/24", "dev", "eth0")
    assert host.bridging.leave(Move(**fields | {"restore": True, "elapsed_s": 600})) == []
    assert not any('"192.0.2.2"' in line for line in host.on("eth0"))


class Refusing:
    """A request socket that lets the kernel refuse one message of the next batch: its type becomes none."""

    def __init__(self, link, number):
        self._link, self.number = link, number

    def __getattr__(self, name):
        return getattr(self._link, name)

    def transact(self, messages):
        if self.number is not None:
            messages = list(messages)
            at, self.number = self.number % len(messages), None
            messages[at] = messages[at][:4] + b"\xfe\x03" + messages[at][6:]
        return self._link.transact(messages)


@pytest.mark.parametrize("number", [0, 1, 2, 12, 20, 30, -1])
def test_a_move_that_fails_anywhere_is_undone_whole(host, number):
    before = host.give().on("eth0", link_local=True)
    others = host.on("eth1")
    host.bridging._netlink = Refusing(host.bridging._netlink, number)
    with pytest.raises(KernelError, match=r"could not become a port: .*; all is as it was") as caught:
        host.bridging.join(host.move())
    assert caught.value.errno == errno.EOPNOTSUPP
    assert (host.master(), host.on("eth0", link_local=True), host.on("br0")) == ("", before, [])
    assert host.on("eth1") == others


def test_the_kernels_no_to_a_parent_is_undone_too(host):
    before = host.give("addr add 192.0.2.1/24 dev eth0\nroute add default via 192.0.2.254\n").on("eth0")
    host.ns.run("ip", "link", "add", "mv0", "link", "eth0", "type", "macvlan")
    host.ns.run("ip", "link", "set", "mv0", "netns", host.far.name)  # where nobody sees it
    with pytest.raises(KernelError, match=r"eth0 as a port of br0.*busy"):
        host.bridging.join(host.move())
    assert (host.master(), host.on("eth0"), host.on("br0")) == ("", before, [])


def test_everything_survives_the_way_to_the_disk(host):
    index = host.give().bridging.card("eth0").index
    things = host.ns.call(carried.read, host.kernel._netlink, index)
    assert carried.unpack(carried.pack(things)) == things
    assert len({carried.key(thing) for thing in things}) == len(things)


def test_a_card_says_what_it_is(host):
    host.give("link add mv0 link eth1 type macvlan\nlink set eth0 master br0\n")
    eth0, eth1, br0, lo = (host.bridging.card(name) for name in ("eth0", "eth1", "br0", "lo"))
    assert (eth0.master, eth0.master_kind, eth0.up, eth0.ethernet) == ("br0", "bridge", True, True)
    assert (eth1.above, eth1.master) == (("mv0",), "")
    assert (br0.ports, br0.kind, names.is_lan_bridge(br0.alias)) == (("eth0",), "bridge", True)
    assert (host.bridging.brief("eth0").master, host.bridging.brief("br0").master) == ("br0", "")
    assert (host.bridging.brief("eth0").index, host.bridging.brief("nosuch").missing) == (eth0.index, True)
    assert (lo.loopback, lo.ethernet, host.bridging.card("nosuch").missing) == (True, False, True)
    host.ns.run("sysctl", "-qw", "net.ipv6.conf.br0.forwarding=1")
    assert not host.bridging.card("br0").accept_ra
    host.ns.run("sysctl", "-qw", "net.ipv6.conf.br0.accept_ra=2")
    assert host.bridging.card("br0").accept_ra


def test_what_is_on_the_operators_bridge_is_neither_ours_nor_foreign(host):
    host.give().joins()
    found = host.kernel.dump(MARK)
    assert (found.foreign, found.ours.addrs, found.ours.neigh, found.ours.fdb) == ([], set(), {}, {})
    assert set(found.ours.links) == {"br0"}
    assert "192.0.2.0/24" in host.kernel.underlay("192.0.2.1", MARK).routes


def test_a_device_of_another_name_is_named_by_labels_that_fit():
    things = [
        carried.Thing(carried.NEWADDR, (2, 24, 0, 0, 5), ((carried.IFA_LABEL, label + b"\0"),))
        for label in (b"eth0", b"eth0:web", b"odd", b"eth0:0123456789")
    ]
    messages = carried.put(things, Device(5, "eth0"), Device(6, "lanbridge0"))
    told = [re.search(rb"(lanbridge0[^\0]*|odd)\0", message).group(1) for message in messages]
    assert told == [b"lanbridge0", b"lanbridge0:web", b"odd", b"lanbridge0"]
