"""Kernel events: what others do wakes us, what we do does not."""

import functools
import socket
import subprocess
import threading
import time

import pytest
import trio
from layout import (
    BRIDGE,
    ENDPOINTS,
    MARK,
    MTU,
    VXLAN,
    group_id,
    host_end,
    ip,
    kernel,
    mac,
    make_pair,
    nexthop_id,
    program,
    put_all,
)

from meshd.config import ROUTE_PROTOCOL
from meshd.kernel.echoes import Echoes
from meshd.kernel.namespace import Namespace
from meshd.kernel.watch import Overrun, Watch
from meshd.model import text_ip
from meshd.plan import names
from meshd.plan.elements import element
from meshd.plan.objects import BROADCAST, Addr, FdbKey, FdbTarget, NeighKey, Route
from meshd.plan.ops import (
    DelAddr,
    DelElement,
    DelFdb,
    DelLink,
    DelNeigh,
    DelNexthop,
    DelRoute,
    PutElement,
    PutFdb,
    PutNeigh,
    PutRoute,
    SetFirewall,
)

PEER = names.peer(ENDPOINTS[0])
SENTINEL = "sentinel0"


@pytest.fixture
def host(netns):
    assert netns.call(program, 0) == []
    with netns.call(Namespace) as namespace:
        netns.kernel = namespace
        yield netns


async def until_sentinel(watch, deed):
    """Run ``deed`` on a thread of its own, born in the same namespace, and collect what is told meanwhile; an
    event that the test causes last says that nothing more will come."""
    failed = []

    def do():
        try:
            deed()
        except BaseException as error:
            failed.append(error)
        finally:
            subprocess.run(["ip", "link", "add", SENTINEL, "type", "bridge"], check=True)
            subprocess.run(["ip", "link", "del", SENTINEL], check=True)

    found = []
    thread = threading.Thread(target=do)
    thread.start()
    with trio.fail_after(20):
        async for event in watch:
            if event.overrun or event.name != SENTINEL:
                found.append(event)
            elif event.gone:
                break
    thread.join()
    assert failed == []
    return [*found, *watch._queue]  # firewall events come by a socket of their own


def observe(host, deed, *, own=False):
    """Return the events that ``deed`` causes, as the daemon's loop sees them."""

    async def main():
        with host.kernel.watch(own=own) as watch:
            return await until_sentinel(watch, deed)

    return host.call(trio.run, main)


OTHERS = {
    "bridge fdb add 02:00:00:00:00:77 dev {vxlan} master static": [("fdb", VXLAN, False)],
    "bridge fdb del {remote} dev {vxlan} self": [("fdb", VXLAN, True)],
    "bridge fdb del {remote} dev {vxlan} master": [("fdb", VXLAN, True)],
    "bridge fdb del {local} dev {veth} master": [("fdb", host_end(0).name, True)],
    "bridge fdb replace {remote} dev {veth} master static": [("fdb", host_end(0).name, False)],
    "ip neigh del 10.77.0.3 dev {bridge}": [("neighbour", BRIDGE, True)],
    "ip neigh replace fd77::3 lladdr 02:00:00:00:00:66 dev {bridge} nud permanent": [
        ("neighbour", BRIDGE, False)
    ],
    "ip addr del 10.77.0.1/24 dev {bridge}": [("address", BRIDGE, True)],
    "ip addr add 10.78.0.1/24 dev {bridge}": [("address", BRIDGE, False)],
    "ip route add 203.0.113.5/32 dev {bridge} proto 109": [("route", BRIDGE, False)],
    "ip route del 203.0.113.4/32": [("route", BRIDGE, True)],
    "ip route del 2001:db8:4::4/128": [("route", BRIDGE, True)],
    "ip nexthop replace id {nexthop} via 192.0.2.66 fdb": [("nexthop", "", False)],
    "ip nexthop del id {group}": [("nexthop", "", True)],
    "nft flush table inet meshd": [("firewall", "", False)],
    "nft add element inet meshd members4 {{ 192.0.2.7 }}": [("firewall", "", False)],
    "nft delete table bridge meshd": [("firewall", "", False)],
    "nft add chain ip other forward {{ type filter hook forward priority 0; policy drop; }}": [
        ("firewall", "", False)
    ],
    "nft add chain ip other DOCKER-USER": [("firewall", "", False)],
    "ip link set {vxlan} mtu 1300": [("link", VXLAN, False)],
    "ip link set {vxlan} down": [("link", VXLAN, False)],
    "ip link set {vxlan} nomaster": [("link", VXLAN, False)],
    "ip link set {vxlan} type bridge_slave learning on": [("link", VXLAN, False)],
    "ip link set {vxlan} alias other": [("link", VXLAN, False)],
    "ip link set {vxlan} name mine0": [("link", VXLAN, True)],
    "ip link set {bridge} name mine0": [("link", BRIDGE, True)],
    "ip link set {veth} name mine0": [("link", host_end(0).name, True)],
    "ip link del {vxlan}": [("link", VXLAN, True)],
    "ip link del {bridge}": [("link", BRIDGE, True)],
    "ip link del {veth}": [("link", host_end(0).name, True)],
    "ip link set lo mtu 1400": [("link", "lo", False)],
    "ip addr add 192.0.2.77/32 dev lo": [("address", "lo", False)],
}


