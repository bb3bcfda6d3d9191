"""Witnesses of hand-ons: how a daemon asks, waits and answers. Fake is what fake_cluster.py says; in the second half a
real Cluster with a real disk, whose messages are looked at."""

from itertools import pairwise

import pytest
import trio
import trio.testing

from meshd.errors import Unavailable
from meshd.messages import Held, Hold, News
from meshd.model import NO_PARENT, Deed, Item, Kind, Network, Subnet, Version
from meshd.node import Alarm, HeldTold, HoldAsked
from meshd.shell.attach import AttachRequest, Netns, attach, detach
from meshd.shell.networks import create_network
from meshd.state.deeds import deed_id, deed_item
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World
from tests.unit.shell.test_shell_cluster import FACTS, ME, OTHER, PEER, cluster

__all__ = ["FACTS", "cluster"]


def ask(cookie=7, **more):
    return AttachRequest("blue", Netns(cookie, BOOT), **more)


async def made(world, heirs_down=()):
    network = await create_network(world.hosts[0], NetworkRequest("blue", subnets=("10.1.0.0/24",)))
    heirs = world.hosts[0].deeds.last_root(network.id)[1].heirs
    return network, [world.named(heir) for heir in heirs]


async def test_an_address_moves_among_all_hosts_by_way_of_its_blocks_owner():
    world = World(4)
    network, _ = await made(world)
    owner = next(host for host in world.hosts if host.deeds.owner_of(network.id, 200) == host.me)
    others = [host for host in world.hosts if host is not owner]
    for number, (here, to) in enumerate(pairwise([owner, *others * 4])):
        found = await attach(to, ask(cookie=number + 1, ips=("10.1.0.200",)))
        depth = to.deeds.block_of(network.id, 200)[1].depth
        assert depth <= 2, (number, here.name, to.name)
        await detach(to, found.id)
    asked = {of for host in world.hosts for of, index in host.asked if index == 200}
    assert owner.me in asked


async def test_space_whose_witness_is_away_is_not_used_and_the_witness_is_named():
    world = World(4)
    _, heirs = await made(world)
    taker = next(host for host in world.hosts[1:] if host not in heirs)
    world.down.add(heirs[0].me)
    with pytest.raises(Unavailable) as caught:
        await attach(taker, ask(ips=("10.1.0.5",)))
    assert caught.value.what == (
        f"10.1.0.5 of network blue was handed on to this host and may not be used yet: {heirs[0].name}, to whom it may "
        "come back, must have that on disk first"
    )
    assert caught.value.hint.startswith(f"bring {heirs[0].name} back")
    assert not taker.endpoints
    assert (await attach(taker, ask())).endpoint.index != 5, "what it was dealt before is used all the while"
    world.down.clear()
    assert (await attach(taker, ask(cookie=8, ips=("10.1.0.5",)))).endpoint.index == 5


async def test_a_host_whose_only_space_is_not_confirmed_says_so():
    world = World(4)
    _, heirs = await made(world)
    taker = next(host for host in world.hosts[1:] if host not in heirs)
    taker.deeds.confirmed.clear()
    world.down.add(heirs[1].me)
    with pytest.raises(Unavailable, match=f"may not be used yet: {heirs[1].name}"):
        await attach(taker, ask())


NET = b"N" * 16
GENESIS = Deed(NET, 0, 16, OTHER, OTHER, NO_PARENT, (PEER,))
MINE = Deed(NET, 8, 4, ME, OTHER, deed_id(GENESIS))
TWICE = Deed(NET, 10, 4, PEER, OTHER, deed_id(GENESIS))


@pytest.fixture
def said(cluster):
    """What the cluster sends."""
    heard = []
    cluster.send = lambda to, messages: heard.append((to, list(messages)))
    cluster.alive = lambda: [ME, OTHER, PEER]
    return heard


def told(cluster, *deeds):
    for deed in deeds:
        cluster.node.take_fetched(deed_item(deed), OTHER, cluster.now())
        cluster.gossip.pump()


async def answered(cluster):
    """Wait for the disk, which is a real one, and for what waited for it."""
    await trio.testing.wait_all_tasks_blocked()
    await cluster._disk.flush()
    await trio.testing.wait_all_tasks_blocked()


async def test_witnesses_are_asked_again_until_they_speak_and_what_they_said_survives_a_restart(
    cluster, said, nursery, autojump_clock
):
    nursery.start_soon(cluster.holds.run, cluster)
    told(cluster, GENESIS, MINE)
    await trio.sleep(1.2)
    key = deed_id(MINE)
    assert said[:2] == [(PEER, [News((deed_item(MINE),)), Hold((key,))])] * 2
    assert not cluster.deeds.valid(key)
    assert await cluster.confirmed([key]) == {PEER}
    cluster.on_event(HeldTold(PEER, Held((key,))))
    assert await cluster.confirmed([key]) == set()
    assert cluster.deeds.valid(key)
    before = len(said)
    await trio.sleep(5)
    assert len(said) == before, "nothing is asked any more"
    await answered(cluster)
    assert Kind.CONFIRMED in {entry.kind for entry in cluster.journal.load()}


async def test_a_witness_answers_once_the_deed_is_on_its_disk_and_only_what_it_can_vouch_for(
    cluster, said, autojump_clock
):
    written = []
    commit = cluster._disk.commit

    async def watched(entries, *more):
        await commit(entries, *more)
        written.append(len(said))

    cluster._disk.commit = watched
    key = deed_id(MINE)
    told(cluster, GENESIS, MINE)
    cluster.on_event(HoldAsked(PEER, Hold((key, b"?" * 16))))
    await answered(cluster)
    assert said == [(PEER, [Held((key,))])]
    assert written[0] == 0, "on disk before it was said"
    told(cluster, TWICE)
    cluster.on_event(HoldAsked(PEER, Hold((key,))))
    await answered(cluster)
    assert len(said) == 1


async def test_a_host_that_doubts_its_own_state_is_no_witness(cluster, said, autojump_clock):
    told(cluster, GENESIS, MINE)
    cluster.on_event(Alarm("rolled-back", "lost"))
    cluster.on_event(HoldAsked(PEER, Hold((deed_id(MINE),))))
    await answered(cluster)
    assert said == []


async def test_space_given_twice_is_an_alarm_that_names_both_holders(cluster):
    network = Network("blue", "overlay", (Subnet("10.1.0.0/28", "10.1.0.1"),))
    cluster.node.take_fetched(Item(Kind.NETWORK, NET, Version(0, 0, OTHER), network), OTHER, cluster.now())
    for _ in range(2):
        told(cluster, GENESIS, MINE, TWICE)
    (line,) = [line for line in cluster.health() if "10.1.0.10" in line]
    assert line.startswith("10.1.0.10 to 10.1.0.11 of network blue: host 6f6f6f6f gave it to both ")
    assert {"h", "70707070"} <= set(line.replace(",", "").split())
    found = [event for event in cluster.events.kept() if event["kind"] == "conflict"]
    assert [(event["alarm"], set(event["hosts"])) for event in found] == [("quarantine", {"h", "70707070"})]
