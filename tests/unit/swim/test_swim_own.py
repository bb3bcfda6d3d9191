"""What a host says of itself."""

import pytest
from swim_net import DIGEST, EPOCH, Driven, claim, facts, host_id

from meshd.config import CLONE_OUTBIDS, CLONE_REFUTE_S, INCARNATION_MAX
from meshd.messages import Ack, Ping, Suspect, View
from meshd.model import Address, Rank
from meshd.swim.events import Cloned, SelfAccused, WildClaim

ME = 0


def suspect_me(incarnation=EPOCH, accuser=1):
    return Suspect(host_id(ME), incarnation, host_id(accuser), facts(ME))


def own_claims(host):
    return [item.version.incarnation for item in host.items if item.id == host_id(ME)]


def test_a_host_says_first_that_it_is_alive():
    host = Driven()
    assert host.items == [claim(ME)]
    assert host.state(ME) == "alive"


def test_it_starts_above_what_its_disk_remembers_even_when_the_clock_went_back():
    fresh = Driven(ME, life=1)
    fresh.items.clear()
    fresh.swim.load(claim(ME, EPOCH + 77), fresh.now)
    fresh.drain()
    assert own_claims(fresh) == [EPOCH + 78]
    assert not fresh.events


def test_a_host_that_moved_says_so_above_all_that_was_said():
    host = Driven(peers=(1, 2))
    host.swim.move(Address("192.0.2.99", 7000), host.now)
    host.drain()
    assert own_claims(host) == [EPOCH, EPOCH + 1]
    assert (host.items[-1].body.address, host.items[-1].body.port) == (bytes((192, 0, 2, 99)), 7000)
    assert host.items[-1].version.writer == facts(ME).session, (
        "it is the same life: nobody takes it for a clone"
    )
    host.receive(1, suspect_me(EPOCH + 1))
    assert host.items[-1].body.port == 7000


def test_a_suspect_refutes_and_doubts_itself():
    host = Driven(peers=(1, 2))
    host.receive(1, suspect_me(EPOCH + 3))
    assert own_claims(host) == [EPOCH, EPOCH + 4]
    assert host.swim.health.score == 1
    assert host.happened(SelfAccused) == [SelfAccused(EPOCH + 3, host_id(1))]
    assert not host.flood, "the refutation travels instead"


def test_the_incarnation_does_not_rise_for_a_stale_suspicion():
    host = Driven(peers=(1, 2), incarnation=EPOCH + 10)
    host.receive(1, suspect_me(EPOCH + 9))
    assert own_claims(host) == [EPOCH + 10]
    assert host.swim.health.score == 0


def test_several_accusers_at_one_incarnation_are_refuted_once():
    host = Driven(peers=(1, 2, 3))
    for accuser in (1, 2, 3):
        host.receive(accuser, suspect_me(accuser=accuser))
    assert own_claims(host) == [EPOCH, EPOCH + 1]
    assert host.swim.health.score == 1


@pytest.mark.parametrize("rank", [Rank.FAILED, Rank.LEFT])
def test_a_host_called_dead_refutes(rank):
    host = Driven(peers=(1,))
    host.observe(claim(ME, EPOCH + 5, rank))
    assert own_claims(host) == [EPOCH, EPOCH + 6]
    assert host.state(ME) == "alive"
    assert host.happened(SelfAccused)


def test_a_verdict_on_an_earlier_life_is_not_answered():
    host = Driven(peers=(1,), life=1)
    host.observe(claim(ME, EPOCH - 1, Rank.FAILED))
    assert own_claims(host) == [EPOCH]


@pytest.mark.parametrize("state", [2, 3])
@pytest.mark.parametrize("carrier", ["ping", "ack"])
def test_a_host_that_reads_itself_suspect_or_failed_in_a_view_refutes_at_once(state, carrier):
    host = Driven(peers=(1,))
    you = View(EPOCH, state)
    if carrier == "ping":
        host.receive(1, Ping(7, DIGEST, you))
    else:
        _, ping = host.probe()
        host.receive(1, Ack(ping.nonce, DIGEST, you))
    assert own_claims(host) == [EPOCH, EPOCH + 1]
    assert host.happened(SelfAccused) == [SelfAccused(EPOCH, host_id(1))]


