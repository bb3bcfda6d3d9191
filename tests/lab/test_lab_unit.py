"""A daemon under a service manager, which the test imitates: sockets that are passed, what is told to it. The units
themselves are read in tests/unit/test_house_files.py."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from meshctl import labdaemon
from meshctl.labcluster import Lab
from meshctl.labdaemon import Manager
from meshctl.labhost import Host, wait_for


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host alone, its daemon stopped."""
    lab = Lab.up(1, tmp_path_factory.mktemp("unit") / "lab")
    (only,) = lab.hosts
    only.stop()
    yield only
    lab.down()


@pytest.fixture
def api(host: Host) -> Iterator[socket.socket]:
    """What meshd.socket does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(host.socket))
        host.socket.chmod(0o660)
        sock.listen()
        yield sock
    host.stop()
    host.socket.unlink()


def test_clients_wait_while_the_daemon_is_killed_and_started_and_all_are_answered(
    host: Host, api: socket.socket
) -> None:
    manager = Manager(sockets={"other": api, "api": api})
    host.start(manager=manager)
    before = os.stat(host.socket)
    assert "a socket that systemd passes is not served" in host.log.read_text()
    host.json("network", "create", "blue")
    with ThreadPoolExecutor(8) as pool:
        for end in (host.kill, host.stop):
            end()
            asked = [pool.submit(host.json, "network", "inspect", "blue") for _ in range(8)]
            host.begin(manager=manager)
            assert [answer.result()["name"] for answer in asked] == ["blue"] * 8
    after = os.stat(host.socket)
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)


class ServiceManager:
    """The notify socket and the watchdog's period of a unit: sd_notify(3), sd_watchdog_enabled(3)."""

    def __init__(self, host: Host, watchdog_s: float) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = host.dir / "run" / "notify"
        path.unlink(missing_ok=True)
        self.sock.bind(str(path))
        path.chmod(0o666)
        self.seen = host.lab.view.of(host.dir, host.name)
        self.environment = {
            "NOTIFY_SOCKET": str(self.seen / "run" / "notify"),
            "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
        }

    def close(self) -> None:
        self.sock.close()

    def next(self, within_s: float) -> list[str]:
        """Return the lines of the next message. Raises TimeoutError where none comes."""
        self.sock.settimeout(within_s)
        return self.sock.recv(4096).decode().splitlines()

    def until(self, wanted: str, within_s: float = 20.0) -> list[str]:
        """Return all lines up to those of a message that has ``wanted``."""
        lines: list[str] = []
        while wanted not in (new := self.next(within_s)):
            lines += new
        return lines + new

    def starves(self) -> None:
        """Wait until for twice the watchdog's period nothing feeds it; what came before may be three times that."""
        for _ in range(200):
            try:
                self.until("WATCHDOG=1", 2 * WATCHDOG_S)
            except TimeoutError:
                return
        raise AssertionError("the watchdog is fed and fed")


@pytest.fixture
def manager(host: Host) -> Iterator[ServiceManager]:
    with closing(ServiceManager(host, WATCHDOG_S)) as listening:
        yield listening


NFT = """#!/bin/sh
if [ -e "$0.hangs" ]; then
  echo "$$" >"$0.pid"
  exec sleep 600
fi
exec /usr/sbin/nft "$@"
"""
"""An nft that hangs while a file stands beside it: a kernel call that does not return, from outside the daemon."""

WATCHDOG_S = 1.0


def test_ready_comes_last_and_the_watchdog_is_fed_until_a_kernel_call_hangs(
    host: Host, manager: ServiceManager
) -> None:
    tools = host.dir / "bin"
    tools.mkdir(exist_ok=True)
    nft, hangs, pid = tools / "nft", tools / "nft.hangs", tools / "nft.pid"
    nft.write_text(NFT)
    nft.chmod(0o755)
    labdaemon.give(tools)
    path = f"{manager.seen}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    host.begin(manager=Manager(environment={**manager.environment, "PATH": path}))
    lines = manager.until("READY=1")
    assert lines[:2] == ["STATUS=loading the state", "STATUS=reading and adopting what the kernel holds"]
    assert host.status()["ready"]
    (told,) = [line for line in lines[2:] if line.startswith("STATUS=")]
    assert told == "STATUS=host1: hosts: 1 alive; 0 endpoints here; kernel in sync"
    for _ in range(4):
        manager.until("WATCHDOG=1")

    hangs.touch()
    try:
        assert host.run("nft", "delete", "table", "inet", "meshd").returncode == 0
        wait_for("the daemon runs nft to repair it", 20, pid.exists)
        manager.starves()
        assert host.status()["ready"]  # the API still answers: it is the netlink loop that stalled
        wait_for("the log says so", 20, lambda: "loops=['netlink']" in host.log.read_text())
    finally:
        hangs.unlink()
        os.kill(int(pid.read_text()), signal.SIGKILL)
    manager.until("WATCHDOG=1")
    host.stop()
    manager.until("STOPPING=1")
    host.start()
    host.wait_in_sync()
    host.stop()


