"""A daemon under a service manager, which the test imitates: sockets that are passed, what is told to it. The units
themselves are read in tests/unit/test_house_files.py."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshctl.labcluster import Lab
from meshctl.labdaemon import Manager
from meshctl.labhost import Host


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
    manager = Manager(sockets={"cni": api, "api": api})
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
