"""The reconciler against a kernel in memory and a clock that jumps: when it looks, when it writes, when it waits.

The kernel is a mock because this is the unit level; real devices and real events are in tests/kernel and in the
lab. Worker threads are run inline, so that the jumping clock cannot outrun them; one test uses real ones.
"""

import copy
import math
import threading

import msgspec
import pytest
import trio
import trio.testing

from meshd.config import (
    COMPARE_REST,
    DELETIONS_ASKED_S,
    DUMP_AGAIN_S,
    EVENT_SETTLE_S,
    FIGHT_BACKOFF_S,
    FIGHT_REPAIRS_PER_MIN,
    FIGHT_WINDOW_S,
    RECONCILE_REST,
    RECONCILE_S,
    REFUSED_AGAIN_S,
    VANISHED_GRACE_S,
)
from meshd.errors import KernelError
from meshd.kernel.links import Birth
from meshd.kernel.watch import KernelEvent, Overrun
from meshd.plan import names, ops, wording
from meshd.plan.desired import desired
from meshd.plan.objects import GATE_ACCEPTS, Gate, GateState, NeighKey
from meshd.shell.reconcile import Reconciler
from tests.fake_kernel import FakeKernel, refused
from tests.plan_world import BLUE, OVERLAY, RED, A, B, C, blue_on_two_hosts, id_of, ip4

ROW = NeighKey("mo11111111", ip4("10.1.0.66"))
FOREIGN_CHANGE = KernelEvent("neighbour", 7, "mo11111111", gone=True)
REAL_RUN_SYNC = trio.to_thread.run_sync


@pytest.fixture(autouse=True)
def inline_threads(monkeypatch):
    async def run_sync(function, *args, limiter):
        async with limiter:
            await trio.lowlevel.checkpoint()
            return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


class Rig:
    """A reconciler, its world and its kernel, and what it reported."""

    def __init__(self):
        self.world = blue_on_two_hosts()
        self.kernel = FakeKernel()
        self.kernel.plug(names.veth(id_of("web")))
        self.allowed = True
        self.repairs = []
        self.fights = []
        self.gates = []
        self.send_event, events = trio.open_memory_channel(1000)
        self.used = 0.0
        self.reconciler = Reconciler(
            self.kernel,
            events,
            self.world.view,
            deletions_allowed=lambda: self.allowed,
            on_repair=lambda done: self.repairs.append(list(done)),
            on_fight=lambda objects: self.fights.append(set(objects)),
            on_gates=lambda done: self.gates.append(list(done)),
            used=lambda: self.used,
        )

    def right(self):
        return self.kernel.state == desired(self.world.view())

    def event(self, event=FOREIGN_CHANGE):
        self.send_event.send_nowait(event)


@pytest.fixture
async def rig(nursery):
    rig = Rig()
    await rig.reconciler.start()
    nursery.start_soon(rig.reconciler.run)
    await trio.testing.wait_all_tasks_blocked()
    return rig


async def test_start_reads_the_kernel_and_adds_what_is_missing(rig, autojump_clock):
    assert rig.right()
    assert rig.kernel.dumps == 1
    assert rig.repairs == []


async def test_start_adopts_what_an_earlier_daemon_left_and_deletes_nothing(autojump_clock):
    first = Rig()
    await first.reconciler.start()
    second = Rig()
    second.kernel.state = first.kernel.state
    second.world.release("web")
    second.world.release("db")
    before = copy.deepcopy(first.kernel.state)
    await second.reconciler.start()
    assert second.kernel.state == before
    assert second.kernel.log == []


async def test_a_kernel_that_cannot_be_read_fails_the_start(autojump_clock):
    rig = Rig()
    rig.kernel.dump = lambda mark: (_ for _ in ()).throw(refused(1))
    with pytest.raises(KernelError):
        await rig.reconciler.start()


async def test_a_change_is_applied_without_a_dump_and_without_waiting(rig, autojump_clock):
    before = trio.current_time()
    id_ = rig.world.endpoint("cache", BLUE, C, "10.1.0.130")
    rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    assert trio.current_time() == before  # of the jumping clock: nothing slept
    assert rig.right()
    assert rig.kernel.dumps == 1
    rig.world.release("cache")
    rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    assert rig.right()


async def test_a_burst_of_changes_is_one_write(rig, autojump_clock):
    writes = len(rig.kernel.log)
    for n in range(100):
        rig.reconciler.changed(BLUE, rig.world.endpoint(f"n{n}", BLUE, C, f"10.1.1.{n}"))
    await rig.reconciler.settled()
    assert len(rig.kernel.log) == writes + 1
    assert rig.right()


