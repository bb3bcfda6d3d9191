"""Two hosts, one overlay network, an endpoint on each: everything programmed through apply(), and it carries
packets. Frames on the wire between the hosts are read from a packet socket, not from what we believe.
"""

import json
import socket
import struct
from pathlib import Path

import layout
import pytest
from layout import (
    ALIAS,
    BRIDGE,
    ENDPOINTS,
    MTU,
    VTEPS,
    VXLAN,
    kernel,
    mac,
    make_pair,
    nexthop_id,
    put_all,
)

from meshd.kernel.namespace import Namespace
from meshd.plan import names
from meshd.plan.objects import FdbKey, FdbTarget, Link, NeighKey, Nexthop, Port
from meshd.plan.ops import PutFdb, PutNeigh, PutNexthop

ETH_P_ALL = 3
ADDRESSES = [("10.77.0.2/24", "fd77::2/64"), ("10.77.0.3/24", "fd77::3/64")]


class Wire:
    """Every VXLAN frame that crosses a host's eth0, as (outer destination, inner EtherType, inner payload)."""

    def __init__(self, host):
        self._socket = host.call(self._open)

    def _open(self):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        opened.bind(("eth0", 0))
        opened.setblocking(False)
        return opened

    def frames(self):
        found = []
        while True:
            try:
                frame = self._socket.recv(65536)
            except BlockingIOError:
                return found
            (kind,) = struct.unpack_from("!H", frame, 12)
            if kind == 0x0800 and frame[23] == 17:
                outer, udp = socket.inet_ntop(socket.AF_INET, frame[30:34]), 34
            elif kind == 0x86DD and frame[20] == 17:
                outer, udp = socket.inet_ntop(socket.AF_INET6, frame[38:54]), 54
            else:
                continue
            if struct.unpack_from("!H", frame, udp + 2)[0] == 4789:
                inner = frame[udp + 16 :]
                found.append((outer, struct.unpack_from("!H", inner, 12)[0], inner[14:]))

    def close(self):
        self._socket.close()


def is_address_resolution(frame):
    """ARP, or one of neighbour discovery's five ICMPv6 messages."""
    _, kind, payload = frame
    return kind == 0x0806 or (kind == 0x86DD and payload[6] == 58 and 133 <= payload[40] <= 137)


