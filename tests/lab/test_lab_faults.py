"""Daemons die, hosts part and meet again, somebody deletes what is ours: traffic goes on and the kernel heals."""

import itertools
import os
import time
from collections.abc import Callable

import pytest
from labtools import Attach, Attached, no_ping_is_lost, undisturbed

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

VERDICT_S = 20.0
CUT_S = 300.0 if os.environ.get("MESHD_SOAK") else 0.0  # for so long after the verdicts
CUT = """
table inet cut {
  chain in { type filter hook input priority -300; meta l4proto { tcp, udp } th dport 7947 drop; }
  chain out { type filter hook output priority -300; meta l4proto { tcp, udp } th dport 7947 drop; }
}
"""


def sees(host: Host, other: Host) -> str:
    """Return in which state ``host`` sees ``other``."""
    return next(str(m["state"]) for m in host.json("members") if m["name"] == other.name)


def ips_on(host: Host, network: str) -> dict[str, list[str]]:
    return {e["name"]: e["ips"] for e in host.json("endpoint", "ls", "--network", network)}


def test_kill_9_of_a_daemon_loses_no_packet_is_noticed_and_its_restart_keeps_every_address(
    lab3: Lab, trio_of_endpoints: list[Attached], overlay: str
) -> None:
    first, second, third = lab3.hosts
    before = ips_on(first, overlay)
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        second.kill()
        for host in (first, third):
            wait_for(f"{host.name} sees host2 failed", VERDICT_S, lambda h=host: sees(h, second) == "failed")
        assert [e["state"] for e in first.json("endpoint", "ls", "--host", "host2")] == ["stale"]
        second.start()
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
    assert [ips_on(host, overlay) for host in lab3.hosts] == [before] * 3