async def test_anything_may_have_changed(rig, autojump_clock):
    rig.world.endpoint("cache", BLUE, C, "10.1.0.130")
    rig.reconciler.changed()
    await rig.reconciler.settled()
    assert rig.right()
    await rig.reconciler.settled()  # nothing marked: returns at once


async def test_a_row_deleted_by_a_stranger_comes_back_and_is_reported(rig, autojump_clock):
    del rig.kernel.state.neigh[ROW]
    rig.event()
    await trio.sleep(2 * EVENT_SETTLE_S)
    assert rig.right()
    assert rig.repairs == [[ops.PutNeigh(ROW, names.endpoint_mac(id_of("db")))]]


def lose(rig, key):
    """Have somebody delete a row, whose event names it."""
    rows = rig.kernel.state.neigh if isinstance(key, NeighKey) else rig.kernel.state.fdb
    del rows[key]
    rig.event(KernelEvent("neighbour", 7, key.dev, gone=True, row=key))


async def test_the_row_that_an_event_names_is_put_back_at_once_without_reading_all_others(
    rig, autojump_clock
):
    before = trio.current_time()
    rows = [*rig.kernel.state.fdb, *rig.kernel.state.neigh]
    for key in rows:
        lose(rig, key)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == before
    assert rig.right()
    assert rig.kernel.dumps == 1
    assert {op.key for done in rig.repairs for op in done} == set(rows)


async def test_a_deleted_row_that_nobody_wanted_is_nothing(rig, autojump_clock):
    rig.event(
        KernelEvent("neighbour", 7, "mo11111111", gone=True, row=NeighKey("mo11111111", ip4("10.1.0.99")))
    )
    await trio.sleep(RECONCILE_S / 2)
    assert (rig.kernel.dumps, rig.repairs) == (1, [])


async def test_a_stale_row_that_somebody_else_deletes_is_stale_no_more(rig, autojump_clock):
    rig.allowed = False
    rig.world.release("db")
    rig.reconciler.changed(BLUE, id_of("db"))
    await rig.reconciler.settled()
    assert rig.reconciler.counts()["stale"] == 5
    lose(rig, ROW)
    await trio.testing.wait_all_tasks_blocked()
    assert rig.reconciler.counts()["stale"] == 4
    assert ROW not in rig.kernel.state.neigh


async def test_a_row_that_cannot_be_put_back_alone_is_compared_and_still_a_repair(rig, autojump_clock):
    """Its nexthop went first, and took it along."""
    for number in [*rig.kernel.state.nexthops]:
        del rig.kernel.state.nexthops[number]
    for key in [key for key, target in rig.kernel.state.fdb.items() if target.nhid]:
        lose(rig, key)
    await trio.sleep(2 * EVENT_SETTLE_S)
    assert rig.right()
    (done,) = rig.repairs
    assert {type(op) for op in done} == {ops.PutNexthop, ops.PutFdb}


async def test_more_rows_than_are_worth_it_one_by_one_are_left_to_a_comparison(
    rig, autojump_clock, monkeypatch
):
    monkeypatch.setattr("meshd.shell.reconcile.ROWS_PUT_BACK_MAX", 1)
    for key in [*rig.kernel.state.fdb, *rig.kernel.state.neigh]:
        lose(rig, key)
    await trio.sleep(2 * EVENT_SETTLE_S)
    assert rig.right()
    assert rig.kernel.dumps == 2


async def test_a_row_deleted_without_an_event_comes_back_with_the_next_comparison(rig, autojump_clock):
    del rig.kernel.state.neigh[ROW]
    await trio.sleep(RECONCILE_S - 1)
    assert not rig.right()
    await trio.sleep(2)
    assert rig.right()


async def test_a_burst_of_events_leads_to_one_comparison_and_a_steady_stream_is_not_waited_out(
    rig, autojump_clock
):
    for _ in range(50):
        rig.event()
        await trio.sleep(EVENT_SETTLE_S / 2)
    assert rig.kernel.dumps == 1 + int(50 * EVENT_SETTLE_S / 2 / DUMP_AGAIN_S)
    await trio.sleep(2 * EVENT_SETTLE_S)
    settled = rig.kernel.dumps
    await trio.sleep(RECONCILE_S / 2)
    assert rig.kernel.dumps == settled


