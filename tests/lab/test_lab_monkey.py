"""Somebody meddles with everything of ours on every host, at random, while traffic flows: in the end every kernel is as
it should be, what is not ours is untouched, and everybody reaches everybody.

MESHD_SEED chooses another run, MESHD_SOAK=1 makes it long. No object is hit so often that meshd gives in (plan/fight.py
and test_shell_reconcile.py have that).
"""

import itertools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from labtools import OURS, Attach, Attached, NewNetwork, no_ping_is_lost

from meshctl.labcluster import Lab
from meshctl.labhost import Host
from meshctl.ping import Ping

SOAK = bool(os.environ.get("MESHD_SOAK"))
SEED = int(os.environ.get("MESHD_SEED", "1"))
DEEDS = 1500 if SOAK else 70
LIMIT_S = 900.0 if SOAK else 40.0
REST_S = 0.1
HITS = 2  # of one object within a minute: fewer than a fight
MINUTE_S = 60.0
PROTOCOL = "109"

FOREIGN = """
link add theirs0 type bridge
link set theirs0 up
link add theirs1 type vxlan id 77 dstport 4790 local 127.0.0.1 nolearning
link set theirs1 master theirs0 up
address add 203.0.113.1/24 dev theirs0
neigh add 203.0.113.9 lladdr 02:00:5e:00:53:09 dev theirs0 nud permanent
nexthop add id 7 blackhole
nexthop add id 8 via 203.0.113.9 fdb
nexthop add id 9 group 8 fdb
route add blackhole 198.51.100.0/24
"""
TABLE = (
    "table inet theirs { chain input { type filter hook input priority 0; ip saddr 203.0.113.66 drop; }; }"
)
LOOK = (
    "ip -o link show dev theirs0", "ip -d -o link show dev theirs1", "ip -4 address show dev theirs0",
    "bridge fdb show dev theirs1", "ip neigh show dev theirs0", "ip nexthop show id 7", "ip nexthop show id 8",
    "ip nexthop show id 9", "ip route show 198.51.100.0/24", "nft list table inet theirs", "ip route show default",
)  # fmt: skip
"""What shows all of it."""


class Refused(Exception):
    """The kernel would not have it: what it was about is gone for the moment."""


