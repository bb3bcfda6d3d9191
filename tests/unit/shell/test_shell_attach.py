"""Attach and detach over hosts in memory; fake are kernel, journal and gossip (fake_cluster.py)."""

import msgspec
import pytest
import trio

from meshd.errors import BadRequest, Conflict, KernelError, NotFound, Unavailable
from meshd.kernel.links import Birth
from meshd.messages import BlockAsk
from meshd.model import Attachment, Endpoint, Key, Kind, Released, text_ip
from meshd.plan.objects import Link
from meshd.plan.ops import PutLink
from meshd.shell import networks
from meshd.shell.attach import (
    AttachRequest,
    Netns,
    answer_block_ask,
    attach,
    detach,
    find,
    release_other_boots,
    release_vanished,
)
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, REFUSED_BY_KERNEL, World, free_counts


async def made(cluster, name="blue", driver="overlay", subnet="10.1.0.0/24", **kw):
    return await networks.create_network(cluster, NetworkRequest(name, driver, (subnet,), **kw))


def ask(network="blue", cookie=7, ifname="eth0", boot=BOOT, **kw):
    return AttachRequest(network, Netns(cookie, boot, f"/run/netns/{cookie}"), ifname, **kw)


def ip(attached):
    return text_ip(attached.endpoint.ips[0])


# --- the plain way --------------------------------------------------------------------------------------------
async def test_attach_makes_one_endpoint_with_its_link_its_records_and_its_rows_before_it_answers():
    world = World()
    (host,) = world.hosts
    network = await made(host)
    batches = len(host.journal)
    found = await attach(host, ask(name="web", aliases=("a", "b", "a")))
    assert found.created
    assert found.endpoint.name == "web"
    assert found.endpoint.aliases == ("a", "b")
    assert found.endpoint.host == host.me
    birth = host.kernel.links[found.attachment.host_if]
    assert birth == Birth(found.attachment.peer_if, found.endpoint.mac, 1450)
    assert len(host.journal) == batches + 1  # both records in one batch: all or nothing
    assert [item.kind for item in host.journal[-1]] == [Kind.ENDPOINT, Kind.ATTACHMENT]
    endpoint = host.journal[-1][0]
    assert (endpoint.origin, endpoint.seq, endpoint.version.writer) == (host.me, 1, host.me)
    assert (network.id, found.id) in host.reconciler.told
    assert host.reconciler.settles == 1
    assert host.made_meanwhile == {found.attachment.host_if}  # not stale while the record is on its way
    assert host.reconciler.being_made == set()


async def test_an_endpoint_without_a_name_is_called_after_its_id():
    (host,) = World().hosts
    await made(host)
    found = await attach(host, ask())
    assert found.endpoint.name == f"ep-{found.id.hex()[:8]}"


async def test_a_bridge_network_needs_no_deeds_and_its_endpoints_stay_on_this_host():
    world = World(2)
    one, two = world.hosts
    await networks.ensure_default_bridge(one)
    found = await attach(one, ask("bridge"))
    assert one.journal[-1][0].kind == Kind.LOCAL_ENDPOINT
    assert not list(one.store.live(Kind.DEED))
    assert found.id not in two.endpoints
    assert await detach(one, found.id)
    assert one.store.get(Kind.LOCAL_ENDPOINT, found.id).dead


# --- idempotency ----------------------------------------------------------------------------------------------
async def test_attaching_again_gives_the_same_endpoint_and_writes_nothing():
    (host,) = World().hosts
    await made(host)
    request = ask(name="web", aliases=("a",), ips=("10.1.0.9",), mac="02:00:00:00:00:01")
    first = await attach(host, request)
    batches, links = len(host.journal), dict(host.kernel.links)
    again = await attach(host, request)
    plain = await attach(host, ask())
    assert not again.created
    assert not plain.created
    assert again.id == plain.id == first.id
    assert again.endpoint == first.endpoint
    assert (len(host.journal), host.kernel.links) == (batches, links)


