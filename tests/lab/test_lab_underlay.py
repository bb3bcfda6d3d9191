"""What carries the overlay: an IPv6 underlay, and an address that is replaced under the running daemon."""

import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from labtools import Attached, no_ping_is_lost

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

VXLAN_OVERHEAD_V6 = 40 + 8 + 8 + 14


def attach(lab: Lab, host: Host, network: str, name: str) -> Attached:
    ns = lab.container(name)
    endpoint = host.json("attach", network, "--netns", f"/run/netns/{ns}", "--name", name)
    return Attached(host, ns, endpoint)


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    hosts, underlay = request.param
    made = Lab.up(hosts, tmp_path / "lab", underlay=underlay)
    yield made
    for host in made.hosts:
        host.wait_in_sync()
    made.down()


@pytest.mark.parametrize("lab", [(2, 6)], indirect=True)
def test_an_underlay_of_v6_carries_both_families_at_its_full_mtu(lab: Lab) -> None:
    first, second = lab.hosts
    made = first.json("network", "create", "blue", "--ipv6")
    assert made["mtu"] == labnet.UNDERLAY_MTU - VXLAN_OVERHEAD_V6
    second.wait_network("blue")
    here, there = (attach(lab, host, "blue", f"on-{host.name}") for host in lab.hosts)
    for host in lab.hosts:
        host.wait_rows(here.mac, there.mac)
    no_ping_is_lost([(here, there), (there, here)])
    for to, headers in ((there.v4, 28), (there.v6, 48)):
        fits, beyond = (
            subprocess.run(
                ["ip", "netns", "exec", here.ns, "ping", "-n", "-c1", "-W2", "-Mdo", f"-s{size}", to],
                capture_output=True,
                check=False,
            ).returncode
            for size in (made["mtu"] - headers, made["mtu"] - headers + 1)
        )
        assert (fits, beyond != 0) == (0, True)


@contextmanager
def watching(host: Host, *command: str) -> Iterator[list[str]]:
    """Run a monitor on a host; its lines are in the list afterwards."""
    lines: list[str] = []
    with subprocess.Popen(
        host.argv("stdbuf", "-oL", *command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        time.sleep(0.3)  # it says nothing when it has subscribed
        try:
            yield lines
            time.sleep(0.3)
        finally:
            process.terminate()
        lines += (process.communicate()[0] or "").splitlines()


def nexthops(host: Host) -> set[str]:
    return {row["gateway"] for row in json.loads(host.run("ip", "-j", "nexthop").stdout) if "gateway" in row}


def links(host: Host) -> dict[str, int]:
    return {link["ifname"]: link["ifindex"] for link in json.loads(host.run("ip", "-j", "link").stdout)}


@pytest.mark.parametrize("lab", [(3, 4)], indirect=True)
def test_a_replaced_address_costs_each_peer_one_nexthop_and_no_row(lab: Lab) -> None:
    first, second, moving = lab.hosts
    moving.stop()
    moving.configure(gossip={"bind": None})  # the default route's source, whatever that is
    moving.start()
    for network in ("blue", "red"):
        first.json("network", "create", network, "--ipv6")
    endpoints: dict[str, list[Attached]] = {}
    for network, hosts in (("blue", [first, second, moving, moving]), ("red", [first, moving])):
        for host in set(hosts):
            host.wait_network(network)
        endpoints[network] = [attach(lab, host, network, f"{network}{n}") for n, host in enumerate(hosts)]
        for host in hosts:
            host.wait_rows(*(one.mac for one in endpoints[network]))
    for host in lab.hosts:
        host.wait_in_sync()
    before, devices = moving.rows(), links(moving)

    with (
        watching(first, "ip", "monitor", "nexthop") as changed,
        watching(second, "ip", "monitor", "nexthop") as changed_too,
        watching(first, "bridge", "monitor", "fdb") as rows,
        watching(first, "ip", "monitor", "neigh") as neighbours,
        watching(moving, "bridge", "monitor", "fdb") as own_rows,
    ):
        moving.run("ip", "addr", "del", f"{moving.address}/24", "dev", "eth0")
        moving.run("ip", "addr", "add", "192.0.2.33/24", "dev", "eth0")
        moving.run("ip", "route", "add", "default", "via", labnet.address(labnet.GATEWAY_NUMBER))
        for host in (first, second):
            wait_for(f"{host.name} follows", 10, lambda host=host: "192.0.2.33" in nexthops(host))
        wait_for("its own devices follow", 10, lambda: "local 192.0.2.3 " not in details(moving))
        for ring in endpoints.values():
            no_ping_is_lost(list(itertools.permutations(ring, 2)))

    for lines in (changed, changed_too):
        assert [("192.0.2.33" in line, "Deleted" in line) for line in lines] == [(True, False)], lines
    assert [line for line in rows if "mv" in line] == []
    assert [line for line in neighbours if "mo" in line and "PERMANENT" in line] == []  # nor ours
    assert [line for line in own_rows if "mv" in line] == []
    assert (moving.rows(), links(moving)) == (before, devices)

    for host in lab.hosts:
        assert {m["name"]: m["address"] for m in host.json("members")}["host3"] == "192.0.2.33"
        assert [e for e in host.events() if e["kind"] == "member-failed"] == []
    late = attach(lab, first, "red", "late")
    moving.wait_rows(late.mac)
    wait_for("all know the same", 10, lambda: len({h.status()["digest"] for h in lab.hosts}) == 1)


@pytest.mark.parametrize("lab", [(2, 4)], indirect=True)
def test_an_address_that_goes_and_comes_back_is_said_so_and_costs_nothing_more(lab: Lab) -> None:
    first, second = lab.hosts
    second.run("ip", "addr", "del", f"{second.address}/24", "dev", "eth0")

    def said() -> bool:
        return any("192.0.2.2" in line and "cannot reach" in line for line in second.status()["health"])

    wait_for("its health says so", 10, said)
    second.run("ip", "addr", "add", f"{second.address}/24", "dev", "eth0")
    wait_for("and no longer", 10, lambda: not said())
    for host in (first, second):
        host.wait_alive(2)


def details(host: Host) -> str:
    return host.run("ip", "-d", "link", "show", "type", "vxlan").stdout