@pytest.mark.parametrize("line", OTHERS)
def test_what_somebody_else_does_is_told(host, line):
    filled = line.format(
        vxlan=VXLAN, bridge=BRIDGE, veth=host_end(0).name, remote=mac(1).hex(":"), local=mac(0).hex(":"),
        nexthop=nexthop_id(1), group=group_id(1),
    )  # fmt: skip
    host.run("nft", "add", "table", "ip", "other")
    for there in ("203.0.113.4/32", "2001:db8:4::4/128"):
        host.run("ip", "route", "add", there, "dev", BRIDGE, "proto", str(ROUTE_PROTOCOL))
    found = observe(host, lambda: host.run(*filled.split()))
    told = [(event.what, event.name, event.gone) for event in found]
    for expected in OTHERS[line]:
        assert expected in told
    assert not any(event.mine for event in found)


NOISE = [
    "ip neigh add 10.77.0.9 lladdr 02:00:00:00:00:77 dev {bridge} nud reachable",
    "ip neigh add 10.5.5.5 lladdr 02:00:00:00:00:77 dev x1 nud permanent",
    "bridge fdb add 02:00:00:00:00:78 dev x0 master static",
    "nft add table inet other",
    "nft add chain inet other input",
    "ip route add 203.0.113.5/32 dev {bridge}",
    "ip route del 203.0.113.4/32",
    "ip route add 2001:db8:5::/64 dev {bridge}",
    "ip link set {peer} up",
    "ip link set {peer} name eth0",
]


@pytest.mark.parametrize("line", NOISE)
def test_what_does_not_concern_us_is_not_told(host, line):
    for setup in (
        "ip link add br9 type bridge",
        "ip link add x0 type veth peer name x1",
        "ip link set x0 master br9",
        f"ip route add 203.0.113.4/32 dev {BRIDGE}",
    ):
        host.run(*setup.split())
    if "other input" in line:
        host.run("nft", "add", "table", "inet", "other")
    found = observe(host, lambda: host.run(*line.format(bridge=BRIDGE, peer=PEER).split()))
    assert [event for event in found if names.is_ours(event.name) or event.what == "firewall"] == []
    assert {event.what for event in found} <= {"link"}


def own_deeds(host):
    """Everything that the daemon does, one after the other."""
    desired = kernel(0)
    others = [FdbKey(VXLAN, b"\x02\x09" + n.to_bytes(4, "big"), "self") for n in range(700)]
    veth = host_end(0)
    routes = [
        Route(BRIDGE, ip(to), ip(source))
        for to, source in (("10.9.0.1", "10.77.0.1"), ("fd99::1", "fd77::1"))
    ]
    return [
        lambda: host.kernel.apply(put_all(desired, veth=True)),
        lambda: host.kernel.apply([PutFdb(key, FdbTarget(nhid=group_id(1))) for key in others]),
        lambda: host.kernel.apply([PutFdb(key, FdbTarget(dst=ip("192.0.2.9"))) for key in others[:50]]),
        lambda: host.kernel.apply([DelFdb(key) for key in others]),
        lambda: host.kernel.apply([PutNeigh(NeighKey(BRIDGE, ip("10.77.0.9")), mac(1))]),
        lambda: host.kernel.apply([DelNeigh(NeighKey(BRIDGE, ip("10.77.0.9")))]),
        lambda: host.kernel.apply([DelNeigh(NeighKey(BRIDGE, ip("fd77::3")))]),
        lambda: host.kernel.apply([PutRoute(route) for route in routes]),
        lambda: host.kernel.apply([DelRoute(route) for route in routes]),
        lambda: host.kernel.apply([DelAddr(Addr(BRIDGE, ip("fd77::1"), 64))]),
        lambda: host.kernel.apply([DelAddr(Addr(BRIDGE, ip("10.77.0.1"), 24))]),
        lambda: host.kernel.apply([DelNexthop(group_id(1)), DelNexthop(nexthop_id(1))]),
        lambda: host.kernel.apply([SetFirewall(desired.firewall + "# again\n")]),
        lambda: host.kernel.apply([PutElement(element("members4", ip("192.0.2.9")), b"")]),
        lambda: host.kernel.apply([DelElement(element("members4", ip("192.0.2.9")))]),
        lambda: host.kernel.apply([SetFirewall("")]),
        lambda: host.kernel.delete_link(veth.name),
        lambda: make_pair(host.kernel, veth, PEER, mac(0), MTU),
        lambda: host.kernel.delete_link(veth.name),
        lambda: host.kernel.apply([DelLink(VXLAN), DelLink(BRIDGE)]),
        lambda: host.kernel.apply([op for op in put_all(desired) if type(op) is not SetFirewall]),
    ]


