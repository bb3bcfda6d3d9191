"""Sockets that a service manager passes: taken over as they are, left to it at the end."""

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest
import trio

from meshd.api.activation import passed
from meshd.api.server import open_api
from meshd.errors import Unavailable
from tests.unit.shell.fake_cluster import World

FIRST_FD = 200


def variables(names: str, count: int, pid: int | None = None) -> dict[str, str]:
    return {
        "LISTEN_PID": str(os.getpid() if pid is None else pid),
        "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": names,
        "HOME": "/",
    }


@pytest.fixture
def unit(tmp_path) -> Iterator[socket.socket]:
    """The socket as the manager holds it; the daemon is given a copy."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "api.sock"))
        sock.listen()
        yield sock


def give(*sockets: socket.socket) -> None:
    for number, sock in enumerate(sockets):
        assert fcntl.fcntl(sock, fcntl.F_DUPFD, FIRST_FD + number) == FIRST_FD + number


def test_sockets_are_found_by_name_and_the_variables_go(unit):
    give(unit, unit)
    environ = variables("api:cni", 2)
    with passed(environ, FIRST_FD) as found:
        (api,) = found.take("api")
        assert (api.getsockname(), api.getblocking(), os.get_inheritable(api.fileno())) == (
            unit.getsockname(),
            False,
            False,
        )
        assert found.take("api") == found.take("docker") == []
        assert found.close() == ["cni"]
        api.close()
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, variables("api", 1, pid=1), {"LISTEN_FDS": "x"}]
)
def test_what_is_not_passed_to_this_process_is_not_touched(environ, unit):
    give(unit)
    with passed(dict(environ), FIRST_FD) as found:
        assert found.take("api") == []
    os.close(FIRST_FD)  # still open


@pytest.mark.parametrize(
    ("family", "kind", "why"),
    [
        (socket.AF_UNIX, socket.SOCK_DGRAM, "not a unix stream"),
        (socket.AF_INET, socket.SOCK_STREAM, "not a unix stream"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "does not listen"),
    ],
)
def test_a_socket_that_cannot_be_served_is_refused_by_name(family, kind, why):
    with socket.socket(family, kind) as sock:
        give(sock)
        with pytest.raises(Unavailable, match=f"'api'.*{why}"), passed(variables("api", 1), FIRST_FD):
            raise AssertionError("unreachable")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(FIRST_FD)


async def test_a_client_that_comes_while_the_daemon_restarts_is_answered_by_the_next_one(tmp_path, unit):
    path = unit.getsockname()
    (host,) = World().hosts

    async def daemon(during):
        give(unit)
        with passed(variables("api", 1), FIRST_FD) as found:
            api = await open_api(host, tmp_path, found.take("api"))
            async with trio.open_nursery() as nursery:
                await nursery.start(api.serve)
                await during()
                await api.stop()

    async def ask(client):
        await client.send_all(b"GET /healthz HTTP/1.1\r\nHost: m\r\n\r\n")

    await daemon(trio.lowlevel.checkpoint)
    async with await trio.open_unix_socket(path) as client:  # nobody accepts
        await ask(client)

        async def answered():
            assert (await client.receive_some()).startswith(b"HTTP/1.1 200")

        await daemon(answered)
    assert (tmp_path / "api.sock").is_socket()
