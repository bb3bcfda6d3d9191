"""Who is alive, with whole nodes in a simulated network. Figures are printed (pytest -s), not asserted tightly."""

import statistics

import pytest
from world import cluster

from meshd.config import RESTART_ANNOUNCED_S
from meshd.model import Kind, Rank
from meshd.swim.events import Cloned, MemberDegraded, MemberFailed, MemberSuspect, Paused

DETECTED_S = 12.0


def trace(world):
    return [(at, n, repr(event)) for at, n, event in world.log]


def test_a_hundred_hosts_that_join_in_one_second_all_see_each_other():
    world = cluster(1, 100)
    print(f"\njoin of 100: settled {world.now:.2f} s after the first start, {dict(world.carried)}")
    assert not world.happened(MemberFailed)
    assert world.now < 10


def test_one_seed_is_one_history(seed):
    first, second = (cluster(seed, 8, loss=0.1, duplicates=0.1) for _ in range(2))
    for world in (first, second):
        world.crash(world.hosts[2])
        world.run(10)
    assert trace(first) == trace(second)
    assert first.carried == second.carried


def test_without_loss_nobody_is_ever_suspected(seed):
    world = cluster(seed, 30, clocks_off_s=5.0)
    began = world.now
    world.run(60)
    assert not world.accused(since=began), f"seed {seed}"


def test_under_loss_and_duplication_nobody_is_called_failed(seed):
    world = cluster(seed, 20, loss=0.1, duplicates=0.1)
    world.run(60)
    assert not world.happened(MemberFailed), f"seed {seed}"
    world.loss = world.duplicates = 0.0
    world.run_until(lambda: world.all_alive() and world.converged(), 10)


def test_a_crash_is_known_to_all_soon():
    world = cluster(1, 40)
    took = []
    for round_ in range(15):
        victim = world.hosts[1 + world.random.randrange(39)]
        world.run(world.random.random())
        world.crash(victim)
        took.append(world.run_until(lambda v=victim: world.all_see(v, "failed"), DETECTED_S, 0.01))
        assert world.accused() <= {h.n for h in world.hosts[1:]}, round_
        world.boot(victim)
        world.run_until(world.all_alive, 10)
    took.sort()
    print(
        f"\ncrash known to all of 40: median {statistics.median(took):.2f} s, "
        f"worst of {len(took)} {took[-1]:.2f} s of virtual time"
    )


def test_a_third_of_the_hosts_crash_at_once_and_the_others_agree(seed):
    world = cluster(seed, 15, loss=0.02)
    dead = world.random.sample(world.hosts, 5)
    for host in dead:
        world.crash(host)
    world.run_until(lambda: all(world.all_see(host, "failed") for host in dead), 60)
    world.run_until(lambda: world.all_alive() and world.converged(), 20)
    assert world.accused() == {host.n for host in dead}, f"seed {seed}"


def test_a_restarted_host_is_taken_back_even_when_its_clock_went_back(seed):
    world = cluster(seed, 10)
    victim = world.hosts[4]
    before = victim.node.swim.incarnation
    world.crash(victim)
    world.run_until(lambda: world.all_see(victim, "failed"), DETECTED_S)
    victim.clock_s = -1e9
    world.boot(victim)
    world.run_until(lambda: world.all_see(victim, "alive") and world.converged(), 10)
    assert victim.node.swim.incarnation > before
    assert not world.happened(Cloned), f"seed {seed}"


def test_late_claims_about_an_earlier_life_change_nothing(seed):
    world = cluster(seed, 6)
    victim, witness = world.hosts[2], world.hosts[3]
    first_life = witness.store.get(Kind.MEMBER, victim.id)
    world.crash(victim)
    world.run_until(lambda: world.all_see(victim, "failed"), DETECTED_S)
    verdict = witness.store.get(Kind.MEMBER, victim.id)
    assert verdict.version == first_life.version._replace(counter=Rank.FAILED)
    world.boot(victim)
    world.run_until(lambda: world.all_alive() and world.converged(), 10)
    began = world.now
    for late in (verdict, first_life, verdict):
        witness.node.put([late], world.now)
        world.run(2)
    assert not world.accused(since=began), f"seed {seed}"
    assert world.all_see(victim, "alive")