@pytest.mark.parametrize(
    "event",
    [
        KernelEvent("neighbour", 7, "mo11111111", mine=True),
        KernelEvent("link", 9, "veth12ab", gone=True),
        KernelEvent("address", 2, "eth0"),
        KernelEvent("link", 8, names.peer(id_of("web")), gone=True),
    ],
)
async def test_events_that_are_not_about_us_lead_to_nothing(rig, event, autojump_clock):
    rig.event(event)
    await trio.sleep(RECONCILE_S / 2)
    assert rig.kernel.dumps == 1


async def test_overruns_lead_to_one_dump_a_second_at_most(rig, autojump_clock):
    await trio.sleep(DUMP_AGAIN_S)
    for _ in range(20):
        rig.event(Overrun())
    await trio.sleep(DUMP_AGAIN_S / 2)
    assert rig.kernel.dumps == 2
    rig.event(Overrun())
    rig.event()  # what was still in the buffer asks for no more
    await trio.sleep(DUMP_AGAIN_S / 4)
    assert rig.kernel.dumps == 2
    await trio.sleep(DUMP_AGAIN_S / 2)
    assert rig.kernel.dumps == 3


@pytest.mark.parametrize("row", [ROW, None])
async def test_a_fight_is_told_given_in_to_and_told_to_be_over(rig, row, autojump_clock):
    """Also where events name the row, which is then put back without a comparison."""
    for _ in range(2 * FIGHT_REPAIRS_PER_MIN):
        if rig.kernel.state.neigh.pop(ROW, None):
            rig.event(msgspec.structs.replace(FOREIGN_CHANGE, row=row))
        await trio.sleep(2)
    assert rig.fights == [{("neigh", "10.1.0.66 dev mo11111111")}]
    assert len(rig.repairs) == FIGHT_REPAIRS_PER_MIN
    assert ROW not in rig.kernel.state.neigh
    assert rig.reconciler.counts()["missing"] == 1
    (finding,) = (await rig.reconciler.diff())["missing"]
    assert finding.why.startswith("not in the kernel; another program undoes it again and again")
    await trio.sleep(FIGHT_BACKOFF_S + RECONCILE_S)
    assert rig.right()
    await trio.sleep(FIGHT_WINDOW_S + RECONCILE_S)
    assert rig.fights[1:] == [set()]


async def test_deletions_of_what_peers_explained_wait_for_permission_and_then_happen(rig, autojump_clock):
    rig.allowed = False
    rig.world.release("db")
    rig.reconciler.changed(BLUE, id_of("db"))
    await rig.reconciler.settled()
    await trio.sleep(2 * RECONCILE_S)
    assert ROW in rig.kernel.state.neigh
    assert rig.reconciler.counts()["stale"] == 5
    rig.allowed = True
    await trio.sleep(2 * DELETIONS_ASKED_S)
    assert rig.right()
    assert rig.reconciler.counts() == {"missing": 0, "stale": 0}
    assert rig.repairs == []


async def test_a_local_detach_is_deleted_at_once(rig, autojump_clock):
    rig.allowed = False
    id_ = rig.world.endpoint("second", BLUE, A, "10.1.0.3")
    rig.kernel.plug(names.veth(id_))
    rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    assert rig.right()
    rig.world.release("second")
    rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    assert rig.right()


async def test_a_link_being_made_is_not_taken_for_a_leftover(rig, autojump_clock):
    name = names.veth(id_of("new"))
    with rig.reconciler.making(name):
        await rig.reconciler.in_kernel_thread(rig.kernel.plug, name)
        rig.event()
        await trio.sleep(1)
        assert rig.kernel.dumps == 2
        assert name in rig.kernel.state.links
        id_ = rig.world.endpoint("new", BLUE, A, "10.1.0.3")
        rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    assert rig.right()
    with rig.reconciler.making("mhdeadbeef"):
        rig.kernel.plug("mhdeadbeef")
    rig.event()
    await trio.sleep(1)
    assert "mhdeadbeef" not in rig.kernel.state.links  # attach gave up on it


