"""Who probes whom."""

import random

from hypothesis import given
from hypothesis import strategies as st

from meshd.config import PROBE_PERIOD_S
from meshd.swim.ring import PeriodClock, ProbeRing, ring_offset


def rings(ids):
    made = []
    for me in ids:
        ring = ProbeRing(me)
        for host in random.Random(me).sample(ids, len(ids)):  # learnt in any order
            ring.add(host)
        made.append(ring)
    return made


@given(st.sets(st.binary(min_size=16, max_size=16), min_size=2, max_size=40), st.integers(-(2**40), 2**40))
def test_in_each_period_every_member_is_probed_exactly_once_and_nobody_probes_itself(ids, period):
    ids = sorted(ids)
    targets = [ring.target(period) for ring in rings(ids)]
    assert sorted(targets) == ids
    assert all(target != me for me, target in zip(ids, targets, strict=True))


def test_over_many_periods_a_host_meets_nearly_everybody():
    ids = [n.to_bytes(16) for n in range(20)]
    ring = rings(ids)[0]
    assert len({ring.target(period) for period in range(200)}) == 19


def test_offsets_use_the_whole_range():
    assert {ring_offset(period, 5) for period in range(100)} == {1, 2, 3, 4}


def test_a_host_alone_probes_nobody_and_one_that_left_is_not_probed():
    ring = ProbeRing(b"a" * 16)
    ring.add(b"a" * 16)
    assert ring.target(7) is None
    ring.add(b"b" * 16)
    assert ring.target(7) == b"b" * 16
    ring.remove(b"b" * 16)
    assert ring.target(7) is None


@given(st.floats(0, 1e9), st.floats(-2e9, 2e9), st.integers(1, 9))
def test_periods_always_begin_after_now_and_follow_in_order(now, wall_offset, scale):
    clock = PeriodClock(b"h" * 16, wall_offset)
    clock.start(now)
    assert now < clock.starts <= now + PROBE_PERIOD_S * 1.001
    for _ in range(20):
        number, at = clock.number, clock.starts
        clock.advance(scale, at)
        assert clock.number == number + scale
        assert abs(clock.starts - at - scale * PROBE_PERIOD_S) < 1e-3


def test_hosts_with_equal_clocks_count_the_same_periods():
    first, second = PeriodClock(b"a" * 16, 1000.0), PeriodClock(b"b" * 16, 500.0)
    first.start(10.0)
    second.start(510.0)
    assert abs(first.number - second.number) <= 1
    assert first.starts != second.starts - 500.0, "but do not all wake at once"
