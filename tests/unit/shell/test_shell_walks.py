"""What is asked for now and then costs what this host has, not what all hosts have: visited endpoints are counted."""

import json
import os

import pytest
import trio
from fake_cluster import BOOT, World

from meshd import daemon
from meshd.api import views
from meshd.config import LISTED_AT_ONCE
from meshd.model import Endpoint
from meshd.plan.desired import outward
from meshd.shell import hostaccess, limits, networks, publish
from meshd.shell.attach import AttachRequest, Netns, attach, detach
from meshd.state.networks import NetworkRequest
from meshd.state.roster import Roster

AWAY = b"away" * 4


class Counted(Roster):
    """Counts the endpoints that are read; iterating counts every one."""

    visited = 0

    def __iter__(self):
        self.visited += len(self)
        return super().__iter__()

    def items(self):
        self.visited += len(self)
        return super().items()

    def values(self):
        self.visited += len(self)
        return super().values()

    def __getitem__(self, key):
        self.visited += 1
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.visited += 1
        return super().get(key, default)


async def housekeeping(host, network):
    daemon._lost(host)
    await networks.finish_removals(host)
    await hostaccess.keep_all(host)
    limits.neighbours_needed(host)


async def attaching(host, network):
    limits.check_ports(host, network.id, "blue", "overlay")
    with publish.reserved(host, ()):
        pass
    await networks.on_endpoint_gone(host, network.id)


async def showing(host, network):
    views.all_networks(host)
    views.named_network(host, "blue")
    views.status(host)
    outward(host.view(), 4)


async def listing_a_namespace(host, network):
    await views.endpoints(host, views.EndpointFilter(netns_cookie=7, boot_id=BOOT))


async def listing_a_small_network(host, network):
    small = networks.resolve(host, "green")
    await views.endpoints(host, views.EndpointFilter(network=small.id))


async def visits(ask, away):
    """Count what ``ask`` reads where another host has ``away`` endpoints."""
    (host,) = World().hosts
    host.endpoints = Counted()
    network = await networks.create_network(
        host, NetworkRequest("blue", "overlay", ("10.1.0.0/16",), host_access=True)
    )
    await networks.create_network(host, NetworkRequest("green", "overlay", ("10.2.0.0/16",)))
    for number, name in enumerate(("blue", "green")):
        await attach(host, AttachRequest(name, Netns(7 + number, BOOT)))
    for number in range(away):
        id_ = number.to_bytes(16, "big")
        host.endpoints[id_] = Endpoint(network.id, AWAY, f"e{number}", 4096 + number, (), bytes(6), "eth0")
    await hostaccess.keep_all(host)
    host.endpoints.visited = 0
    await ask(host, network)
    return host.endpoints.visited


@pytest.mark.parametrize(
    "ask", [housekeeping, attaching, showing, listing_a_namespace, listing_a_small_network]
)
async def test_it_reads_as_many_endpoints_among_ten_as_among_a_thousand(ask):
    few = await visits(ask, 10)
    assert few == await visits(ask, 1000)
    assert few < 100


async def test_who_had_an_address_is_found_without_a_look_at_every_record(monkeypatch):
    (host,) = World().hosts
    await networks.create_network(host, NetworkRequest("blue", "overlay", ("10.1.0.0/16",)))
    first = await attach(host, AttachRequest("blue", Netns(7, BOOT), ips=("10.1.0.9",)))
    await detach(host, first.id)
    monkeypatch.setattr(host.store, "all", None)
    again = await attach(host, AttachRequest("blue", Netns(8, BOOT), ips=("10.1.0.9",)))
    assert (again.id, again.endpoint.mac) == (first.id, first.endpoint.mac)


async def test_a_long_list_is_in_order_and_gives_the_loop_its_turn(nursery):
    (host,) = World().hosts
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    for number in range(1000):
        network, id_ = bytes([number % 3]) * 16, os.urandom(16)
        host.endpoints[id_] = Endpoint(network, AWAY, f"e{number % 9}", number, (), bytes(6), "eth0")
    nursery.start_soon(other)
    listed = json.loads(await views.endpoints(host, views.EndpointFilter()))
    assert turns >= 1000 // LISTED_AT_ONCE
    assert len(listed) == 1000
    assert listed == sorted(listed, key=lambda each: (each["network"], each["name"], each["id"]))
    nursery.cancel_scope.cancel()