class Coming:
    """An endpoint that is being attached here: recorded in the world by ``record`` alone."""

    def __init__(self, rig, name="new", network=BLUE, ip="10.1.0.3"):
        self.rig, self.name, self.network, self.ip = rig, name, network, ip
        self.id = rig.world.endpoint(name, network, A, ip)
        self.endpoint, self.attachment = rig.world.endpoints[self.id], rig.world.attachments[self.id]
        self.forget()

    def forget(self):
        self.rig.world.release(self.name)

    def record(self):
        self.rig.world.endpoints[self.id], self.rig.world.attachments[self.id] = (
            self.endpoint,
            self.attachment,
        )
        self.rig.reconciler.changed(self.network, self.id)

    def begin(self):
        birth = Birth(self.attachment.peer_if, self.endpoint.mac, 1450)
        return self.rig.reconciler.coming(self.id, self.endpoint, self.attachment, birth)

    def wanted(self):
        """What should be there with it."""
        self.rig.world.endpoints[self.id], self.rig.world.attachments[self.id] = (
            self.endpoint,
            self.attachment,
        )
        found = desired(self.rig.world.view())
        self.forget()
        return found


async def test_an_endpoint_stands_before_its_record_which_then_costs_nothing(rig, autojump_clock):
    coming = Coming(rig)
    async with coming.begin():
        assert rig.kernel.state == coming.wanted()
        assert await rig.reconciler.diff() == {"missing": [], "stale": [], "foreign": []}
        rig.event()
        await trio.sleep(1)
        assert rig.kernel.dumps == 3  # the start's, diff's, and a comparison that takes it for no leftover
        assert rig.kernel.state == coming.wanted()
        writes = len(rig.kernel.log)
        coming.record()
    await rig.reconciler.settled()
    await trio.testing.wait_all_tasks_blocked()
    assert len(rig.kernel.log) == writes
    assert rig.right()
    assert rig.repairs == []


@pytest.mark.parametrize(
    "network, ip", [(BLUE, "10.1.0.3"), (RED, "10.2.0.3")]
)  # one more, and a network's first
async def test_nothing_is_left_of_an_endpoint_that_was_never_recorded(rig, network, ip, autojump_clock):
    rig.world.networks[RED] = msgspec.structs.replace(OVERLAY, name="red", vni=5002)
    rig.reconciler.changed(RED)
    rig.allowed = False  # what no record explains may not be deleted: but this was ours alone
    before = copy.deepcopy(rig.kernel.state)
    coming = Coming(rig, network=network, ip=ip)
    async with coming.begin():
        assert rig.kernel.state == coming.wanted()
    assert rig.kernel.state == before
    assert rig.reconciler.counts() == {"missing": 0, "stale": 0}


async def test_a_link_that_the_kernel_refuses_is_a_failure_until_its_endpoint_is_given_up(
    rig, autojump_clock
):
    coming = Coming(rig)
    op = ops.PutLink(coming.wanted().links[coming.attachment.host_if])
    rig.kernel.refuse = {op: refused(17)}
    before = copy.deepcopy(rig.kernel.state)
    async with coming.begin():
        assert rig.reconciler.failures()[op].errno == 17
    assert rig.reconciler.failures() == {}
    rig.kernel.state.links.pop(
        coming.attachment.host_if, None
    )  # the real kernel makes it only as it should be
    assert rig.kernel.state == before


async def test_an_endpoint_given_up_on_by_a_cancelled_caller_goes_before_the_caller_does(rig, autojump_clock):
    coming = Coming(rig)
    before = copy.deepcopy(rig.kernel.state)
    with trio.CancelScope() as scope:
        async with coming.begin():
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert rig.kernel.state == before


async def test_what_the_kernel_refused_is_shown_and_tried_again(rig, autojump_clock):
    id_ = rig.world.endpoint("cache", BLUE, C, "10.1.0.130")
    op = ops.PutNeigh(NeighKey("mo11111111", ip4("10.1.0.130")), names.endpoint_mac(id_))
    rig.kernel.refuse = {op: refused(105)}
    rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    assert list(rig.reconciler.failures()) == [op]
    (finding,) = (await rig.reconciler.diff())["missing"]
    assert "ENOBUFS" in finding.why
    await trio.sleep(RECONCILE_S + 1)
    assert list(rig.reconciler.failures()) == [op]
    rig.kernel.refuse = {}
    await trio.sleep(RECONCILE_S)
    assert rig.reconciler.failures() == {}
    assert rig.right()
    assert rig.repairs == []


async def test_what_the_kernel_refused_once_is_there_a_moment_later(rig, autojump_clock):
    """Not after RECONCILE_S: until then an endpoint would not be reached from here."""
    id_ = rig.world.endpoint("cache", BLUE, C, "10.1.0.130")
    op = ops.PutNeigh(NeighKey("mo11111111", ip4("10.1.0.130")), names.endpoint_mac(id_))
    rig.kernel.refuse = {op: refused(105)}
    rig.reconciler.changed(BLUE, id_)
    await rig.reconciler.settled()
    rig.kernel.refuse = {}
    await trio.sleep(2 * REFUSED_AGAIN_S)
    assert rig.right()


