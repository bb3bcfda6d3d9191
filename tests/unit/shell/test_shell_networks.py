"""Networks over hosts in memory; fake are kernel, journal and gossip (fake_cluster.py)."""

import errno

import pytest
import trio

from meshd.errors import BadRequest, Conflict, KernelError, NotFound, Unavailable
from meshd.kernel.vxlans import ForeignVxlan
from meshd.model import Kind, Removed
from meshd.shell import networks
from meshd.shell.attach import AttachRequest, Netns, attach, detach
from meshd.shell.networks import create_network, ensure_default_bridge, remove_network
from meshd.shell.vxlans import explain
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World


def ask(network="blue", cookie=7):
    return AttachRequest(network, Netns(cookie, BOOT))


async def both_sides(world, before):
    """What the real Cluster does when a network's tombstone or an endpoint's end arrives."""
    for host in world.hosts:
        await networks.keep_if_in_use(host, before)
        for network in host.gone:
            await networks.on_endpoint_gone(host, network)
        host.gone.clear()


async def test_an_overlay_comes_with_the_deeds_of_its_whole_space_in_one_commit():
    world = World(3)
    one, two, three = world.hosts
    item = await create_network(one, NetworkRequest("blue", subnets=("10.1.0.0/24",)))
    (batch,) = one.journal
    assert [i.kind for i in batch] == [Kind.NETWORK, Kind.DEED, Kind.DEED, Kind.DEED]
    for host in world.hosts:
        assert host.networks[item.id].name == "blue"
        assert {owner for owner, _ in host.deeds.blocks(item.id)} == {one.me, two.me, three.me}
    total = sum(block.size for _, block in one.deeds.blocks(item.id))
    assert total == 256


async def test_a_bridge_network_is_this_hosts_alone():
    world = World(2)
    one, two = world.hosts
    await create_network(one, NetworkRequest("lan", "bridge"))
    assert not two.networks
    assert [i.kind for i in one.journal[0]] == [Kind.LOCAL_NETWORK]
    assert one.reconciler.settles == 1  # its bridge stands when the caller hears of it


async def test_two_creations_at_once_do_not_share_a_name_or_a_prefix():
    (host,) = World().hosts
    outcomes = []

    async def make(name):
        try:
            outcomes.append(networks.facts(await create_network(host, NetworkRequest(name))).subnets[0].cidr)
        except Conflict:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(make, f"net{number // 2}")
    assert outcomes.count("refused") == 10
    assert len(set(outcomes)) == 11


async def test_a_full_disk_makes_no_network():
    (host,) = World().hosts
    host.disk_full = True
    with pytest.raises(Unavailable):
        await create_network(host, NetworkRequest("blue"))
    assert not host.networks


async def test_the_default_bridge_is_made_once_and_stays():
    (host,) = World().hosts
    first = await ensure_default_bridge(host)
    assert (await ensure_default_bridge(host)).id == first.id
    assert len(host.journal) == 1
    assert host.reconciler.settles == 0  # it is made before the reconciler runs
    for name in ("bridge", first.id.hex(), "none", "host"):
        with pytest.raises(BadRequest, match="always exists"):
            await remove_network(host, name)


@pytest.mark.parametrize("name", ["bridge", "none", "host"])
async def test_nobody_else_takes_the_names_that_always_exist(name):
    (host,) = World().hosts
    with pytest.raises(BadRequest):
        await create_network(host, NetworkRequest(name))


async def test_removing_a_network_leaves_a_tombstone_everywhere():
    world = World(2)
    one, two = world.hosts
    item = await create_network(one, NetworkRequest("blue"))
    await remove_network(two, "blue")
    for host in world.hosts:
        assert host.store.get(Kind.NETWORK, item.id).body == Removed("blue")
        with pytest.raises(NotFound):
            networks.resolve(host, "blue")
    assert (await create_network(one, NetworkRequest("blue"))).id != item.id


async def test_a_network_in_use_is_not_removed_and_the_error_counts_by_host():
    world = World(2)
    one, two = world.hosts
    await create_network(one, NetworkRequest("blue"))
    await attach(one, ask(cookie=1))
    await attach(one, ask(cookie=2))
    found = await attach(two, ask(cookie=3))
    with pytest.raises(Conflict, match=r"network blue has 3 endpoints, on host1 \(2\), host2 \(1\)"):
        await remove_network(one, "blue")
    await detach(two, found.id)
    with pytest.raises(Conflict, match=r"2 endpoints, on host1 \(2\)$"):
        await remove_network(two, "blue")


async def test_attach_and_removal_on_one_host_exclude_each_other_whoever_is_first():
    for removal_first in (True, False):
        (host,) = World().hosts
        await create_network(host, NetworkRequest("blue"))
        outcomes = {}

        async def run(name, job, argument, host=host, outcomes=outcomes):
            try:
                outcomes[name] = await job(host, argument)
            except (Conflict, NotFound) as error:
                outcomes[name] = error

        async with trio.open_nursery() as nursery:
            jobs = [("remove", remove_network, "blue"), ("attach", attach, ask())]
            for name, job, argument in jobs if removal_first else reversed(jobs):
                nursery.start_soon(run, name, job, argument)
        failed = [name for name, outcome in outcomes.items() if isinstance(outcome, Exception)]
        assert len(failed) == 1, outcomes
        assert bool(host.endpoints) == bool(host.networks)


