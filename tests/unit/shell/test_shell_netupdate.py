"""Labels and subnets of networks that are there, over hosts in memory; fake are kernel, journal and gossip
(fake_cluster.py)."""

import random
from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import BadRequest, Conflict, MeshdError, NotFound, Unavailable
from meshd.messages import SubnetAsk
from meshd.model import HostFacts, text_ip
from meshd.shell import networks
from meshd.shell.attach import AttachRequest, Netns, attach
from meshd.shell.netupdate import NetworkUpdate, answer_subnet_ask, update_network
from meshd.shell.networks import create_network, remove_network
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World


def ask(network="blue", cookie=7, **more):
    return AttachRequest(network, Netns(cookie, BOOT), **more)


def more(*subnets, **fields):
    return NetworkUpdate(add_subnets=subnets, **fields)


def subnets(host, name="blue"):
    return [subnet.cidr for subnet in networks.facts(networks.resolve(host, name)).subnets]


async def made(world, *cidrs, host=0, **fields):
    return await create_network(world.hosts[host], NetworkRequest("blue", subnets=cidrs, **fields))


async def test_any_host_adds_a_subnet_and_every_host_sees_it_with_its_blocks():
    world = World(3)
    one, two, three = world.hosts
    network = await made(world, "10.1.0.0/24", "fd00:1::/64")
    item = await update_network(two, "blue", more("10.2.0.0/24", gateways=("10.2.0.9",)))
    assert [s.gateway for s in networks.facts(item).subnets] == ["10.1.0.1", "fd00:1::1", "10.2.0.9"]
    for host in world.hosts:
        assert subnets(host) == ["10.1.0.0/24", "fd00:1::/64", "10.2.0.0/24"]
        shown = [
            view
            for view in networks.blocks(host, networks.resolve(host, "blue"))
            if view.block.startswith("10.2.")
        ]
        assert {view.owner for view in shown} == {one.me, two.me, three.me}
        assert sum(view.free for view in shown) == 253
    assert len(one.journal[-1]) == 3, "its root deed and two shares, in one record of who made the network"
    assert one.store.get(network.kind, network.id) == network, "the network's own record is as it was"


async def test_the_first_subnet_with_a_free_address_is_taken_and_an_address_picks_its_subnet():
    world = World(2)
    one, two = world.hosts
    await made(world, "10.1.0.0/30")
    await update_network(one, "blue", more("10.2.0.0/24"))
    first = await attach(two, ask())
    assert [text_ip(ip) for ip in first.endpoint.ips] == ["10.1.0.2"]
    second = await attach(two, ask(cookie=8))
    assert text_ip(second.endpoint.ips[0]).startswith("10.2.0.")
    picked = await attach(one, ask(cookie=9, ips=("10.2.0.77",)))
    assert [text_ip(ip) for ip in picked.endpoint.ips] == ["10.2.0.77"]


async def test_a_full_network_counts_all_its_subnets():
    (one,) = World().hosts
    await create_network(one, NetworkRequest("blue", subnets=("10.1.0.0/30", "10.2.0.0/29")))
    for cookie in range(6):
        await attach(one, ask(cookie=cookie + 1))
    with pytest.raises(Unavailable) as caught:
        await attach(one, ask(cookie=9))
    assert caught.value.what == "network blue is full: all 6 addresses are in use"