class Cluster:
    """Two hosts joined by a cable, each with a container on the overlay network."""

    def __init__(self, make_netns, family, run_program):
        self.family = family
        self.hosts = [make_netns(), make_netns()]
        self.containers = [make_netns(), make_netns()]
        one, two = self.hosts
        one.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two.name)
        for n, host in enumerate(self.hosts):
            host.run("ip", "link", "set", "eth0", "up")
            host.run("ip", "addr", "add", f"192.0.2.{n + 1}/24", "dev", "eth0")
            host.run("ip", "addr", "add", f"2001:db8::{n + 1}/64", "dev", "eth0", "nodad")
        for n, host in enumerate(self.hosts):
            assert run_program(host, n, family) == []
            self.plug_in(n, names.peer(ENDPOINTS[n]), self.containers[n], ADDRESSES[n])
        self.wire = Wire(one)

    def plug_in(self, n, peer, container, addresses):
        """Do what the short-lived caller of attach does."""
        self.hosts[n].run("ip", "link", "set", peer, "netns", container.name)
        container.run("ip", "link", "set", peer, "name", "eth0")
        for address in addresses:
            container.run("ip", "addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        container.run("ip", "link", "set", "eth0", "up")

    def ping(self, target, *options, start=0, count=3):
        done = self.containers[start].run(
            "ping", "-n", "-q", "-i", "0.05", "-c", str(count), "-W", "1", *options, target, check=False
        )
        return ", 0% packet loss" in done.stdout

    def apply(self, n, *ops):
        def go():
            with Namespace() as namespace:
                return namespace.apply(ops)

        return self.hosts[n].call(go)


def by_root(host, n, family):
    return host.call(layout.program, n, family)


@pytest.fixture
def make_cluster(make_netns):
    made = []

    def make(family=4, run_program=by_root):
        made.append(Cluster(make_netns, family, run_program))
        return made[-1]

    yield make
    for cluster in made:
        cluster.wire.close()


@pytest.fixture
def as_nobody(unprivileged, opened):
    program = opened.path / Path(layout.__file__).relative_to(opened.ROOT)

    def run(host, n, family):
        done = host.run(*unprivileged(str(program), str(n), str(family)), check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("family", [4, 6])
def test_endpoints_reach_each_other_and_no_address_resolution_crosses_the_wire(make_cluster, family):
    cluster = make_cluster(family)
    cluster.wire.frames()
    for start, targets in ((0, ("10.77.0.3", "fd77::3")), (1, ("10.77.0.2", "fd77::2"))):
        for target in targets:
            assert cluster.ping(target, start=start)
    frames = cluster.wire.frames()
    assert len(frames) >= 4 * 3 * 2
    assert [frame for frame in frames if is_address_resolution(frame)] == []
    assert {kind for _, kind, _ in frames} == {0x0800, 0x86DD}


def test_all_of_it_works_with_cap_net_admin_alone(make_cluster, as_nobody):
    cluster = make_cluster(4, as_nobody)
    assert cluster.ping("10.77.0.3")
    assert cluster.ping("fd77::3")


def test_a_question_for_an_address_that_nobody_has_stays_at_home(make_cluster):
    cluster = make_cluster()
    cluster.wire.frames()
    assert not cluster.ping("10.77.0.99", count=1)
    assert not cluster.ping("fd77::99", count=1)
    assert [frame for frame in cluster.wire.frames() if is_address_resolution(frame)] == []


def test_the_gateway_answers_on_each_host_for_itself(make_cluster):
    cluster = make_cluster()
    cluster.wire.frames()
    for start in (0, 1):
        assert cluster.ping("10.77.0.1", start=start)
        assert cluster.ping("fd77::1", start=start)
    assert cluster.wire.frames() == []


def test_packets_of_the_full_mtu_pass_and_larger_ones_are_refused_at_once(make_cluster):
    cluster = make_cluster(6)
    assert cluster.ping("10.77.0.3", "-M", "do", "-s", str(MTU - 28), count=1)
    assert not cluster.ping("10.77.0.3", "-M", "do", "-s", str(MTU - 27), count=1)


def test_one_nexthop_update_moves_everything_to_a_hosts_new_address(make_cluster):
    cluster = make_cluster()
    group = kernel(0).fdb[FdbKey(VXLAN, mac(1), "self")].nhid
    extra = [FdbKey(VXLAN, b"\x02\x11\0\0\0" + bytes([n]), "self") for n in range(20)]
    assert cluster.apply(0, *(PutFdb(key, FdbTarget(nhid=group)) for key in extra)) == []
    cluster.hosts[1].run("ip", "addr", "add", "192.0.2.12/24", "dev", "eth0")
    rows = cluster.hosts[0].run("bridge", "fdb", "show", "dev", VXLAN).stdout

    new = Nexthop(nexthop_id(1), via=layout.ip("192.0.2.12"))
    assert cluster.apply(0, PutNexthop(new)) == []
    cluster.wire.frames()
    assert cluster.ping("10.77.0.3")
    assert {outer for outer, _, _ in cluster.wire.frames()} == {"192.0.2.12", "192.0.2.1"}
    assert cluster.hosts[0].run("bridge", "fdb", "show", "dev", VXLAN).stdout == rows

    assert cluster.apply(0, PutNexthop(Nexthop(nexthop_id(1), via=layout.ip("192.0.2.99")))) == []
    assert not cluster.ping("10.77.0.3", count=1)
    assert cluster.apply(0, PutNexthop(Nexthop(nexthop_id(1), via=VTEPS[4][1]))) == []
    assert cluster.ping("10.77.0.3")


BREAKS = {
    "self row": ["bridge", "fdb", "del", mac(1).hex(":"), "dev", VXLAN, "self"],
    "master row": ["bridge", "fdb", "del", mac(1).hex(":"), "dev", VXLAN, "master"],
    "group": ["ip", "nexthop", "flush"],
    "vxlan device": ["ip", "link", "del", VXLAN],
    "bridge": ["ip", "link", "del", BRIDGE],
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_is_deleted_stops_the_traffic_and_putting_it_again_mends_it(make_cluster, broken):
    cluster = make_cluster()
    assert cluster.ping("10.77.0.3")
    cluster.hosts[0].run(*BREAKS[broken])
    assert not cluster.ping("10.77.0.3", count=1)
    assert cluster.apply(0, *put_all(kernel(0), veth=True)) == []
    assert cluster.ping("10.77.0.3")
    assert cluster.ping("fd77::3")


def test_putting_everything_again_loses_no_packet(make_cluster):
    cluster = make_cluster()

    def put_for_a_while():
        with Namespace() as namespace:
            for _ in range(10):
                assert namespace.apply(put_all(kernel(0), veth=True)) == []

    running = cluster.hosts[0]._thread.submit(put_for_a_while)
    assert cluster.ping("10.77.0.3", "-i", "0.01", count=100)
    running.result()


def test_a_third_container_sees_none_of_the_others_frames(make_cluster, make_netns):
    cluster = make_cluster()
    third = bytes([0xE7]) * 16
    third_mac = names.endpoint_mac(third)
    end = Link(names.veth(third), "veth", ALIAS, MTU, master=BRIDGE, port=Port())
    container = make_netns()

    def attach():
        with Namespace() as namespace:
            make_pair(namespace, end, names.peer(third), third_mac, MTU)
            return namespace.apply([PutFdb(FdbKey(end.name, third_mac, "master"), FdbTarget(local=True))])

    assert cluster.hosts[0].call(attach) == []
    cluster.plug_in(0, names.peer(third), container, ("10.77.0.7/24", "fd77::7/64"))
    remote = [
        PutFdb(FdbKey(VXLAN, third_mac, "self"), FdbTarget(nhid=layout.group_id(0))),
        PutFdb(FdbKey(VXLAN, third_mac, "master"), FdbTarget()),
        PutNeigh(NeighKey(BRIDGE, layout.ip("10.77.0.7")), third_mac),
    ]
    assert cluster.apply(1, *remote) == []

    def received():
        (eth0,) = container.json("ip", "-s", "-j", "link", "show", "dev", "eth0")
        return eth0["stats64"]["rx"]["packets"]

    assert cluster.ping("10.77.0.7", start=1)
    assert cluster.ping("10.77.0.7", start=0)
    before = received()
    assert before >= 6
    assert cluster.ping("10.77.0.3", count=20)
    assert cluster.ping("10.77.0.2", start=1, count=20)
    assert received() - before < 10