async def test_a_live_endpoint_attached_at_the_moment_of_removal_wins_and_the_network_goes_with_it():
    world = World(3)
    one, two, three = world.hosts
    item = await create_network(one, NetworkRequest("blue", subnets=("10.1.0.0/24",)))
    world.cut_off.add(two.me)
    found = await attach(two, ask())  # meanwhile, on the other side:
    await remove_network(one, "blue")
    world.heal()
    await both_sides(world, item)
    world.heal()
    for host in world.hosts:
        assert networks.facts(networks.resolve(host, "blue")).removing
        assert networks.facts(networks.resolve(host, "blue")).subnets == item.body.subnets
    with pytest.raises(Conflict, match="being removed"):
        await attach(three, ask(cookie=8))
    again = await attach(two, ask())  # what is attached stays so
    assert again.id == found.id
    await detach(two, found.id)
    await both_sides(world, item)
    for host in world.hosts:
        assert not host.networks
        assert host.store.get(Kind.NETWORK, item.id).dead
    assert len({host.store.get(Kind.NETWORK, item.id).version for host in world.hosts}) == 1


async def test_hosts_that_keep_a_network_at_once_write_one_record():
    world = World(3)
    one, two, three = world.hosts
    item = await create_network(one, NetworkRequest("blue"))
    world.gossip = False
    await attach(two, ask())
    await attach(three, ask())
    await remove_network(one, "blue")
    tombstone = one.store.get(Kind.NETWORK, item.id)
    written = []
    for host in (two, three):
        host.take(tombstone)
        await networks.keep_if_in_use(host, item)
        written.append(host.store.get(Kind.NETWORK, item.id))
    assert written[0] == written[1]
    assert written[0].body.removing


async def test_a_tombstone_stays_where_nothing_is_attached():
    world = World(2)
    one, two = world.hosts
    item = await create_network(one, NetworkRequest("blue"))
    await remove_network(one, "blue")
    await both_sides(world, item)
    assert not one.networks
    assert not two.networks


async def test_a_removal_that_a_restart_interrupted_is_finished():
    world = World(2)
    one, two = world.hosts
    item = await create_network(one, NetworkRequest("blue"))
    world.cut_off.add(two.me)
    found = await attach(two, ask())
    await remove_network(one, "blue")
    world.heal()
    await both_sides(world, item)
    await detach(two, found.id)
    two.gone.clear()  # the daemon was killed before it acted on it
    assert two.networks
    await networks.finish_removals(two)
    assert not two.networks
    assert not one.networks


async def test_blocks_of_a_network_say_who_owns_how_many_free_addresses():
    world = World(2)
    one, two = world.hosts
    item = await create_network(one, NetworkRequest("blue", subnets=("10.1.0.0/24",)))
    await attach(one, ask())
    free = {}
    for block in networks.blocks(one, item):
        free[block.owner] = free.get(block.owner, 0) + block.free
    assert sum(free.values()) == 256 - 3 - 1  # network, gateway, broadcast; one endpoint
    assert set(free) == {one.me, two.me}
    bridge = await ensure_default_bridge(one)
    assert sum(block.free for block in networks.blocks(one, bridge)) == 253


async def test_a_new_network_keeps_clear_of_numbers_that_strangers_devices_have_at_our_port():
    (host,) = World().hosts
    host.kernel.vxlans = [
        ForeignVxlan("vx0", 77, 4789, 4, external=False),
        ForeignVxlan("vx1", 78, 8472, 4, external=False),
        ForeignVxlan("vx2", 79, 4789, 6, external=False),
    ]
    with pytest.raises(Conflict, match="vni 77 is used by device vx0 of this host"):
        await create_network(host, NetworkRequest("blue", vni=77))
    for name, vni in (("red", 78), ("green", 79)):
        assert networks.facts(await create_network(host, NetworkRequest(name, vni=vni))).vni == vni


@pytest.mark.parametrize(
    ("number", "vxlans", "line"),
    [
        (errno.EEXIST, [ForeignVxlan("vx0", 77, 4789, 4, external=False)], "by device vx0 of this host"),
        (errno.EEXIST, [], "by a device that was moved out of this namespace"),
        (errno.EADDRINUSE, [ForeignVxlan("ex0", 0, 4789, 0, external=True)], "by device ex0 of this host"),
        (errno.EADDRINUSE, [], "by another program"),
        (errno.ENOMEM, [], "the kernel's words"),
    ],
)
async def test_what_stands_in_a_vxlan_devices_way_is_named(number, vxlans, line):
    (host,) = World().hosts
    network = networks.facts(await create_network(host, NetworkRequest("blue", vni=77)))
    host.kernel.vxlans = vxlans
    error = KernelError("device mv", errno=number, words="the kernel's words")
    assert line in (await explain(host, network, error)).what