@pytest.mark.parametrize(
    "flags, difference",
    [
        ({"name": "db"}, "name is web, not db"),
        ({"ips": ("10.1.0.10",)}, "ip is 10.1.0.9, not 10.1.0.10"),
        ({"mac": "02:00:00:00:00:02"}, "mac is 02:00:00:00:00:01, not 02:00:00:00:00:02"),
        ({"aliases": ("b",)}, "alias is a, not b"),
    ],
)
async def test_the_same_place_with_other_flags_is_a_conflict_that_names_the_difference(flags, difference):
    (host,) = World().hosts
    await made(host)
    await attach(host, ask(name="web", aliases=("a",), ips=("10.1.0.9",), mac="02:00:00:00:00:01"))
    before = len(host.journal)
    with pytest.raises(Conflict, match=difference):
        await attach(host, ask(**flags))
    assert len(host.journal) == before


async def test_one_interface_name_is_one_endpoint_even_on_another_network():
    (host,) = World().hosts
    await made(host)
    await made(host, "red", subnet="10.2.0.0/24")
    await attach(host, ask(name="web"))
    with pytest.raises(Conflict, match="eth0 of this namespace is endpoint web of network blue"):
        await attach(host, ask("red"))
    other = await attach(host, ask("red", ifname="eth1"))
    assert other.created


async def test_two_callers_at_once_about_one_interface_make_one_endpoint():
    (host,) = World().hosts
    await made(host)
    found = []

    async def caller():
        found.append(await attach(host, ask()))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(caller)
    assert len({one.id for one in found}) == 1
    assert sum(one.created for one in found) == 1
    assert len(host.kernel.links) == 1


# --- what is refused ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "request_, error, words",
    [
        (ask("none"), BadRequest, "network none is a namespace without any network"),
        (ask("host"), BadRequest, "network host is this host's own namespace"),
        (ask("nosuch"), NotFound, "nosuch"),
        (ask(boot="another"), BadRequest, "netns.boot_id"),
        (ask(ifname="lo"), BadRequest, "ifname"),
        (ask(ifname=".."), BadRequest, "ifname"),
        (ask(mac="01:00:5e:00:00:01"), BadRequest, "mac: .* not a unicast"),
        (ask(mac="00:00:00:00:00:00"), BadRequest, "mac: .* not a unicast"),
        (ask(mac="02-00-00-00-00-01"), BadRequest, "mac: .* not of the form"),
        (ask(mac="2:0:0:0:0:1"), BadRequest, "mac: .* not of the form"),
        (ask(ips=("10.9.0.1",)), BadRequest, "10.9.0.1 is in no subnet"),
        (ask(ips=("banana",)), BadRequest, "banana"),
        (ask(ips=("10.1.0.1",)), BadRequest, "10.1.0.1 .* the gateway"),
        (ask(ips=("10.1.0.255",)), BadRequest, "broadcast"),
        (ask(ips=("10.1.0.5", "10.1.0.6")), BadRequest, "are too many"),
    ],
)
async def test_what_cannot_be_is_refused_with_nothing_changed(request_, error, words):
    (host,) = World().hosts
    await made(host)
    before = len(host.journal)
    with pytest.raises(error, match=words):
        await attach(host, request_)
    assert (len(host.journal), host.kernel.links, free_counts(host)) == (before, {}, {})


@pytest.mark.parametrize("ifname", ["", "a" * 16, "a/b", "a b", "a:b", "eth0\n", "ä", "a%d"])
def test_an_interface_name_that_the_kernel_refuses_does_not_decode(ifname):
    with pytest.raises(msgspec.ValidationError, match="ifname"):
        msgspec.convert(
            {"network": "n", "netns": {"cookie": 1, "boot_id": "b"}, "ifname": ifname}, AttachRequest
        )


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a" * 64, "a b", "a\n"])
def test_a_name_that_dns_could_not_carry_does_not_decode(name):
    with pytest.raises(msgspec.ValidationError, match="name"):
        msgspec.convert({"network": "n", "netns": {"cookie": 1, "boot_id": "b"}, "name": name}, AttachRequest)


