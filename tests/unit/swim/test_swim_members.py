"""Which claim about a member stands."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swim_net import EPOCH, Driven, claim, facts, host_id, session

from meshd.config import INCARNATION_MAX
from meshd.messages import Suspect
from meshd.model import Item, Kind, Rank, Version
from meshd.swim.events import MemberAlive, MemberChanged, MemberFailed, MemberLeft, MemberSuspect, WildClaim
from meshd.swim.members import AT_EQUAL, STATE_OF_RANK, Member, State, Tie, obeyed, supersedes
from meshd.swim.suspicion import Suspicion

HOLDER, ACCUSED, OTHERS = 0, 1, (2, 3)


def suspect(n=ACCUSED, incarnation=EPOCH, accuser=2, life=0):
    return Suspect(host_id(n), incarnation, host_id(accuser), facts(n, life))


def holder():
    return Driven(HOLDER, peers=(ACCUSED, *OTHERS))


def member(rank, incarnation, life, *, suspected=False):
    item = claim(ACCUSED, incarnation, rank, life)
    held = Member(item.id, item.version, item.body)
    if suspected:
        held.suspicion = Suspicion(incarnation, 0.0, 1)
    return held


def test_the_table_covers_every_pair_of_claim_and_state():
    assert set(AT_EQUAL) == set(itertools.product(State, State))


@pytest.mark.parametrize("claimed,held", list(itertools.product(Rank, Rank)))
@pytest.mark.parametrize("incarnations", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("lives", [(0, 0), (0, 1), (1, 0)])
def test_for_recorded_claims_the_table_says_what_the_stores_order_says(claimed, held, incarnations, lives):
    new = claim(ACCUSED, incarnations[0], claimed, lives[0])
    old = member(held, incarnations[1], lives[1])
    expected = new.version > old.version
    assert supersedes(STATE_OF_RANK[claimed], incarnations[0], session(ACCUSED, lives[0]), old) is expected


@pytest.mark.parametrize("held", list(State))
def test_a_suspicion_at_the_held_incarnation_stands_only_against_who_takes_part(held):
    assert (AT_EQUAL[State.SUSPECT, held] is Tie.WINS) is (held in (State.ALIVE, State.SUSPECT))


def test_alive_at_the_same_incarnation_does_not_clear_a_suspicion_and_a_higher_one_does():
    host = holder()
    host.receive(2, suspect())
    assert host.state(ACCUSED) == "suspect"
    host.observe(claim(ACCUSED, EPOCH))
    assert host.state(ACCUSED) == "suspect"
    host.observe(claim(ACCUSED, EPOCH, life=1))  # same incarnation, higher session: recorded, not cleared
    assert host.state(ACCUSED) == "suspect"
    host.observe(claim(ACCUSED, EPOCH + 1))
    assert host.state(ACCUSED) == "alive"
    assert [e.was for e in host.happened(MemberAlive)] == ["suspect"]


def test_the_same_alive_claim_twice_is_one_event():
    host = Driven()
    host.observe(claim(ACCUSED))
    host.observe(claim(ACCUSED))
    assert [(e.id, e.was) for e in host.happened(MemberAlive)] == [(host_id(ACCUSED), "")]


def test_changed_facts_are_a_change_and_not_a_second_arrival():
    host = holder()
    host.observe(claim(ACCUSED, EPOCH + 1, name="renamed"))
    assert [(e.facts.name, e.restarted) for e in host.happened(MemberChanged)] == [("renamed", False)]
    host.observe(claim(ACCUSED, EPOCH + 2, name="renamed", life=1))
    assert [e.restarted for e in host.happened(MemberChanged)] == [False, True]
    assert not host.happened(MemberAlive)


def test_two_hosts_of_one_name_are_two_members():
    host = Driven()
    host.observe(claim(1, name="twin"))
    host.observe(claim(2, name="twin"))
    assert [m.facts.name for m in host.swim.members.values()].count("twin") == 2
    assert len(host.swim.alive_ids()) == 3


def test_an_old_suspicion_is_ignored():
    host = holder()
    host.observe(claim(ACCUSED, EPOCH + 5))
    host.receive(2, suspect(incarnation=EPOCH + 4))
    assert host.state(ACCUSED) == "alive"
    assert not host.flood


def test_a_repeated_suspicion_is_not_passed_on_again():
    host = holder()
    host.receive(2, suspect(accuser=3))
    host.receive(3, suspect(accuser=3))
    assert [(m.accuser, exclude) for m, exclude in host.flood] == [(host_id(3), host_id(2))]
    assert len(host.happened(MemberSuspect)) == 1


def test_each_confirmation_brings_the_verdict_forward():
    deadlines = []
    for accusers in ((2,), (2, 3), (2, 3, 4)):
        host = Driven(HOLDER, peers=(ACCUSED, 2, 3, 4))
        began = host.now
        for accuser in accusers:
            host.receive(accuser, suspect(accuser=accuser))
            host.swim.deadline()
        while not host.happened(MemberFailed):
            for n in (2, 3, 4):  # all others answer, so that nothing but the suspicion is at work
                host.swim.members[host_id(n)].restart_incarnation = EPOCH
                host.swim.members[host_id(n)].restart_until = host.now + 60
            host.step()
        deadlines.append(host.now - began)
    assert deadlines == sorted(deadlines, reverse=True)
    assert len(set(deadlines)) == 3


def test_a_failed_host_takes_part_no_longer_whether_it_was_suspect_or_not():
    for doubts in (0, 1):
        host = holder()
        for _ in range(doubts):
            host.receive(2, suspect())
        assert host_id(ACCUSED) in host.swim.alive_ids()
        generation = host.swim.generation
        host.observe(claim(ACCUSED, EPOCH, Rank.FAILED))
        assert host_id(ACCUSED) not in host.swim.alive_ids()
        assert host.swim.generation > generation
        host.observe(claim(ACCUSED, EPOCH + 1))
        assert host.swim.alive_ids().count(host_id(ACCUSED)) == 1


def test_a_suspicion_of_an_unknown_host_brings_the_claim_that_it_rests_on():
    host = Driven(peers=OTHERS)
    host.receive(2, suspect())
    assert host.state(ACCUSED) == "suspect"
    assert claim(ACCUSED) in host.items


def test_a_suspicion_of_a_failed_or_left_host_changes_nothing():
    for rank in (Rank.FAILED, Rank.LEFT):
        host = holder()
        host.observe(claim(ACCUSED, EPOCH, rank))
        host.receive(2, suspect())
        assert host.state(ACCUSED) == STATE_OF_RANK[rank]
        assert not host.flood


def test_an_alive_claim_replayed_at_the_incarnation_of_a_verdict_does_not_revive():
    host = holder()
    host.observe(claim(ACCUSED, EPOCH, Rank.FAILED))
    host.observe(claim(ACCUSED, EPOCH))
    assert host.state(ACCUSED) == "failed"


def test_an_old_failed_claim_is_ignored():
    host = holder()
    host.observe(claim(ACCUSED, EPOCH + 1))
    host.observe(claim(ACCUSED, EPOCH, Rank.FAILED))
    assert host.state(ACCUSED) == "alive"
    assert not host.happened(MemberFailed)


def test_dead_at_1_dead_at_10_alive_at_2_does_not_resurrect():
    host = Driven()
    host.observe(claim(ACCUSED, 1))
    host.observe(claim(ACCUSED, 1, Rank.FAILED))
    host.observe(claim(ACCUSED, 10, Rank.FAILED))
    host.observe(claim(ACCUSED, 2))
    assert host.state(ACCUSED) == "failed"
    assert host.swim.members[host_id(ACCUSED)].incarnation == 10
    assert len(host.happened(MemberFailed)) == 1, "a higher verdict on a failed host is no second failure"


def test_a_suspicion_at_a_higher_incarnation_counts_as_much_as_a_verdict():
    host = Driven(peers=OTHERS)
    host.observe(claim(ACCUSED, 1))
    host.observe(claim(ACCUSED, 1, Rank.FAILED))
    host.receive(2, suspect(incarnation=10))
    host.observe(claim(ACCUSED, 2))
    assert host.state(ACCUSED) == "suspect"
    host.run(60)
    assert host.state(ACCUSED) == "failed"
    assert claim(ACCUSED, 10, Rank.FAILED) in host.items


def test_a_late_failed_claim_does_not_beat_a_restarted_host():
    host = holder()
    host.observe(claim(ACCUSED, EPOCH + 1000, life=1))
    host.observe(claim(ACCUSED, EPOCH, Rank.FAILED))
    host.observe(claim(ACCUSED, EPOCH + 999, Rank.FAILED))
    assert host.state(ACCUSED) == "alive"


def test_a_host_that_left_may_come_back_elsewhere_at_a_higher_incarnation():
    host = holder()
    host.observe(claim(ACCUSED, EPOCH, Rank.LEFT))
    assert [e.was for e in host.happened(MemberLeft)] == ["alive"]
    assert host_id(ACCUSED) not in host.swim.addresses
    host.observe(claim(ACCUSED, EPOCH, Rank.FAILED))
    assert host.state(ACCUSED) == "left"
    host.observe(claim(ACCUSED, EPOCH + 1, life=1))
    assert host.state(ACCUSED) == "alive"
    assert host_id(ACCUSED) in host.swim.addresses


def test_known_members_from_disk_are_no_news():
    host = Driven(peers=(1, 2))
    assert not host.events
    assert [m.state for m in host.swim.members.values()] == ["alive"] * 3


@pytest.mark.parametrize(
    "wild",
    [
        claim(ACCUSED, INCARNATION_MAX + 1, Rank.FAILED),
        Item(Kind.MEMBER, host_id(ACCUSED), Version(5, 3, session(ACCUSED)), facts(ACCUSED)),
        Item(Kind.MEMBER, host_id(ACCUSED), Version(5, 0, b"x" * 16), facts(ACCUSED)),
        Item(Kind.MEMBER, host_id(ACCUSED), Version(5, 0, session(ACCUSED)), None, dead=True),
    ],
)
def test_a_claim_that_cannot_be_right_is_not_obeyed_and_is_an_alarm(wild):
    assert not obeyed(wild)
    host = holder()
    host.observe(wild)
    assert host.state(ACCUSED) == "alive"
    assert [e.id for e in host.happened(WildClaim)] == [host_id(ACCUSED)]


def test_a_suspicion_above_the_cap_is_not_obeyed_either():
    host = holder()
    host.receive(2, suspect(incarnation=INCARNATION_MAX + 1))
    assert host.state(ACCUSED) == "alive"
    assert not host.items[1:]
    assert host.happened(WildClaim)


incarnations = st.integers(1, 5)
lives = st.integers(0, 1)
recorded = st.builds(claim, st.just(ACCUSED), incarnations, st.sampled_from(list(Rank)), lives)
suspicions = st.builds(suspect, st.just(ACCUSED), incarnations, st.sampled_from(OTHERS), lives)


@given(st.lists(recorded | suspicions, max_size=12), st.randoms(use_true_random=False))
def test_any_interleaving_of_claims_ends_equal_at_all_observers_and_never_goes_down(claims, order):
    observers = [Driven(n, peers=OTHERS) for n in (0, 8, 9)]

    def tell(host, message):
        held = host.swim.members.get(host_id(ACCUSED))
        before = held.version if held else None
        host.observe(message) if isinstance(message, Item) else host.receive(2, message)
        after = host.swim.members[host_id(ACCUSED)].version
        assert before is None or after >= before

    for host in observers:
        for message in order.sample(claims, len(claims)):
            for _ in range(order.randrange(1, 3)):  # datagrams come twice
                tell(host, message)
    learnt = [item for host in observers for item in host.items if item.id == host_id(ACCUSED)]
    for host in observers:
        for item in random.Random(1).sample(learnt, len(learnt)):
            tell(host, item)
    views = [host.swim.members.get(host_id(ACCUSED)) for host in observers]
    if not claims:
        assert views == [None] * 3
        return
    assert len({(view.version, view.state, view.facts) for view in views}) == 1
    highest = max(c.version if isinstance(c, Item) else Version(c.incarnation, 0, b"") for c in claims)
    assert views[0].version[:2] == highest[:2], "and what stands is the highest of all that was said"