class Monkey:
    """One host's. Each deed takes one object of ours that is there now and says which."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.host = host
        self.rng = rng
        self.nic = "eth0"

    def do(self, *command: str) -> None:
        done = self.host.run(*command)
        if done.returncode:
            raise Refused(f"{' '.join(command)}: {done.stderr.strip()}")

    def ours(self, prefix: str) -> str:
        links = re.findall(
            rf"^\d+: ({prefix}[0-9a-f]{{8}})[@:]", self.host.run("ip", "-o", "link").stdout, re.M
        )
        return self.pick(links)

    def pick(self, found: list[str]) -> str:
        if not found:
            raise Refused("nothing there")
        return self.rng.choice(sorted(found))

    def row(self, *marks: str) -> list[str]:
        """Take one of our FDB rows: MAC, "dev", device, ..."""
        rows = [
            line
            for line in self.host.run("bridge", "fdb", "show").stdout.splitlines()
            if OURS.search(line) and all(mark in line for mark in marks)
        ]
        return self.pick(rows).split()

    def drop_row(self) -> str:
        mac, _, device, *rest = self.row("extern_learn")
        self.do("bridge", "fdb", "del", mac, "dev", device, "master" if "master" in rest else "self")
        return f"{mac} {device}"

    def bend_row(self) -> str:
        mac, _, device, *_ = self.row("extern_learn", "self")
        mark = self.rng.choice(("extern_learn", "static"))
        self.do("bridge", "fdb", "del", mac, "dev", device, "self")
        self.do("bridge", "fdb", "add", mac, "dev", device, "dst", "192.0.2.99", "self", mark)
        return f"{mac} {device}"

    def drop_local_row(self) -> str:
        mac, _, device, *_ = self.row("static", "dev mh")
        self.do("bridge", "fdb", "del", mac, "dev", device, "master")
        return f"{mac} {device}"

    def neighbour(self) -> tuple[str, str]:
        bridge = self.ours("mo")
        told = self.host.run("ip", "neigh", "show", "dev", bridge).stdout.splitlines()
        return self.pick(
            [line.split()[0] for line in told if "extern_learn" in line or "NOARP" in line]
        ), bridge

    def drop_neighbour(self) -> str:
        ip, bridge = self.neighbour()
        self.do("ip", "neigh", "del", ip, "dev", bridge)
        return f"{ip} {bridge}"

    def bend_neighbour(self) -> str:
        ip, bridge = self.neighbour()
        self.do(
            "ip", "neigh", "replace", ip, "lladdr", "02:00:5e:00:53:66", "dev", bridge, "nud", "permanent"
        )
        return f"{ip} {bridge}"

    def nexthop(self, what: str) -> str:
        told = json.loads(self.host.run("ip", "-j", "nexthop").stdout or "[]")
        return self.pick([str(n["id"]) for n in told if str(n.get("protocol")) == PROTOCOL and what in n])

    def drop_nexthop(self) -> str:
        id_ = self.nexthop(self.rng.choice(("gateway", "group")))
        self.do("ip", "nexthop", "del", "id", id_)
        return "nexthops"

    def bend_nexthop(self) -> str:
        id_ = self.nexthop("gateway")
        self.do("ip", "nexthop", "replace", "id", id_, "via", "192.0.2.99", "fdb", "protocol", PROTOCOL)
        return "nexthops"

    def link(self, prefixes: str, *change: str) -> str:
        name = self.ours(prefixes)
        self.do("ip", "link", "set", name, *change)
        return name

    def drop_link(self) -> str:
        name = self.ours("m[ov]")
        self.do("ip", "link", "del", name)
        return name

    def drop_address(self) -> str:
        bridge = self.ours("mo")
        told = json.loads(self.host.run("ip", "-j", "address", "show", "dev", bridge).stdout)
        found = [f"{a['local']}/{a['prefixlen']}" for a in told[0]["addr_info"] if a["scope"] == "global"]
        self.do("ip", "address", "del", self.pick(found), "dev", bridge)
        return f"address {bridge}"

    def nft(self, command: str) -> str:
        self.do("nft", command)
        return "table"

    def rename_nic(self) -> str:
        name = "up0" if self.nic == "eth0" else "eth0"
        self.do("ip", "link", "set", self.nic, "name", name)
        self.nic = name
        return "nic"

    def nic_down_and_up(self) -> str:
        """What the kernel takes away with it the operator's own tools bring back."""
        addresses = json.loads(self.host.run("ip", "-j", "address", "show", "dev", self.nic).stdout)[0][
            "addr_info"
        ]
        self.do("ip", "link", "set", self.nic, "down")
        time.sleep(0.5)
        self.do("ip", "link", "set", self.nic, "up")
        for address in addresses:
            if address["family"] == "inet6" and address["scope"] == "global":
                held = f"{address['local']}/{address['prefixlen']}"
                self.do("ip", "address", "replace", held, "dev", self.nic, "nodad")
        self.do("ip", "route", "replace", "default", "via", "192.0.2.254")
        return "nic"

    def new_nic_mac(self) -> str:
        mac = f"02:00:5e:00:53:{self.rng.randrange(256):02x}"
        self.do("ip", "link", "set", self.nic, "address", mac)
        return "nic"


def of_link(prefixes: str, *change: str) -> Callable[[Monkey], str]:
    return lambda monkey: monkey.link(prefixes, *change)


DEEDS_THERE_ARE: dict[str, Callable[[Monkey], str]] = {
    "a row deleted": Monkey.drop_row,
    "another row deleted": Monkey.drop_row,
    "a row leads elsewhere": Monkey.bend_row,
    "a local row deleted": Monkey.drop_local_row,
    "a neighbour deleted": Monkey.drop_neighbour,
    "a neighbour with another MAC": Monkey.bend_neighbour,
    "a nexthop deleted": Monkey.drop_nexthop,
    "a nexthop leads elsewhere": Monkey.bend_nexthop,
    "a bridge or vxlan deleted": Monkey.drop_link,
    "a device with another MTU": of_link("m[ovh]", "mtu", "1333"),
    "a device with another MAC": of_link("m[ov]", "address", "02:00:5e:00:53:01"),
    "a device down": of_link("m[ovh]", "down"),
    "a port taken off its bridge": of_link("m[vh]", "nomaster"),
    "a port that floods": of_link("mv", "type", "bridge_slave", "flood", "on", "neigh_suppress", "off"),
    "a port that learns": of_link("m[vh]", "type", "bridge_slave", "learning", "on"),
    "a bridge renamed": of_link("mo", "name", "mine0"),
    "a vxlan device renamed": of_link("mv", "name", "mine1"),
    "an endpoint's link renamed": of_link("mh", "name", "mine2"),
    "an address deleted": Monkey.drop_address,
    "the table deleted": lambda monkey: monkey.nft("delete table inet meshd"),
    "the table emptied": lambda monkey: monkey.nft("flush table inet meshd"),
    "a chain added": lambda monkey: monkey.nft("add chain inet meshd stranger"),
    "the NIC renamed": Monkey.rename_nic,
    "the NIC down and up": Monkey.nic_down_and_up,
    "the NIC with another MAC": Monkey.new_nic_mac,
}