async def test_a_mac_that_somebody_on_the_network_has_is_refused_naming_whom():
    world = World(2)
    one, two = world.hosts
    await made(one)
    await attach(one, ask(name="web", mac="02:00:00:00:00:01"))
    with pytest.raises(Conflict, match="endpoint web's on host1"):
        await attach(two, ask(mac="02:00:00:00:00:01"))


async def test_a_host_that_must_not_allocate_says_why():
    (host,) = World().hosts
    await made(host)
    host.draining = True
    with pytest.raises(Unavailable, match="draining"):
        await attach(host, ask())
    host.draining = False
    host.allocation_stopped = "this disk was cloned"
    with pytest.raises(Unavailable, match="this disk was cloned"):
        await attach(host, ask())


# --- rolled back whole ----------------------------------------------------------------------------------------
async def test_nothing_is_left_when_the_kernel_refuses_the_link():
    (host,) = World().hosts
    await made(host)
    before = len(host.journal)
    host.kernel.fail_create = REFUSED_BY_KERNEL
    with pytest.raises(KernelError):
        await attach(host, ask())
    assert (len(host.journal), host.kernel.links, free_counts(host), host.reconciler.being_made) == (
        before,
        {},
        {},
        set(),
    )
    host.kernel.fail_create = None
    assert ip(await attach(host, ask())) == "10.1.0.2"  # the address it would have had


async def test_nothing_is_left_when_the_journal_refuses():
    (host,) = World().hosts
    network = await made(host)
    host.disk_full = True
    with pytest.raises(Unavailable, match="disk is full"):
        await attach(host, ask())
    assert (host.kernel.links, free_counts(host), host.endpoints, host.attachments) == ({}, {}, {}, {})
    assert host.reconciler.being_made == set()
    host.disk_full = False
    assert (await attach(host, ask())).created
    assert network.id in host.networks


async def test_nothing_is_left_when_the_caller_is_cancelled_while_the_link_is_made():
    (host,) = World().hosts
    await made(host)
    with trio.CancelScope() as scope:
        scope.cancel()
        await attach(host, ask())
    assert scope.cancelled_caught
    assert (host.kernel.links, free_counts(host), host.endpoints) == ({}, {}, {})


async def test_the_endpoint_goes_again_when_the_kernel_refuses_its_bridge():
    (host,) = World().hosts
    network = await made(host)
    bridge = Link(f"mo{network.id.hex()[:8]}", "bridge", "", 1450)
    host.reconciler.refused = {PutLink(bridge): REFUSED_BY_KERNEL}
    with pytest.raises(KernelError, match="operation not supported"):
        await attach(host, ask())
    assert (host.kernel.links, free_counts(host), host.endpoints, host.attachments) == ({}, {}, {}, {})


async def test_what_the_kernel_refuses_elsewhere_does_not_fail_an_attach():
    (host,) = World().hosts
    await made(host)
    host.reconciler.refused = {PutLink(Link("mo00000000", "bridge", "", 1450)): REFUSED_BY_KERNEL}
    assert (await attach(host, ask())).created


# --- addresses ------------------------------------------------------------------------------------------------
async def test_fifty_attaches_at_once_get_fifty_addresses():
    (host,) = World().hosts
    await made(host)
    found = []

    async def one(cookie):
        found.append(await attach(host, ask(cookie=cookie)))

    async with trio.open_nursery() as nursery:
        for cookie in range(1, 51):
            nursery.start_soon(one, cookie)
    assert len({ip(attached) for attached in found}) == 50
    assert len({attached.endpoint.mac for attached in found}) == 50


async def test_attaches_on_all_hosts_at_once_never_share_an_address_although_blocks_run_out():
    world = World(4)
    await made(world.hosts[0], subnet="10.1.0.0/25")
    found, failed = [], []

    async def one(host, cookie):
        try:
            found.append(await attach(host, ask(cookie=cookie)))
        except Unavailable as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for host in world.hosts:
            for cookie in range(1, 26):
                nursery.start_soon(one, host, cookie)
    addresses = [ip(attached) for attached in found]
    assert len(set(addresses)) == len(addresses)
    assert len(found) + len(failed) == 100
    assert len(found) >= 80  # of 125; who fails says whom to ask
    for error in failed:
        assert "blue" in error.what


