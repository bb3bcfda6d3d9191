"""A dead, stopped or unheard daemon is not a dead host: nothing is lost and no row goes on anybody's host.

A verdict against a host whose gossip alone is blocked: test_lab_faults.py, the partition. MESHD_SOAK=1 makes minutes
of seconds.
"""

import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from labtools import Attached, no_ping_is_lost, nothing_is_deleted, undisturbed

from meshctl import labdaemon
from meshctl.labcluster import Lab
from meshctl.labhost import Host, wait_for

SOAK = bool(os.environ.get("MESHD_SOAK"))
VERDICT_S = 20.0
STOPPED_S = 300.0 if SOAK else 8.0  # after the verdict, which takes about seven
KILLS = 100 if SOAK else 20
AGE_H = 0.001


def sees(host: Host, other: Host) -> str:
    return next(str(m["state"]) for m in host.json("members") if m["name"] == other.name)


def states(host: Host, of: Host) -> set[str]:
    return {e["state"] for e in host.json("endpoint", "ls", "--host", of.name)}


def told(host: Host, kind: str, endpoint: Attached) -> int:
    return sum(e["kind"] == kind and e.get("id") == endpoint.endpoint["id"] for e in host.events())


def test_a_daemon_that_is_stopped_for_longer_than_detection_loses_nothing_and_its_endpoints_are_stale(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    first, second, third = lab3.hosts
    there = trio_of_endpoints[1]
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        os.kill(second.pid, signal.SIGSTOP)
        try:
            for host in (first, third):
                wait_for(
                    f"{host.name} sees host2 failed", VERDICT_S, lambda h=host: sees(h, second) == "failed"
                )
            time.sleep(STOPPED_S)
            for host in (first, third):
                assert states(host, second) == {"stale"}
                assert told(host, "endpoint-stale", there) == 1
                assert host.status()["kernel"]["in_sync"]
        finally:
            os.kill(second.pid, signal.SIGCONT)
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()
    for host in (first, third):
        assert states(host, second) == {"up"}
        assert told(host, "endpoint-up", there) == 1


def test_kill_9_and_restart_again_and_again_loses_no_packet(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        for number in range(KILLS):
            host = lab3.hosts[number % 3]
            host.kill()
            host.start()
        for host in lab3.hosts:
            host.wait_alive(3)
            host.wait_in_sync()


@pytest.fixture
def newer(lab3: Lab) -> Iterator[Path]:
    """A copy of the package elsewhere, with another version."""
    folder = labdaemon.ROOT / f"newer-{lab3.id}"
    installed = Path(__file__).parents[2] / "meshd"
    shutil.copytree(installed, folder / "meshd", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "meshd" / "__init__.py"
    init.write_text(init.read_text() + '\n__version__ = "99.0"\n')
    yield folder / "meshd"
    shutil.rmtree(folder)


def test_an_upgrade_in_place_and_back_loses_no_packet_and_keeps_every_address(
    lab3: Lab, trio_of_endpoints: list[Attached], newer: Path
) -> None:
    def versions() -> set[str]:
        return {m["version"] for host in lab3.hosts for m in host.json("members")}

    before = lab3.hosts[0].json("endpoint", "ls")
    with undisturbed(lab3.hosts, *trio_of_endpoints):
        for package, expected in ((newer, {"99.0"}), (None, versions())):
            for host in lab3.hosts:
                host.stop()
                host.start(package)
            for host in lab3.hosts:
                host.wait_alive(3)
                host.wait_in_sync()
            wait_for(f"all hosts know all to be {expected}", 10, lambda e=expected: versions() == e)
    assert [host.json("endpoint", "ls") for host in lab3.hosts] == [before] * 3


def test_a_host_whose_nic_is_renamed_and_gets_another_mac_is_reached_at_once(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    host = lab3.hosts[1]
    no_ping_is_lost(list(itertools.permutations(trio_of_endpoints, 2)))
    for name, mac in (("up0", "02:00:5e:00:53:01"), ("eth0", "02:00:5e:00:53:02")):
        old = "eth0" if name == "up0" else "up0"
        assert host.run("ip", "link", "set", old, "name", name).returncode == 0
        assert host.run("ip", "link", "set", name, "address", mac).returncode == 0
        no_ping_is_lost(list(itertools.permutations(trio_of_endpoints, 2)))
        for one in lab3.hosts:
            one.wait_alive(3)
            one.wait_in_sync()


def test_rows_of_a_host_failed_for_longer_than_configured_go_and_come_back_with_it(
    lab3: Lab, trio_of_endpoints: list[Attached]
) -> None:
    first, second, third = lab3.hosts
    mac = trio_of_endpoints[1].mac
    first.configure(gossip={"failed_rows_age_h": AGE_H})
    first.stop()
    first.start()
    first.wait_alive(3)
    try:
        with nothing_is_deleted(third):
            second.kill()
            first.wait_rows(mac)
            wait_for(
                "host1's rows age", VERDICT_S, lambda: "rows-aged" in {e["kind"] for e in first.events()}
            )
            first.wait_rows(mac, there=False)
            first.wait_in_sync()
            assert states(first, second) == {"stale"}
            assert mac in third.rows()
            second.start()
        first.wait_alive(3)
        first.wait_rows(mac)
        with undisturbed(lab3.hosts, *trio_of_endpoints):
            first.wait_in_sync()
    finally:
        first.configure(gossip={"failed_rows_age_h": 72.0})
        first.stop()
        first.start()
        first.wait_alive(3)
