"""meshd from its Debian package on hosts booted by systemd: install, start, restart, crash, upgrade, reboot, purge."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from booted import ROOT, BootedHost, BootedLan, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

VERSION, NEXT = "0.1.0", "0.1.1"
NETWORK = "blue"
PING_EVERY_S = 0.01
UNIT_S = 30.0
TRAFFIC_S = 1.0  # how long traffic is watched after what happened to the daemon is over


def build(version: str, folder: Path) -> Path:
    """Build the package of this checkout under a version, and return its copy in ``folder``."""
    done = subprocess.run(
        ["systemd/deb/build"], cwd=ROOT, env={**os.environ, "VERSION": version, "OUT": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("deb")
    return {version: build(version, folder) for version in (VERSION, NEXT)}


@pytest.fixture(scope="module")
def lan(packages: dict[str, Path]) -> Iterator[BootedLan]:
    """Three booted hosts with the package, one cluster with one overlay: made as README says."""
    made = BootedLan(3)
    try:
        for host in made.hosts:
            install(host, packages[VERSION])
        first, *others = made.hosts
        said = json.loads(first.run("meshctl", "-o", "json", "init").stdout)
        for host in others:
            host.run("meshctl", "join", said["token"])
        for host in made.hosts:
            wait_alive(host, 3)
        first.run("meshctl", "network", "create", NETWORK)
        yield made
    finally:
        made.remove()


def install(host: BootedHost, package: Path) -> str:
    """Install a package by apt, which has no network here; return what it said."""
    host.put(package, "/root/meshd.deb")
    return host.sh(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y --allow-downgrades /root/meshd.deb 2>&1"
    )


def ask(host: BootedHost, *words: str) -> object:
    """Run ``meshctl -o json WORDS`` and return its document; None where it fails."""
    done = host.run("meshctl", "-o", "json", *words, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def alive(host: BootedHost) -> list[str]:
    members = ask(host, "members")
    return [m["name"] for m in members if m["state"] == "alive"] if isinstance(members, list) else []


def wait_alive(host: BootedHost, count: int) -> None:
    wait_for(f"{count} live members on {host.name}", lambda: len(alive(host)) == count, UNIT_S)


def wait_ready(host: BootedHost) -> None:
    wait_for(
        f"{host.name} to be ready", lambda: isinstance(s := ask(host, "status"), dict) and s["ready"], UNIT_S
    )


def wait_in_sync(host: BootedHost) -> None:
    wait_for(
        f"{host.name}'s kernel", lambda: host.run("meshctl", "diff", check=False).returncode == 0, UNIT_S
    )


def knows(host: BootedHost, network: str) -> bool:
    return isinstance(ask(host, "network", "inspect", network), dict)


def has_version(seen_from: BootedHost, host: BootedHost, version: str) -> bool:
    members = ask(seen_from, "members")
    rows = members if isinstance(members, list) else []
    return any(row["name"] == host.name and row["version"] == version for row in rows)


def main_pid(host: BootedHost) -> int:
    return int(host.sh("systemctl show --value --property=MainPID meshd"))


def is_restarted(host: BootedHost, before: int) -> bool:
    return main_pid(host) not in (0, before)


KEEP_PID = 'echo $$ >"$0"; exec "$@"'


class Container:
    """A process on the overlay, by ``meshctl run``."""

    def __init__(self, host: BootedHost, name: str, *command: str) -> None:
        self.host = host
        self.name = name
        self.pid_file = f"/run/{name}.pid"
        self.process = subprocess.Popen(
            host.argv("meshctl", "run", NETWORK, "--name", name, "--", "sh", "-c", KEEP_PID, self.pid_file, *command),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(f"endpoint {name}", lambda: bool(self.address), UNIT_S)

    @property
    def address(self) -> str:
        found = ask(self.host, "endpoint", "ls")
        rows = found if isinstance(found, list) else []
        return next((row["ips"][0].split("/")[0] for row in rows if row["name"] == self.name), "")

    def end(self) -> str:
        """Interrupt it, wait until its endpoint is gone, and return what it printed."""
        self.host.sh(f"kill -INT $(cat {self.pid_file})")  # nsenter passes no signal on
        said, _ = self.process.communicate(timeout=UNIT_S)
        return said


@contextmanager
def pinged(source: BootedHost, target: BootedHost) -> Iterator[None]:
    """Ping from a container on one host to one on the other every 10 ms; at the end, every ping was answered."""
    server = Container(target, "server", "sleep", "infinity")
    wait_in_sync(source)
    client = Container(source, "client", "ping", "-n", "-i", str(PING_EVERY_S), server.address)
    time.sleep(TRAFFIC_S)
    try:
        yield
        time.sleep(TRAFFIC_S)
    finally:
        said = client.end()
        server.end()
    seen = {int(number) for number in re.findall(r"icmp_seq=(\d+)", said)}
    assert len(seen) > TRAFFIC_S / PING_EVERY_S
    assert set(range(1, max(seen) + 1)) - seen == set()


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
            before = main_pid(host)
            host.sh(f"kill -9 {before}")
            wait_for("another main process", partial(is_restarted, host, before), UNIT_S)
            wait_ready(host)
        wait_alive(second, 3)
    for host in lan.hosts:
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
    joined = second.sh(
        "systemctl show --value --property=ActiveEnterTimestampMonotonic,ExecMainStartTimestampMonotonic meshd"
    )
    ready_us, started_us = (int(value) for value in sorted(joined.split(), reverse=True))
    print(f"from the unit's start to ready after a reboot: {(ready_us - started_us) / 1e6:.2f} s")


def test_a_host_whose_power_fails_comes_back_with_its_networks(lan: BootedLan) -> None:
    second = lan.hosts[1]
    second.pull_the_plug()
    second.boot()
    wait_alive(second, 3)
    container = Container(second, "after", "sleep", "infinity")
    assert container.address
    container.end()


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
