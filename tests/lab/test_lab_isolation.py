"""The isolation matrix: every pair of kinds and networks, on one host and across hosts, IPv4 and IPv6, in every way that
isolation.py names. What is allowed is stated there; here it is tried, and shown as a table in the test report.

One process in each namespace sends all its probes and notes all that it sees. Silence is judged when everything that is
to arrive has, twice: the second time after every forgery, so that nothing learnt from one opens a way.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from isolation import (
    BRIDGED,
    LAN,
    NETWORKS,
    PASS,
    PLACES,
    SERVICES,
    SILENT,
    WAYS,
    Cell,
    expected,
    report,
)
from isolation_probes import Party, World, host_of, plan
from labtools import Attach, Attached, NewNetwork

from meshctl import labnet
from meshctl.labcluster import Lab
from meshctl.labhost import Host
from meshctl.ping import ping

PROBER = Path(__file__).with_name("prober.py")
DELIVERED = "delivered"
OF_THE_CLUSTER = {
    "sea": ("--ipv6",), "sky": ("--ipv6",), "well": ("--ipv6", "--internal"),
    "yard": (
        *("-d", "macvlan", "--subnet", "192.0.2.0/24", "--gateway", labnet.address(labnet.GATEWAY_NUMBER)),
        *("--subnet", "2001:db8::/64", "--gateway", labnet.address(labnet.GATEWAY_NUMBER, 6)),
        *("--ip-range", "192.0.2.64/26"),
    ),
}  # fmt: skip
BRIDGE = ("-d", "bridge", "--ipv6")
OF_A_HOST = {"red": BRIDGE, "blue": BRIDGE, "den": (*BRIDGE, "--internal")}
ROUND_S, ROUNDS_MAX, POLL_S = 3.0, 5, 0.1
QUIET_S = 0.5  # after everything that is to arrive did: what was sent with it is long there
FAMILIES = (4, 6)


def mac_of(ns: str, device: str) -> bytes:
    (link,) = json.loads(labnet.ip("-n", ns, "-j", "link", "show", "dev", device))
    return bytes.fromhex(link["address"].replace(":", ""))


def of_endpoint(name: str, network: str, one: Attached) -> Party:
    ips = {4: one.v4} | ({6: one.v6} if one.v6 else {})
    run = ("ip", "netns", "exec", one.ns)
    return Party(name, network, ips, bytes.fromhex(one.mac.replace(":", "")), "eth0", run, ("eth0",))


def of_host(host: Host) -> Party:
    """A process that was started on network ``host``; it sees what comes to the host's bridges, and to the host."""
    bridges = [
        link["ifname"]
        for link in json.loads(host.run("ip", "-j", "link").stdout)
        if link["ifname"][:2] == "mo"
    ]
    ips = {version: labnet.address(host.number, version) for version in FAMILIES}
    run = tuple(host.argv("meshctl", "run", "host", "--"))
    return Party(host.name, "host", ips, mac_of(host.ns, "eth0"), "eth0", run, tuple(bridges), host=True)