async def test_a_host_without_space_asks_an_owner_and_then_has_the_address():
    world = World(2)
    one, two = world.hosts
    world.cut_off.add(two.me)
    await made(one)
    world.heal()  # the network was made without host2: it was dealt nothing
    found = await attach(two, ask())
    assert two.asked[0] == (one.me, None)
    assert one.deeds.owner_of(found.endpoint.network, found.endpoint.index) == two.me
    assert two.deeds.owner_of(found.endpoint.network, found.endpoint.index) == two.me


async def test_an_owner_that_does_not_answer_is_passed_over_for_the_next():
    world = World(3)
    one, two, three = world.hosts
    world.cut_off.add(three.me)
    await made(one)
    world.heal()
    one.disk_full = True  # it cannot make a deed durable, so it must not give one
    found = await attach(three, ask())
    asked = [owner for owner, _ in three.asked]
    assert asked[-1] == two.me
    assert one.deeds.owner_of(found.endpoint.network, found.endpoint.index) == three.me


async def test_without_anybody_to_ask_the_error_says_who_holds_the_free_addresses():
    world = World(2)
    one, two = world.hosts
    world.cut_off.add(two.me)
    await made(one)
    world.heal()
    world.down.add(one.me)
    with pytest.raises(Unavailable, match=r"in reach: host1 holds \d+"):
        await attach(two, ask())
    assert two.asked == []


async def test_an_answer_that_is_lost_costs_no_addresses_and_never_gives_one_twice():
    world = World(2)
    one, two = world.hosts
    world.cut_off.add(two.me)
    network = await made(one)
    world.heal()
    world.gossip = False
    two.drop_answers = True
    with pytest.raises(Unavailable):
        await attach(two, ask())
    given = [item.body for item in one.store.live(Kind.DEED) if item.body.owner == two.me]
    assert len(given) == 1
    for cookie in range(1, 100):  # the donor goes on; what it gave away is out of its reach
        attached = await attach(one, ask(cookie=cookie))
        assert not given[0].start <= attached.endpoint.index < given[0].start + given[0].size
    world.heal()
    two.drop_answers = False
    found = await attach(two, ask())
    assert given[0].start <= found.endpoint.index < given[0].start + given[0].size
    assert network.id == found.endpoint.network


async def test_an_explicit_address_in_another_hosts_block_is_handed_on_alone():
    world = World(2)
    one, two = world.hosts
    await made(one)
    found = await attach(two, ask(ips=("10.1.0.5",)))
    assert ip(found) == "10.1.0.5"
    assert two.asked == [(one.me, 5)]
    assert one.deeds.owner_of(found.endpoint.network, 5) == two.me
    assert one.deeds.owner_of(found.endpoint.network, 6) == one.me


async def test_an_explicit_address_whose_owner_is_away_is_an_error_that_names_the_owner():
    world = World(2)
    one, two = world.hosts
    await made(one)
    world.down.add(one.me)
    with pytest.raises(Unavailable, match="host1"):
        await attach(two, ask(ips=("10.1.0.5",)))
    assert free_counts(two) == {}


async def test_an_explicit_address_that_is_in_use_is_a_conflict_that_names_the_endpoint():
    world = World(2)
    one, two = world.hosts
    await made(one)
    held = await attach(one, ask(ips=("10.1.0.5",)))
    with pytest.raises(Conflict, match=held.id.hex()):
        await attach(two, ask(ips=("10.1.0.5",)))


async def test_an_owner_does_not_hand_on_what_it_is_just_giving_out_itself():
    world = World(2)
    one, two = world.hosts
    network = await made(one)
    one.usage.reserve(network.id, 5, b"e" * 16)  # an attach is under way: nothing is committed yet
    answer = await answer_block_ask(one, two.me, BlockAsk(9, network.id, 1, exact=True, start=5))
    assert (answer.request, answer.deeds) == (9, ())
    assert "10.1.0.5" in answer.refusal


