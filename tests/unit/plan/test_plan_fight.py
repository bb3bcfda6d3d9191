"""Over what, from when and for how long meshd gives in to another program."""

import copy

import msgspec
import pytest

from meshd.config import FIGHT_BACKOFF_MAX_S, FIGHT_BACKOFF_S, FIGHT_REPAIRS_PER_MIN, FIGHT_WINDOW_S
from meshd.plan import elements, kernels, ops
from meshd.plan.desired import desired
from meshd.plan.diff import diff
from meshd.plan.fight import Fights
from meshd.plan.objects import GATE_ACCEPTS, Gate, GateState, Kernel, NeighKey
from tests.fake_kernel import FakeKernel
from tests.plan_world import blue_on_two_hosts, ip4

WHOLE = desired(blue_on_two_hosts().view())
ROW = NeighKey("mo11111111", ip4("10.1.0.66"))
PUT = ops.PutNeigh(ROW, WHOLE.neigh[ROW])
NAMED = ("neigh", "10.1.0.66 dev mo11111111")


def fought(times, every=1.0, todo=(PUT,), found=WHOLE):
    fights = Fights()
    for n in range(times):
        fights.note(todo, found, n * every)
    return fights


def without(*devices):
    kernel = FakeKernel(copy.deepcopy(WHOLE))
    for device in devices:
        kernel.apply([ops.DelLink(device)])
    return kernel.state, diff(WHOLE, kernel.state, deletions=True)


@pytest.mark.parametrize(
    "times, every, going",
    [
        (FIGHT_REPAIRS_PER_MIN - 1, 1.0, False),
        (FIGHT_REPAIRS_PER_MIN, 1.0, True),
        (FIGHT_REPAIRS_PER_MIN, FIGHT_WINDOW_S / (FIGHT_REPAIRS_PER_MIN - 1), True),
        (20 * FIGHT_REPAIRS_PER_MIN, FIGHT_WINDOW_S / (FIGHT_REPAIRS_PER_MIN - 1) + 1, False),
    ],
)
def test_so_many_repairs_of_one_object_in_a_minute_are_a_fight(times, every, going):
    assert bool(fought(times, every).going) is going


def test_an_object_fought_over_is_held_for_a_time_and_no_other_is():
    fights = fought(FIGHT_REPAIRS_PER_MIN)
    now = FIGHT_REPAIRS_PER_MIN - 1.0
    other = ops.PutNeigh(NeighKey("mo11111111", ip4("10.1.0.67")), bytes(6))
    for op in (PUT, ops.DelNeigh(ROW)):
        assert fights.held([op, other], WHOLE, now + 10) == {op: FIGHT_BACKOFF_S - 10}
    assert fights.held([PUT, other], WHOLE, now + FIGHT_BACKOFF_S) == {}


def test_who_goes_on_is_given_in_to_for_longer_each_time_up_to_a_limit():
    fights, now, waits = fought(FIGHT_REPAIRS_PER_MIN), FIGHT_REPAIRS_PER_MIN - 1.0, []
    for _ in range(8):
        waits.append(fights.held([PUT], WHOLE, now)[PUT])
        now += waits[-1]
        fights.note([PUT], WHOLE, now)  # it was written and undone at once
    assert waits[:3] == [FIGHT_BACKOFF_S, 2 * FIGHT_BACKOFF_S, 4 * FIGHT_BACKOFF_S]
    assert waits[-1] == FIGHT_BACKOFF_MAX_S


def test_a_minute_of_peace_ends_it_and_the_next_one_starts_anew():
    fights = fought(FIGHT_REPAIRS_PER_MIN)
    over = FIGHT_REPAIRS_PER_MIN + FIGHT_BACKOFF_S + FIGHT_WINDOW_S
    fights.note([], WHOLE, over)
    assert fights.going == {}
    fights.note([PUT], WHOLE, over)
    assert fights.going == {}


@pytest.mark.parametrize(
    "lost, counted",
    [
        (("mo11111111",), {("link", "dev mo11111111")}),
        (("mv11111111",), {("link", "dev mv11111111")}),
        (("mo11111111", "mv11111111"), {("link", "dev mo11111111")}),
    ],
)
def test_what_went_with_its_device_is_not_fought_over_itself(lost, counted):
    found, todo = without(*lost)
    fights = fought(FIGHT_REPAIRS_PER_MIN, todo=todo, found=found)
    assert fights.going.keys() == counted
    held = fights.held(todo, found, FIGHT_REPAIRS_PER_MIN)
    assert {op.link.name for op in held if isinstance(op, ops.PutLink)} >= set(lost)
    assert held.keys() >= {op for op in todo if kernels.device(op) in lost}


def test_rows_that_went_with_their_nexthop_are_not_fought_over_themselves():
    found = Kernel(
        links=WHOLE.links,
        addrs=WHOLE.addrs,
        neigh=WHOLE.neigh,
        firewall=WHOLE.firewall,
        elements=WHOLE.elements,
    )
    todo = diff(WHOLE, found, deletions=True)
    assert {kind for kind, _ in fought(FIGHT_REPAIRS_PER_MIN, todo=todo, found=found).going} == {"nexthop"}


def test_elements_and_accepts_are_fought_over_by_name_whatever_becomes_of_their_device():
    gate = Gate("ip", "filter", "FORWARD")
    want = msgspec.structs.replace(WHOLE, gates={gate: GateState(shut=True, accepts=GATE_ACCEPTS)})
    found, _ = without("mo11111111")
    lost = elements.element("bridges", b"mo11111111")
    del found.elements[lost]
    found.gates = {gate: GateState(shut=True, accepts=0)}
    todo = diff(want, found, deletions=True)
    fights = fought(FIGHT_REPAIRS_PER_MIN, todo=todo, found=found)
    named = {
        ("nft", 'element inet meshd bridges { "mo11111111" }'),
        ("nft", "accepts for our bridges in chain ip filter FORWARD"),
    }
    assert {key for key in fights.going if key[0] == "nft"} == named
    only_device = Fights()
    for n in range(FIGHT_REPAIRS_PER_MIN):
        only_device.note([op for op in todo if isinstance(op, ops.PutLink)], found, n)
    held = only_device.held(todo, found, FIGHT_REPAIRS_PER_MIN)
    assert held
    assert not {ops.PutElement(lost, b""), ops.OpenGate(gate)} & held.keys()


def test_memory_is_bounded_where_everything_is_flushed():
    todo = [ops.PutNeigh(NeighKey("mo11111111", n.to_bytes(4, "big")), bytes(6)) for n in range(20_000)]
    fights = fought(FIGHT_REPAIRS_PER_MIN, todo=todo)
    assert len(fights._times) == len(fights.going) < 20_000


def test_the_object_is_called_as_people_call_it():
    assert list(fought(FIGHT_REPAIRS_PER_MIN).going) == [NAMED]
