"""Real Docker on three hosts: everything that its users do, and everything that happens to its daemon and to ours."""

import ipaddress
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from realdocker import IMAGE, Engine
from realtools import Containerd, Image, Place, Pod

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import Ping

pytestmark = pytest.mark.long

SOON_S = 20.0
GRACE_S = 60.0  # an endpoint whose link is gone is released after 30
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_numbers = itertools.count(1)
NewNetwork = Callable[..., str]


@pytest.fixture
def new_network(real_lab: Lab, engines: list[Engine]) -> Iterator[NewNetwork]:
    """Make a network of the cluster and the Docker networks that are it; all gone again after the test."""
    made: list[str] = []

    def create(*flags: str, docker: bool = True) -> str:
        name = f"net{next(_numbers)}"
        real_lab.hosts[0].json("network", "create", name, *flags)
        made.append(name)
        for host in real_lab.hosts:
            host.wait_network(name)
        for engine in engines if docker else ():
            engine.join(name)
        return name

    yield create
    for engine in engines:
        for container in engine.docker("ps", "-aq").stdout.split():
            engine.docker("rm", "-f", container)
        engine.docker("network", "prune", "-f")
    for host in real_lab.hosts:
        wait_for(
            f"{host.name} has no endpoint left", GRACE_S, lambda host=host: host.json("endpoint", "ls") == []
        )
        host.wait_in_sync()
    for name in made:
        real_lab.hosts[0].json("network", "rm", name)


@contextmanager
def no_ping_is_lost(source: Engine, name: str, address: str) -> Iterator[None]:
    """Ping every 10 ms from a container's namespace while the body runs."""
    pid = source.well("inspect", "-f", "{{.State.Pid}}", name)
    link = Path(f"/run/netns/{source.host.ns}-{name}")
    subprocess.run(["ip", "netns", "attach", link.name, pid], check=True)
    try:
        ping = Ping(link.name, address, every_ms=10)
        try:
            yield
        finally:
            result = ping.result()
        assert result.sent > 0
        assert result.lost == 0, f"{result.lost} of {result.sent} pings lost"
    finally:
        subprocess.run(["ip", "netns", "delete", link.name], check=True)


