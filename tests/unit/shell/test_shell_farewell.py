"""Leaving and being forgotten, over clusters in memory (fake_cluster.py)."""

import msgspec
import pytest

from meshd.errors import BadRequest, Conflict, NotFound, Unavailable
from meshd.model import Forgotten, Item, Kind, MemberFacts, Rank, Version
from meshd.shell.attach import AttachRequest, attach
from meshd.shell.farewell import ForgetRequest, forget, hand_on, take_over
from meshd.shell.networks import create_network
from meshd.state.networks import NetworkRequest
from meshd.swim.members import Member
from tests.unit.shell.fake_cluster import BOOT, World


def ask(**fields):
    said = {"network": "blue", "netns": {"cookie": 7, "boot_id": BOOT}} | fields
    return msgspec.convert(said, AttachRequest)


async def blue(world):
    item = await create_network(world.hosts[0], NetworkRequest("blue", subnets=["10.1.0.0/24"]))
    return item.id


def fail(world, number):
    """Let everybody see a host failed."""
    gone = world.hosts[number]
    world.down.add(gone.me)
    for host in world.hosts:
        was = host.members[gone.me]
        host.members[gone.me] = Member(gone.me, was.version._replace(counter=Rank.FAILED), was.facts)
    return gone


def free_at(host, network):
    return sum(block.size for block in host.deeds.owned(network, host.me))


async def test_all_that_a_leaving_host_owned_is_handed_on_and_confirmed():
    world = World(3)
    network = await blue(world)
    one, two, three = world.hosts
    before = free_at(two, network) + free_at(one, network)
    said = await hand_on(two)
    assert [(each.network, each.to) for each in said.handed_on] == [("blue", "host1")]
    assert said.unconfirmed == []
    assert free_at(two, network) == 0
    assert free_at(one, network) == before
    assert one.deeds.quarantined(network) == []
    assert (await hand_on(two)).handed_on == []
    assert free_at(three, network) > 0


async def test_the_creator_leaves_to_an_heir_and_who_does_not_answer_is_named():
    world = World(3)
    network = await blue(world)
    one, two, three = world.hosts
    world.gossip = False
    said = await hand_on(one)
    assert {each.to for each in said.handed_on} <= {"host2", "host3"}
    assert said.unconfirmed, "nobody has heard of it"
    world.heal()
    assert free_at(two, network) + free_at(three, network) >= 254


async def test_a_host_that_is_alone_or_whose_disk_is_full_keeps_what_it_has():
    alone = World(1)
    await blue(alone)
    assert await hand_on(alone.hosts[0]) == type(await hand_on(alone.hosts[0]))([], [])
    world = World(2)
    network = await blue(world)
    world.hosts[1].disk_full = True
    owned = free_at(world.hosts[1], network)
    with pytest.raises(Unavailable):
        await hand_on(world.hosts[1])
    assert free_at(world.hosts[1], network) == owned > 0


async def test_a_forgotten_hosts_blocks_go_to_the_nearest_ancestor_whoever_asks():
    world = World(3)
    network = await blue(world)
    one, two, three = world.hosts
    lost = free_at(two, network)
    fail(world, 1)
    before = free_at(one, network)
    member, blocks = await forget(three, ForgetRequest("host2", fenced=True))
    assert member.id == two.me
    assert [(each.network, each.to) for each in blocks] == [("blue", "host1")]
    await take_over(three)
    assert free_at(one, network) == before, "not the caller's to take"
    await take_over(one)
    await take_over(one)
    assert free_at(one, network) == before + lost
    assert three.deeds.owned(network, two.me) == []
    assert three.deeds.quarantined(network) == []
    assert (await forget(one, ForgetRequest(two.me.hex())))[
        0
    ].id == two.me  # a second time, by id, is no error


async def test_its_endpoints_are_void_and_what_it_still_says_of_them_is_too():
    world = World(2)
    await blue(world)
    one, two = world.hosts
    made = (await attach(two, ask(name="web"))).id
    assert made in {item.id for item in one.store.live(Kind.ENDPOINT)}
    late = two.store.get(Kind.ENDPOINT, made)
    fail(world, 1)
    await forget(one, ForgetRequest("host2", fenced=True))
    assert [*one.store.live(Kind.ENDPOINT)] == []
    assert one.store.merge(msgspec.structs.replace(late, version=late.version._replace(counter=99))) == []


async def test_what_is_refused_names_the_reason_and_changes_nothing():
    world = World(3)
    await blue(world)
    one, *_ = world.hosts
    with pytest.raises(NotFound, match="nobody"):
        await forget(one, ForgetRequest("nobody", fenced=True))
    with pytest.raises(Conflict, match="itself"):
        await forget(one, ForgetRequest("host1", fenced=True))
    with pytest.raises(Conflict, match="host2 is alive"):
        await forget(one, ForgetRequest("host2", fenced=True))
    fail(world, 1)
    with pytest.raises(BadRequest) as caught:
        await forget(one, ForgetRequest("host2"))
    assert "--fenced" in caught.value.hint
    twin = MemberFacts("host3", bytes((192, 0, 2, 9)), 7947, b"t" * 16)
    one.members[b"t" * 16] = Member(b"t" * 16, Version(1, Rank.FAILED, b"t" * 16), twin)
    with pytest.raises(Conflict, match="host3 is 2 hosts: "):
        await forget(one, ForgetRequest("host3", fenced=True))
    with pytest.raises(NotFound):
        await forget(one, ForgetRequest(world.hosts[1].me.hex()[:3], fenced=True))
    assert one.forgotten == {}


async def test_the_beginning_of_an_id_as_members_shows_it_names_a_host():
    world = World(2)
    await blue(world)
    one, two = world.hosts
    fail(world, 1)
    await forget(one, ForgetRequest(two.me.hex()[:8], fenced=True))
    assert [*one.forgotten] == [two.me]


async def test_a_host_that_must_not_allocate_takes_nothing_over():
    world = World(2)
    network = await blue(world)
    one, two = world.hosts
    record = Item(Kind.FORGOTTEN, two.me, Version(0, 1, one.me), Forgotten("host2", "host1"))
    one.take(record)
    owned, one.allocation_stopped = free_at(one, network), "state lost"
    await take_over(one)
    assert free_at(one, network) == owned
