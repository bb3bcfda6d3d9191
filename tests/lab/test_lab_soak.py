"""An hour of random faults while endpoints come and go: in the end all kernels are as desired, all hosts have one state, no
address is lost, and a daemon that was there all the time has neither more memory nor more descriptors.

MESHD_SOAK_S is how many seconds it goes on, MESHD_SEED chooses another run.
"""

import json
import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from labtools import Attached, no_ping_is_lost

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

SOAK_S = float(os.environ.get("MESHD_SOAK_S", "3600"))
SEED = int(os.environ.get("MESHD_SEED", "1"))
HOSTS = 4
NETWORKS = ("one", "two")
KEPT = 6  # endpoints a host and network at most
FAULT_S = 10.0  # the longest that one lasts
CALM_S = 3.0  # between two
END_S = 120.0  # what is left over is released half a minute after it was found
GROWTH_KIB = 8 * 1024
DESCRIPTORS = 4

pytestmark = [pytest.mark.long, pytest.mark.timeout(2 * SOAK_S + 900)]

DROPPING = """
table inet faulty {
  chain in { type filter hook input priority -300; %s; }
}
"""


class Sample(NamedTuple):
    """What a daemon holds."""

    rss_kib: int
    descriptors: int


def sample(host: Host) -> Sample:
    status = Path(f"/proc/{host.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return Sample(int(found[1]), len(os.listdir(f"/proc/{host.pid}/fd")))


# --- faults ---------------------------------------------------------------------------------------------------
@contextmanager
def killed(host: Host) -> Iterator[None]:
    host.kill()
    yield
    host.start()


@contextmanager
def stopped(host: Host) -> Iterator[None]:
    host.stop()
    yield
    host.start()


@contextmanager
def frozen(host: Host) -> Iterator[None]:
    os.kill(host.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.pid, signal.SIGCONT)


@contextmanager
def without_its_card(host: Host) -> Iterator[None]:
    host.run("ip", "link", "set", "eth0", "down")
    yield
    host.run("ip", "link", "set", "eth0", "up")


def dropping(rule: str) -> Callable[[Host], "contextmanager[None]"]:
    @contextmanager
    def fault(host: Host) -> Iterator[None]:
        assert host.run("nft", DROPPING % rule).returncode == 0
        yield
        host.run("nft", "delete", "table", "inet", "faulty")

    return fault  # type: ignore[return-value]


def by_hand(*command: str) -> Callable[[Host], "contextmanager[None]"]:
    @contextmanager
    def fault(host: Host) -> Iterator[None]:
        host.run("sh", "-c", " ".join(command))
        yield

    return fault  # type: ignore[return-value]


FIRST_OURS = "$(ip -br link | sed -n 's/^\\(%s[0-9a-f]\\{8\\}\\)[ @].*/\\1/p' | head -n 1)"
FAULTS = {
    "kill -9": killed,
    "restart": stopped,
    "SIGSTOP": frozen,
    "card down": without_its_card,
    "UDP cut": dropping("udp dport 7947 drop"),
    "all cut": dropping("meta l4proto { tcp, udp } th dport 7947 drop"),
    "a fifth lost": dropping("udp dport 7947 numgen random mod 100 < 20 drop"),
    "tables flushed": by_hand("nft flush ruleset"),
    "rows gone": by_hand("bridge fdb flush dev", FIRST_OURS % "mv"),
    "tunnel gone": by_hand("ip link del", FIRST_OURS % "mv"),
    "bridge gone": by_hand("ip link del", FIRST_OURS % "mo"),
}


class Tenant:
    """Attaches and detaches on one host, whatever becomes of it."""

    def __init__(self, lab: Lab, host: Host, over: threading.Event) -> None:
        self.lab, self.host, self.over = lab, host, over
        self.kept: dict[str, list[Attached]] = {network: [] for network in NETWORKS}
        self.namespaces = [lab.container(f"t{host.number}x{n}") for n in range(KEPT * len(NETWORKS) + 2)]
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        chance = random.Random(SEED * 100 + self.host.number)
        while not self.over.is_set():
            network = chance.choice(NETWORKS)
            if self.kept[network] and chance.random() < len(self.kept[network]) / KEPT:
                self.detach(network, chance.choice(self.kept[network]))
            else:
                self.attach(network, chance.choice(self.free()))
            self.over.wait(chance.uniform(0.2, 1.0))

    def free(self) -> list[str]:
        taken = {one.ns for kept in self.kept.values() for one in kept}
        return [ns for ns in self.namespaces if ns not in taken]

    def attach(self, network: str, ns: str) -> None:
        made = self.host.meshctl("-o", "json", "attach", network, "--netns", f"/run/netns/{ns}")
        self.done[f"attach {made.returncode}"] += 1
        if made.returncode == 0:
            self.kept[network].append(Attached(self.host, ns, json.loads(made.stdout)))
        else:  # whether it stands nobody knows: it is to be gone
            self.host.meshctl("detach", network, "--netns", f"/run/netns/{ns}")

    def detach(self, network: str, one: Attached) -> None:
        done = self.host.meshctl("detach", network, "--netns", one.path)
        self.done[f"detach {done.returncode}"] += 1
        if done.returncode == 0:
            self.kept[network].remove(one)


def free(host: Host, network: str) -> int:
    return sum(block["free"] for block in host.json("network", "inspect", network)["blocks"])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab.up(HOSTS, tmp_path / "lab")
    yield made
    made.down()


def all_is_well(lab: Lab) -> None:
    for host in lab.hosts:
        host.wait_alive(HOSTS)
        host.wait_in_sync()
    wait_for("one state", END_S, lambda: len({host.status()["digest"] for host in lab.hosts}) == 1)


def test_after_an_hour_of_faults_all_is_as_it_should_be(lab: Lab) -> None:
    watcher, *victims = lab.hosts
    for network in NETWORKS:
        watcher.json("network", "create", network, "--ipv6")
        for host in lab.hosts:
            host.wait_network(network)
    at_first = {network: free(watcher, network) for network in NETWORKS}
    chance, over = random.Random(SEED), threading.Event()
    tenants = [Tenant(lab, host, over) for host in lab.hosts]
    samples: list[Sample] = []
    done: Counter[str] = Counter()
    end = time.monotonic() + SOAK_S
    with ThreadPoolExecutor() as pool:
        busy = [pool.submit(tenant.run) for tenant in tenants]
        try:
            while time.monotonic() < end:
                fault = chance.choice(sorted(FAULTS))
                with FAULTS[fault](chance.choice(victims)):  # type: ignore[operator]
                    time.sleep(chance.uniform(0, FAULT_S))
                done[fault] += 1
                time.sleep(chance.uniform(0, CALM_S))
                samples.append(sample(watcher))
                assert all(host.alive for host in lab.hosts)
        finally:
            over.set()
        for each in busy:
            each.result()
    print(f"seed {SEED}: {sum(done.values())} faults: {dict(done)}")
    print("tenants:", dict(sum((tenant.done for tenant in tenants), Counter())))

    all_is_well(lab)
    for network in NETWORKS:
        ends = [tenant.kept[network][0] for tenant in tenants if tenant.kept[network]]
        for host in lab.hosts:
            host.wait_rows(*(one.mac for one in ends))
        no_ping_is_lost([(a, b) for a in ends for b in ends if a is not b])
    kept = {one.endpoint["id"] for tenant in tenants for each in tenant.kept.values() for one in each}
    wait_for(
        "the endpoints to be those that were kept", END_S,
        lambda: all({e["id"] for e in host.json("endpoint", "ls")} == kept for host in lab.hosts),
    )  # fmt: skip
    for tenant in tenants:
        for network, each in tenant.kept.items():
            for one in list(each):
                tenant.detach(network, one)
    wait_for("no endpoint", END_S, lambda: not any(host.json("endpoint", "ls") for host in lab.hosts))
    for network in NETWORKS:
        wait_for("no address to be lost", END_S, lambda n=network: free(watcher, n) == at_first[n])
    all_is_well(lab)

    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    rss = [statistics.median(each.rss_kib for each in part) for part in (early, late)]
    descriptors = [statistics.median(each.descriptors for each in part) for part in (early, late)]
    print(
        f"{watcher.name}: {rss[0]:.0f} -> {rss[1]:.0f} KiB, {descriptors[0]:.0f} -> {descriptors[1]:.0f} descriptors"
    )
    assert rss[1] <= rss[0] + GROWTH_KIB
    assert descriptors[1] <= descriptors[0] + DESCRIPTORS
