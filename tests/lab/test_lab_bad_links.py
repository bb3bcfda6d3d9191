"""Devices, modes, names, MACs and ports that cannot be: each is one clear line, and nothing is half made, neither on the
host nor in the namespace that was to be attached."""

import json
import re
from collections.abc import Iterator

import pytest

from meshctl import labnet
from meshctl.client import Client
from meshctl.labcluster import Lab
from meshctl.labhost import wait_for

FAILED, USAGE = 1, 2
CARDS = (
    "link add wbr type bridge", "link add w0 type veth peer name w1", "link set w0 master wbr",
    "link add w2 type veth peer name w3", "link set w3 up", "link add w4 type veth peer name w5",
    "addr add 10.60.0.1/24 dev w4", "link set w4 up", "link set w5 up",
)  # fmt: skip
"""Devices of the host: ``w0`` a bridge's port, ``w2`` down, ``w3`` up (without carrier), ``w4`` up, with an address."""

LANS = {
    "on-nix": "--subnet 10.61.0.0/24 --parent nix0",
    "on-vlan": "--subnet 10.62.0.0/24 --parent nix0.10",
    "on-port": "--subnet 10.63.0.0/24 --parent w0",
    "on-down": "--subnet 10.64.0.0/24 --parent w2",
    "on-else": "--subnet 10.65.0.0/24 --parent w4",
    "on-wide": "--subnet 10.66.0.0/24 --parent w4 --mtu 9000",
    "on-alone": "--subnet 10.67.0.0/24 --parent w5 --mode passthru",
    "yard": "--subnet 192.0.2.0/24 --ip-range 192.0.2.64/26",
    "yard-vepa": "--subnet 198.51.100.0/24 --opt check-subnet=no --parent eth0 --mode vepa",
}
"""macvlan networks, all of which can be made: whether a device is right, each host says for itself."""

AT = "--netns {ns}"
CREATE = "network create new -d macvlan --subnet 10.70.0.0/24"
REFUSED: dict[str, tuple[str, int, str]] = {
    "a parent that does not exist": (f"attach on-nix {AT}", FAILED, "parent nix0 of network on-nix does not exist on this host"),
    "a VLAN of a parent that does not exist": (
        f"attach on-vlan {AT}", FAILED,
        "parent nix0.10 of network on-vlan does not exist on this host, and cannot be made: nix0 does not exist on this host",
    ),
    "a parent that is a bridge's port": (f"attach on-port {AT}", FAILED, "parent w0 of network on-port is a port of bridge wbr"),
    "a parent that is down": (f"attach on-down {AT}", FAILED, "parent w2 of network on-down is down"),
    "a parent on another LAN": (
        f"attach on-else {AT}", FAILED,
        r"parent w4 of network on-else is on another LAN than 10\.65\.0\.0/24: it has 10\.60\.0\.1/24",
    ),
    "a parent whose MTU is less": (
        f"attach on-wide {AT}", FAILED, "parent w4 of network on-wide has an MTU of 1500 bytes, less than the network's 9000",
    ),
    "a parent in another mode on this host": (
        f"attach yard-vepa {AT}", FAILED, "parent eth0 of network yard-vepa is used in macvlan mode bridge by network yard",
    ),
    "a second endpoint in mode passthru": (
        f"attach on-alone {AT}", FAILED,
        "parent w5 of network on-alone carries an endpoint in mode passthru already, and takes one only",
    ),
    "a MAC of its own in mode passthru": (
        f"attach on-alone {AT} --mac 02:00:00:00:00:07", FAILED,
        "mac: endpoints of a macvlan network in mode passthru have their parent's",
    ),
    "two modes on one parent": (
        f"{CREATE} --parent w4 --mode vepa", FAILED, "parent w4 is used in macvlan mode bridge by network on-(else|wide)",
    ),
    "the loopback as parent": (f"{CREATE} --parent lo", FAILED, "parent lo is the loopback device, which is on no LAN"),
    "a parent's name that is too long": (
        f"{CREATE} --parent abcdefghijklmnop", FAILED, "parent 'abcdefghijklmnop' cannot be an interface's name",
    ),
    "a mode that does not exist": (f"{CREATE} --mode l2", FAILED, "macvlan has no mode 'l2'"),
    "a parent for an overlay": ("network create new --parent eth0", FAILED, "an overlay network has no parent"),
    "no subnet": ("network create new -d macvlan", FAILED, "a macvlan network needs the LAN's own subnet"),
    "a gateway that is outside": (
        f"{CREATE} --gateway 10.71.0.1", FAILED, r"gateway 10\.71\.0\.1 is outside the subnets \(10\.70\.0\.0/24\)",
    ),
    "a range that is outside": (
        f"{CREATE} --ip-range 10.71.0.0/25", FAILED, r"ip-range 10\.71\.0\.0/25 is outside the subnets \(10\.70\.0\.0/24\)",
    ),
    "nothing left to give out": (
        f"{CREATE} --gateway 10.70.0.1 --ip-range 10.70.0.2/32 --exclude 10.70.0.2", FAILED,
        r"no address is left to give out in 10\.70\.0\.2/32",
    ),
    "a network's name that is too long": (f"network create {'a' * 64} -d bridge", FAILED, "network name 'a+' is not allowed"),
    "an endpoint's name that is too long": (f"attach red {AT} --name {'a' * 64}", FAILED, "name: not 1 to 63 of .*"),
    "an interface's name that is too long": (f"attach red {AT} --ifname abcdefghijklmnop", USAGE, "--ifname: 'abcdefghijklmnop' cannot be an interface's name: 1 to 15 .*"),
    "an interface's name that no interface can have": (f"attach red {AT} --ifname lo", USAGE, "--ifname: 'lo' cannot be an interface's name: .*"),
    "an interface that is there": (f"attach red {AT} --ifname eth7", FAILED, "{ns} has an interface eth7 already"),
    "an interface that is there, on the LAN": (f"attach yard {AT} --ifname eth7", FAILED, "{ns} has an interface eth7 already"),
    "an interface that is another network's": (
        "attach red --netns {web}", FAILED, "eth0 of this namespace is endpoint web of network bridge",
    ),
    "a multicast MAC": (f"attach red {AT} --mac 01:00:5e:00:00:01", USAGE, "--mac: '01:00:5e:00:00:01' is not an interface's address: it is a group's or all zero"),
    "the MAC of nobody": (f"attach red {AT} --mac 00:00:00:00:00:00", USAGE, "--mac: '00:00:00:00:00:00' is not an interface's address: it is a group's or all zero"),
    "a MAC that is none": (f"attach red {AT} --mac 02-00-00-00-00-01", USAGE, ".*02-00-00-00-00-01.*"),
    "another endpoint's MAC": (f"attach bridge {AT} --mac {{mac}}", FAILED, "mac: {mac} is endpoint web's on host1"),
    "a port that an endpoint publishes": (
        f"attach red {AT} --publish 8080:80", FAILED,
        r"published: port 8080/tcp of this host is endpoint web's already \(8080:80/tcp\)",
    ),
    "a range with a port that an endpoint publishes": (
        f"attach red {AT} --publish 8078-8082:78-82", FAILED, "published: port 8080/tcp of this host is endpoint web's already .*",
    ),
    "a port of the host's own": (
        f"attach red {AT} --publish 7947:80/udp", FAILED, "published: port 7947/udp of this host is taken by a socket of uid .*",
    ),
    "publishing on another host's address": (
        f"attach red {AT} --publish 192.0.2.2:80:80", FAILED, r"published: 192\.0\.2\.2 is not an address of this host",
    ),
    "publishing over IPv6 where there is none": (
        f"attach red {AT} --publish [2001:db8::1]:80:80", FAILED, ".*network red has no IPv6 subnet",
    ),
    "publishing from the LAN": (f"attach yard {AT} --publish 80:80", FAILED, "published: network yard is the LAN itself, .*"),
    "publishing from an internal network": (
        f"attach den {AT} --publish 80:80", FAILED, "published: network den is internal: nothing leads into it",
    ),
    "ranges of two lengths": (f"attach red {AT} --publish 80-82:80-83", FAILED, "published: '80-82:80-83': the two ranges differ in length"),
    "the same port twice": (f"attach red {AT} --publish 81:80 --publish 81:82", FAILED, "published: .*81.*"),
    "publishing on network host": ("run host --publish 80:80 -- true", USAGE, ".*on network host a process has .*"),
    "a bridge without room": ("network create new -d bridge --subnet 10.72.0.0/31", FAILED, "subnet 10.72.0.0/31 has no room .*"),
    "an option of other networks": (
        "network create new -d bridge --opt check-subnet=no", FAILED, "unknown option 'check-subnet' of a bridge network",
    ),
    "an option's value that is none": (
        "network create new -d bridge --opt isolate-ports=maybe", FAILED, "option isolate-ports cannot be 'maybe'",
    ),
}  # fmt: skip
"""What is wrong -> command, exit status, the whole first line after "error: " as a pattern."""


