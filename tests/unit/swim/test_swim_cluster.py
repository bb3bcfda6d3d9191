"""Several cores together, in virtual time."""

import pytest
from swim_net import EPOCH, Net, claim, host_id

from meshd.config import PROBE_PERIOD_S, RESTART_ANNOUNCED_S, SUSPICION_MAX_S
from meshd.messages import Ping
from meshd.model import Rank
from meshd.swim.events import (
    Cloned,
    MemberDegraded,
    MemberFailed,
    MemberLeft,
    MemberSuspect,
    Paused,
    SelfAccused,
)

SEEDS = range(5)
DETECTED_S = 2 * PROBE_PERIOD_S + SUSPICION_MAX_S + 0.1
"""Worst case without loss: a period until the probe, one for the probe, the longest suspicion, news."""


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_nobody_is_ever_suspected_and_all_are_probed_once_a_period(seed):
    net = Net(5, seed=seed)
    net.run(60)
    assert not net.logged(MemberSuspect)
    for n in range(5):
        pings = sum(
            isinstance(m, Ping) and to == host_id(n) for host in net.hosts.values() for to, m in host.sends
        )
        assert 58 <= pings <= 62, n


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_crash_is_known_to_all_within_the_bound(seed, count):
    net = Net(count, seed=seed)
    net.run(5.3)
    net.crash(1)
    net.run(DETECTED_S)
    assert set(net.states(1).values()) == {"failed"}
    assert {e.id for _, _, e in net.logged(MemberFailed)} == {host_id(1)}


def test_verdicts_of_several_accusers_are_one_record():
    net = Net(4)
    net.run(3)
    net.crash(1)
    net.run(20)
    verdicts = [
        item for host in net.hosts.values() for item in host.items if item.version.counter == Rank.FAILED
    ]
    assert len(set(map(repr, verdicts))) == 1
    assert {repr(host.store[host_id(1)]) for host in net.hosts.values()} == {repr(verdicts[0])}


def test_a_host_that_one_other_cannot_reach_is_saved_by_helpers():
    net = Net(4)
    net.cut |= {(0, 1), (1, 0)}
    net.streams = False
    net.run(60)
    assert not net.logged(MemberSuspect)


def test_two_hosts_whose_udp_is_blocked_stay_alive_by_stream_and_show_it():
    net = Net(2)
    net.cut |= {(0, 1), (1, 0)}
    net.run(30)
    assert not net.logged(MemberSuspect)
    assert {(n, e.degraded) for _, n, e in net.logged(MemberDegraded)} == {(0, True), (1, True)}
    net.cut.clear()
    net.run(5)
    assert not any(m.degraded for host in net.hosts.values() for m in host.swim.members.values())


def test_a_host_that_nobody_hears_for_a_while_refutes_when_it_is_heard_again():
    net = Net(5)
    net.streams = False
    net.run(3)
    net.isolate(1)
    while "suspect" not in net.states(1).values():
        net.run(0.05)
    net.cut.clear()
    net.run(10)
    assert set(net.states(1).values()) == {"alive"}
    assert not net.logged(MemberFailed)
    assert net.hosts[0].store[host_id(1)].version.incarnation > EPOCH


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healed_partition_merges_unaided_from_either_side(seed):
    net = Net(5, seed=seed)
    net.streams = False
    net.run(3)
    for n in (0, 1):
        net.isolate(n, (2, 3, 4))
    net.run(60)
    assert net.states(4) == {0: "failed", 1: "failed", 2: "alive", 3: "alive", 4: "alive"}
    assert net.states(0) == {0: "alive", 1: "alive", 2: "failed", 3: "failed", 4: "failed"}
    net.cut.clear()
    net.run(60)
    for n in range(5):
        assert set(net.states(n).values()) == {"alive"}, n
    assert len({repr(sorted(h.store.values(), key=repr)) for h in net.hosts.values()}) == 1


def test_a_restarted_host_replaces_its_old_life_though_the_others_still_hold_it_dead():
    net = Net(4)
    net.run(2)
    old = net.crash(1)
    net.run(20)
    back = net.start(1, life=1, incarnation=EPOCH - 500, knows=list(old.store.values()))
    net.run(5)
    assert set(net.states(1).values()) == {"alive"}
    assert back.swim.incarnation > EPOCH
    assert not net.logged(Cloned)


def test_a_restarted_host_without_memory_and_with_a_slow_clock_gets_back_by_views():
    net = Net(4)
    net.run(2)
    net.crash(1)
    net.run(20)
    back = net.start(1, life=1, incarnation=5, knows=[claim(n) for n in (0, 2, 3)])
    net.run(10)
    assert set(net.states(1).values()) == {"alive"}
    assert back.swim.incarnation > EPOCH


def test_an_announced_restart_is_not_noticed_and_an_unfinished_one_is():
    net = Net(4)
    net.run(2)
    net.hosts[1].swim.restarting(net.now, RESTART_ANNOUNCED_S)
    net.run(0.1)
    net.crash(1)
    net.run(RESTART_ANNOUNCED_S - 1)
    assert not net.logged(MemberSuspect)
    assert net.hosts[0].swim.members[host_id(1)].restarting(net.now)
    net.run(1 + DETECTED_S)
    assert set(net.states(1).values()) == {"failed"}


def test_a_leave_is_known_to_all_and_nobody_is_suspected_for_it():
    net = Net(4)
    net.run(2)
    net.hosts[1].swim.leave(net.now)
    net.run(0.1)
    net.crash(1)
    net.run(30)
    assert set(net.states(1).values()) == {"left"}
    assert len(net.logged(MemberLeft)) == 3
    assert not net.logged(MemberSuspect)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_host_paused_for_long_accuses_nobody_when_it_wakes_and_is_taken_back(seed):
    net = Net(5, seed=seed)
    net.streams = False
    net.run(3.5)
    net.freeze(1, 40)
    net.run(39)
    assert {state for n, state in net.states(1).items() if n != 1} == {"failed"}
    net.run(20)
    assert set(net.states(1).values()) == {"alive"}
    assert [n for _, n, _ in net.logged(Paused)] == [1]
    assert {e.id for _, _, e in net.logged(MemberSuspect)} == {host_id(1)}
    assert [n for _, n, _ in net.logged(SelfAccused)][:1] == [1]


def test_a_short_pause_ends_without_a_verdict():
    net = Net(5)
    net.streams = False
    net.run(3.5)
    net.freeze(1, 3)
    net.run(30)
    assert not net.logged(MemberFailed)
    assert set(net.states(1).values()) == {"alive"}


def test_two_processes_with_one_identity_are_both_told_and_do_not_storm():
    net = Net(3)
    net.run(2)
    twin = net.hosts[1]
    for item in (claim(1, EPOCH + 10, life=7), claim(1, EPOCH + 40, life=7), claim(1, EPOCH + 90, life=7)):
        net._take(net.hosts[0], item, None)
        net.run(0.2)
    assert [n for _, n, _ in net.logged(Cloned)] == [1]
    assert len([item for item in twin.items if item.id == host_id(1)]) <= 3
