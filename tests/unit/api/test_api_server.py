"""api.sock as a whole: the real server, routes and use cases behind a real socket; the cluster is in memory
(tests/unit/shell/fake_cluster.py)."""

import json
import shutil

import pytest
import trio

from meshd.api.server import open_api
from meshd.errors import Conflict
from tests.unit.shell.fake_cluster import BOOT, World

WEB = {"network": "blue", "name": "web", "netns": {"cookie": 7, "boot_id": BOOT}}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_makes_a_network_attaches_and_watches_until_the_daemon_stops(tmp_path):
    (host,) = World().hosts
    path = str(tmp_path / "api.sock")

    async def curl(url, body=None, *args):
        command = ["curl", "-sS", "--unix-socket", path, "-w", "\n%{http_code}", *args, f"http://meshd{url}"]
        if body is not None:
            command += ["--data-binary", "@-"]
        done = await trio.run_process(command, capture_stdout=True, stdin=(body or "").encode())
        body, _, status = done.stdout.decode().rpartition("\n")
        return int(status), json.loads(body)

    api = await open_api(host, tmp_path)
    watched, watching, subscribe = [], trio.Event(), host.events.subscribe

    def subscribed(**kw):
        watching.set()
        return subscribe(**kw)

    host.events.subscribe = subscribed

    async def watch():
        command = ["curl", "-sSN", "--unix-socket", path, "http://m/v1/events?follow=1"]
        done = await trio.run_process(command, capture_stdout=True)  # a torn stream would be exit status 18
        watched.extend(json.loads(line)["kind"] for line in done.stdout.splitlines())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.serve)
        host.events.publish("member-alive")
        nursery.start_soon(watch)
        assert (await curl("/v1/members"))[1][0]["name"] == "host1"
        assert (await curl("/v1/networks", '{"name":"blue"}'))[0] == 201
        assert (await curl("/v1/endpoints", json.dumps(WEB)))[0] == 201
        assert (await curl("/v1/endpoints", json.dumps(WEB)))[0] == 200
        assert (await curl("/v1/networks/blue", None, "-X", "DELETE"))[0] == 409
        assert (await curl("/v1/endpoints", '{"a":' + "[" * 30_000))[0] == 400
        assert (await curl("/v1/networks", "x" * 2_000_000))[0] == 413
        await watching.wait()
        await api.stop()
    assert watched == ["member-alive"]
    assert not (tmp_path / "api.sock").exists()


async def test_a_second_daemon_leaves_the_first_ones_socket_alone(tmp_path):
    (host,) = World().hosts
    api = await open_api(host, tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.serve)
        with pytest.raises(Conflict, match="another process answers"):
            await open_api(host, tmp_path)
        assert (tmp_path / "api.sock").is_socket()
        await api.stop()
