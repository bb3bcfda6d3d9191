"""podman 4 with its CNI backend."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from realtools import NAME, Image, Place, Podman

from meshctl.labcluster import Lab
from meshctl.ping import ping

NETWORK = "pink"


@pytest.fixture(scope="module")
def podman(lab: Lab, image: Image) -> Iterator[Podman]:
    host = lab.hosts[0]
    host.json("network", "create", NETWORK)
    lab.hosts[1].wait_network(NETWORK)
    with (
        tempfile.TemporaryDirectory(prefix="podman-") as folder,  # podman takes 50 characters at most
        Place(host, Path(folder), NETWORK) as place,
    ):
        yield Podman(place, image)


@pytest.fixture(scope="module")
def peer(lab: Lab, podman: Podman) -> Iterator[dict[str, Any]]:
    host, ns = lab.hosts[1], lab.container("podpeer")
    yield {"ns": ns, **host.json("attach", NETWORK, "--netns", f"/run/netns/{ns}", "--name", "peer")}
    host.json("detach", NETWORK, "--netns", f"/run/netns/{ns}")


def v4(endpoint: dict[str, Any]) -> str:
    return str(endpoint["ips"][0]).partition("/")[0]


@pytest.mark.conforms("podman", "run")
@pytest.mark.conforms("podman", "end")
def test_podman_run_reaches_another_host_and_leaves_nothing(podman: Podman, peer: dict[str, Any]) -> None:
    done = podman.run(
        "run", "--rm", "--network", NETWORK, "--name", "web", NAME,
        "/bin/ping", "-c", "3", "-i", "0.1", "-W", "2", v4(peer),
    )  # fmt: skip
    assert " 0% packet loss" in done.stdout
    podman.place.wait_no_endpoints(NETWORK)


@pytest.mark.long
@pytest.mark.conforms("podman", "address, MAC, alias, port")
def test_podmans_flags_reach_the_endpoint_and_networks_come_and_go(
    podman: Podman, peer: dict[str, Any]
) -> None:
    subnet = podman.place.host.json("network", "inspect", NETWORK)["subnets"][0]
    ip = subnet.rsplit(".", 1)[0] + ".77"
    podman.run(
        "run", "-d", "--network", NETWORK, "--name", "db", "--ip", ip, "--mac-address", "02:00:00:00:00:77",
        "--network-alias", "data", "-p", "8095:80", NAME, "/bin/sleep", "600",
    )  # fmt: skip
    try:
        (endpoint,) = podman.place.endpoints(NETWORK)
        assert (endpoint["name"], v4(endpoint), endpoint["mac"]) == ("db", ip, "02:00:00:00:00:77")
        assert "data" in endpoint["aliases"]
        assert endpoint["published"] == ["8095:80/tcp"]
        assert json.loads(podman.run("inspect", "db").stdout)[0]["Id"] == endpoint["runtime_id"]
        assert ping(peer["ns"], ip).lost == 0
    finally:
        podman.run("rm", "-f", "-t", "0", "db")
    podman.place.wait_no_endpoints(NETWORK)


@pytest.fixture
def second(podman: Podman) -> Iterator[str]:
    """Another network, with a configuration of its own."""
    place, name = podman.place, "second"
    place.host.json("network", "create", name)
    path = place.folder / "net.d" / "20-second.conflist"
    first = json.loads((place.folder / "net.d" / "10-meshd.conflist").read_text())
    path.write_text(json.dumps({**first, "name": name}))
    yield name
    path.unlink()
    place.wait_no_endpoints(name)
    place.host.json("network", "rm", name)


def fetched(podman: Podman, port: int) -> str:
    """What somebody on the host gets from a published port."""
    return podman.place.run(
        "wget", "-q", "-O", "-", "-T", "5", "-t", "1", f"http://127.0.0.1:{port}/word"
    ).stdout


SERVE = ("/bin/sh", "-c", "echo served > /tmp/word; exec /bin/busybox httpd -f -p 80 -h /tmp")


@pytest.mark.long
@pytest.mark.conforms("podman", "disconnect, connect")
def test_a_running_container_leaves_a_network_and_comes_back_with_its_port(
    podman: Podman, peer: dict[str, Any]
) -> None:
    podman.run("run", "-d", "--network", NETWORK, "--name", "db", "-p", "8096:80", NAME, *SERVE)
    try:
        assert fetched(podman, 8096) == "served\n"
        podman.run("network", "disconnect", NETWORK, "db")
        assert podman.place.endpoints(NETWORK) == []
        podman.run("network", "connect", NETWORK, "db")
        (again,) = podman.place.endpoints(NETWORK)
        assert again["published"] == ["8096:80/tcp"]
        assert ping(peer["ns"], v4(again)).lost == 0
        assert fetched(podman, 8096) == "served\n"
        taken = podman.run("run", "--rm", "--network", NETWORK, "-p", "8096:80", NAME, *SERVE, check=False)
        assert taken.returncode != 0
        assert "port 8096/tcp of this host is endpoint db's already" in taken.stderr
    finally:
        podman.run("rm", "-f", "-t", "0", "db")
    podman.place.wait_no_endpoints(NETWORK)


@pytest.mark.long
@pytest.mark.conforms("podman", "two networks, a port")
def test_a_container_on_two_networks_publishes_on_the_first(
    podman: Podman, peer: dict[str, Any], second: str
) -> None:
    podman.run("run", "-d", "--network", f"{NETWORK},{second}", "--name", "db", "-p", "8097:80", NAME, *SERVE)
    try:
        published = [e["published"] for n in (NETWORK, second) for e in podman.place.endpoints(n)]
        assert sorted(published) == [[], ["8097:80/tcp"]]
        assert fetched(podman, 8097) == "served\n"
        podman.run("network", "disconnect", second, "db")
        podman.run("network", "connect", second, "db")
        assert len(podman.place.endpoints(second)) == 1
    finally:
        podman.run("rm", "-f", "-t", "0", "db")
    podman.place.wait_no_endpoints(NETWORK)


@pytest.mark.long
@pytest.mark.conforms("podman", "daemon down: end, done later")
@pytest.mark.conforms("podman", "daemon down: run refused")
def test_podman_while_meshd_is_down(podman: Podman) -> None:
    host = podman.place.host
    podman.run("run", "-d", "--network", NETWORK, "--name", "gone", NAME, "/bin/sleep", "600")
    host.stop()
    try:
        podman.run("rm", "-f", "-t", "0", "gone")
        refused = podman.run("run", "--rm", "--network", NETWORK, NAME, "/bin/ip", "addr", check=False)
        assert refused.returncode != 0
        assert "meshd is not reachable" in refused.stderr
    finally:
        host.start()
    podman.place.wait_no_endpoints(NETWORK)