async def test_an_owner_answers_only_what_is_on_its_disk():
    world = World(2)
    one, two = world.hosts
    network = await made(one)
    one.disk_full = True
    answer = await answer_block_ask(one, two.me, BlockAsk(9, network.id, 16, exact=False, start=0))
    assert answer.deeds == ()
    assert "disk is full" in answer.refusal


@pytest.mark.parametrize("stranger", [b"x" * 16, None])
async def test_only_another_member_is_given_space(stranger):
    (host,) = World().hosts
    network = await made(host)
    answer = await answer_block_ask(
        host, stranger or host.me, BlockAsk(1, network.id, 16, exact=False, start=0)
    )
    assert answer.deeds == ()
    assert answer.refusal


async def test_space_is_fetched_ahead_before_it_runs_out():
    world = World(2)
    one, two = world.hosts
    await made(one, subnet="10.1.0.0/26")  # host2 is dealt 32 of 64
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        for cookie in range(1, 29):
            await attach(two, ask(cookie=cookie))
            await trio.testing.wait_all_tasks_blocked()
            if two.asked:
                break
    assert two.asked == [(one.me, None)]
    assert len(two.endpoints) < 32  # no attach had to wait for it


# --- moving ---------------------------------------------------------------------------------------------------
async def test_an_address_detached_here_a_moment_ago_is_attached_there_with_its_id_and_mac():
    world = World(3)
    one, two, three = world.hosts
    await made(one)
    found = await attach(one, ask(name="web", ips=("10.1.0.5",)))
    incarnation = three.store.get(Kind.ENDPOINT, found.id).version.incarnation
    for here, there in ((one, two), (two, three), (three, one)):  # and back home again
        world.time -= 7.0  # whatever their clocks say
        assert await detach(here, found.id)
        moved = await attach(there, ask(name="web", ips=("10.1.0.5",)))
        assert (moved.id, moved.endpoint.mac, ip(moved)) == (found.id, found.endpoint.mac, "10.1.0.5")
        assert all(host.endpoints[found.id].host == there.me for host in world.hosts)
        version = three.store.get(Kind.ENDPOINT, found.id).version
        assert version.incarnation > incarnation
        incarnation = version.incarnation
        assert [len(host.kernel.links) for host in world.hosts] == [host is there for host in world.hosts]
    assert two.asked == [(one.me, 5)]
    assert one.asked == [(three.me, 5)]


async def test_an_address_chosen_by_the_host_is_a_new_endpoint_whoever_had_it():
    (host,) = World().hosts
    await made(host, subnet="10.1.0.0/30")  # one address for endpoints
    found = await attach(host, ask())
    assert await detach(host, found.id)
    again = await attach(host, ask())
    assert (ip(again), again.id == found.id) == (ip(found), False)


async def test_an_address_still_in_use_is_not_moved():
    world = World(2)
    one, two = world.hosts
    await made(one)
    await attach(one, ask(name="web", ips=("10.1.0.5",)))
    with pytest.raises(Conflict, match="in use by endpoint"):
        await attach(two, ask(name="web", ips=("10.1.0.5",)))
    assert two.asked == []


async def test_attaching_again_here_waits_until_the_former_link_is_gone():
    world = World()
    (host,) = world.hosts
    await made(host)
    found = await attach(host, ask(ips=("10.1.0.5",)))
    entered, leave = trio.Event(), trio.Event()
    committed = host.commit

    async def slow(items, forget=()):
        await committed(items, forget)
        host.commit = committed
        entered.set()
        await leave.wait()

    host.commit = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(detach, host, found.id)
        await entered.wait()  # the record has ended, the link is still there
        nursery.start_soon(attach, host, ask(cookie=8, ips=("10.1.0.5",)))
        await trio.testing.wait_all_tasks_blocked()
        assert host.attachments == {}
        leave.set()
    assert host.attachments[found.id].netns_cookie == 8
    assert list(host.kernel.links) == [found.attachment.host_if]


