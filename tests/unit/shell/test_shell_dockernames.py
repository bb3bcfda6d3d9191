"""Reading container names, from an engine that is a few lines of HTTP on a unix socket in the same loop."""

import json
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
import trio
import trio.testing

from meshd import config
from meshd.model import UNKNOWN_NETNS
from meshd.shell import dockernames, networks
from meshd.shell.attach import AttachRequest, Netns, attach
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World

NET, EP = "n" * 64, "e" * 64


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


class Engine:
    """``containers``: id -> what inspect shows. Events are what ``tell`` sends."""

    def __init__(self, path):
        self.path = path
        self.containers = {}
        self.asked = []
        self.listing = None
        self._events, self._coming = trio.open_memory_channel(100)
        self._done = trio.Event()

    def tell(self, kind, container, **attributes):
        actor = {"ID": container, "Attributes": attributes}
        if kind == "network":
            actor = {"ID": NET, "Attributes": {"container": container}}
        self._events.send_nowait(json.dumps({"Type": kind, "Action": "x", "Actor": actor, "time": 1}))

    def end(self):
        self._events.send_nowait(None)

    async def answer(self, stream):
        head = await stream.receive_some(4096)
        target = unquote(head.split()[1].decode())
        self.asked.append(target.partition("?")[0])
        if target.startswith("/events"):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            async for line in self._coming:
                if line is None:
                    break
                for part in (line[:20], line[20:] + "\n"):  # a line may come in pieces
                    await stream.send_all(f"{len(part):x}\r\n{part}\r\n".encode())
            await stream.send_all(b"0\r\n\r\n")
            return
        status, body = "200 OK", b"[]"
        if target.startswith("/containers/json"):
            body = (
                self.listing
                or json.dumps([{"Id": each, "Names": ["x"]} for each in self.containers]).encode()
            )
        else:
            found = self.containers.get(target.split("/")[2])
            status, body = ("404 Not Found", b"{}") if found is None else (status, json.dumps(found).encode())
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def serve(self, task_status=trio.TASK_STATUS_IGNORED):
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(self.path)
        listener.listen(10)
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self.answer, [trio.SocketListener(listener)])
            task_status.started()
            await trio.sleep_forever()


def shown(name, endpoint=EP, aliases=None, options=None):
    plugged = {"EndpointID": endpoint, "Aliases": aliases, "DriverOpts": options, "NetworkID": NET}
    return {
        "Id": "c1",
        "Name": name,
        "NetworkSettings": {"Networks": {"blue": plugged, "other": {"EndpointID": ""}}},
    }


@asynccontextmanager
async def site():
    """A host with an endpoint of Docker's, an engine, and the reader of its names."""
    (cluster,) = World().hosts
    cluster.told = {}
    cluster.alarm = cluster.told.__setitem__
    cluster.calm = lambda kind: cluster.told.pop(kind, None)
    await networks.create_network(cluster, NetworkRequest("blue", "overlay", ("10.1.0.0/24",)))
    request = AttachRequest("blue", Netns(UNKNOWN_NETNS, BOOT), "eth", name=EP[:12])
    await attach(cluster, request, f"docker/{NET}/{EP}")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(str(Path(folder) / "docker.sock"))
        async with trio.open_nursery() as nursery:
            yield cluster, engine, nursery
            nursery.cancel_scope.cancel()


def named(cluster):
    (endpoint,) = cluster.endpoints.values()
    return endpoint.name, endpoint.aliases


async def until(holds):
    for _ in range(2000):
        if holds():
            return
        await trio.sleep(0.01)
    raise AssertionError("never")


@pytest.mark.parametrize(
    "container, result",
    [
        (shown("/web", aliases=["www", "c1", "www", "not a name", "web"]), ("web", ("www", "c1"))),
        (shown("/web", aliases=None), ("web", ())),
        (shown("/" + "x" * 64), (EP[:12], ())),
        (
            shown("/web", options={"name": "mine", "alias": "a,b"}, aliases=["c1"]),
            (EP[:12], ("a", "b", "c1")),
        ),
        (shown("/web", endpoint="f" * 64), (EP[:12], ())),
        (shown("/web", aliases=[f"a{n}" for n in range(100)]), ("web", tuple(f"a{n}" for n in range(64)))),
        ({"Id": "c1"}, (EP[:12], ())),
    ],
    ids=["plain", "no aliases", "too long", "named by an option", "not ours", "many", "bare"],
)
async def test_what_a_running_container_is_called(container, result):
    async with site() as (cluster, engine, nursery):
        engine.containers["c1"] = container
        await nursery.start(engine.serve)
        nursery.start_soon(dockernames.Names(cluster, engine.path).run)
        await until(lambda: "/containers/c1/json" in engine.asked)
        engine.tell("container", "gone")  # what comes later is seen after it
        await until(lambda: "/containers/gone/json" in engine.asked)
        assert named(cluster) == result


async def test_events_name_what_starts_is_connected_or_renamed():
    async with site() as (cluster, engine, nursery):
        await nursery.start(engine.serve)
        nursery.start_soon(dockernames.Names(cluster, engine.path).run)
        await until(lambda: "/containers/json" in engine.asked)
        engine.containers["c1"] = shown("/web")
        engine.tell("network", "c1")
        await until(lambda: named(cluster)[0] == "web")
        engine.containers["c1"] = shown("/later", aliases=["x"])
        engine.tell("container", "c1")
        await until(lambda: named(cluster) == ("later", ("x",)))
        written = len(cluster.journal)
        engine.tell("container", "c1")
        engine.tell("container", "gone")
        await until(lambda: engine.asked[-1] == "/containers/gone/json")
        assert len(cluster.journal) == written  # the same name is not written again


async def test_an_engine_that_is_away_or_breaks_off_is_followed_again(autojump_clock):
    async with site() as (cluster, engine, nursery):
        names = dockernames.Names(cluster, engine.path)
        nursery.start_soon(names.run)
        await trio.sleep(3 * config.DOCKER_RETRY_S)
        assert cluster.told == {}  # an engine that is not there is no trouble
        engine.containers["c1"] = shown("/web")
        await nursery.start(engine.serve)
        await until(lambda: named(cluster)[0] == "web")
        engine.containers["c1"] = shown("/again")
        engine.end()
        await until(lambda: named(cluster)[0] == "again")


@pytest.mark.parametrize(
    "listing", [b"{", b"[7]", b"\xff", b'[{"Id":"c1"}]' + b" " * config.DOCKER_BODY_MAX_BYTES]
)
async def test_an_answer_that_is_none_ends_nothing(autojump_clock, listing):
    async with site() as (cluster, engine, nursery):
        engine.listing = listing
        engine.containers["c1"] = shown("/web")
        await nursery.start(engine.serve)
        nursery.start_soon(dockernames.Names(cluster, engine.path).run)
        await until(lambda: engine.asked.count("/containers/json") > 1)
        engine.listing = None
        await until(lambda: named(cluster)[0] == "web")


async def test_a_socket_that_is_closed_to_the_daemon_is_told_with_what_to_do(autojump_clock, monkeypatch):
    async with site() as (cluster, engine, nursery):
        open_ = trio.open_unix_socket

        async def refused(path):
            await trio.lowlevel.checkpoint()
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(trio, "open_unix_socket", refused)  # root may open any
        nursery.start_soon(dockernames.Names(cluster, engine.path).run)
        await until(lambda: cluster.told)
        assert "SupplementaryGroups=docker" in cluster.told["docker-names"]
        monkeypatch.setattr(trio, "open_unix_socket", open_)
        await nursery.start(engine.serve)
        await until(lambda: not cluster.told)
