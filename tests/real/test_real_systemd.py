"""meshd from its Debian package on hosts booted by systemd: start, restart, crash, watchdog, upgrade, reboot, leave,
purge. README's quickstart on fresh hosts: test_real_quickstart.py."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from booted import BootedHost, BootedLan, install_tools, wait_for
from bootedmesh import (
    NEXT,
    UNIT_S,
    VERSION,
    Container,
    alive,
    another_process,
    ask,
    form,
    has_version,
    install,
    knows,
    main_pid,
    pinged,
    state_of,
    wait_alive,
    wait_in_sync,
    wait_ready,
)  # fmt: skip

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

KILLS = 100
RESTART_S = 1.0  # RestartSec=
WATCHDOG_S = 60.0  # 30 the unit's, 10 more until what does not even take SIGABRT is killed, 1 to the restart
VERDICT_S = 30.0


@pytest.fixture(scope="module")
def lan(packages: dict[str, Path]) -> Iterator[BootedLan]:
    """Three booted hosts with the package, one cluster with one overlay."""
    made = BootedLan(3)
    try:
        form(made, packages[VERSION])
        yield made
    finally:
        made.remove()


def test_a_fresh_installation_has_its_user_its_settings_and_one_cluster(lan: BootedLan) -> None:
    for host in lan.hosts:
        assert host.state() == "running"
        assert alive(host) == ["host1", "host2", "host3"]
        assert host.sh("systemctl is-active meshd.service meshd.socket").split() == ["active", "active"]
        assert host.sh("systemctl is-enabled meshd.service meshd.socket").split() == ["enabled", "enabled"]
        assert host.sh("sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding").split() == ["1", "1"]
        status = host.sh(f"grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' /proc/{main_pid(host)}/status")
        uid = host.sh("id -u meshd").strip()
        assert re.search(rf"Uid:\t{uid}\t", status)
        assert "CapBnd:\t0000000000001000" in status
        assert "NoNewPrivs:\t1" in status
        assert host.sh("stat -c '%a %U:%G' /run/meshd/api.sock /etc/meshd/keyring /etc/meshd/meshd.toml").splitlines() == [
            "660 root:meshd", "600 meshd:meshd", "640 root:meshd"
        ]  # fmt: skip
        assert host.run("meshd", "--config", "/nowhere", "--check", check=False).returncode == 2


def test_lintian_finds_no_error_in_the_package(packages: dict[str, Path]) -> None:
    install_tools({"lintian": "lintian"})
    done = subprocess.run(
        ["lintian", "--fail-on", "error", str(packages[VERSION])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_journal_has_the_logs_fields(lan: BootedLan) -> None:
    host = lan.hosts[0]
    host.run("meshctl", "network", "rm", "nowhere", check=False)
    lines = host.sh("journalctl -u meshd -o json MESHD_EVENT=audit").splitlines()
    entry = json.loads(lines[-1])
    assert entry["MESSAGE"].startswith("audit ")
    assert (entry["MESHD_RESULT"], entry["MESHD_OBJECT"]) == ("not-found", "nowhere")
    assert entry["PRIORITY"] == "6"


@pytest.mark.parametrize("command", ["restart", "reload", "stop meshd; systemctl start"])
def test_what_systemctl_does_to_the_daemon_costs_no_packet(lan: BootedLan, command: str) -> None:
    first, second, third = lan.hosts
    with pinged(third, first):
        for host in (first, third):
            host.sh(
                f"systemctl {command} meshd"
                if ";" not in command
                else f"systemctl {command.replace(';', ' meshd;')} meshd"
            )
            wait_ready(host)
            wait_alive(second, 3)
    for host in lan.hosts:
        wait_in_sync(host)


def test_a_killed_daemon_comes_back_by_itself_and_costs_no_packet(lan: BootedLan) -> None:
    first, second, third = lan.hosts
    with pinged(third, first):
        for host in (first, third):
            with another_process(host) as before:
                host.sh(f"kill -9 {before}")
        wait_alive(second, 3)
    for host in lan.hosts:
        wait_in_sync(host)


@pytest.mark.timeout(3600)
def test_a_hundred_kills_cost_no_packet(lan: BootedLan) -> None:
    """One after the other of three daemons, each back by its unit alone before the next goes."""
    first, _, third = lan.hosts
    with pinged(third, first):
        for number in range(KILLS):
            host = lan.hosts[number % len(lan.hosts)]
            with another_process(host) as before:
                host.sh(f"kill -9 {before}")
        for host in lan.hosts:
            wait_alive(host, 3)
    for host in lan.hosts:
        wait_in_sync(host)


def test_a_daemon_that_stands_still_is_ended_by_the_watchdog_and_costs_no_packet(lan: BootedLan) -> None:
    first, second, third = lan.hosts
    with pinged(third, first):
        with another_process(first, WATCHDOG_S) as before:
            first.sh(f"kill -STOP {before}")
        for host in lan.hosts:
            wait_alive(host, 3)
    assert "Watchdog timeout" in first.sh("journalctl -u meshd -o cat")
    for host in (first, second, third):
        wait_in_sync(host)


def test_a_client_of_the_socket_waits_while_the_daemon_restarts(lan: BootedLan) -> None:
    host = lan.hosts[0]
    host.sh("systemctl kill --signal=SIGKILL meshd.service")
    done = host.run("meshctl", "members")
    assert done.stdout.count("alive") == 3


def test_mixed_versions_work_together_and_an_upgrade_and_a_rollback_cost_no_packet(
    lan: BootedLan, packages: dict[str, Path]
) -> None:
    first, second, third = lan.hosts

    with pinged(third, first):
        for version in (NEXT, VERSION):
            for host in (first, third):
                before = main_pid(host)
                install(host, packages[version])
                assert main_pid(host) not in (0, before)
                wait_ready(host)
                wait_for(f"{host.name}'s version", partial(has_version, second, host, version), UNIT_S)
                network = f"with-{host.name}-{version.replace('.', '-')}"
                second.run("meshctl", "network", "create", network)
                wait_for("news between versions", partial(knows, host, network), UNIT_S)
        wait_alive(second, 3)
    for host in lan.hosts:
        wait_in_sync(host)


def test_a_rebooted_host_is_a_member_again_and_its_neighbours_traffic_goes_on(lan: BootedLan) -> None:
    first, second, third = lan.hosts
    with pinged(third, first):
        second.power_off()
        second.boot()
        wait_alive(second, 3)
        wait_alive(first, 3)
    assert ask(second, "endpoint", "ls", "--host", "host2") == []
    wait_in_sync(second)


def test_a_host_whose_power_fails_comes_back_with_its_networks(lan: BootedLan) -> None:
    first, second, _ = lan.hosts
    second.pull_the_plug()
    wait_for("host1 to see it failed", lambda: state_of(first, "host2") == "failed", VERDICT_S)
    second.boot()
    wait_alive(first, 3)
    wait_alive(second, 3)
    print(f"from the unit's start to a member that others see alive: {joined_after(second, first):.2f} s")
    container = Container(second, "after", "sleep", "infinity")
    assert container.address
    container.end()


def joined_after(host: BootedHost, seen_from: BootedHost) -> float:
    """Return how long after its unit's start a host was alive to another one, seconds."""
    said = host.sh("systemctl show --value --property=ExecMainStartTimestampMonotonic meshd")
    started = int(said) / 1e6 + time.time() - time.monotonic()
    events = [
        json.loads(line) for line in seen_from.run("meshctl", "-o", "json", "events").stdout.splitlines()
    ]
    seen = [e["time"] for e in events if (e["kind"], e.get("host")) == ("member-alive", host.name)]
    return float(seen[-1]) - started