def on(ns: str) -> list[str]:
    return sorted(link["ifname"] for link in json.loads(labnet.ip("-n", ns, "-j", "link", "show")))


@pytest.fixture(scope="module")
def words(lab3: Lab) -> Iterator[dict[str, str]]:
    host = lab3.hosts[0]
    labnet.batch(host.ns, CARDS)
    for name, flags in LANS.items():
        host.json("network", "create", name, "-d", "macvlan", *flags.split())
    host.json("network", "create", "red", "-d", "bridge")
    host.json("network", "create", "den", "-d", "bridge", "--internal")
    ns, web, alone, yard = (lab3.container(name) for name in ("bad", "web", "alone", "yard"))
    labnet.ip("-n", ns, "link", "add", "eth7", "type", "veth", "peer", "name", "eth8")
    found = host.json(
        "attach", "bridge", "--netns", f"/run/netns/{web}", "--name", "web", "--publish", "8080:80"
    )
    host.json("attach", "on-alone", "--netns", f"/run/netns/{alone}")
    host.json("attach", "yard", "--netns", f"/run/netns/{yard}")
    host.wait_in_sync()
    yield {"ns": f"/run/netns/{ns}", "web": f"/run/netns/{web}", "mac": found["mac"]}
    for network, name in (("bridge", web), ("on-alone", alone), ("yard", yard)):
        host.json("detach", network, "--netns", f"/run/netns/{name}")
    wait_for("in sync", 10, lambda: bool(host.json("diff")["in_sync"]))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_line_and_nothing_is_half_made(
    lab3: Lab, words: dict[str, str], what: str
) -> None:
    command, status, line = REFUSED[what]
    host, ns = lab3.hosts[0], words["ns"].rpartition("/")[2]
    client = Client(str(host.socket))

    def state() -> object:
        return client.get("networks"), client.get("endpoints"), on(host.ns), on(ns)

    before = state()
    done = host.meshctl(*command.format(**words).split())
    said = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert re.fullmatch(f"error: {line.format(**words)}", said[0]), said[0]
    assert all(more.startswith("hint: ") for more in said[1:])
    assert len(said) <= 2
    assert state() == before