def test_a_watchdog_of_a_daemon_that_stands_still_gets_nothing(host: Host, manager: ServiceManager) -> None:
    host.start(manager=Manager(environment=manager.environment))
    manager.until("WATCHDOG=1")
    os.kill(host.pid, signal.SIGSTOP)
    try:
        manager.starves()
    finally:
        os.kill(host.pid, signal.SIGCONT)
    manager.until("WATCHDOG=1")
    host.stop()


def settings_of(host: Host) -> str:
    return (host.dir / "etc" / "meshd.toml").read_text()


def test_a_reload_uses_what_it_can_and_names_what_needs_a_restart(host: Host) -> None:
    written = settings_of(host)
    host.start()
    try:
        assert host.meshctl("reload").stdout == "nothing has changed\n"
        host.configure(
            log={"level": "error"}, gossip={"seeds": ["192.0.2.250:7947"]}, pools={"v4": ["10.77.0.0/16"]}
        )
        changed = host.json("reload")["changed"]
        assert [each["key"] for each in changed] == ["gossip.seeds", "pools.v4", "log.level"]
        said = host.log.read_text()
        host.json("network", "create", "green", "--label", "a=b")  # an audit line, which is info
        assert host.log.read_text() == said
        (subnet,) = host.json("network", "inspect", "green")["subnets"]
        assert subnet.startswith("10.77.")
        host.json("network", "rm", "green")

        host.configure(gossip={"port": 8000}, log={"level": "info"})
        done = host.meshctl("reload")
        assert done.stdout.splitlines() == [
            "changed: log.level: error -> info",
            "needs a restart: gossip.port: 7947 -> 8000",
        ]
        assert any("gossip.port (7947 now, 8000 then)" in line for line in host.status()["health"])
        host.configure(gossip={"port": 7947})
        assert host.meshctl("reload").stdout == "nothing has changed\n"
        assert host.status()["health"] == []

        keyring = host.dir / "etc" / "keyring"
        keys = keyring.read_text()
        keyring.write_text(f"{keys}beef:{'A' * 43}=\n")
        assert "has key beef, which this host does not use" in host.meshctl("reload").stdout
        keyring.write_text(keys)
    finally:
        (host.dir / "etc" / "meshd.toml").write_text(written)
        host.stop()


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("meshd.toml", "[gossip]\nprot = 1\n", "meshd.toml: gossip.prot: unknown key"),
        ("meshd.toml", '[log]\nlevel = "loud"\n', "meshd.toml: log.level: "),
        ("meshd.toml", "[log\n", "meshd.toml: not TOML"),
        ("keyring", "zz\n", "keyring: line 1: not KEYID:BASE64"),
    ],
)
def test_a_reload_of_a_wrong_file_changes_nothing_and_says_what_is_wrong(
    host: Host, manager: ServiceManager, file: str, text: str, error: str
) -> None:
    path = host.dir / "etc" / file
    written = path.read_text()
    host.start(manager=Manager(environment=manager.environment))
    try:
        manager.until("READY=1")
        path.write_text(text)
        done = host.meshctl("reload")
        assert (done.returncode, done.stdout) == (1, "")
        assert error in done.stderr
        assert done.stderr.splitlines()[0].endswith("; nothing was changed")
        os.kill(host.pid, signal.SIGHUP)
        said = manager.until("READY=1")
        assert "RELOADING=1" in said
        assert any(line.startswith("MONOTONIC_USEC=") for line in said)
        assert "not reloaded: nothing was changed" in host.log.read_text()
        path.write_text(written)
        assert host.meshctl("reload").stdout == "nothing has changed\n"
    finally:
        path.write_text(written)
        host.stop()