@pytest.fixture
def strangers(lab3: Lab) -> Iterator[None]:
    """Objects that are not ours on every host; none may be another afterwards."""
    for host in lab3.hosts:
        done = host.run("sh", "-ec", f"ip -batch - <<X\n{FOREIGN}X\nnft '{TABLE}'")
        assert done.returncode == 0, done.stderr
        row = ("02:00:5e:00:53:08", "dev", "theirs1", "self", "extern_learn")
        for more in (("nhid", "9"), ("dst", "203.0.113.8")):
            mac = row[0].replace(":08", ":07") if "dst" in more else row[0]
            done = host.run("bridge", "fdb", "add", mac, *row[1:3], *more, *row[3:])
            assert done.returncode == 0, done.stderr

    def look(host: Host) -> list[str]:
        # the default route is its operator's, but which device it leaves by is called as the NIC is
        changing = r"\b(eth0|up0)\b|bridge_slave.*"
        return [re.sub(changing, "", host.run(*command.split()).stdout) for command in LOOK]

    before = [look(host) for host in lab3.hosts]
    assert all(itertools.chain(*before))
    yield
    for host, was in zip(lab3.hosts, before, strict=True):
        for command, then, now in zip(LOOK, was, look(host), strict=True):
            assert now == then, f"{command} on {host.name}"


def test_whatever_a_monkey_does_every_kernel_comes_right_and_traffic_flows(
    lab3: Lab, strangers: None, new_network: NewNetwork, attach: Attach
) -> None:
    rng = random.Random(SEED)
    networks = [new_network("--ipv6"), new_network()]
    sets: list[list[Attached]] = [[attach(host, network) for host in lab3.hosts] for network in networks]
    for host in lab3.hosts:
        host.wait_rows(*(one.mac for one in itertools.chain(*sets)))
    pairs = [pair for attached in sets for pair in itertools.permutations(attached, 2)]
    flows = [Ping(a.ns, b.v4) for a, b in pairs]
    monkeys = [Monkey(host, rng) for host in lab3.hosts]
    done: Counter[str] = Counter()
    hits: dict[tuple[str, str], list[float]] = {}
    log: list[str] = []
    give_up = time.monotonic() + LIMIT_S
    while sum(done.values()) < DEEDS and time.monotonic() < give_up:
        monkey, what = rng.choice(monkeys), rng.choice(sorted(DEEDS_THERE_ARE))
        kept = rng.getstate()
        try:
            about = Dry(monkey).which(what)
            recent = [t for t in hits.get((monkey.host.name, about), []) if time.monotonic() - t < MINUTE_S]
            if len(recent) >= HITS:
                time.sleep(REST_S if SOAK else 0)
                continue
            rng.setstate(kept)
            DEEDS_THERE_ARE[what](monkey)
        except Refused as error:
            log.append(f"{monkey.host.name}: {what}: {error}")
            continue
        hits[(monkey.host.name, about)] = [*recent, time.monotonic()]
        done[what] += 1
        log.append(f"{monkey.host.name}: {what}: {about}")
        time.sleep(REST_S)
    print(f"seed {SEED}", *log, sep="\n")
    for monkey in monkeys:
        if monkey.nic != "eth0":
            monkey.rename_nic()
    for host in lab3.hosts:
        host.wait_in_sync()
        host.wait_alive(3)
    results = [flow.result() for flow in flows]
    assert all(result.received > 0 for result in results)
    no_ping_is_lost(pairs)
    assert sum(done.values()) >= DEEDS // 2
    assert [e for host in lab3.hosts for e in host.events() if e["kind"] == "kernel-fight"] == []
    assert {(e["name"], e["state"]) for e in lab3.hosts[0].json("endpoint", "ls")} == {
        (one.name, "up") for one in itertools.chain(*sets)
    }


class Dry(Monkey):
    """Finds out which object a deed would take, without doing it."""

    def __init__(self, monkey: Monkey) -> None:
        super().__init__(monkey.host, monkey.rng)
        self.nic = monkey.nic

    def which(self, what: str) -> str:
        return DEEDS_THERE_ARE[what](self)

    def do(self, *command: str) -> None:
        pass