@pytest.mark.conforms("docker", "run", "stop", "start", "connect", "disconnect", "rm", "beside meshctl run")
def test_containers_of_three_engines_and_a_process_meet(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue, green = new_network("--ipv6"), new_network()
    one, two, three = engines
    for engine, name in zip(engines, ("c1", "c2", "c3"), strict=True):
        engine.run(name, blue)
    process = subprocess.Popen(
        three.host.argv("meshctl", "run", blue, "--name", "proc", "--", "sleep", "1000"),
        env=three.host.environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(
            "the process has an endpoint",
            SOON_S,
            lambda: "proc" in three.host.meshctl("endpoint", "ls").stdout,
        )
        proc = next(e for e in three.host.json("endpoint", "ls") if e["name"] == "proc")
        macs = [
            engine.networks(name)[blue]["MacAddress"]
            for engine, name in zip(engines, ("c1", "c2", "c3"), strict=True)
        ]
        for engine in engines:
            engine.host.wait_rows(proc["mac"], *macs)
        for family in (4, 6):
            assert one.pings("c1", two.ip("c2", blue, family))
            assert two.pings("c2", three.ip("c3", blue, family))
            mine = next(ip for ip in proc["ips"] if (":" in ip) == (family == 6)).partition("/")[0]
            assert one.pings("c1", mine)
            assert three.pings("c3", mine)
    finally:
        process.terminate()
        process.wait()
    one.well("network", "connect", green, "c1")
    two.run("c4", green)
    two.host.wait_rows(one.networks("c1")[green]["MacAddress"])
    assert two.pings("c4", one.ip("c1", green))
    one.well("network", "disconnect", green, "c1")
    assert not two.pings("c4", "255.255.255.255", count=1)
    assert [e["network"] for e in one.endpoints()] == [blue]
    first = one.ip("c1", blue)
    one.well("stop", "-t", "0", "c1")
    assert one.endpoints() == []
    one.well("start", "c1")
    assert one.ip("c1", blue) != first  # the address rests
    one.host.wait_rows(macs[1])
    assert one.pings("c1", two.ip("c2", blue))
    for engine, name in zip(engines, ("c1", "c2", "c3"), strict=True):
        engine.well("rm", "-f", name)
        assert [e for e in engine.endpoints() if e["network"] == blue] == []


@pytest.mark.conforms("docker", "beside a CRI pod and meshctl run")
def test_a_container_a_pod_and_a_process_on_three_hosts_ping_each_other(
    engines: list[Engine], new_network: NewNetwork, image: Image, tmp_path: Path
) -> None:
    blue = new_network("--ipv6", docker=False)
    docker, two, three = engines[0], engines[1].host, engines[2].host
    docker.join(blue)
    docker.run("web", f"name={blue},driver-opt=name=web")
    known: Callable[[], dict[str, Any]] = lambda: {  # noqa: E731
        endpoint["name"]: endpoint for endpoint in three.json("endpoint", "ls", "--network", blue)
    }
    addresses: Callable[[str], list[str]] = lambda name: [  # noqa: E731
        ip.partition("/")[0] for ip in known()[name]["ips"]
    ]
    with Place(two, tmp_path / "cri", blue) as place, Containerd(place, image).running() as containerd:
        containerd.ctr("-n", "k8s.io", "images", "import", str(image.archive))
        pod = Pod(containerd, "pod")
        script = 'for ip; do ping -c 3 -i 0.2 -W 2 "$ip" >&2; done; echo all; exec sleep 1000'
        process: subprocess.Popen[str] | None = None
        try:
            wait_for("the container and the pod are known", SOON_S, lambda: set(known()) == {"web", "pod"})
            process = subprocess.Popen(
                three.argv("meshctl", "run", blue, "--name", "proc", "--", "sh", "-euc", script, "sh",
                           *addresses("web"), *addresses("pod")),
                env=three.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "all\n"
            proc = known()["proc"]
            assert [endpoint["name"] for endpoint in docker.endpoints()] == ["web"]
            assert [endpoint["runtime_id"] for endpoint in place.endpoints(blue)] == [pod.id]
            docker.host.wait_rows(proc["mac"], known()["pod"]["mac"])
            two.wait_rows(proc["mac"], known()["web"]["mac"])
            for ip in (*addresses("pod"), *addresses("proc")):
                assert docker.pings("web", ip)
            for ip in (*addresses("web"), *addresses("proc")):
                sent = place.run(
                    "nsenter", f"--net={pod.netns()}", "ping", "-c", "3", "-i", "0.2", "-W", "2", ip
                )
                assert " 0% packet loss" in sent.stdout
        finally:
            if process is not None:
                process.terminate()
                process.communicate()
            pod.stop()
            pod.remove()


@pytest.mark.conforms("docker", "macvlan")
def test_containers_of_two_engines_are_on_the_lan_itself(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    router = labnet.address(labnet.GATEWAY_NUMBER)
    yard = new_network(
        *("-d", "macvlan", "--subnet", "192.0.2.0/24", "--gateway", router, "--ip-range", "192.0.2.64/26")
    )
    one, two, _ = engines
    one.run("m1", yard)
    two.run("m2", yard, "--ip", "192.0.2.99")
    for _ in range(2):
        assert one.pings("m1", two.ip("m2", yard))
        assert two.pings("m2", router)
        assert two.pings("m2", one.ip("m1", yard))
        one.well("restart", "-t", "0", "m1")
    assert "taken" in (
        said := one.refused("run", "--rm", "--network", yard, "--ip", "192.0.2.99", IMAGE)
    ) or ("in use" in said), said
    one.well("rm", "-f", "m1")
    assert one.endpoints() == []


@pytest.mark.conforms("docker", "--restart on-failure")
def test_a_container_that_fails_is_started_again_and_reached_again(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    script = "[ -e /tmp/ran ] && exec sleep 1000; : >/tmp/ran; exit 1"
    one.run("again", blue, "--restart", "on-failure", command=("sh", "-c", script))
    two.run("peer", blue)
    count = ("inspect", "-f", "{{.RestartCount}}", "again")
    wait_for("it is started again", SOON_S, lambda: one.well(*count) == "1" and one.running("again"))
    wait_for("it has its endpoint", SOON_S, lambda: len(one.endpoints()) == 1)
    two.host.wait_rows(one.networks("again")[blue]["MacAddress"])
    assert two.pings("peer", one.ip("again", blue))


@pytest.mark.conforms("docker", "run --ip --mac-address", "restart keeps the MAC")
def test_a_fixed_address_and_its_mac_last_through_restarts(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    subnet = ipaddress.ip_network(one.host.json("network", "inspect", blue)["subnets"][0])
    ip = str(subnet[77])
    one.run("fixed", blue, "--ip", ip)
    two.run("peer", blue)
    two.host.wait_rows(one.networks("fixed")[blue]["MacAddress"])
    mac = one.networks("fixed")[blue]["MacAddress"]
    assert two.pings("peer", ip)
    one.well("restart", "-t", "0", "fixed")
    assert (one.ip("fixed", blue), one.networks("fixed")[blue]["MacAddress"]) == (ip, mac)
    two.host.wait_rows(mac)
    assert two.pings("peer", ip)
    assert "in use" in two.refused("run", "--rm", "--network", blue, "--ip", ip, IMAGE, "true")
    two.run("mac", blue, "--mac-address", "02:42:ac:11:00:99")
    assert two.networks("mac")[blue]["MacAddress"] == "02:42:ac:11:00:99"


@pytest.mark.conforms("docker", "run -p", "run -P range", "network create --internal")
def test_published_ports_and_networks_without_a_way_out(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue, inner = new_network(), new_network("--internal")
    one, two, _ = engines
    serve = ("sh", "-c", "while true; do echo hello | nc -l -p 80; done")
    one.run("web", blue, "-p", "8080:80", command=serve)
    ask = f"import socket; print(socket.create_connection(('{one.host.address}', 8080), 5).recv(99).decode())"
    wait_for("the port answers", SOON_S, lambda: "hello" in two.host.run(sys.executable, "-c", ask).stdout)
    assert "port 8080/tcp of this host is endpoint" in one.refused(
        "run", "--rm", "--network", blue, "-p", "8080:80", IMAGE
    )
    one.run("any", blue, "-p", "80")
    ports = {e["name"]: e["published"] for e in one.endpoints()}
    assert sorted(len(each) for each in ports.values()) == [1, 1]
    one.run("alone", inner)
    routes = one.well("exec", "alone", "ip", "route")
    assert "default" not in routes
    assert "docker_gwbridge" not in one.well("network", "ls")
    one.well("stop", "-t", "0", "web")
    one.run("web2", blue, "-p", "8080:80", command=serve)
    wait_for("it answers again", SOON_S, lambda: "hello" in two.host.run(sys.executable, "-c", ask).stdout)


@pytest.mark.conforms("docker", "dockerd kill -9", "dockerd stop, start", "--restart always")
def test_dockerd_is_killed_and_stopped_and_its_containers_come_back(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    subnet = ipaddress.ip_network(one.host.json("network", "inspect", blue)["subnets"][0])
    one.run("auto", blue, "--restart", "always")
    one.run("fixed", blue, "--restart", "always", "--ip", str(subnet[55]))
    two.run("peer", blue)
    for end in (one.kill, one.stop, one.kill):
        end()
        one.start()
        wait_for("both run again", SOON_S, lambda: one.running("auto") and one.running("fixed"))
        wait_for("two endpoints", GRACE_S, lambda: len(one.endpoints()) == 2)
        two.host.wait_rows(*(e["mac"] for e in one.endpoints()))
        assert two.pings("peer", one.ip("auto", blue))
        assert two.pings("peer", str(subnet[55]))
        assert one.pings("auto", two.ip("peer", blue))
        one.host.wait_in_sync()


@pytest.mark.conforms("docker", "--live-restore")
def test_with_live_restore_no_packet_is_lost_while_dockerd_is_away(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    one.stop()
    one.start("--live-restore")
    try:
        one.run("kept", blue)
        two.run("peer", blue)
        address = one.ip("kept", blue)
        for engine, other, name in ((one, two, "peer"), (two, one, "kept")):
            engine.host.wait_rows(other.networks(name)[blue]["MacAddress"])
        with no_ping_is_lost(two, "peer", address):
            one.kill()
            one.start("--live-restore")
        assert one.running("kept")
        assert one.ip("kept", blue) == address
        one.well("rm", "-f", "kept")
        assert one.endpoints() == []
    finally:
        one.stop()
        one.start()


@pytest.mark.conforms("docker", "meshd kill -9", "run after meshd's restart")
def test_meshd_is_killed_under_traffic_and_goes_on_where_it_was(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    one.run("c1", blue)
    two.run("c2", blue)
    for engine, other, name in ((one, two, "c2"), (two, one, "c1")):
        engine.host.wait_rows(other.networks(name)[blue]["MacAddress"])
    with no_ping_is_lost(two, "c2", one.ip("c1", blue)):
        one.host.kill()
        one.host.start()
        one.run("c3", blue)
    two.host.wait_rows(one.networks("c3")[blue]["MacAddress"])
    assert two.pings("c2", one.ip("c3", blue))
    one.well("rm", "-f", "c1", "c3")
    assert one.endpoints() == []


@pytest.mark.conforms("docker", "rm while meshd is down", "run while meshd starts")
def test_what_is_removed_while_meshd_is_away_is_released_when_it_is_back(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    one.run("gone", blue)
    mac = one.networks("gone")[blue]["MacAddress"]
    two.run("peer", blue)
    two.host.wait_rows(mac)
    one.host.stop()
    one.well("rm", "-f", "gone")  # dockerd tries for 45 s, then forgets it
    assert (
        "connection refused" in (said := one.refused("run", "--rm", "--network", blue, IMAGE, "true"))
        or "no such file" in said
    )
    one.host.start()
    wait_for("the endpoint is released", GRACE_S, lambda: one.endpoints() == [])
    two.host.wait_rows(mac, there=False)
    one.run("next", blue)
    two.host.wait_rows(one.networks("next")[blue]["MacAddress"])
    assert two.pings("peer", one.ip("next", blue))
    # a container that is started while meshd is: Docker tries for 15 s
    one.host.stop()
    started = threading.Timer(2.0, one.host.begin)
    started.start()
    try:
        one.run("early", blue)
    finally:
        started.join()
        one.host.wait_ready()
    assert len(one.endpoints()) == 2


@pytest.mark.conforms("docker", "reboot")
def test_a_reboot_brings_networks_and_containers_back(
    real_lab: Lab, engines: list[Engine], new_network: NewNetwork, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blue = new_network()
    one, two, _ = engines
    one.run("auto", blue, "--restart", "always")
    two.run("peer", blue)
    before = one.endpoints()[0]["id"]
    one.crash()
    one.host.kill()
    folder = Path("/run/meshd-lab") / f"boot-{real_lab.id}"
    folder.mkdir(mode=0o755)
    boot_id = folder / "boot_id"
    boot_id.write_text("99999999-8888-7777-6666-555555555555\n")
    boot_id.chmod(0o644)
    real_lab.view.mounts[boot_id] = BOOT_ID
    try:
        for link in json.loads(one.host.run("ip", "-j", "link").stdout):
            if link["ifname"][:2] in ("mo", "mv", "mh", "mb", "mp"):
                one.host.run("ip", "link", "delete", link["ifname"])
        one.host.run("nft", "flush", "ruleset")
        one.host.begin()  # both at once; where systemd holds the socket, Docker may be first
        one.begin()
        one.host.wait_ready()
        wait_for("the container runs", 60.0, lambda: one.running("auto"))
        wait_for(
            "its endpoint is another", SOON_S, lambda: [e["id"] != before for e in one.endpoints()] == [True]
        )
        two.host.wait_rows(one.endpoints()[0]["mac"])
        assert two.pings("peer", one.ip("auto", blue))
        one.host.wait_in_sync()
    finally:
        del real_lab.view.mounts[boot_id]
        boot_id.unlink()
        folder.rmdir()
    one.well("rm", "-f", "auto")
    one.host.stop()
    one.host.start()  # under the machine's own boot id again


@pytest.mark.conforms("docker", "network of its own, by --subnet", "--ip-range", "--aux-address")
def test_networks_of_dockers_own_are_joined_by_their_subnet(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    one, two, three = engines
    ipam = ("--ipam-driver", "meshd")
    for engine in (one, two):
        engine.well(
            "network",
            "create",
            "-d",
            "meshd",
            *ipam,
            "--subnet",
            "10.77.0.0/24",
            "--aux-address",
            "r=10.77.0.9",
            "own",
        )
    (made,) = [n for n in one.host.json("network", "ls") if n["subnets"] == ["10.77.0.0/24"]]
    assert made["name"] in one.well("network", "ls", "--no-trunc", "-q", "-f", "name=own")
    one.run("o1", "own")
    two.run("o2", "own")
    two.host.wait_rows(one.networks("o1")["own"]["MacAddress"])
    assert two.pings("o2", one.ip("o1", "own"))
    # Docker's own IPAM counts each engine's addresses alone, so this one gets a part that nobody uses
    used = [ipaddress.ip_address(text) for text in ("10.77.0.1", one.ip("o1", "own"), two.ip("o2", "own"))]
    quarters = ipaddress.ip_network("10.77.0.0/24").subnets(new_prefix=26)
    part = next(quarter for quarter in quarters if not any(ip in quarter for ip in used))
    own = ("--subnet", "10.77.0.0/24", "--gateway", "10.77.0.1", "--ip-range", str(part))
    three.well("network", "create", "-d", "meshd", *own, "own")
    three.run("o3", "own")
    assert ipaddress.ip_address(three.ip("o3", "own")) in part
    one.host.wait_rows(three.networks("o3")["own"]["MacAddress"])
    assert one.pings("o1", three.ip("o3", "own"))
    said = three.refused("run", "--rm", "--network", "own", "--ip", one.ip("o1", "own"), IMAGE, "true")
    assert "--ipam-driver meshd" in said
    for engine, name in zip(engines, ("o1", "o2", "o3"), strict=True):
        engine.well("rm", "-f", name)
        engine.well("network", "rm", "own")
    wait_for(
        "the network is gone", SOON_S, lambda: made["name"] not in one.host.meshctl("network", "ls").stdout
    )


BAD = {
    "no such network": (("-o", "network=nosuch", "--ipam-driver", "meshd", "--ipam-opt", "network=nosuch"), "no network 'nosuch'"),
    "no name for IPAM": (("-o", "network={net}"), "meshctl docker create {net} does it right"),
    "another subnet": (("-o", "network={net}", "--ipam-driver", "meshd", "--ipam-opt", "network={net}", "--subnet", "10.1.0.0/24"), "has subnet"),
    "an option that means nothing": (("-o", "colour=red"), "option colour means nothing to meshd; known: network"),
    "an IPAM option that means nothing": (("--ipam-driver", "meshd", "--ipam-opt", "colour=red"), "ipam-opt colour means nothing"),
    "host": (("-o", "network=host", "--ipam-driver", "meshd"), "host's own namespace"),
    "no IPv6 there": (("-o", "network={net}", "--ipam-driver", "meshd", "--ipam-opt", "network={net}", "--ipv6"), "leave --ipv6 out"),
    "not internal there": (("-o", "network={net}", "--ipam-driver", "meshd", "--ipam-opt", "network={net}", "--internal"), "leave --internal out"),
    "a parent that is not there": (("-o", "driver=macvlan", "-o", "mode=l2", "--subnet", "10.5.0.0/24"), "macvlan has no mode 'l2'"),
    "encryption": (("-o", "encrypted=true", "--subnet", "10.5.0.0/24"), "option encrypted is refused"),
}  # fmt: skip


@pytest.mark.conforms("docker", "bad input")
def test_what_cannot_be_is_told_in_a_sentence(engines: list[Engine], new_network: NewNetwork) -> None:
    blue = new_network()
    one = engines[0]
    told = {}
    for what, (flags, words) in BAD.items():
        said = one.refused(
            "network", "create", "-d", "meshd", *(flag.format(net=blue) for flag in flags), "bad"
        )
        told[what] = said
        assert words.format(net=blue) in said, (what, said)
        assert said.startswith("Error response from daemon: "), said
    assert "bad" not in one.well("network", "ls", "--format", "{{.Name}}").split()
    said = one.refused("run", "--rm", "--network", f"name={blue},driver-opt=colour=red", IMAGE, "true")
    assert "driver-opt colour means nothing" in said
    assert one.host.json("endpoint", "ls") == []


@pytest.mark.conforms("docker", "names = true", "driver-opt name, alias")
def test_names_and_aliases_are_read_in_the_background(
    real_lab: Lab, engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    one, two, _ = engines
    one.run("early", blue)
    one.run("opted", f"name={blue},driver-opt=name=other,driver-opt=alias=www")
    seen = real_lab.view.of(one.dir, f"docker-{one.host.name}")
    one.dir.chmod(0o755)
    one.host.configure(docker={"names": True, "socket": str(seen / "docker.sock")})
    restart(one.host)
    try:
        wait_for(
            "it is told why not",
            SOON_S,
            lambda: "SupplementaryGroups=docker" in one.host.meshctl("status").stdout,
        )
        one.socket.chmod(0o666)
        wait_for(
            "the name is read", SOON_S, lambda: {"early", "other"} == {e["name"] for e in one.endpoints()}
        )
        assert "SupplementaryGroups" not in one.host.meshctl("status").stdout
        one.run("late", blue, "--network-alias", "web", "--network-alias", "www")
        wait_for("it is named", SOON_S, lambda: "late" in {e["name"] for e in one.endpoints()})
        late = next(e for e in one.endpoints() if e["name"] == "late")
        assert {"web", "www"} <= set(late["aliases"])
        one.well("rename", "late", "later")
        wait_for(
            "it is renamed", SOON_S, lambda: "later" in {e["name"] for e in two.host.json("endpoint", "ls")}
        )
        one.kill()
        one.start()
        one.socket.chmod(0o666)
        one.well("start", "early")
        wait_for("names go on after dockerd", SOON_S, lambda: "early" in {e["name"] for e in one.endpoints()})
    finally:
        one.host.configure(docker={"names": False})
        restart(one.host)


def restart(host: Host) -> None:
    host.stop()
    host.start()


@pytest.mark.conforms("docker", "30 containers at once")
def test_many_containers_started_at_once_all_get_addresses(
    engines: list[Engine], new_network: NewNetwork
) -> None:
    blue = new_network()
    running = [
        threading.Thread(target=engine.run, args=(f"m{number}", blue))
        for engine in engines
        for number in range(10)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    found = engines[0].host.json("endpoint", "ls", "--network", blue)
    wait_for(
        "all are known", SOON_S, lambda: len(engines[0].host.json("endpoint", "ls", "--network", blue)) == 30
    )
    found = engines[0].host.json("endpoint", "ls", "--network", blue)
    assert len({ip for e in found for ip in e["ips"]}) == 30