async def test_a_kernel_that_refuses_everything_is_asked_less_and_less(rig, autojump_clock):
    def broken(todo, births):
        raise refused(5)

    rig.kernel.apply = broken
    del rig.kernel.state.neigh[ROW]
    await trio.sleep(10 * RECONCILE_S)
    tries = math.ceil(math.log2(RECONCILE_S / REFUSED_AGAIN_S))  # until the wait has grown to RECONCILE_S
    assert rig.kernel.dumps <= 11 + tries
    assert rig.reconciler.counts()["missing"] == 1
    del rig.kernel.apply
    await trio.sleep(RECONCILE_S)
    assert rig.right()


async def test_a_dump_that_fails_is_remembered_and_repeated(rig, autojump_clock):
    good = rig.kernel.dump
    rig.kernel.dump = lambda mark: (_ for _ in ()).throw(refused(4))
    rig.world.release("db")
    rig.allowed = False
    rig.reconciler.changed(BLUE)
    await rig.reconciler.settled()
    rig.allowed = True
    await trio.sleep(2 * RECONCILE_S)
    assert rig.reconciler.trouble.words == "EINTR"
    rig.kernel.dump = good
    await trio.sleep(2 * DELETIONS_ASKED_S)
    assert rig.reconciler.trouble is None
    assert rig.right()


async def test_diff_is_empty_when_all_is_right_and_names_what_is_not(rig, autojump_clock):
    assert await rig.reconciler.diff() == {"missing": [], "stale": [], "foreign": []}
    del rig.kernel.state.neigh[ROW]
    (finding,) = (await rig.reconciler.diff())["missing"]
    assert finding.what == "10.1.0.66 dev mo11111111"


async def test_diff_waits_for_what_was_just_marked(rig, autojump_clock):
    rig.reconciler.changed(BLUE, rig.world.endpoint("cache", BLUE, C, "10.1.0.130"))
    assert await rig.reconciler.diff() == {"missing": [], "stale": [], "foreign": []}


async def test_a_vanished_link_is_released_only_after_its_grace(rig, autojump_clock):
    del rig.kernel.state.links[names.veth(id_of("web"))]
    rig.event(KernelEvent("link", 5, names.veth(id_of("web")), gone=True))
    await trio.sleep(1)
    assert rig.reconciler.vanished(trio.current_time()) == []
    assert rig.reconciler.vanished(trio.current_time() + VANISHED_GRACE_S) == [id_of("web")]
    assert rig.reconciler.counts()["missing"] == 1
    rig.kernel.plug(names.veth(id_of("web")))
    rig.event(KernelEvent("link", 6, names.veth(id_of("web"))))
    await trio.sleep(1)
    assert rig.reconciler.vanished(trio.current_time() + VANISHED_GRACE_S) == []
    assert rig.right()


async def test_a_device_that_went_with_its_parent_is_noticed_told_of_and_never_released_for_it(
    rig, autojump_clock
):
    web, link = id_of("web"), names.veth(id_of("web"))
    was = rig.world.attachments[web]
    rig.world.attachments[web] = msgspec.structs.replace(was, parent="eth1", parent_index=7)
    rig.kernel.devices = {7: "eth1"}
    del rig.kernel.state.links[link]
    rig.kernel.devices = {}
    rig.event(KernelEvent("link", 7, "eth1", gone=True))
    await trio.sleep(1)
    assert rig.reconciler.orphans()[web].startswith("its parent eth1 went away")
    assert rig.reconciler.vanished(trio.current_time() + 100 * VANISHED_GRACE_S) == []
    (finding,) = [one for one in (await rig.reconciler.diff())["missing"] if one.what == f"dev {link}"]
    assert finding.why == rig.reconciler.orphans()[web]
    rig.world.attachments[web] = msgspec.structs.replace(was, parent="eth1", parent_index=9)
    rig.kernel.devices = {9: "eth1"}
    rig.kernel.plug(link)  # it was attached again
    rig.reconciler.changed(BLUE, web)
    await rig.reconciler.settled()
    assert rig.reconciler.orphans() == {}


async def test_rows_of_a_host_that_is_only_said_to_have_failed_stay(rig, autojump_clock):
    # What a verdict changes is membership, of which the view knows nothing; a daemon that announces the change
    # all the same changes nothing.
    writes = len(rig.kernel.log)
    for member in (B, C):
        rig.reconciler.changed()
        assert member in rig.world.hosts
    await rig.reconciler.settled()
    assert len(rig.kernel.log) == writes
    assert rig.right()