@pytest.mark.parametrize("view", [View(0, 0), View(EPOCH, 1), View(EPOCH - 1, 1), View(EPOCH - 1, 3)])
def test_other_views_are_no_accusation(view):
    host = Driven(peers=(1,))
    host.receive(1, Ping(7, DIGEST, view))
    assert own_claims(host) == [EPOCH]


def test_a_peer_that_knows_a_later_life_is_overruled():
    host = Driven(peers=(1,))
    host.swim.raise_incarnation(EPOCH + 50, host.now)
    host.swim.raise_incarnation(EPOCH + 51, host.now)  # this life's own: nothing to do
    host.drain()
    assert own_claims(host) == [EPOCH, EPOCH + 51]
    assert host.swim.health.score == 0
    assert not host.happened(Cloned)


def test_a_wild_claim_burns_nothing_and_is_an_alarm():
    host = Driven(peers=(1,))
    host.observe(claim(ME, INCARNATION_MAX + 1, Rank.FAILED))
    host.observe(claim(ME, INCARNATION_MAX, Rank.FAILED))
    host.receive(1, suspect_me(INCARNATION_MAX))
    host.swim.raise_incarnation(2**60, host.now)
    host.drain()
    assert own_claims(host) == [EPOCH]
    assert [e.incarnation for e in host.happened(WildClaim)] == [
        INCARNATION_MAX + 1, INCARNATION_MAX, INCARNATION_MAX, 2**60,
    ]  # fmt: skip


def test_a_wild_boot_clock_is_capped():
    assert own_claims(Driven(incarnation=INCARNATION_MAX * 2)) == [INCARNATION_MAX]


def test_an_alive_claim_of_another_session_is_a_clone_reported_once_and_answered_once_a_second():
    host = Driven(peers=(1,))
    for step in range(1, 10):
        host.now += CLONE_REFUTE_S / 5
        host.observe(claim(ME, EPOCH + 10 * step, life=9))
    assert host.happened(Cloned) == [Cloned(facts(ME, 9).session, facts(ME, 9))]
    assert own_claims(host) == [EPOCH, EPOCH + 11, EPOCH + 61]


def test_a_clone_that_called_this_host_dead_is_answered_like_any_accuser():
    host = Driven(peers=(1,))
    host.observe(claim(ME, EPOCH + 1, Rank.FAILED, life=9))
    assert own_claims(host) == [EPOCH, EPOCH + 2]
    assert not host.happened(Cloned)


def test_a_late_claim_of_the_life_on_disk_is_no_clone_but_one_that_answers_is():
    host = Driven(peers=(1,), life=1)
    host.swim.load(claim(ME, EPOCH - 5, life=0), host.now)
    host.observe(
        claim(ME, EPOCH + 100, life=0)
    )  # its last refutation did not reach the disk; clock went back
    assert own_claims(host)[-1] == EPOCH + 101
    assert not host.happened(Cloned)
    host.observe(claim(ME, EPOCH + 102, life=0))
    assert host.happened(Cloned)


def test_a_host_that_is_outbid_again_and_again_by_peers_words_waits_for_the_claim_itself():
    host = Driven(peers=(1,))
    for step in range(1, 20):
        host.now += CLONE_REFUTE_S / 10
        host.swim.raise_incarnation(EPOCH + 100 * step, host.now)
        host.drain()
    raised = own_claims(host)[1:]
    assert len(raised) == CLONE_OUTBIDS + 1, "at once, then once a second"
    assert not host.happened(Cloned), "a peer's word names no session"


def test_its_own_claim_coming_back_is_nothing():
    host = Driven(peers=(1,))
    host.observe(claim(ME))
    assert own_claims(host) == [EPOCH]
    assert not host.events


def test_who_left_says_so_and_is_silent_from_then_on():
    host = Driven(peers=(1, 2))
    host.swim.leave(host.now)
    host.drain()
    assert host.items[-1] == claim(ME, EPOCH, Rank.LEFT)
    assert host.swim.deadline() == float("inf")
    host.items.clear()
    host.receive(1, Ping(7, DIGEST, View(EPOCH, 3)))
    host.receive(1, suspect_me())
    host.observe(claim(ME, EPOCH, Rank.LEFT))
    host.tick_at(host.now + 100)
    assert not (host.items)
    assert not (host.sends)
    assert not (host.flood)
    assert not (host.events)
