"""When a host is an endpoint itself; fake are kernel, journal and gossip (fake_cluster.py)."""

import msgspec
import pytest

from meshd.errors import Conflict, Unavailable
from meshd.model import HOST_NETNS, Kind
from meshd.plan import names
from meshd.plan.desired import desired
from meshd.shell import hostaccess
from meshd.shell.attach import AttachRequest, Netns, attach, detach
from meshd.shell.networks import create_network
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World


def ask(cookie):
    return AttachRequest("blue", Netns(cookie, BOOT))


def own(host):
    return [id_ for id_, attachment in host.attachments.items() if attachment.netns_cookie == HOST_NETNS]


async def made(world, **more):
    return await create_network(world.hosts[0], NetworkRequest("blue", host_access=True, **more))


async def test_the_first_endpoint_brings_it_and_the_last_takes_it_along():
    world = World(2)
    one, two = world.hosts
    network = await made(world)
    first, second = await attach(one, ask(1)), await attach(one, ask(2))
    (mine,) = own(one)
    assert own(two) == []
    endpoint = two.endpoints[mine]
    assert (endpoint.host, endpoint.ifname) == (one.me, "mox" + network.id.hex()[:8])
    assert len({endpoint.index, first.endpoint.index, second.endpoint.index}) == 3
    await detach(one, first.id)
    await hostaccess.keep(one, network)
    assert own(one) == [mine]
    await detach(one, second.id)
    await hostaccess.keep(one, network)
    assert own(one) == []
    assert two.store.get(Kind.ENDPOINT, mine).dead


async def test_under_the_name_of_an_earlier_version_it_stays_who_it_is_and_is_called_anew():
    world = World(2)
    one, two = world.hosts
    network = await made(world)
    await attach(one, ask(1))
    (mine,) = own(one)
    before, former = one.endpoints[mine], "mx" + network.id.hex()[:8]
    told, plugged = one.store.get(Kind.ENDPOINT, mine), one.store.get(Kind.ATTACHMENT, mine)
    new = msgspec.structs.replace
    await one.commit(
        [
            new(told, version=told.version._replace(counter=1), body=new(told.body, ifname=former), seq=one.next_seq()),
            new(plugged, version=plugged.version._replace(counter=1),
                body=new(plugged.body, ifname=former, peer_if=former)),
        ]
    )  # fmt: skip
    assert one.endpoints[mine].ifname == former
    assert desired(one.view()).links.keys() >= {names.host(network.id)}
    await hostaccess.keep(one, network)
    assert own(one) == [mine]
    assert one.endpoints[mine] == two.endpoints[mine] == before
    assert one.attachments[mine].peer_if == before.ifname


async def test_nobody_detaches_it_by_hand_but_a_host_that_leaves_does():
    world = World(1)
    (one,) = world.hosts
    await made(world)
    await attach(one, ask(1))
    (mine,) = own(one)
    with pytest.raises(Conflict, match="this host itself"):
        await detach(one, mine)
    assert await detach(one, mine, force=True)


async def test_without_an_address_for_the_host_there_is_none_for_the_container():
    world = World(1)
    (one,) = world.hosts
    network = await made(world, subnets=("10.1.0.0/30",))
    with pytest.raises(Unavailable, match="full"):
        await attach(one, ask(1))
    await hostaccess.keep(one, network)
    assert (one.attachments, one.endpoints) == ({}, {})


async def test_other_networks_have_none():
    world = World(1)
    (one,) = world.hosts
    await create_network(one, NetworkRequest("blue"))
    await attach(one, ask(1))
    await hostaccess.keep_all(one)
    assert own(one) == []
