"""The hosts' own network card becomes a port of an operator's bridge, with the overlay and sessions over it, and goes
back: by itself, after a kill, at a stop, after a reboot."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labtools import Attach, Attached, NewNetwork

from meshctl import labnet
from meshctl.client import Client
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for
from meshctl.ping import Ping, ping

SOON_S = 10.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

ECHO = """
import socket, sys
host, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
listening = socket.create_server((host, int(port)), family=family)
print("listening", flush=True)
other, _ = listening.accept()
while data := other.recv(4096):
    other.sendall(data)
"""
TYPIST = """
import socket, sys, time
host, port = sys.argv[1:]
with socket.create_connection((host, int(port)), timeout=20) as session:
    answers, count = session.makefile("rb"), 0
    while True:
        count += 1
        session.sendall(b"%d\\n" % count)
        assert answers.readline() == b"%d\\n" % count
        print(count, flush=True)
        time.sleep(0.02)
"""


class Session:
    """One connection as ssh has it: a key typed, its echo seen, and the next. ``answered``: how many so far."""

    def __init__(self, server: Host, client: Host, address: str, port: int) -> None:
        self._server = subprocess.Popen(
            server.argv("python3", "-c", ECHO, address, str(port)), stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "listening\n"
        self._client = subprocess.Popen(
            client.argv("python3", "-c", TYPIST, address, str(port)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.goes_on()

    def goes_on(self) -> None:
        """See a dozen more echoes: what was typed before and after whatever happened, each once and in order."""
        assert self._client.stdout is not None
        first = self._client.stdout.readline()
        assert first, f"the session broke: {self._client.communicate()[1]}"
        until = int(first) + 12
        while int(self._client.stdout.readline() or 1 << 30) < until:
            pass
        assert self._client.poll() is None

    def drain(self, until: float) -> None:
        """Read on, so that the pipe does not stop the typist."""
        assert self._client.stdout is not None
        while time.monotonic() < until and self._client.stdout.readline():
            pass

    def end(self) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.communicate()


@contextlib.contextmanager
def sessions(server: Host, client: Host) -> Iterator[list[Session]]:
    """A session each over IPv4 and IPv6, to the server's address on its own card."""
    running: list[Session] = []
    try:
        running += [
            Session(server, client, labnet.address(server.number, family), 7000 + family) for family in (4, 6)
        ]
        yield running
        for session in running:
            session.goes_on()
    finally:
        for session in running:
            session.end()


def carried(host: Host, device: str) -> dict[str, Any]:
    """What iproute2 shows on a device: addresses and routes, without lifetimes and flags."""
    (link,) = json.loads(host.run("ip", "-j", "addr", "show", "dev", device).stdout)
    routes = [
        (route["dst"], route.get("gateway", ""), route.get("protocol"), route.get("metric", 0))
        for family in ("-4", "-6")
        for route in json.loads(host.run("ip", "-j", family, "route", "show", "dev", device).stdout)
    ]
    addresses = [(a["local"], a["prefixlen"], a["scope"]) for a in link["addr_info"]]
    return {"addresses": sorted(addresses), "routes": sorted(routes)}


def devices(host: Host) -> list[tuple[str, str, str]]:
    """Names, MACs and masters of all devices."""
    links = json.loads(host.run("ip", "-j", "link").stdout)
    return [(link["ifname"], link.get("address", ""), link.get("master", "")) for link in links]


NOTHING: dict[str, Any] = {"addresses": [], "routes": []}


def master(host: Host, device: str = "eth0") -> str:
    return str(json.loads(host.run("ip", "-j", "link", "show", "dev", device).stdout)[0].get("master", ""))


def told(host: Host, kind: str) -> list[str]:
    return [str(event.get("why", "")) for event in host.events() if event["kind"] == kind]


@pytest.fixture
def host(lab3: Lab) -> Iterator[Host]:
    """host1 with the bridge br0, on its own card again afterwards."""
    first = lab3.hosts[0]
    first.json("bridge", "create", "br0")
    yield first
    if not first.alive:
        first.start()
    for bridge in first.json("bridge", "ls"):
        for port in bridge["ports"]:
            first.json("bridge", "port", "rm", bridge["name"], port["name"])
        first.json("bridge", "rm", bridge["name"])
    assert master(first) == ""


MOVES = 6