def test_a_host_that_leaves_is_down_until_it_is_started_and_costs_no_packet(lan: BootedLan) -> None:
    first, second, third = lan.hosts
    units = ("meshd.service", "meshd.socket", "meshd-cni.socket", "meshd-docker.socket")
    with pinged(third, first):
        second.run("meshctl", "leave")
        for unit in units:
            wait_for(f"{unit} to be down", lambda unit=unit: active(second, unit) == ["inactive"], UNIT_S)
        wait_for("host1 to know", lambda: state_of(first, "host2") == "left", UNIT_S)
        assert second.run("meshctl", "members", check=False).returncode == 3  # nobody is started by a client
        time.sleep(2 * RESTART_S)
        assert active(second, *units) == ["inactive"] * len(units)
        assert second.sh("ip -o link show type vxlan") == ""
        second.run("systemctl", "start", "meshd")
        for host in lan.hosts:
            wait_alive(host, 3)
    container = Container(second, "again", "sleep", "infinity")
    assert container.address
    container.end()


def active(host: BootedHost, *units: str) -> list[str]:
    return host.run("systemctl", "is-active", *units, check=False).stdout.split()


def test_a_removal_warns_of_endpoints_and_a_purge_leaves_nothing(
    lan: BootedLan, packages: dict[str, Path]
) -> None:
    host = lan.hosts[2]
    container = Container(host, "late", "sleep", "infinity")
    links = host.sh("ip -o link show")
    assert "alias meshd:" in links
    said = host.sh("apt-get remove -y meshd 2>&1")
    assert "1 endpoint(s) still attached" in said
    assert "alias meshd:" in host.sh("ip -o link show")
    said = host.sh("apt-get purge -y meshd 2>&1")
    assert host.sh("ip -o link show; ip nexthop; nft list ruleset").count("meshd") == 0
    assert "m" not in host.sh("ip -o link show | sed -n 's/^[0-9]*: \\(m[a-z][0-9a-f]\\{8\\}\\)[@:].*/\\1/p'")
    left = host.sh("find / -xdev \\( -name '*meshd*' -o -name meshctl \\) -not -path '/proc/*' -not -path '/sys/*'"
                   " -not -path '/root/*' -not -path '/var/log/*' -not -path '/tmp/*' -not -path '/sys/fs/*' || true")  # fmt: skip
    assert left.split() == []
    assert host.run("id", "meshd", check=False).returncode != 0
    container.end()