@pytest.mark.parametrize(
    ("wanted", "error", "line"),
    [
        (more("10.1.0.128/25"), Conflict, "subnet 10.1.0.128/25 overlaps network blue (10.1.0.0/24)"),
        (more("10.9.0.0/16"), Conflict, "subnet 10.9.0.0/16 overlaps network red (10.9.0.0/24)"),
        (more("10.8.0.0/24"), Conflict, "subnet 10.8.0.0/24 overlaps route 10.8.0.0/16 of host3"),
        (more("10.2.0.5/24"), BadRequest, "add-subnet 10.2.0.5/24 has host bits set"),
        (more("12.0.0.0/7"), BadRequest, "subnet 12.0.0.0/7 is too large: at most a /8"),
        (more("10.2.0.0/31"), BadRequest, "subnet 10.2.0.0/31 has no room for a gateway and an endpoint"),
        (more("127.0.0.0/24"), BadRequest, "subnet 127.0.0.0/24 cannot be used: 127.0.0.0/8 is loopback addresses"),
        (more("10.2.0.0/24", gateways=("10.3.0.1",)), BadRequest, "gateway 10.3.0.1 is outside the subnets (10.2.0.0/24)"),
        (more("10.2.0.0/24", "10.3.0.0/24"), BadRequest, "2 subnets at once (10.2.0.0/24, 10.3.0.0/24)"),
        (NetworkUpdate(), BadRequest, "nothing to change"),
        (NetworkUpdate(gateways=("10.1.0.5",)), BadRequest, "a gateway without a subnet"),
        (NetworkUpdate(remove_labels=("a",)), NotFound, "network blue has no label 'a'"),
        (NetworkUpdate(labels={"": "x"}), BadRequest, "label ''"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", [0, 1])
async def test_what_cannot_be_done_is_refused_by_whoever_is_asked_with_nothing_changed(
    asked, wanted, error, line
):
    world = World(3)
    third = world.hosts[2]
    for host in world.hosts:
        host.hosts[third.me] = HostFacts("host3", bytes(4), 4789, 1500, routes=("10.8.0.0/16",))
    await made(world, "10.1.0.0/24")
    await create_network(world.hosts[1], NetworkRequest("red", subnets=("10.9.0.0/24",)))
    before = [dict(host.networks) for host in world.hosts]
    with pytest.raises(error) as caught:
        await update_network(world.hosts[asked], "blue", wanted)
    assert caught.value.what.startswith(line)
    assert [dict(host.networks) for host in world.hosts] == before


@pytest.mark.parametrize("name", ["none", "host"])
async def test_what_is_only_a_name_is_not_changed(name):
    with pytest.raises(BadRequest, match=f"network {name} cannot be changed"):
        await update_network(World(1).hosts[0], name, NetworkUpdate(labels={"a": "b"}))


async def test_without_the_networks_creator_no_subnet_is_added_and_it_is_named():
    world = World(3)
    await made(world, "10.1.0.0/24")
    world.down.add(world.hosts[0].me)
    with pytest.raises(Unavailable) as caught:
        await update_network(world.hosts[1], "blue", more("10.2.0.0/24"))
    assert caught.value.what == "host host1, which made network blue, is not alive; nothing was changed"
    assert subnets(world.hosts[1]) == ["10.1.0.0/24"]


async def test_what_only_the_creator_knows_to_overlap_it_refuses_with_its_reason():
    world = World(2)
    one, two = world.hosts
    await made(world, "10.1.0.0/24")
    await create_network(one, NetworkRequest("lan", "bridge", subnets=("10.2.0.0/24",)))
    with pytest.raises(Conflict) as caught:
        await update_network(two, "blue", more("10.2.0.0/24"))
    assert caught.value.what == (
        "host host1, which made the network, refuses: subnet 10.2.0.0/24 overlaps network lan (10.2.0.0/24)"
    )


async def test_a_lost_answer_is_asked_for_again_and_the_subnet_is_added_once():
    world = World(2)
    one, two = world.hosts
    network = await made(world, "10.1.0.0/24")
    world.gossip, two.drop_answers = False, True
    with pytest.raises(Unavailable):
        await update_network(two, "blue", more("10.2.0.0/24"))
    assert subnets(two) == ["10.1.0.0/24"]
    two.drop_answers = False
    await update_network(two, "blue", more("10.2.0.0/24"))
    assert subnets(two) == subnets(one) == ["10.1.0.0/24", "10.2.0.0/24"]
    other = await answer_subnet_ask(one, two.me, SubnetAsk(3, network.id, ("10.2.0.0/24",), ("10.2.0.77",)))
    assert "overlaps network blue" in other.refusal


async def test_a_stranger_a_removed_network_and_no_subnet_are_refused_by_the_creator():
    world = World(2)
    one, two = world.hosts
    network = await made(world, "10.1.0.0/24")
    for asker, of, named, why in (
        (b"?" * 16, network.id, ("10.2.0.0/24",), "only another member"),
        (two.me, b"?" * 16, ("10.2.0.0/24",), "not known here"),
        (two.me, network.id, (), "no subnet was named"),
    ):
        assert why in (await answer_subnet_ask(one, asker, SubnetAsk(1, of, named))).refusal


async def test_a_host_that_lost_its_state_adds_no_subnet():
    world = World(2)
    one, two = world.hosts
    await made(world, "10.1.0.0/24")
    one.allocation_stopped = "state lost"
    with pytest.raises(Conflict, match="no subnet can be added: state lost"):
        await update_network(two, "blue", more("10.2.0.0/24"))


async def test_a_bridge_network_grows_on_its_own_host():
    world = World(2)
    one, _ = world.hosts
    await create_network(one, NetworkRequest("lan", "bridge", subnets=("10.1.0.0/30",)))
    await update_network(one, "lan", more("10.2.0.0/24", labels={"a": "b"}))
    assert subnets(one, "lan") == ["10.1.0.0/30", "10.2.0.0/24"]
    assert networks.facts(networks.resolve(one, "lan")).labels == {"a": "b"}
    given = [(await attach(one, ask("lan", cookie))).endpoint.ips[0] for cookie in (1, 2)]
    assert [text_ip(ip) for ip in given] == ["10.1.0.2", "10.2.0.2"]


async def test_labels_are_set_replaced_and_removed_by_any_host():
    world = World(2)
    one, two = world.hosts
    await made(world, "10.1.0.0/24", labels={"a": "1", "b": "2"})
    await update_network(two, "blue", NetworkUpdate(labels={"a": "3", "c": ""}, remove_labels=("b",)))
    for host in (one, two):
        assert networks.facts(networks.resolve(host, "blue")).labels == {"a": "3", "c": ""}


async def test_a_removal_wins_over_an_update_that_the_remover_never_saw():
    world = World(2)
    one, two = world.hosts
    network = await made(world, "10.1.0.0/24")
    world.cut_off.add(two.me)
    for number in range(5):
        await update_network(two, "blue", NetworkUpdate(labels={"n": str(number)}))
    await remove_network(one, "blue")
    world.heal()
    assert [network.id in host.networks for host in (one, two)] == [False, False]


async def test_hosts_that_keep_a_removed_network_agree_on_it_though_one_had_not_seen_an_update():
    world = World(3)
    one, two, three = world.hosts
    network = await made(world, "10.1.0.0/24")
    for host in (one, two):
        await attach(host, ask())
    world.cut_off.update({two.me, three.me})
    await update_network(two, "blue", NetworkUpdate(labels={"a": "b"}))
    before = [host.store.get(network.kind, network.id) for host in (one, two)]
    world.heal()
    world.gossip = False
    gone = networks._tombstone(before[0])
    for host in world.hosts:
        host.take(gone)
    for host, was in zip((one, two), before, strict=True):
        await networks.keep_if_in_use(host, was)
    world.heal()
    first, *others = (host.store.get(network.kind, network.id) for host in world.hosts)
    assert (first.body.removing, first.body.labels) == (True, {"a": "b"})
    assert others == [first, first]


POOLS = ("10.2.0.0/29", "10.2.0.0/28", "10.2.0.8/29", "10.3.0.0/29", "10.3.0.0/24")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_address_is_given_twice_whoever_adds_subnets_in_whatever_partition(seed):
    """Hosts add overlapping subnets and attach while cut off from each other, answers get lost: in the end all agree,
    no two subnets overlap, and no two endpoints have one address."""
    rng = random.Random(seed)

    async def play():
        world = World(4)
        network = await made(world, "10.1.0.0/29")
        cookie = 0
        for _ in range(40):
            host = rng.choice(world.hosts)
            host.drop_answers = rng.random() < 0.2
            action = rng.random()
            try:
                if action < 0.3:
                    await update_network(host, "blue", more(rng.choice(POOLS)))
                elif action < 0.8:
                    cookie += 1
                    wish = (f"10.{rng.randint(1, 3)}.0.{rng.randint(1, 14)}",) if rng.random() < 0.3 else ()
                    await attach(host, ask(cookie=cookie, ips=wish))
                elif action < 0.9:
                    world.cut_off ^= {host.me}
                else:
                    world.heal()
            except MeshdError:
                pass
        world.heal()
        assert len({tuple(subnets(host)) for host in world.hosts}) == 1
        assert not world.hosts[0].deeds.quarantined(network.id)
        given = Counter(text_ip(ip) for end in world.hosts[0].endpoints.values() for ip in end.ips)
        assert [ip for ip, times in given.items() if times > 1] == []
        gateways = {subnet.gateway for subnet in world.hosts[0].networks[network.id].subnets}
        assert not gateways & set(given)

    trio.run(play)