def test_neither_a_session_nor_the_overlay_notices_that_the_card_moves_to_a_bridge_and_back(
    lab3: Lab, host: Host, trio_of_endpoints: list[Attached]
) -> None:
    second = lab3.hosts[1]
    before = carried(host, "eth0")
    assert len(before["addresses"]) == 3
    one, other = trio_of_endpoints[:2]
    pings = [Ping(a.ns, ip) for a, b in ((one, other), (other, one)) for ip in b.ips]
    with sessions(host, second) as running:
        for _ in range(MOVES // 2):
            added = host.json("bridge", "port", "add", "br0", "eth0")
            assert added["ports"][0]["state"] == "unconfirmed"
            for session in running:
                session.goes_on()
            assert (carried(host, "br0"), carried(host, "eth0"), master(host)) == (before, NOTHING, "br0")
            assert host.json("bridge", "confirm")["ports"] == [
                {"name": "eth0", "state": "up", "seconds_left": None}
            ]
            host.json("bridge", "port", "rm", "br0", "eth0")
            for session in running:
                session.goes_on()
            assert (carried(host, "eth0"), carried(host, "br0"), master(host)) == (before, NOTHING, "")
    for each in lab3.hosts:
        assert told(each, "member-failed") == []
    # Between its first and last step of enslaving the kernel drops a frame that comes just then. What we could do wrong
    # (an ARP request lost, an address away) costs a second: a hundred.
    lost = {ping.to: (result.lost, result.sent) for ping in pings if (result := ping.result()).lost > MOVES}
    assert lost == {}


def test_an_unconfirmed_card_goes_back_by_itself_under_a_session(lab3: Lab, host: Host) -> None:
    before = carried(host, "eth0")
    with sessions(host, lab3.hosts[1]) as running:
        host.json("bridge", "port", "add", "br0", "eth0", "--confirm-within", "2s")
        again = host.meshctl("bridge", "port", "add", "br0", "eth0")
        assert (again.returncode, "is not confirmed yet" in again.stderr) == (1, True)
        assert carried(host, "br0") == before
        wait_for("it goes back", SOON_S, lambda: master(host) == "")
        for session in running:
            session.goes_on()
    assert (carried(host, "eth0"), carried(host, "br0")) == (before, NOTHING)
    assert told(host, "bridge-port-reverted")[-1] == "nobody confirmed it in time"
    late = host.meshctl("bridge", "confirm")
    assert (late.returncode, late.stderr.splitlines()[0]) == (
        1,
        "error: no bridge port waits for confirmation",
    )


def test_a_killed_daemon_goes_on_waiting_or_finds_its_deadline_passed(lab3: Lab, host: Host) -> None:
    before = carried(host, "eth0")
    with sessions(host, lab3.hosts[1]):
        host.json("bridge", "port", "add", "br0", "eth0", "--confirm-within", "60s")
        host.kill()
        assert carried(host, "br0") == before
        host.start()
        left = host.json("bridge", "ls")[0]["ports"][0]["seconds_left"]
        assert 0 < left < 60, "counted from the first run"
        host.json("bridge", "confirm")
        host.kill()
        host.start()
        assert carried(host, "br0") == before
        host.json("bridge", "port", "rm", "br0", "eth0")

        host.json("bridge", "port", "add", "br0", "eth0", "--confirm-within", "1s")
        host.kill()
        time.sleep(1.0)  # the deadline passes while nobody looks
        assert carried(host, "br0") == before
        host.start()
        assert (carried(host, "eth0"), carried(host, "br0"), master(host)) == (before, NOTHING, "")


NETIF = Path("/run/systemd/netif")


@contextlib.contextmanager
def managed(lab: Lab, host: Host) -> Iterator[None]:
    """Have a daemon that is started meanwhile find that systemd-networkd looks after its eth0."""
    folder = Path("/run/meshd-lab") / f"netif-{lab.id}"
    (folder / "links").mkdir(mode=0o755, parents=True)
    number = json.loads(host.run("ip", "-j", "link", "show", "dev", "eth0").stdout)[0]["ifindex"]
    state = folder / "links" / str(number)
    state.write_text("ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/lan.network\n")
    if NETIF.is_dir():
        lab.view.mounts[folder] = NETIF
    try:
        yield
    finally:
        lab.view.mounts.pop(folder, None)
        lab_folder_goes.append(folder)


lab_folder_goes: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _folders_go() -> Iterator[None]:
    """They stay while a daemon has them mounted: empty, it would find nothing."""
    yield
    for folder in lab_folder_goes:
        shutil.rmtree(folder)


def test_a_stopped_daemon_leaves_nothing_unconfirmed_behind(lab3: Lab, host: Host) -> None:
    before = carried(host, "eth0")
    host.json("bridge", "port", "add", "br0", "eth0")
    host.stop()
    assert (carried(host, "eth0"), master(host)) == (before, "")
    with managed(lab3, host):
        host.start()
    assert host.json("bridge", "ls")[0]["ports"] == []
    if NETIF.is_dir():
        refused = host.meshctl("bridge", "port", "add", "br0", "eth0").stderr.splitlines()
        assert refused[0].startswith(
            "error: systemd-networkd (/etc/systemd/network/lan.network) looks after eth0"
        )
        assert refused[-1] == "hint: networkctl reload"
        host.stop()
        host.start()


def reboot(lab: Lab, host: Host, tmp_path: Path) -> None:
    """What a reboot does to the host: the bridge is gone, its card is set up as at every boot, the boot id is new."""
    host.kill()
    host.run("ip", "link", "del", "br0")
    host.run("ip", "link", "set", "eth0", "nomaster")
    for family, bits in ((4, "24"), (6, "64")):
        host.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
        host.run("ip", "addr", "add", f"{labnet.address(host.number)}/24", "dev", "eth0")
        host.run("ip", "addr", "add", f"{labnet.address(host.number, 6)}/64", "dev", "eth0", "nodad")
        host.run("ip", "route", "add", "default", "via", labnet.address(labnet.GATEWAY_NUMBER, family))
        del bits
    other = tmp_path / "boot_id"
    other.write_text("99999999-8888-7777-6666-555555555555\n")
    other.chmod(0o644)
    lab.view.mounts[other] = BOOT_ID
    try:
        host.start()
    finally:
        del lab.view.mounts[other]


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_reboot_undoes_what_is_unconfirmed_and_brings_back_what_is_confirmed(
    lab3: Lab, host: Host, confirmed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = carried(host, "eth0")
    host.json("bridge", "port", "add", "br0", "eth0")
    if confirmed:
        host.json("bridge", "confirm")
    folder = Path("/run/meshd-lab") / f"boot-{lab3.id}"
    folder.mkdir(mode=0o755, parents=True)
    try:
        reboot(lab3, host, folder)
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    if confirmed:
        wait_for(
            "the card is a port again",
            SOON_S,
            lambda: master(host) == "br0" and carried(host, "eth0") == NOTHING,
        )
        assert [a for a in carried(host, "br0")["addresses"] if a[2] == "global"] == [
            a for a in before["addresses"] if a[2] == "global"
        ]
        assert host.json("bridge", "ls")[0]["ports"][0]["state"] == "up"
    else:
        assert host.json("bridge", "ls")[0]["ports"] == []
        assert (master(host), carried(host, "br0")) == ("", NOTHING)
        assert told(host, "bridge-port-reverted") == ["the host was restarted before anybody confirmed it"]
    for port in host.json("bridge", "ls")[0]["ports"]:
        host.json("bridge", "port", "rm", "br0", port["name"])
    host.stop()
    host.start()  # in this boot again
    host.wait_alive(3)


def test_a_confirmed_port_is_kept_whatever_others_do_to_it(lab3: Lab, host: Host) -> None:
    before, repaired = carried(host, "eth0"), len(told(host, "bridge-port-repaired"))
    host.json("bridge", "port", "add", "br0", "eth0")
    host.json("bridge", "confirm")
    host.run("ip", "link", "set", "eth0", "nomaster")
    wait_for("the card is a port again", SOON_S, lambda: master(host) == "br0")
    assert carried(host, "br0") == before
    host.run("ip", "link", "del", "br0")
    wait_for("the bridge is back", SOON_S, lambda: master(host) == "br0" and carried(host, "br0") == before)
    # a DHCP client that still looks after the card renews its lease there
    host.run("ip", "addr", "add", "192.0.2.77/24", "dev", "eth0", "valid_lft", "500", "preferred_lft", "400")
    wait_for("the lease follows", SOON_S, lambda: carried(host, "eth0") == NOTHING)
    assert ("192.0.2.77", 24, "global") in carried(host, "br0")["addresses"]
    host.run("ip", "addr", "del", "192.0.2.77/24", "dev", "br0")
    assert len(told(host, "bridge-port-repaired")) == repaired + 3
    host.wait_in_sync()


def test_endpoints_on_the_lan_by_way_of_the_bridge(
    lab3: Lab, host: Host, new_network: NewNetwork, attach: Attach
) -> None:
    host.json("bridge", "port", "add", "br0", "eth0")
    host.json("bridge", "confirm")
    yard = new_network(
        "-d", "macvlan", "--parent", "br0", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.64/26",
        "--gateway", labnet.address(labnet.GATEWAY_NUMBER),
    )  # fmt: skip
    one, two = attach(host, yard), attach(host, yard)
    assert ping(one.ns, two.v4).lost == 0
    assert ping(one.ns, lab3.hosts[1].address).lost == 0
    assert ping(one.ns, labnet.address(labnet.GATEWAY_NUMBER)).lost == 0
    refused = host.meshctl("bridge", "port", "rm", "br0", "eth0")
    assert refused.returncode == 0, "endpoints stay on the bridge, cut off from the LAN"
    in_use = host.meshctl("bridge", "rm", "br0")
    assert (in_use.returncode, f"parent of endpoints of {yard}" in in_use.stderr) == (1, True)


BAD = [
    (
        ("bridge", "port", "add", "br0", "nosuch"),
        "nosuch cannot be a port of br0: it does not exist on this host",
    ),
    (("bridge", "port", "add", "br0", "lo"), "it is the loopback device"),
    (("bridge", "port", "add", "br0", "down0"), "it is down"),
    (("bridge", "port", "add", "br0", "taken0"), "it is a port of bridge br7 already"),
    (("bridge", "port", "add", "br0", "parent0"), "it is the parent of mv0"),
    (("bridge", "port", "add", "br0", "br7"), "it is a bridge itself"),
    (("bridge", "port", "add", "br0", "br0"), "it is a device of meshd's own"),
    (("bridge", "port", "add", "br0", "tun0"), "it is no Ethernet device"),
    (("bridge", "port", "add", "br7", "eth0"), "br7 exists on this host: a bridge that is not meshd's"),
    (("bridge", "port", "add", "nosuch", "eth0"), "no bridge 'nosuch'"),
    (("bridge", "port", "rm", "br0", "eth0"), "eth0 is no port of br0"),
    (("bridge", "port", "rm", "br7", "taken0"), "br7 exists on this host: a bridge that is not meshd's"),
    (("bridge", "confirm"), "no bridge port waits for confirmation"),
    (("bridge", "create", "br0"), "bridge br0 exists already"),
    (("bridge", "create", "br7"), "br7 exists on this host: a bridge that is not meshd's"),
    (("bridge", "create", "eth0"), "eth0 exists on this host"),
    (("bridge", "create", "mo01234567"), "named as meshd names its own devices"),
    (("bridge", "create", "default"), "cannot be an interface's name"),
    (("bridge", "rm", "br7"), "no bridge 'br7'"),
]


def test_what_cannot_be_is_one_line_and_leaves_all_as_it_was(lab3: Lab, host: Host) -> None:
    labnet.batch(host.ns, [
        "link add down0 type veth peer name down1", "link add taken0 type veth peer name taken1",
        "link add parent0 type veth peer name parent1", "link add br7 type bridge", "link set br7 up",
        "link set taken0 master br7 up", "link set parent0 up", "link add mv0 link parent0 type macvlan",
        "tuntap add tun0 mode tun", "link set tun0 up",
    ])  # fmt: skip
    try:
        before = devices(host), carried(host, "eth0"), host.json("bridge", "ls")
        for command, line in BAD:
            done = host.meshctl(*command)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 2), done.stderr
            assert line in done.stderr.splitlines()[0], done.stderr
        for wrong in ("0s", "2h", "-5"):
            done = host.meshctl("bridge", "port", "add", "br0", "eth0", f"--confirm-within={wrong}")
            assert done.returncode in (1, 2)
        assert (devices(host), carried(host, "eth0"), host.json("bridge", "ls")) == before
    finally:
        labnet.batch(
            host.ns, [f"link del {name}" for name in ("down0", "taken0", "mv0", "parent0", "br7", "tun0")]
        )


def test_the_api_takes_what_the_command_sends(lab3: Lab, host: Host) -> None:
    client = Client(str(host.socket))
    (shown,) = client.get("bridges")
    assert set(shown) == {"name", "id", "state", "mac", "mtu", "ports", "others", "created"}
    body = {"bridge": "br0", "interface": "eth0", "confirm_within_s": 30}
    status, added = client.post("bridges", "ports", body=body)
    assert (status, added["ports"][0]["name"], 0 < added["ports"][0]["seconds_left"] <= 30) == (
        201,
        "eth0",
        True,
    )
    assert client.post("bridges", "confirm")[1]["ports"][0]["state"] == "up"
    assert client.delete("bridges", "ports", "eth0", bridge="br0") == {"removed": True}