@pytest.fixture
def world(lab3: Lab, new_network: NewNetwork, attach: Attach) -> World:
    here, there, _ = lab3.hosts
    networks = [(here, name, flags) for name, flags in OF_THE_CLUSTER.items()]
    networks += [(host, name, flags) for host in (here, there) for name, flags in OF_A_HOST.items()]
    wanted = [(f"{network} {place}", network, host) for network in NETWORKS
              for place, host in (("source", here), ("here", here), ("there", there))]  # fmt: skip
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: new_network(*one[2], host=one[0], name=one[1]), networks))
        made = list(pool.map(lambda one: attach(one[2], one[1]), wanted))
    ends = {
        name: of_endpoint(name, network, one) for (name, network, _), one in zip(wanted, made, strict=True)
    }
    first, second = of_host(here), of_host(there)
    lan_ips = {version: labnet.address(labnet.GATEWAY_NUMBER, version) for version in FAMILIES}
    bridge = labnet.LAN_BRIDGE
    outside = Party("outside", "outside", lan_ips, mac_of(lab3.lan, bridge), bridge,
                    ("ip", "netns", "exec", lab3.lan), (bridge,))  # fmt: skip
    alone = Party("none", "none", {}, b"", "lo", tuple(here.argv("meshctl", "run", "none", "--")), ("lo",))
    sources = {network: ends[f"{network} source"] for network in NETWORKS}
    targets = {(network, place): ends[f"{network} {place}"] for network in NETWORKS for place in PLACES}
    targets |= {("host", "here"): first, ("host", "there"): second, ("outside", "there"): outside}
    shown = {name: here.json("network", "inspect", name) for name in BRIDGED}
    devices = {name: f"mo{of['id'][:8]}" for name, of in shown.items()}
    gateways = {name: mac_of(here.ns, device) for name, device in devices.items()} | {"yard": second.mac}
    bridges = {name: {4 + 2 * (":" in ip): ip for ip in of["gateways"]} for name, of in shown.items()}
    for host in (here, there):
        host.wait_rows(
            *(
                one.mac
                for (_, network, _), one in zip(wanted, made, strict=True)
                if network in ("sea", "sky", "well")
            )
        )
    open_ways(lab3, targets, (here, there))
    return World(lab3, {"none": alone, "host": first, **sources, "outside": outside}, targets, gateways, bridges,
                 shown["sea"]["vni"])  # fmt: skip