# --- going ----------------------------------------------------------------------------------------------------
async def test_detach_ends_the_record_the_link_and_the_attachment_and_is_idempotent():
    world = World(2)
    one, two = world.hosts
    network = await made(one)
    found = await attach(one, ask())
    assert found.id in two.endpoints
    assert await detach(one, found.id)
    assert (one.kernel.links, one.attachments, one.endpoints, two.endpoints) == ({}, {}, {}, {})
    dead = two.store.get(Kind.ENDPOINT, found.id)
    assert dead.body == Released(network.id, found.endpoint.index)
    assert dead.seq == 2
    assert one.store.get(Kind.ATTACHMENT, found.id) is None
    assert not await detach(one, found.id)
    again = await attach(one, ask())
    assert again.created
    assert again.endpoint.index != found.endpoint.index  # released addresses rest


async def test_an_endpoint_that_was_written_anew_during_its_detach_is_gone_all_the_same():
    (host,) = World().hosts
    await made(host)
    found = await attach(host, ask())
    item = host.store.get(Kind.ENDPOINT, found.id)
    anew = msgspec.structs.replace(item, version=item.version._replace(counter=1), seq=99)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.commit, [anew])  # as collecting tombstones does
        nursery.start_soon(detach, host, found.id)
    assert host.endpoints == {}
    assert host.store.get(Kind.ENDPOINT, found.id).dead


async def test_an_endpoint_of_another_host_is_detached_there():
    world = World(2)
    one, two = world.hosts
    await made(one)
    found = await attach(one, ask(name="web"))
    with pytest.raises(Conflict, match="endpoint web is on host1"):
        await detach(two, found.id)
    assert found.id in two.endpoints


async def test_detach_frees_the_address_even_if_the_kernel_keeps_the_link():
    (host,) = World().hosts
    await made(host)
    found = await attach(host, ask())
    host.kernel.fail_delete = REFUSED_BY_KERNEL
    assert await detach(host, found.id)
    assert host.endpoints == {}


async def test_a_link_that_vanished_releases_its_endpoint():
    (host,) = World().hosts
    await made(host)
    found = await attach(host, ask())
    host.kernel.links.clear()
    await release_vanished(host, [found.id, b"?" * 16])
    assert (host.endpoints, host.attachments) == ({}, {})


async def test_what_another_boot_left_is_released_in_one_write_and_the_rest_stays():
    (host,) = World().hosts
    await made(host)
    for cookie in (1, 2, 3):
        await attach(host, ask(cookie=cookie))
    host.boot_id = "another boot"
    kept = await attach(host, ask(cookie=4, boot="another boot"))
    batches = len(host.journal)
    assert await release_other_boots(host) == 3
    assert len(host.journal) == batches + 1
    assert set(host.endpoints) == {kept.id}
    assert await release_other_boots(host) == 0


async def test_the_same_cookie_of_another_boot_is_another_namespace():
    (host,) = World().hosts
    await made(host)
    first = await attach(host, ask())
    host.boot_id = "another boot"
    second = await attach(host, ask(boot="another boot"))
    assert second.created
    assert second.id != first.id


async def test_local_tombstones_do_not_pile_up():
    (host,) = World().hosts
    await networks.ensure_default_bridge(host)
    for _ in range(200):
        found = await attach(host, ask("bridge"))
        await detach(host, found.id)
    assert sum(item.dead for item in host.store.all(Kind.LOCAL_ENDPOINT)) < 70


async def test_find_wants_a_whole_id_of_a_live_endpoint():
    (host,) = World().hosts
    await made(host)
    found = await attach(host, ask())
    assert find(host, found.id.hex()) == found.id
    for text in ("", "zz", found.id.hex()[:8], "00" * 16):
        with pytest.raises(NotFound):
            find(host, text)
    assert isinstance(found.endpoint, Endpoint)
    assert isinstance(found.attachment, Attachment)
    assert Key(Kind.ATTACHMENT, found.id) == host.store.get(Kind.ATTACHMENT, found.id).key