def test_what_we_do_ourselves_is_not_told(host):
    for number, deed in enumerate(own_deeds(host)):
        found = observe(host, deed)
        # Neighbours go with the last address of their family, rows with their nexthop group: that the kernel
        # does of itself, and it costs one needless compare.
        told = {(event.what, event.gone) for event in found}
        assert told <= {10: {("neighbour", True)}, 11: {("fdb", True)}}.get(number, set()), (number, found)


def test_what_nft_does_for_us_is_ours_however_late_its_process_is_noted(host, monkeypatch):
    noted = Echoes.child

    def late(echoes, process_id):
        time.sleep(0.2)
        noted(echoes, process_id)

    monkeypatch.setattr(Echoes, "child", late)
    changed = kernel(0).firewall + "# changed\n"
    assert observe(host, lambda: host.kernel.apply([SetFirewall(changed)])) == []


def test_neighbours_that_we_write_are_kept_out_by_the_kernel_and_others_are_not(host):
    ours, theirs = ip("10.1.0.200"), ip("10.1.0.201")

    def queued():
        (sock, *_) = watch._sockets
        count = 0
        while True:
            try:
                count += sock.recv(1 << 16)[16] == socket.AF_INET
            except BlockingIOError:
                return count

    with host.call(host.kernel.watch) as watch:
        host.kernel.apply([PutNeigh(NeighKey(BRIDGE, ours), mac(1))])
        assert queued() == 0
        host.run("ip", "neigh", "add", text_ip(theirs), "dev", BRIDGE, "lladdr", "02:00:00:00:00:07")
        assert queued() == 1
        host.kernel.apply([DelNeigh(NeighKey(BRIDGE, ours))])
        assert queued() == 1  # names nobody: echoes.py knows it


def test_own_changes_are_told_as_ours_to_who_asks(host):
    key = FdbKey(VXLAN, b"\x02\x09\0\0\0\x01", "self")
    found = observe(host, lambda: host.kernel.apply([PutFdb(key, FdbTarget(nhid=group_id(1)))]), own=True)
    assert [(event.what, event.name, event.mine) for event in found] == [("fdb", VXLAN, True)]


def test_the_same_row_written_by_somebody_afterwards_is_somebodys(host):
    key = FdbKey(VXLAN, mac(1), "self")
    deleted = functools.partial(host.kernel.apply, [DelFdb(key)])

    def do():
        deleted()
        host.run("bridge", "fdb", "add", mac(1).hex(":"), "dev", VXLAN, "self", "dst", "192.0.2.66")

    found = observe(host, do)
    assert [(event.what, event.gone) for event in found] == [("fdb", False)]


def test_a_device_that_somebody_changes_right_after_us_is_told(host):
    desired = kernel(0)
    host.run("ip", "link", "set", VXLAN, "mtu", "1300")

    def do():
        host.kernel.apply(put_all(desired)[:2])
        host.run("ip", "link", "set", VXLAN, "mtu", "1290")

    assert ("link", VXLAN) in [(event.what, event.name) for event in observe(host, do)]


def test_a_deleted_row_is_named_as_what_is_wanted_is(host):
    """So that it can be put back without reading all others."""

    desired = kernel(0)
    everybody = FdbKey(VXLAN, BROADCAST, "self", ip("192.0.2.9"))
    assert host.kernel.apply([PutFdb(everybody, FdbTarget(dst=everybody.to))]) == []

    def do():
        for key in (*desired.fdb, everybody):
            to = ["dst", text_ip(key.to)] if key.to else []
            host.run("bridge", "fdb", "del", key.mac.hex(":"), "dev", key.dev, key.where, *to)
        for key in desired.neigh:
            host.run("ip", "neigh", "del", text_ip(key.ip), "dev", key.dev)

    found = observe(host, do)
    assert {event.row for event in found if event.gone} == {*desired.fdb, *desired.neigh, everybody}


def test_an_overrun_is_told_and_the_watch_goes_on(host):
    lines = "".join(
        f"fdb add 02:0a:00:00:{n // 256:02x}:{n % 256:02x} dev {VXLAN} self dst 192.0.2.9\n"
        for n in range(3000)
    )

    async def main():
        with Watch(host.kernel._echoes, receive_bytes=1 << 16) as watch:
            host.run("bridge", "-batch", "-", input=lines)  # while nobody reads
            lost = await until_sentinel(watch, lambda: None)
            again = await until_sentinel(watch, lambda: host.run("ip", "link", "set", VXLAN, "mtu", "1300"))
            return lost, again

    lost, again = host.call(trio.run, main)
    assert Overrun() in lost
    assert len(lost) < 3000
    assert [(event.what, event.name) for event in again] == [("link", VXLAN)]


def test_a_burst_is_taken_in_turns_and_nothing_is_lost(host):
    keys = [FdbKey(VXLAN, b"\x02\x0b" + n.to_bytes(4, "big"), "self") for n in range(5000)]
    found = observe(
        host, lambda: host.kernel.apply([PutFdb(key, FdbTarget(nhid=group_id(1))) for key in keys]), own=True
    )
    assert len(found) == len(keys)
    assert all(event.mine for event in found)
    assert len(host.call(host.kernel.dump, MARK).ours.fdb) == len(keys) + 3