def test_all_hosts_restart_at_once_and_none_stays_dead_in_any_view(seed):
    world = cluster(seed, 20)
    for host in world.hosts:
        world.crash(host)
    world.run(30)
    for host in world.hosts:
        world.at(world.random.random(), lambda h=host: world.boot(h, seeds=()))
    world.run(1.1)
    world.run_until(lambda: world.all_alive() and world.converged(), 30)


def test_a_partition_splits_the_view_and_heals_unaided(seed):
    world = cluster(seed, 12, loss=0.05)
    left, right = world.hosts[:5], world.hosts[5:]
    world.split(left, right)
    world.run_until(
        lambda: (
            all(world.states(right[0])[h.n] == "failed" for h in left)
            and all(world.states(left[0])[h.n] == "failed" for h in right)
        ),
        60,
    )
    world.write(left[1], "-left")
    world.write(right[1], "-right")
    world.run(120)
    world.heal()
    took = world.run_until(lambda: world.all_alive() and world.converged(), 30)
    print(f"\nseed {seed}: merged {took:.2f} s after the partition healed")
    for host in world.hosts:
        assert host.store.get(Kind.HOST, left[1].id).body.name == "host1-left"
        assert host.store.get(Kind.HOST, right[1].id).body.name == "host6-right"


def test_a_host_that_one_other_cannot_reach_is_saved_by_helpers(seed):
    world = cluster(seed, 6)
    began = world.now
    world.block(world.hosts[0], world.hosts[1])
    world.run(60)
    assert not world.happened(MemberFailed), f"seed {seed}"
    assert not world.accused(since=began), f"seed {seed}"


def test_a_host_that_slept_accuses_nobody_and_is_taken_back(seed):
    world = cluster(seed, 8)
    sleeper = world.hosts[5]
    world.sleep(sleeper, 30)
    world.run_until(lambda: world.all_see(sleeper, "failed"), DETECTED_S)
    world.run(30)
    assert [n for _, n, _ in world.happened(Paused)] == [5]
    assert world.accused() == {5}, f"seed {seed}"
    world.run_until(lambda: world.all_alive() and world.converged(), 15)


def test_an_announced_restart_is_never_suspected(seed):
    world = cluster(seed, 8)
    began = world.now
    host = world.hosts[3]
    host.node.restarting(world.now, RESTART_ANNOUNCED_S)
    world._drain(host)
    world.run(0.1)
    world.crash(host)
    world.run(RESTART_ANNOUNCED_S - 2)
    world.boot(host)
    world.run_until(lambda: world.all_alive() and world.converged(), 5)
    assert not world.happened(MemberSuspect, since=began), f"seed {seed}"


def test_a_cloned_identity_is_noticed_and_does_not_storm(seed):
    world = cluster(seed, 5)
    world.add(identity=world.hosts[2].id)
    began, sent = world.now, world.carried["datagrams"]
    world.run(20)
    assert {n for _, n, _ in world.happened(Cloned, since=began)} == {2, 5}, f"seed {seed}"
    assert world.carried["datagrams"] - sent < 20 * 6 * 20


@pytest.mark.parametrize("count", [2, 6])
def test_udp_that_is_lost_one_way_between_two_hosts_is_shown_and_does_not_flap(seed, count):
    world = cluster(seed, count)
    one, other = world.hosts[:2]
    began = world.now
    world.block_udp(one, other)
    world.run(60)
    degraded = sorted((n, event.degraded) for _, n, event in world.happened(MemberDegraded, since=began))
    assert degraded == [(0, True), (1, True)], f"seed {seed}"
    assert not world.happened(MemberSuspect, since=began), f"seed {seed}"
    world.heal()
    world.run(20)
    assert len(world.happened(MemberDegraded, since=began)) == 4, f"seed {seed}"


def test_ten_percent_loss_is_not_taken_for_a_blocked_port(seed):
    world = cluster(seed, 3, loss=0.1)
    world.run(200)
    assert not world.happened(MemberDegraded), f"seed {seed}"
