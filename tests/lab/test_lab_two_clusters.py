"""Two clusters on the same two hosts, each daemon with state, ports and keys of its own: neither knows of the other,
touches what is the other's, or carries its frames."""

import contextlib
import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from labtools import Attached, no_ping_is_lost, pings_between, undisturbed

from meshctl import labdaemon, labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import Ping

GOSSIP_PORT, VXLAN_PORT = 7950, 8472
"""The second cluster's."""
TABLES = ("meshd", f"meshd-{VXLAN_PORT}")
NETWORK = "blue"


class Cluster(NamedTuple):
    """One of the two; ``ends`` are its endpoints, one a host, on an overlay of its own."""

    hosts: list[Host]
    ends: list[Attached]


def beside(lab: Lab, host: Host) -> Host:
    """Another host's daemon in this one's namespace."""
    twin = Host(lab, host.number)
    twin.name = f"twin{host.number}"
    twin.dir = lab.dir / twin.name
    twin.log, twin.socket = twin.dir / "log", twin.dir / "run" / "api.sock"
    for tree in ("etc", "state", "run"):
        (twin.dir / tree).mkdir(parents=True)
    twin.dir.chmod(0o755)
    (twin.dir / "run").chmod(0o755)
    labdaemon.give(twin.dir)
    return twin


def second_cluster(lab: Lab, twins: list[Host]) -> None:
    """Form it of a daemon on each host, as an operator would."""
    first, other = twins
    lab._write_config(first, "init", "--port", str(GOSSIP_PORT))
    first.configure(vxlan={"port": VXLAN_PORT})
    first.start()
    lab._write_config(other, "join", first.json("token")["token"])
    other.configure(vxlan={"port": VXLAN_PORT}, gossip={"port": GOSSIP_PORT})
    other.start()
    for twin in twins:
        twin.wait_alive(2)


def with_an_overlay(lab: Lab, hosts: list[Host]) -> Cluster:
    hosts[0].json("network", "create", NETWORK, "--ipv6")
    hosts[1].wait_network(NETWORK)
    ends = []
    for host in hosts:
        ns = lab.container(f"{host.name}-end")
        ends.append(
            Attached(
                host, ns, host.json("attach", NETWORK, "--netns", f"/run/netns/{ns}", "--name", host.name)
            )
        )
    for host in hosts:
        host.wait_rows(*(end.mac for end in ends))
    return Cluster(hosts, ends)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    lab = Lab.up(2, tmp_path_factory.mktemp("two") / "lab")
    twins: list[Host] = []
    try:
        twins += [beside(lab, host) for host in lab.hosts]
        second_cluster(lab, twins)
        yield [with_an_overlay(lab, lab.hosts), with_an_overlay(lab, twins)]
    finally:
        for twin in twins:
            print(f"--- {twin.name}\n{labdaemon.tail(twin.log, 30)}")
            twin.kill()
        lab.down()


@pytest.fixture(autouse=True)
def _both_in_sync_afterwards(clusters: list[Cluster]) -> Iterator[None]:
    yield
    for host in [*clusters[0].hosts, *clusters[1].hosts]:
        host.wait_in_sync()


def repairs(cluster: Cluster) -> list[int]:
    return [sum(e["kind"] == "kernel-repaired" for e in host.events()) for host in cluster.hosts]


def foreign(host: Host) -> str:
    return str(host.json("diff")["foreign"])


def test_each_has_its_own_and_sees_the_others_as_foreign(clusters: list[Cluster]) -> None:
    for mine, theirs in (clusters, reversed(clusters)):
        no_ping_is_lost([(mine.ends[0], mine.ends[1]), (mine.ends[1], mine.ends[0])])
        stranger = Ping(mine.ends[0].ns, theirs.ends[1].v4, count=1).result()
        assert stranger.lost == stranger.sent == 1
        for host, end in zip(mine.hosts, theirs.ends, strict=True):
            assert [m["name"] for m in sorted(host.json("members"), key=lambda m: m["name"])] == [
                h.name for h in mine.hosts
            ]
            assert f"mo{end.devices}" in foreign(host)
            assert "nexthop" in foreign(host)
            assert {e["name"] for e in host.json("endpoint", "ls")} == {e.name for e in mine.ends}
    tables = clusters[0].hosts[0].run("nft", "list", "tables").stdout.split("\n")
    assert {f"table {family} {name}" for family in ("inet", "bridge") for name in TABLES} <= set(tables)