async def test_the_loop_runs_on_while_the_kernel_is_slow(monkeypatch, nursery):
    monkeypatch.setattr(trio.to_thread, "run_sync", REAL_RUN_SYNC)
    rig = Rig()
    await rig.reconciler.start()
    nursery.start_soon(rig.reconciler.run)
    entered, leave = threading.Event(), threading.Event()
    quick = rig.kernel.apply

    def slow(todo, births):
        entered.set()
        assert leave.wait(60)
        return quick(todo, births)

    rig.kernel.apply = slow
    rig.reconciler.changed(BLUE, rig.world.endpoint("cache", BLUE, C, "10.1.0.130"))
    while not entered.is_set():  # noqa: ASYNC110  # set by a thread
        await trio.sleep(0.001)
    for _ in range(100):
        await trio.lowlevel.checkpoint()  # gossip goes on
    rig.world.endpoint("more", BLUE, C, "10.1.0.131")  # and the state with it
    leave.set()
    await rig.reconciler.settled()
    rig.reconciler.changed(BLUE, id_of("more"))
    await rig.reconciler.settled()
    assert rig.right()
    nursery.cancel_scope.cancel()


async def test_a_comparison_that_takes_long_is_made_less_often_while_nothing_happens(rig, autojump_clock):
    dump, took = rig.kernel.dump, 5.0

    def slow(mark):
        autojump_clock.jump(took)
        rig.used += took
        return dump(mark)

    rig.kernel.dump = slow
    await trio.sleep(RECONCILE_S + took)
    before = rig.kernel.dumps
    await trio.sleep(RECONCILE_REST * took - 1)
    assert rig.kernel.dumps == before
    await trio.sleep(took + 2)
    assert rig.kernel.dumps == before + 1
    rig.event()  # what somebody changes is seen to all the same
    await trio.sleep(COMPARE_REST * took + took + 2)
    assert rig.kernel.dumps == before + 2


async def test_a_comparison_that_others_work_held_up_puts_off_no_repair(rig, autojump_clock):
    dump, took = rig.kernel.dump, 5.0

    def starved(mark):
        autojump_clock.jump(took)  # of which this process had next to nothing
        rig.used += 0.01
        return dump(mark)

    rig.kernel.dump = starved
    await trio.sleep(RECONCILE_S + took)
    rig.kernel.dump = dump
    before = rig.kernel.dumps
    rig.event()
    await trio.sleep(2 * EVENT_SETTLE_S + COMPARE_REST * 0.01)
    assert rig.kernel.dumps == before + 1


GATE = Gate("ip", "filter", "FORWARD")


async def test_another_firewall_that_comes_and_goes_is_no_fight_and_nothing_to_repair(rig, autojump_clock):
    for _ in range(FIGHT_REPAIRS_PER_MIN + 1):
        rig.kernel.state.gates[GATE] = GateState(shut=True, accepts=0)
        rig.event()
        await trio.sleep(1)
        assert rig.kernel.state.gates[GATE].accepts == GATE_ACCEPTS
        assert rig.gates.pop() == [ops.OpenGate(GATE)]
        rig.kernel.state.gates[GATE] = GateState(shut=False, accepts=GATE_ACCEPTS)
        rig.event()
        await trio.sleep(1)
        assert rig.kernel.state.gates[GATE].accepts == 0
        assert rig.gates.pop() == [ops.LeaveGate(GATE)]
        del rig.kernel.state.gates[GATE]
        rig.event()
        await trio.sleep(1)
    assert (rig.repairs, rig.fights, rig.gates) == ([], [], [])


async def test_accepts_that_somebody_takes_out_are_repaired_and_that_again_and_again_is_a_fight(
    rig, autojump_clock
):
    rig.kernel.state.gates[GATE] = GateState(shut=True, accepts=0)
    rig.event()
    await trio.sleep(1)
    assert rig.gates.pop() == [ops.OpenGate(GATE)]
    for _ in range(FIGHT_REPAIRS_PER_MIN):
        rig.kernel.state.gates[GATE] = GateState(shut=True, accepts=0)
        rig.event()
        await trio.sleep(1)
        assert rig.repairs.pop() == [ops.OpenGate(GATE)]
    assert (rig.gates, rig.fights) == ([], [{wording.gate(GATE)}])
