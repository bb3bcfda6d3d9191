"""Jumbo frames are used, a path that narrows is told with both names and numbers, TCP fits through what is narrow."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from labtools import Attached, switch

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from tests.ethtool import ETHTOOL_SGSO, ETHTOOL_STSO

JUMBO = 9000
NARROW = 1400
NOTICED_S = 10 + 15  # a period of probes and a search (meshd/config.py)


@pytest.fixture(scope="module")
def jumbo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.up(2, tmp_path_factory.mktemp("jumbo") / "lab", mtu=JUMBO)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def pair(jumbo: Lab) -> list[Attached]:
    """An endpoint on each host of an overlay."""
    first, second = jumbo.hosts
    first.json("network", "create", "blue")
    second.wait_network("blue")
    made = []
    for host in jumbo.hosts:
        ns = jumbo.container(host.name)
        endpoint = host.json("attach", "blue", "--netns", f"/run/netns/{ns}", "--name", f"on-{host.name}")
        made.append(Attached(host, ns, endpoint))
    for host in jumbo.hosts:
        host.wait_rows(*(one.mac for one in made))
    return made


def passes(namespace: str, to: str, size: int) -> bool:
    """Ping once with an IPv4 packet of ``size`` bytes that may not be fragmented."""
    command = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", str(size - 28), to]
    return (
        subprocess.run(
            ["ip", "netns", "exec", namespace, *command], capture_output=True, check=False
        ).returncode
        == 0
    )


def path_mtus(host: Host) -> dict[str, int | None]:
    return {m["name"]: m["path_mtu"] for m in host.json("members") if not m["self"]}


def test_a_jumbo_underlay_gives_jumbo_networks_and_carries_them(jumbo: Lab, pair: list[Attached]) -> None:
    first, second = jumbo.hosts
    assert first.json("network", "inspect", "blue")["mtu"] == JUMBO - 50
    assert passes(pair[0].ns, pair[1].v4, JUMBO - 50)
    assert not passes(pair[0].ns, pair[1].v4, JUMBO - 49)
    wait_for("both paths are measured", 10, lambda: path_mtus(first) == {"host2": JUMBO})
    wait_for("both paths are measured", 10, lambda: path_mtus(second) == {"host1": JUMBO})
    assert first.status()["health"] == []


def test_a_path_that_narrows_is_told_by_both_hosts_until_it_is_wide_again(
    jumbo: Lab, pair: list[Attached]
) -> None:
    little = JUMBO - 10
    slack = range(little, little + 5)  # on the way in, a veth lets a VLAN tag more pass
    port = ("-n", jumbo.lan, "link", "set", "p2", "mtu")

    def told(host: Host) -> list[str]:
        return [e["kind"] for e in host.events() if e["kind"].startswith("mtu-")]

    labnet.ip(*port, str(little))
    try:
        for host, other in (jumbo.hosts, jumbo.hosts[::-1]):
            wait_for(f"{host.name} tells", NOTICED_S, lambda h=host: told(h) == ["mtu-mismatch"])
            (event,) = [e for e in host.events() if e["kind"] == "mtu-mismatch"]
            assert (event["hosts"], event["needed"]) == ([host.name, other.name], JUMBO)
            assert event["carried"] in slack
            (line,) = host.status()["health"]
            assert line.startswith(
                f"the path from {host.name} to {other.name} carries {event['carried']} bytes, "
            )
            assert host.json("network", "inspect", "blue")["mtu"] == JUMBO - 50, "what its record says"
    finally:
        labnet.ip(*port, str(JUMBO))
    for host in jumbo.hosts:
        wait_for(
            f"{host.name} is content", NOTICED_S, lambda h=host: told(h) == ["mtu-mismatch", "mtu-mended"]
        )
        assert host.status()["health"] == []


SERVER = """
import socket
with socket.create_server(("0.0.0.0", 5001)) as server:
    print("listening", flush=True)
    link, _ = server.accept()
    with link:
        got = 0
        while got < 2_000_000:
            got += len(link.recv(65536))
        link.sendall(bytes(2_000_000))
        print(link.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)
        link.recv(1)
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 5001), timeout=20) as link:
    link.sendall(bytes(2_000_000))
    got = 0
    while got < 2_000_000:
        got += len(link.recv(65536))
    print(link.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
"""
DEAF = """
table ip deaf {
  chain in { type filter hook input priority 0; icmp type destination-unreachable drop; }
}
"""


def python(namespace: str, script: str, *args: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, sys.executable, "-c", script, *args]


@contextmanager
def narrow_way_out(lab: Lab, host: Host) -> Iterator[None]:
    """The LAN carries little from and to ``host``, and ``host`` knows it of its default route."""
    default = ("-n", host.ns, "route", "change", "default", "via", labnet.address(labnet.GATEWAY_NUMBER))
    labnet.ip("-n", lab.lan, "link", "set", f"p{host.number}", "mtu", str(NARROW))
    labnet.ip("-n", lab.lan, "link", "set", labnet.LAN_BRIDGE, "mtu", str(JUMBO))  # it had followed its port
    labnet.ip(*default, "mtu", str(NARROW))
    labnet.ip(
        "-n",
        host.ns,
        "route",
        "add",
        f"{labnet.address(labnet.GATEWAY_NUMBER)}/32",
        "dev",
        "eth0",
        "mtu",
        str(NARROW),
    )
    try:
        yield
    finally:
        labnet.ip("-n", host.ns, "route", "del", f"{labnet.address(labnet.GATEWAY_NUMBER)}/32", "dev", "eth0")
        labnet.ip(*default)
        labnet.ip("-n", lab.lan, "link", "set", f"p{host.number}", "mtu", str(JUMBO))


def test_tcp_passes_a_narrow_way_out_even_where_nobody_hears_that_it_is_narrow(jumbo: Lab) -> None:
    host = jumbo.hosts[0]
    ns = jumbo.container("tcp")
    outside = labnet.address(labnet.GATEWAY_NUMBER)
    host.json("attach", "bridge", "--netns", f"/run/netns/{ns}")
    assert host.json("network", "inspect", "bridge")["mtu"] == JUMBO
    subprocess.run(["ip", "netns", "exec", ns, "nft", DEAF], check=True)
    for namespace, device in ((ns, "eth0"), (jumbo.lan, labnet.LAN_BRIDGE)):
        for command in (ETHTOOL_STSO, ETHTOOL_SGSO):
            switch(namespace, device, command, 0)
    with narrow_way_out(jumbo, host):
        assert passes(ns, outside, NARROW)
        assert not passes(ns, outside, NARROW + 1)
        with subprocess.Popen(python(jumbo.lan, SERVER), stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "listening\n"
                done = subprocess.run(
                    python(ns, CLIENT, outside), capture_output=True, text=True, timeout=30, check=False
                )
                assert done.returncode == 0, done.stderr
                assert int(done.stdout) <= NARROW - 40
                assert int(server.stdout.readline()) <= NARROW - 40
            finally:
                server.kill()
    host.json("detach", "bridge", "--netns", f"/run/netns/{ns}")


def test_a_host_that_does_not_forward_says_so_and_how_to_mend_it(jumbo: Lab, pair: list[Attached]) -> None:
    host = jumbo.hosts[1]
    labnet.set_sysctls(host.ns, {"ipv4/ip_forward": "0"})
    try:
        host.stop()
        host.start()
        (line,) = host.status()["health"]
        assert line.startswith("IPv4 is not forwarded on this host: endpoints of network blue ")
        assert line.endswith("run: sysctl -w net/ipv4/ip_forward=1")
    finally:
        labnet.set_sysctls(host.ns, {"ipv4/ip_forward": "1"})
    host.stop()
    host.start()
    assert host.status()["health"] == []
