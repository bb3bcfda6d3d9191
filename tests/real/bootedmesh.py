"""meshd on hosts booted by systemd (booted.py): its package built and installed, what it says, containers on its overlay
and pings between them. Decides nothing of how a host is booted."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from booted import ROOT, BootedHost, BootedLan, wait_for

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


def install(host: BootedHost, package: Path) -> str:
    """Install a package by apt, which has no network here; return what it said."""
    host.put(package, "/root/meshd.deb")
    return host.sh(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y --allow-downgrades /root/meshd.deb 2>&1"
    )


def form(lan: BootedLan, package: Path) -> None:
    """Install the package on every host and make them one cluster with one overlay."""
    for host in lan.hosts:
        install(host, package)
    first, *others = lan.hosts
    said = json.loads(first.run("meshctl", "-o", "json", "init").stdout)
    for host in others:
        host.run("meshctl", "join", said["token"])
    for host in lan.hosts:
        wait_alive(host, len(lan.hosts))
    first.run("meshctl", "network", "create", NETWORK)


def ask(host: BootedHost, *words: str) -> object:
    """Run ``meshctl -o json WORDS`` and return its document; None where it fails."""
    done = host.run("meshctl", "-o", "json", *words, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def members(host: BootedHost) -> dict[str, dict[str, Any]]:
    """Return what a host says of each member, by name; nothing where it does not answer."""
    found = ask(host, "members")
    return {row["name"]: row for row in found} if isinstance(found, list) else {}


def state_of(seen_from: BootedHost, name: str) -> str:
    return str(members(seen_from).get(name, {}).get("state", ""))


def alive(host: BootedHost) -> list[str]:
    return [name for name, row in members(host).items() if row["state"] == "alive"]


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
    return members(seen_from).get(host.name, {}).get("version") == version


def main_pid(host: BootedHost) -> int:
    return int(host.sh("systemctl show --value --property=MainPID meshd"))


@contextmanager
def another_process(host: BootedHost, within_s: float = UNIT_S) -> Iterator[int]:
    """What is done to the daemon's process, whose id this is, has its unit start another, which becomes ready."""
    before = main_pid(host)
    yield before
    wait_for("another main process", lambda: main_pid(host) not in (0, before), within_s)
    wait_ready(host)


KEEP_PID = 'echo $$ >"$0"; exec "$@"'


class Container:
    """A process on the overlay, by ``meshctl run``. What it prints goes to a file: a full pipe would hold it up."""

    def __init__(self, host: BootedHost, name: str, *command: str) -> None:
        self.host = host
        self.name = name
        self.pid_file = f"/run/{name}.pid"
        self.log = host.console.with_name(f"{name}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                host.argv("meshctl", "run", NETWORK, "--name", name, "--", "sh", "-c", KEEP_PID, self.pid_file, *command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(f"endpoint {name}", lambda: bool(self.address), UNIT_S)

    @property
    def address(self) -> str:
        found = ask(self.host, "endpoint", "ls")
        rows = found if isinstance(found, list) else []
        return next((row["ips"][0].split("/")[0] for row in rows if row["name"] == self.name), "")

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        """Interrupt it, and wait until its endpoint is gone."""
        self.host.sh(f"kill -INT $(cat {self.pid_file})")  # nsenter passes no signal on
        self.process.wait(UNIT_S)


@contextmanager
def pinged(source: BootedHost, target: BootedHost) -> Iterator[None]:
    """Ping from a container on one host to one on the other, as ``pinging`` does."""
    server = Container(target, "server", "sleep", "infinity")
    try:
        wait_in_sync(source)
        with pinging(source, server.address):
            yield
    finally:
        server.end()


@contextmanager
def pinging(source: BootedHost, address: str) -> Iterator[None]:
    """Ping an address from a container every 10 ms; at the end, every ping was answered."""
    client = Container(source, "client", "ping", "-n", "-i", str(PING_EVERY_S), address)
    time.sleep(TRAFFIC_S)
    try:
        yield
        before = len(answered(client))
        time.sleep(TRAFFIC_S)
        assert len(answered(client)) > before > 0, "the ping has stopped"
    finally:
        client.end()
    seen = answered(client)
    assert set(range(1, max(seen) + 1)) - seen == set()
    print(f"{len(seen)} pings, all answered")


def answered(client: Container) -> set[int]:
    return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", client.said)}
