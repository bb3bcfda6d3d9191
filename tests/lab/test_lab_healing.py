"""What disk, network and chance take away is learnt again: a lost journal, blocked ports, loss, kills at random."""

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from labtools import Attach, Attached, NewNetwork

from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

SOAK = os.environ.get("MESHD_SOAK") == "1"
ROUNDS = 200 if SOAK else 4
LOSSY = """
table inet lossy {
  chain in { type filter hook input priority -300; %s; }
}
"""
LOSS = "udp dport 7947 numgen random mod 100 < 10 drop"
ONE_WAY = "udp dport 7947 ip saddr 192.0.2.2 drop"
NO_TCP = "tcp dport 7947 drop"
NOTHING_IN = "meta l4proto { tcp, udp } th dport 7947 drop"


@contextmanager
def dropping(rule: str, *hosts: Host) -> Iterator[None]:
    """Let these hosts lose what ``rule`` matches on its way in."""
    for host in hosts:
        done = host.run("nft", LOSSY % rule)
        assert (done.returncode, done.stderr) == (0, "")
    try:
        yield
    finally:
        for host in hosts:
            host.run("nft", "delete", "table", "inet", "lossy")


def equal(lab: Lab) -> None:
    wait_for("all have the same state", 20, lambda: len({host.status()["digest"] for host in lab.hosts}) == 1)


def test_a_host_whose_journal_is_gone_learns_it_again_and_only_then_gives_addresses(
    lab3: Lab, overlay: str, attach: Attach
) -> None:
    first, second, _ = lab3.hosts
    before = [attach(second, overlay) for _ in range(3)]
    second.kill()
    for name in ("journal", "journal.prev", "snapshot", "snapshot.prev"):
        (second.dir / "state" / name).unlink(missing_ok=True)
    with dropping(NOTHING_IN, second):  # nobody to learn from
        second.start()
        ns = lab3.container("early")
        refused = second.meshctl("attach", "bridge", "--netns", f"/run/netns/{ns}")
        assert "its state was lost" in refused.stderr
    second.wait_alive(3)
    second.wait_network(overlay)
    wait_for("host2 says that it has learnt it", 30, lambda: not second.status()["health"])
    wait_for(
        "what it has no record of is released",
        30,
        lambda: not first.json("endpoint", "ls", "--host", "host2"),
    )
    again = attach(second, overlay)
    assert not {ip for one in before for ip in one.ips} & set(again.ips)
    equal(lab3)


def test_a_restart_within_a_second_needs_no_tcp(lab3: Lab, overlay: str, attach: Attach) -> None:
    first, second, third = lab3.hosts
    with dropping(NO_TCP, *lab3.hosts):
        second.kill()
        missed = attach(first, overlay)
        second.start()
        late = attach(third, overlay)
        mine = attach(second, overlay)
        second.wait_alive(3)
        for host in lab3.hosts:
            host.wait_rows(missed.mac, late.mac, mine.mac)
        equal(lab3)


def test_udp_that_is_lost_one_way_is_shown_by_both_and_nobody_is_suspected(lab3: Lab) -> None:
    first, second, _ = lab3.hosts

    def degraded(host: Host) -> set[str]:
        return {member["name"] for member in host.json("members") if member["degraded"]}

    def suspected() -> int:
        return sum(event["kind"] == "member-suspect" for host in lab3.hosts for event in host.events())

    before = suspected()
    with dropping(ONE_WAY, first):  # host2 does not get through to host1
        wait_for("host1 shows host2 degraded", 30, lambda: degraded(first) == {"host2"})
        wait_for("host2 shows host1 degraded", 30, lambda: degraded(second) == {"host1"})
        assert suspected() == before
    for host in lab3.hosts:
        wait_for("nobody is degraded", 30, lambda host=host: not degraded(host))


def test_a_network_too_large_for_a_datagram_reaches_every_host(lab3: Lab, new_network: NewNetwork) -> None:
    labels = [flag for n in range(15) for flag in ("--label", f"label-{n}={'v' * 1000}")]
    name = new_network(*labels)  # which waits until all hosts know it
    for host in lab3.hosts:
        assert len(host.json("network", "inspect", name)["labels"]) == 15


def churn(lab: Lab, host: Host, network: str, seed: int) -> tuple[list[Attached], list[str]]:
    """Attach and detach at random; what is attached at the end, and every namespace that ever was, or may have
    been: a daemon that is being killed answers nobody."""
    chance, kept, all_ = random.Random(seed), [], []
    for number in range(ROUNDS):
        if kept and chance.random() < 0.45:
            gone = kept[chance.randrange(len(kept))]
            if host.meshctl("detach", network, "--netns", gone.path).returncode == 0:
                kept.remove(gone)
        else:
            ns = lab.container(f"s{seed}x{number}")
            all_.append(ns)
            made = host.meshctl("-o", "json", "attach", network, "--netns", f"/run/netns/{ns}")
            if made.returncode == 0:
                kept.append(Attached(host, ns, json.loads(made.stdout)))
    return kept, all_


@pytest.fixture
def lossy3(tmp_path: Path) -> Iterator[Lab]:
    """A cluster of its own, since what a killed daemon had begun may outlive the test by VANISHED_GRACE_S."""
    lab = Lab.up(3, tmp_path / "lab")
    yield lab
    lab.down()


def test_attaching_and_detaching_under_loss_and_kills_leaves_nothing_behind(lossy3: Lab) -> None:
    lab, seed = lossy3, random.randrange(1000)
    lab.hosts[0].json("network", "create", "net", "--ipv6")
    for host in lab.hosts:
        host.wait_network("net")
    chance = random.Random(seed)
    with dropping(LOSS, *lab.hosts), ThreadPoolExecutor() as pool:
        running = [pool.submit(churn, lab, host, "net", 10 * seed + host.number) for host in lab.hosts]
        while not all(each.done() for each in running):
            victim = chance.choice(lab.hosts)
            victim.kill()
            victim.start()
        results = [each.result() for each in running]
    for host in lab.hosts:
        host.wait_alive(3)
        host.wait_in_sync()
    equal(lab)
    known = {e["id"] for e in lab.hosts[0].json("endpoint", "ls")}
    assert {one.endpoint["id"] for kept, _ in results for one in kept} <= known, f"seed {seed}"
    for host, (_, namespaces) in zip(lab.hosts, results, strict=True):
        for ns in namespaces:
            host.meshctl("detach", "net", "--netns", f"/run/netns/{ns}")
    wait_for("nothing is left", 60, lambda: not any(host.json("endpoint", "ls") for host in lab.hosts))
    for host in lab.hosts:
        host.wait_in_sync()
        links = {line.split()[0].split("@")[0] for line in host.run("ip", "-br", "link").stdout.splitlines()}
        default = f"mo{host.json('network', 'inspect', 'bridge')['id'][:8]}"
        assert {link for link in links if link.startswith(("mh", "mp", "mv", "mo"))} == {default}, (
            f"seed {seed}"
        )
    equal(lab)