def test_no_subnet_is_chosen_twice(clusters: list[Cluster]) -> None:
    """On a host each counts the other's networks as routes of the host's."""
    taken = [
        ipaddress.ip_network(subnet)
        for cluster in clusters
        for network in cluster.hosts[0].json("network", "ls")
        for subnet in network["subnets"]
    ]
    assert len(taken) >= 2 * 3
    v4 = [net for net in taken if net.version == 4]
    assert not [(a, b) for a in v4 for b in v4 if a is not b and a.overlaps(b)]


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the second"])
def test_one_dies_and_comes_back_and_the_other_does_not_notice(clusters: list[Cluster], which: int) -> None:
    dying, other = clusters[which], clusters[1 - which]
    before = repairs(other)
    with undisturbed(other.hosts, *other.ends), pings_between(*dying.ends):
        dying.hosts[0].kill()
        dying.hosts[0].start()
        dying.hosts[0].wait_alive(2)
        dying.hosts[0].wait_in_sync()
        dying.hosts[1].stop()
        dying.hosts[1].start()
    assert repairs(other) == before
    for host in dying.hosts:
        host.wait_alive(2)


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the second"])
def test_the_tables_of_one_are_flushed_and_the_others_are_let_be(clusters: list[Cluster], which: int) -> None:
    hit, other = clusters[which], clusters[1 - which]
    table, untouched = TABLES[which], TABLES[1 - which]
    host = hit.hosts[0]

    def handles() -> list[str]:
        return [
            host.run("nft", "-a", "list", "table", family, untouched).stdout for family in ("inet", "bridge")
        ]

    before, counted = handles(), repairs(other)
    for family in ("inet", "bridge"):
        with undisturbed(other.hosts, *other.ends):
            repaired = repairs(hit)[0]
            host.run("nft", "delete", "table", family, table)
            wait_for("it is repaired", 10.0, lambda repaired=repaired: repairs(hit)[0] > repaired)  # type: ignore[misc]
            host.wait_in_sync()
    shown = next(e for e in reversed(host.events()) if e["kind"] == "kernel-repaired")
    assert f"tables inet {table} and bridge {table}" in str(shown["objects"])
    assert repairs(other) == counted
    assert handles() == before


SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for port in sys.argv[2:]:
        sock.sendto(b"from a container", (sys.argv[1], int(port)))
"""
HONEST_PORT = 5000


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the second"])
def test_a_container_of_one_cannot_speak_with_a_member_of_the_other_in_its_hosts_name(
    clusters: list[Cluster], which: int
) -> None:
    """Masqueraded, it would come with a member's address, and what comes so is believed."""
    end, there = clusters[which].ends[0], clusters[which].hosts[1]
    ports = ["4789", str(VXLAN_PORT), "7947", str(GOSSIP_PORT)]
    wanted = " or ".join(f"dst port {port}" for port in [*ports, HONEST_PORT])
    mark = int.from_bytes(b"from", "big")
    capture = ["tcpdump", "--immediate-mode", "-Z", "root", "-lnn", "-c1", "-i", "any",
               f"udp and ({wanted}) and udp[8:4] = {mark}"]  # fmt: skip
    with subprocess.Popen(
        there.argv("timeout", "20", *capture), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as seen:
        assert seen.stdout
        assert seen.stderr
        while "listening" not in seen.stderr.readline():
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["ip", "netns", "exec", end.ns, sys.executable, "-c", SEND, there.address, *ports, str(HONEST_PORT)],
                check=True, timeout=10,
            )  # fmt: skip
        first = seen.stdout.readline()
    assert f"{labnet.address(1)}." in first
    assert f"{there.address}.{HONEST_PORT}" in first


def test_a_port_that_one_publishes_is_refused_to_the_other_at_once(clusters: list[Cluster]) -> None:
    one, other = (cluster.hosts[0] for cluster in clusters)
    lab = one.lab
    first, second = (f"/run/netns/{lab.container(name)}" for name in ("pub1", "pub2"))
    for here, there, table in ((one, other, TABLES[0]), (other, one, TABLES[1])):
        here.json("attach", NETWORK, "--netns", first, "--publish", "8099:80")
        refused = there.meshctl("attach", NETWORK, "--netns", second, "--publish", "8099:80")
        assert refused.returncode == 1
        assert (
            f"port 8099/tcp of this host is published by another cluster's daemon here (table inet {table})"
            in refused.stderr
        )
        here.json("detach", NETWORK, "--netns", first)
    other.json("attach", NETWORK, "--netns", second, "--publish", "8099:80")
    other.json("detach", NETWORK, "--netns", second)