def open_ways(lab: Lab, targets: dict[tuple[str, str], Party], hosts: Sequence[Host]) -> None:
    """Let the LAN's router forward, and know each endpoint by its host: what does not arrive was not let in."""
    labnet.set_sysctls(lab.lan, {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
    ways = []
    for (network, place), party in targets.items():
        if network in BRIDGED:
            via = hosts[PLACES.index(place)].number
            ways += [
                f"route add {ip} via {labnet.address(via, version)}" for version, ip in party.ips.items()
            ]
    labnet.batch(lab.lan, ways)


# --- what becomes of it ------------------------------------------------------------------------------------------
class Probers:
    """One process in each namespace."""

    def __init__(self, held: ExitStack, world: World) -> None:
        self.world = world
        self.running: dict[str, subprocess.Popen[str]] = {}
        for party in world.parties:
            environment = next(
                host for host in world.lab.hosts if host.number == 1 + (party.name == "host2")
            ).environment()
            process = held.enter_context(subprocess.Popen(
                [*party.run, sys.executable, "-I", "-S", str(PROBER)], env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
            ))  # fmt: skip
            held.callback(process.kill)
            self.running[party.name] = process
            self._say(party.name, json.dumps({"sniff": party.sniff, "host": party.host, "jobs": party.jobs}))
        assert [self._heard(name) for name in self.running] == ["ready"] * len(self.running)

    def _say(self, name: str, line: str) -> None:
        pipe = self.running[name].stdin
        assert pipe is not None
        pipe.write(f"{line}\n")
        pipe.flush()

    def _heard(self, name: str) -> str:
        pipe = self.running[name].stdout
        assert pipe is not None
        return pipe.readline().strip()

    def all(self, command: str) -> dict[str, str]:
        for name in self.running:
            self._say(name, command)
        return {name: self._heard(name) for name in self.running}

    def found(self) -> dict[Cell, str]:
        told = {name: json.loads(line) for name, line in self.all("tell").items()}
        assert {name: said["lost"] for name, said in told.items() if said["lost"]} == {}
        return judge(self.world, told)

    def arrived(self, awaited: dict[Cell, str]) -> bool:
        """Wait until these squares are so, or a round's time is over."""
        deadline = time.monotonic() + ROUND_S
        while time.monotonic() < deadline:
            found = self.found()
            if all(found[cell] == what for cell, what in awaited.items()):
                return True
            time.sleep(POLL_S)
        return False


def judge(world: World, told: dict[str, Any]) -> dict[Cell, str]:
    """Say what became of each square, by all that was seen: ``pass`` and the like, or in words who saw what."""
    seen: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for name, said in told.items():
        for where, numbers in said["seen"].items():
            for number in numbers:
                seen[number].add((name, where))
    answered = {name: set(said["answered"]) for name, said in told.items()}
    outcomes: dict[Cell, dict[str, str]] = defaultdict(dict)
    for number, (cell, what, _) in world.probes.items():
        source, target = world.sources[cell.source], world.targets[cell.target, cell.place]
        places = {place for place in seen[number] if place[0] != source.name}
        outcomes[cell][what] = judge_one(world, cell, target, places, number in answered[source.name])
    return {cell: by_what.popitem()[1] if len(set(by_what.values())) == 1 else
            ", ".join(f"{what} {outcome}" for what, outcome in by_what.items()) for cell, by_what in outcomes.items()}  # fmt: skip


def judge_one(world: World, cell: Cell, target: Party, places: set[tuple[str, str]], answered: bool) -> str:
    on_the_lan = {"outside", "yard source", "yard here", "yard there"}
    if cell.column in ("claim", "forged"):
        strangers = {name for name, where in places if name not in on_the_lan and where != DELIVERED}
        return f"seen by {', '.join(sorted(strangers))}" if strangers else LAN if places else SILENT
    if cell.column == "lan":
        target = host_of(world, target)
    arrived = any(name == target.name and (where == DELIVERED or not target.host) for name, where in places)
    # hosts and the router see what they forward; on the LAN a switch shows everybody what it does not know
    strangers = {name for name, _ in places if name not in on_the_lan | {"host1", "host2", target.name}}
    if strangers:
        return f"seen by {', '.join(sorted(strangers))}"
    if cell.column == "ip":
        return PASS if answered else "one way" if arrived else SILENT
    return PASS if arrived else SILENT


def heal(lab: Lab) -> None:
    """Have the LAN forget what was pretended there last: who has which address, and behind which port a MAC is. A host
    that could not be heard meanwhile is back among the living before anything is taken down."""
    for ns, device in ((lab.lan, labnet.LAN_BRIDGE), *((host.ns, "eth0") for host in lab.hosts)):
        labnet.ip("-n", ns, "neigh", "flush", "dev", device)
    for host in lab.hosts:
        assert ping(host.ns, labnet.address(labnet.GATEWAY_NUMBER)).received
    for host in lab.hosts:
        host.wait_alive(len(lab.hosts))


def test_allowed_pairs_pass_and_all_others_are_silent(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    stated = expected()
    plan(world)
    assert {cell for cell, *_ in world.probes.values()} == stated.keys(), "every square is tried"
    wanted = {cell for cell, what in stated.items() if what == PASS}
    late = {cell for cell, what in stated.items() if what == LAN}
    with ExitStack() as held:
        probers = Probers(held, world)
        found: dict[Cell, str] = {}
        for command, awaited in (("send", wanted), ("send", wanted), ("late", wanted | late)):
            for _ in range(ROUNDS_MAX):
                probers.all(command)  # again if something was lost while an address was not known yet
                if probers.arrived({cell: stated[cell] for cell in awaited}):
                    break
        time.sleep(QUIET_S)
        found = probers.found()
        nobody = json.loads(probers.all("tell")["none"])
    heal(world.lab)
    record_property("isolation", report(stated, found))
    wrong = {cell: (found[cell], what) for cell, what in stated.items() if found[cell] != what}
    assert wrong == {}, f"{len(wrong)} squares are not as stated; see the table"
    assert nobody["seen"] == {}, "network none hears nothing"
    assert set(WAYS) | set(SERVICES) == {cell.column for cell in found}
    for host in world.lab.hosts[:2]:
        assert host.json("diff")["in_sync"]