def test_sigterm_leaves_the_data_plane_and_nobody_thinks_the_host_failed(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    first, second, _ = lab3.hosts
    failures = count(first, "member-failed")
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        second.stop()
        wait_for("host1 knows that host2 restarts", 10, lambda: restarting(first, second))
        second.start()
        second.wait_in_sync()
    first.wait_alive(3)
    assert count(first, "member-failed") == failures


def test_all_daemons_killed_at_once_come_back_with_every_address_and_no_packet_lost(
    lab3: Lab, trio_of_endpoints: list[Attached], overlay: str
) -> None:
    before = ips_on(lab3.hosts[0], overlay)
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        for host in lab3.hosts:
            host.kill()
        for host in lab3.hosts:
            host.begin()
        for host in lab3.hosts:
            host.wait_ready()
            host.wait_alive(3)
            host.wait_in_sync()
    assert ips_on(lab3.hosts[2], overlay) == before


def test_a_partition_heals_by_itself_and_what_both_sides_made_is_merged(
    lab3: Lab, trio_of_endpoints: list[Attached], overlay: str, attach: Attach
) -> None:
    first, second, third = lab3.hosts
    with undisturbed(lab3.hosts, *trio_of_endpoints):  # gossip is cut, the overlay's own traffic is not
        third.run("nft", CUT)
        try:
            wait_for(
                "host3 sees the others failed", VERDICT_S, lambda: third.status()["cluster"]["alive"] == 1
            )
            wait_for("host1 sees host3 failed", VERDICT_S, lambda: sees(first, third) == "failed")
            first.json("network", "create", "made-by-two", "--ipv6")
            third.json("network", "create", "made-by-one", "--ipv6")
            time.sleep(CUT_S)
            here, there = attach(first, overlay), attach(third, overlay)
        finally:
            third.run("nft", "delete table inet cut")
        for host in lab3.hosts:
            host.wait_alive(3)
            for name in ("made-by-two", "made-by-one"):
                host.wait_network(name)
            host.wait_rows(here.mac, there.mac)
        wait_for(
            "all have the same state", 10, lambda: len({host.status()["digest"] for host in lab3.hosts}) == 1
        )
    assert set(here.ips) & set(there.ips) == set()
    no_ping_is_lost([(here, there), (there, here)])
    for name in ("made-by-two", "made-by-one"):
        second.json("network", "rm", name)


DELETED: dict[str, Callable[[str, Attached, Attached], tuple[str, ...]]] = {
    "a row of a vxlan device": lambda net, _, far: ("bridge", "fdb", "del", far.mac, "dev", f"mv{net}", "self"),
    "a row of a bridge port": lambda net, _, far: ("bridge", "fdb", "del", far.mac, "dev", f"mv{net}", "master"),
    "a neighbour": lambda net, _, far: ("ip", "neigh", "del", far.v4, "dev", f"mo{net}"),
    "a neighbour of v6": lambda net, _, far: ("ip", "neigh", "del", far.v6, "dev", f"mo{net}"),
    "a local endpoint's row": lambda _, near, far: (
        "bridge", "fdb", "del", near.mac, "dev", f"mh{near.endpoint['id'][:8]}", "master",
    ),
    "the vxlan device": lambda net, _, far: ("ip", "link", "del", f"mv{net}"),
    "the bridge": lambda net, _, far: ("ip", "link", "del", f"mo{net}"),
    "an endpoint's place on the bridge": lambda _, near, far: (
        "ip", "link", "set", f"mh{near.endpoint['id'][:8]}", "nomaster",
    ),
    "the bridge being up": lambda net, _, far: ("ip", "link", "set", f"mo{net}", "down"),
    "the firewall's table": lambda *_: ("nft", "delete", "table", "inet", "meshd"),
    "every nexthop": lambda *_: ("ip", "nexthop", "flush"),
}  # fmt: skip
"""What somebody may delete by hand, and how: (network id's digits, endpoint here, endpoint elsewhere)."""


@pytest.mark.parametrize("what", DELETED)
def test_what_is_deleted_by_hand_comes_back(lab3: Lab, trio_of_endpoints: list[Attached], what: str) -> None:
    near, far, other = trio_of_endpoints
    host = lab3.hosts[0]
    host.wait_in_sync()
    repaired = count(host, "kernel-repaired")
    command = DELETED[what](near.devices, near, far)
    done = host.run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for(f"an event says that {what} came back", 10, lambda: count(host, "kernel-repaired") > repaired)
    host.wait_in_sync()
    no_ping_is_lost(list(itertools.permutations((near, far, other), 2)))


def test_what_is_not_ours_is_left_alone_and_does_not_count(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    host = lab3.hosts[0]
    device = f"mv{trio_of_endpoints[0].devices}"
    foreign = "02:00:5e:00:53:01"
    row = ("dev", device, "dst", "192.0.2.77", "self", "static")
    assert host.run("bridge", "fdb", "add", foreign, *row).returncode == 0
    assert host.run("ip", "link", "add", "mo00000000", "type", "bridge").returncode == 0
    try:
        found = host.json("diff")
        assert found["in_sync"]
        assert any(foreign in str(line) for line in found["foreign"])
        host.kill()
        host.start()
        host.wait_alive(3)
        host.wait_in_sync()
        assert foreign in host.rows()
        assert "mo00000000" in host.run("ip", "-br", "link").stdout
    finally:
        host.run("bridge", "fdb", "del", foreign, "dev", device, "self")
        host.run("ip", "link", "del", "mo00000000")


def test_an_endpoint_whose_namespace_vanished_is_released(lab3: Lab, overlay: str, attach: Attach) -> None:
    host = lab3.hosts[0]
    one = attach(host, overlay)
    host.run("ip", "netns", "delete", one.ns)
    wait_for("the endpoint is released", 60, lambda: ips_on(host, overlay) == {})
    wait_for("on the others too", 10, lambda: ips_on(lab3.hosts[1], overlay) == {})


def count(host: Host, kind: str) -> int:
    return sum(event["kind"] == kind for event in host.events())


def restarting(host: Host, other: Host) -> bool:
    return any(m["name"] == other.name and m["restarting"] for m in host.json("members"))
