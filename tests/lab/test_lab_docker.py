"""Docker's plugin socket of real daemons, driven in the order in which dockerd calls it, the peer moved and configured by
the test as dockerd does. Real dockerds are in tests/real."""

import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from labtools import Attach, Attached, NewNetwork, no_ping_is_lost, undisturbed

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

_ids = itertools.count(1)


def new_id() -> str:
    """Make up an id as Docker does: 64 hex digits."""
    return f"{next(_ids):04x}{os.urandom(30).hex()}"


class Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


class Engine:
    """dockerd's side of the socket on one host, with one Docker network."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.lab = lab
        self.host = host
        self.network = new_id()
        self.pool = ""

    def post(self, method: str, body: dict[str, Any] | None = None) -> Any:
        """Post as dockerd does: Host empty, no body for what has none."""
        connection = Unix(str(self.host.plugin))
        try:
            payload = b"" if body is None else json.dumps(body).encode()
            connection.putrequest("POST", f"/{method}", skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", "")
            connection.putheader("User-Agent", "Go-http-client/1.1")
            connection.putheader("Content-Length", str(len(payload)))
            connection.putheader("Accept", "application/vnd.docker.plugins.v1.2+json")
            connection.endheaders(payload)
            response = connection.getresponse()
            assert response.status == 200
            return json.loads(response.read())
        finally:
            connection.close()

    def well(self, method: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.post(method, body)
        assert "Err" not in answer, answer
        return answer

    def create(self, network: str) -> None:
        """docker network create -d meshd --ipam-driver meshd --ipam-opt network=... -o network=..."""
        assert self.well("Plugin.Activate")["Implements"] == ["NetworkDriver", "IpamDriver"]
        named = {"network": network}
        got = self.well("IpamDriver.RequestPool", {"AddressSpace": "meshd", "Options": named, "V6": False})
        self.pool = got["PoolID"]
        data = {
            "AddressSpace": "meshd",
            "Pool": got["Pool"],
            "Gateway": got["Data"]["com.docker.network.gateway"],
        }
        options = {"com.docker.network.generic": named, "com.docker.network.enable_ipv6": False}
        body = {"NetworkID": self.network, "Options": options, "IPv4Data": [data], "IPv6Data": []}
        assert self.well("NetworkDriver.CreateNetwork", body) == {}

    def run(self, ports: tuple[dict[str, Any], ...] = (), ip: str = "") -> "Container":
        return Container(self, ports, ip)


class Container:
    """A container as dockerd makes it."""

    def __init__(self, engine: Engine, ports: tuple[dict[str, Any], ...], ip: str) -> None:
        self.engine = engine
        self.ns = engine.lab.container(f"d{next(_ids)}")
        self.ids = {"NetworkID": engine.network, "EndpointID": new_id()}
        labels = {"com.docker.network.portmap": list(ports), "com.docker.network.endpoint.exposedports": []}
        given = engine.well(
            "IpamDriver.RequestAddress", {"PoolID": engine.pool, "Address": ip, "Options": None}
        )
        interface = {"Address": given["Address"], "AddressIPv6": "", "MacAddress": ""}
        body = {**self.ids, "Interface": interface, "Options": labels}
        made = engine.well("NetworkDriver.CreateEndpoint", body)["Interface"]
        joined = engine.well(
            "NetworkDriver.Join", {**self.ids, "SandboxKey": f"/run/netns/{self.ns}", "Options": {}}
        )
        self.address = given["Address"]
        self.link = joined["InterfaceName"]["SrcName"]
        self._plumb(made, joined)
        engine.well("NetworkDriver.ProgramExternalConnectivity", {**self.ids, "Options": labels})

    def _plumb(self, made: dict[str, str], joined: dict[str, Any]) -> None:
        host, inside = self.engine.host, ("ip", "-n", self.ns)
        commands = [
            ("ip", "link", "set", self.link, "netns", self.ns),
            (*inside, "link", "set", self.link, "name", "eth0"),
            (*inside, "link", "set", "eth0", "address", made["MacAddress"]),
            (*inside, "address", "add", self.address, "dev", "eth0"),
            *(
                [(*inside, "-6", "address", "add", v6, "dev", "eth0", "nodad")]
                if (v6 := made["AddressIPv6"])
                else []
            ),
            (*inside, "link", "set", "eth0", "up"),
            *([(*inside, "route", "add", "default", "via", way)] if (way := joined.get("Gateway")) else []),
        ]
        for command in commands:
            done = host.run(*command)
            assert done.returncode == 0, (command, done.stderr)

    @property
    def endpoint(self) -> dict[str, Any]:
        found = self.engine.host.json("endpoint", "ls")
        return next(each for each in found if each["name"] == self.ids["EndpointID"][:12])

    @property
    def attached(self) -> Attached:
        return Attached(self.engine.host, self.ns, self.endpoint)

    def stop(self) -> None:
        """What dockerd does for stop, kill and rm -f."""
        engine = self.engine
        engine.well("NetworkDriver.RevokeExternalConnectivity", self.ids)
        engine.well("NetworkDriver.Leave", self.ids)
        host_ns = f"/run/netns/{engine.host.ns}"
        back = ("ip", "-n", self.ns, "link", "set", "eth0", "down", "name", self.link, "netns", host_ns)
        assert engine.host.run(*back[:-2]).returncode == 0
        assert (
            engine.host.run("ip", "-n", self.ns, "link", "set", self.link, "netns", host_ns).returncode == 0
        )
        engine.well("NetworkDriver.DeleteEndpoint", self.ids)
        engine.well(
            "IpamDriver.ReleaseAddress", {"PoolID": engine.pool, "Address": self.address.partition("/")[0]}
        )


NewEngine = Callable[[Host, str], Engine]


@pytest.fixture
def engine_on(lab3: Lab) -> Iterator[NewEngine]:
    """Make a Docker network on a host: ``engine_on(host, network)``; removed after the test."""
    made: list[Engine] = []

    def make(host: Host, network: str) -> Engine:
        engine = Engine(lab3, host)
        engine.create(network)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.well("NetworkDriver.DeleteNetwork", {"NetworkID": engine.network})


@pytest.fixture
def blue(new_network: NewNetwork) -> str:
    return new_network("--ipv6")


def test_containers_of_two_engines_and_a_namespace_meet_on_one_network(
    lab3: Lab, blue: str, engine_on: NewEngine, attach: Attach
) -> None:
    one, two, three = lab3.hosts
    first, second = engine_on(one, blue).run(), engine_on(two, blue).run()
    third = attach(three, blue)
    everybody = [first.attached, second.attached, third]
    for host in lab3.hosts:
        host.wait_rows(*(each.mac for each in everybody))
    no_ping_is_lost([(a, b) for a in everybody for b in everybody if a is not b])
    shown = first.endpoint
    assert shown["runtime"] == "docker"
    assert shown["runtime_id"] == first.ids["EndpointID"]
    first.stop()
    second.stop()
    assert [each["name"] for each in three.json("endpoint", "ls", "--network", blue)] == [third.name]
    three.wait_rows(everybody[0].mac, everybody[1].mac, there=False)


def test_a_daemon_that_was_killed_knows_docker_networks_and_endpoints_again(
    lab3: Lab, blue: str, engine_on: NewEngine
) -> None:
    """Docker never says again what it has created, and goes on where it was."""
    one, two, _ = lab3.hosts
    engine = engine_on(one, blue)
    first, second = engine.run(ip=""), engine_on(two, blue).run()
    pair = [first.attached, second.attached]
    for host in (one, two):
        host.wait_rows(*(each.mac for each in pair))
    with undisturbed([one, two], *pair):
        one.kill()
        one.start()
        third = engine.run()
    assert third.address != first.address
    no_ping_is_lost([(third.attached, pair[1])])
    for container in (first, second, third):
        container.stop()
    assert one.json("endpoint", "ls", "--network", blue) == []


def test_a_published_port_leads_to_the_container_until_docker_revokes_it(
    lab3: Lab, blue: str, engine_on: NewEngine
) -> None:
    one, two, _ = lab3.hosts
    port = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
    container = engine_on(one, blue).run(ports=(port,))
    assert container.endpoint["published"] == ["8080:80/tcp"]
    script = "import socket; s = socket.create_server(('', 80)); c, a = s.accept(); c.send(a[0].encode()); c.close()"
    server = subprocess.Popen(["ip", "netns", "exec", container.ns, sys.executable, "-c", script])
    try:
        ask = f"import socket; print(socket.create_connection(('{one.address}', 8080), 5).recv(99).decode())"
        wait_for(
            "the port answers", 10, lambda: two.run(sys.executable, "-c", ask).stdout.strip() == two.address
        )
    finally:
        server.kill()
        server.wait()
    container.engine.well("NetworkDriver.RevokeExternalConnectivity", container.ids)
    assert container.endpoint["published"] == []
    container.stop()


def test_what_docker_would_never_send_is_refused_in_its_own_form(lab3: Lab) -> None:
    engine = Engine(lab3, lab3.hosts[0])
    for body, words in (({}, "missing"), ({"NetworkID": "x" * 600_000}, "larger than")):
        assert words in engine.post("NetworkDriver.DeleteNetwork", body)["Err"]
    assert "no network" in engine.post("IpamDriver.RequestPool", {"Options": {"network": "nosuch"}})["Err"]
    other = os.stat(engine.host.plugin)
    assert other.st_mode & 0o777 == 0o600
