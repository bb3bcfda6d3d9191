"""How one probe goes."""

import math

import pytest
from swim_net import DIGEST, EPOCH, Driven, claim, facts, host_id

from meshd.config import (
    DEGRADED_PING_S,
    HEALTH_MAX,
    INDIRECT_PROBES,
    NACK_AFTER_S,
    PAUSE_S,
    PROBE_PERIOD_S,
    PROBE_TIMEOUT_S,
    RELAYS_MAX,
    RESTART_MAX_S,
    RETRY_FAILED_PER_S,
    SUSPICION_MAX_S,
)
from meshd.messages import Ack, IndirectAck, Nack, News, Ping, PingReq, Restarting, Suspect, View
from meshd.model import Rank
from meshd.swim.events import (
    DigestSeen,
    MemberDegraded,
    MemberFailed,
    MemberRestarting,
    MemberSuspect,
    Paused,
    StreamProbe,
)

PEERS = (1, 2, 3, 4, 5)
YOU = View(EPOCH, 1)


def prober(peers=PEERS):
    return Driven(0, peers=peers)


def escalated(host):
    """Let one probe go unanswered until helpers are asked: (target, nonce, helpers)."""
    target, ping = host.probe()
    host.run(PROBE_TIMEOUT_S * host.swim.health.scale + 0.01)
    return target, ping.nonce, [int.from_bytes(to) for to, _ in host.sent(PingReq)]


def finish_period(host):
    host.sends.clear()
    host.run(PROBE_PERIOD_S * host.swim.health.scale)


def test_without_direct_or_indirect_ack_a_member_is_suspect_and_all_helpers_were_asked():
    host = prober()
    target, nonce, helpers = escalated(host)
    assert len(set(helpers)) == INDIRECT_PROBES
    assert not {0, target} & set(helpers)
    assert {m for _, m in host.sent(PingReq)} == {PingReq(nonce, host_id(target))}
    finish_period(host)
    assert host.state(target) == "suspect"
    assert host.happened(MemberSuspect)[0] == MemberSuspect(host_id(target), EPOCH, host_id(0))
    accusation = Suspect(host_id(target), EPOCH, host_id(0), facts(target))
    assert (accusation, None) in host.flood
    assert (host_id(target), accusation) in host.sends, "and the accused is told, so that it can refute"


def test_a_direct_ack_ends_the_probe_and_improves_health():
    host = prober()
    host.swim.health.note(3)
    target, ping = host.probe()
    host.now += 0.05
    host.receive(target, Ack(ping.nonce, DIGEST, YOU))
    assert host.swim.health.score == 2
    host.run(PROBE_TIMEOUT_S * 4 + 0.01)
    assert not host.sent(PingReq)
    assert host.swim.members[host_id(target)].rtt_s == pytest.approx(0.05)
    assert DigestSeen(host_id(target), DIGEST) in host.events


def test_an_indirect_ack_from_a_helper_that_was_asked_saves_the_target():
    host = prober()
    target, nonce, helpers = escalated(host)
    host.receive(helpers[1], IndirectAck(nonce))
    finish_period(host)
    assert host.state(target) == "alive"
    assert not host.swim.members[host_id(target)].degraded


@pytest.mark.parametrize("who,nonce_off", [("other", 0), ("target", 1)])
def test_an_ack_must_match_the_outstanding_nonce_and_its_sender(who, nonce_off):
    host = prober()
    target, ping = host.probe()
    other = next(n for n in PEERS if n != target)
    host.receive(target if who == "target" else other, Ack(ping.nonce + nonce_off, DIGEST, View(EPOCH, 3)))
    assert not [e for e in host.events if not isinstance(e, MemberSuspect)], "nor is anything else in it read"
    host.run(2 * PROBE_PERIOD_S)
    assert host.state(target) == "suspect"


def test_an_indirect_ack_from_somebody_who_was_not_asked_is_ignored():
    host = prober()
    target, nonce, helpers = escalated(host)
    outsider = next(n for n in PEERS if n not in helpers)
    host.receive(outsider, IndirectAck(nonce))
    finish_period(host)
    assert host.state(target) == "suspect"


def test_an_ack_of_an_earlier_round_does_not_count_for_the_present_one():
    host = prober()
    old_target, old = host.probe()
    finish_period(host)
    assert host.state(old_target) == "suspect"
    health = host.swim.health.score
    host.receive(old_target, Ack(old.nonce, DIGEST, YOU))
    assert host.state(old_target) == "suspect", "only the accused's own higher incarnation clears it"
    assert host.swim.health.score == health


def test_bad_health_lengthens_period_and_timeout():
    host = prober()
    host.swim.health.note(2)
    host.probe()
    began = host.now
    while not host.sent(PingReq):
        host.step()
    assert host.now == pytest.approx(began + 3 * PROBE_TIMEOUT_S)
    host.sends.clear()
    while not host.sent(Ping):
        host.step()
    assert host.now == pytest.approx(began + 3 * PROBE_PERIOD_S)


@pytest.mark.parametrize("nacks", range(INDIRECT_PROBES + 1))
def test_nacks_keep_health_and_missing_ones_lower_it(nacks):
    host = prober()
    _, nonce, helpers = escalated(host)
    for helper in helpers[:nacks]:
        host.receive(helper, Nack(nonce))
        host.receive(helper, Nack(nonce))  # a duplicate is no second helper
    host.receive(9, Nack(nonce))
    finish_period(host)
    assert host.swim.health.score == INDIRECT_PROBES - nacks


def test_without_helpers_a_failed_probe_costs_one_point():
    host = prober(peers=(1,))
    _, _, helpers = escalated(host)
    assert not helpers
    finish_period(host)
    assert host.swim.health.score == 1


def test_where_only_a_stream_answers_the_member_is_degraded_and_not_suspect():
    host = prober()
    target, nonce, _ = escalated(host)
    assert host.happened(StreamProbe) == [StreamProbe(host_id(target), nonce)]
    host.swim.stream_pong(host_id(target), nonce, host.now)
    finish_period(host)
    assert host.state(target) == "alive"
    assert host.happened(MemberDegraded) == [MemberDegraded(host_id(target), True)]
    assert host.swim.members[host_id(target)].degraded
    while host.swim.members[host_id(target)].degraded:
        now_target, ping = host.probe()
        host.receive(now_target, Ack(ping.nonce, DIGEST, YOU))
    assert host.happened(MemberDegraded)[1:] == [MemberDegraded(host_id(target), False)]


def test_a_stream_answer_is_followed_by_more_pings_and_one_ack_of_them_says_that_udp_works():
    host = prober()
    target, nonce, helpers = escalated(host)
    host.swim.stream_pong(host_id(target), nonce, host.now)
    host.receive(helpers[0], IndirectAck(nonce))
    host.run(DEGRADED_PING_S * 1.5)
    pings = [ping for to, ping in host.sent(Ping) if to == host_id(target)]
    assert [ping.nonce for ping in pings] == [nonce] * len(pings)
    assert len(pings) >= 2
    host.receive(target, Ack(nonce, DIGEST, YOU))
    finish_period(host)
    assert not host.happened(MemberDegraded)
    assert host.swim.members[host_id(target)].rtt_s is None, "which ping was answered is not known"


def test_where_helpers_and_a_stream_answer_but_never_udp_the_member_is_degraded():
    """UDP is blocked one way between just these two: helpers hide it, but the data plane may suffer."""
    host = prober()
    target, nonce, helpers = escalated(host)
    host.swim.stream_pong(host_id(target), nonce, host.now)
    host.receive(helpers[0], IndirectAck(nonce))
    finish_period(host)
    assert host.state(target) == "alive"
    assert host.happened(MemberDegraded) == [MemberDegraded(host_id(target), True)]


@pytest.mark.parametrize("target_off,nonce_off", [(1, 0), (0, 1)])
def test_a_stream_answer_must_match_target_and_nonce(target_off, nonce_off):
    host = prober()
    target, nonce, _ = escalated(host)
    host.swim.stream_pong(host_id(target + target_off), nonce + nonce_off, host.now)
    finish_period(host)
    assert host.state(target) == "suspect"


def test_a_probe_cycle_goes_on_after_an_incomplete_one():
    host = prober()
    first, _ = host.probe()
    second, ping = host.probe()
    assert host.state(first) == "suspect"
    host.receive(second, Ack(ping.nonce, DIGEST, YOU))
    third, _ = host.probe()
    if second != first:
        assert host.state(second) == "alive"
    assert third in PEERS


def test_who_restarted_during_its_probe_is_not_suspected_for_its_earlier_silence():
    host = prober()
    target, _, _ = escalated(host)
    host.observe(claim(target, EPOCH + 1, life=1))
    finish_period(host)
    assert host.state(target) == "alive"
    assert host.swim.health.score == 0


def test_every_ping_is_answered_with_the_view_of_its_sender():
    host = prober()
    for sender, rank, view in ((1, Rank.ALIVE, 1), (2, Rank.FAILED, 3), (3, Rank.LEFT, 3)):
        host.observe(claim(sender, EPOCH + 1, rank))
        host.receive(sender, Ping(70 + sender, b"d" * 16, YOU))
        assert host.sends[-1] == (host_id(sender), Ack(70 + sender, DIGEST, View(EPOCH + 1, view)))
        assert DigestSeen(host_id(sender), b"d" * 16) in host.events
    host.receive(4, Suspect(host_id(5), EPOCH, host_id(4), facts(5)))
    host.receive(5, Ping(75, DIGEST, YOU))
    assert host.sends[-1] == (host_id(5), Ack(75, DIGEST, View(EPOCH, 2)))
    host.receive(9, Ping(79, DIGEST, YOU))
    assert host.sends[-1] == (host_id(9), Ack(79, DIGEST, View(0, 0))), "a stranger"


def test_a_probe_of_a_suspect_carries_the_suspicion():
    host = prober(peers=(1,))
    host.receive(1, Suspect(host_id(1), EPOCH, host_id(2), facts(1)))
    target, ping = host.probe()
    assert (target, ping.you) == (1, View(EPOCH, 2))


# --- helping ------------------------------------------------------------------------------------------------
def test_a_helper_pings_with_its_own_nonce_and_relays_the_ack():
    host = prober()
    host.receive(1, PingReq(77, host_id(2)))
    ((to, ping),) = host.sent(Ping)
    assert to == host_id(2)
    assert ping.nonce != 77
    host.receive(3, Ack(ping.nonce, DIGEST, YOU))
    assert not host.sent(IndirectAck)
    host.receive(2, Ack(ping.nonce, DIGEST, YOU))
    host.receive(2, Ack(ping.nonce, DIGEST, YOU))
    assert host.sent(IndirectAck) == [(host_id(1), IndirectAck(77))]


def test_a_helper_says_nack_in_time_and_still_relays_a_late_ack():
    host = prober()
    asked = host.now
    host.receive(1, PingReq(77, host_id(2)))
    nonce = host.sent(Ping)[0][1].nonce
    while not host.sent(Nack):
        host.step()
    assert host.now == pytest.approx(asked + NACK_AFTER_S)
    assert host.sent(Nack) == [(host_id(1), Nack(77))]
    host.receive(2, Ack(nonce, DIGEST, YOU))
    assert host.sent(IndirectAck) == [(host_id(1), IndirectAck(77))]
    assert host.swim.health.score == 0


def test_a_helper_forgets_a_promise_a_period_after_the_nack():
    host = prober()
    host.receive(1, PingReq(77, host_id(2)))
    nonce = host.sent(Ping)[0][1].nonce
    host.run(NACK_AFTER_S + PROBE_PERIOD_S + 0.01)
    host.receive(2, Ack(nonce, DIGEST, YOU))
    assert not host.sent(IndirectAck)


def test_a_helper_that_does_not_know_the_target_says_so_at_once_and_one_that_is_the_target_answers():
    host = prober()
    host.receive(1, PingReq(77, host_id(99)))
    host.receive(1, PingReq(78, host_id(0)))
    assert host.sends == [(host_id(1), Nack(77)), (host_id(1), IndirectAck(78))]


def test_a_flood_of_requests_to_help_is_bounded():
    host = prober()
    for nonce in range(1, RELAYS_MAX + 51):
        host.receive(1, PingReq(nonce, host_id(2)))
    host.run(NACK_AFTER_S + 0.01)
    assert len(host.sent(Nack)) == RELAYS_MAX


# --- failed members -----------------------------------------------------------------------------------------
def test_a_failed_member_is_retried_for_as_long_as_it_is_known_and_never_suspected_for_it():
    host = prober(peers=(1,))
    host.observe(claim(1, EPOCH, Rank.FAILED))
    host.events.clear()
    for hour in range(3):
        host.run(3600)
        assert len(host.sent(Ping)) > 1000, hour
        host.sends.clear()
    assert not host.events
    assert host.swim.health.score == 0
    host.observe(claim(1, EPOCH, Rank.LEFT))
    assert host.swim.deadline() == math.inf


def test_retries_are_shared_by_all_who_are_alive():
    host = prober(peers=range(1, 11))
    host.observe(claim(10, EPOCH, Rank.FAILED))
    retries = 0
    for _ in range(1000):
        target, ping = host.probe()
        retries += sum(to == host_id(10) for to, _ in host.sent(Ping))
        host.receive(target, Ack(ping.nonce, DIGEST, YOU))
    expected = 1000 * RETRY_FAILED_PER_S / 10
    assert 0.6 * expected <= retries <= 1.5 * expected, "so many a second, by ten hosts together"


def test_an_answer_from_a_failed_member_reads_its_view_but_does_not_revive_it():
    host = prober(peers=(1,))
    host.observe(claim(1, EPOCH, Rank.FAILED))
    target, ping = host.probe()
    assert (target, ping.you) == (1, View(EPOCH, 3))
    host.receive(1, Ack(ping.nonce, b"d" * 16, View(EPOCH, 3)))
    assert host.state(1) == "failed"
    assert host.items[-1] == claim(0, EPOCH + 1), "it held us failed as well: refuted"
    assert DigestSeen(host_id(1), b"d" * 16) in host.events


# --- pauses, restarts, solitude -----------------------------------------------------------------------------
def test_a_host_that_was_paused_distrusts_itself_and_not_the_others():
    host = prober()
    escalated(host)
    host.receive(2, Suspect(host_id(1), EPOCH, host_id(2), facts(1)))
    due = host.swim.deadline()
    host.tick_at(due + 30)
    assert host.happened(Paused) == [Paused(pytest.approx(30.0))]
    assert host.swim.health.score == 1
    assert not host.happened(MemberFailed)
    assert [n for n in PEERS if host.state(n) != "alive"] == [1]
    assert host.swim.deadline() > host.now
    woke = host.now
    while not host.happened(MemberFailed):
        host.step()
    assert host.now - woke > SUSPICION_MAX_S / 2, "the time asleep is not counted"


def test_a_pause_is_noticed_by_whatever_input_comes_first_and_once():
    host = prober()
    host.probe()
    host.now += 20
    host.receive(1, Ping(7, DIGEST, YOU))
    host.receive(2, Ping(8, DIGEST, YOU))
    host.tick_at(host.now)
    assert len(host.happened(Paused)) == 1


def test_a_small_delay_is_no_pause():
    host = prober()
    host.tick_at(host.swim.deadline() + 0.9 * PAUSE_S)
    assert not host.happened(Paused)
    assert host.swim.deadline() > host.now


def test_who_said_that_it_restarts_is_probed_but_not_suspected_until_its_time_is_up():
    host = prober(peers=(1,))
    notice = Restarting(host_id(1), EPOCH, 30_000)
    host.receive(1, notice)
    host.receive(1, notice)
    assert host.flood == [(notice, host_id(1))], "passed on once"
    assert host.happened(MemberRestarting) == [MemberRestarting(host_id(1), 30.0)]
    host.run(29)
    assert len(host.sent(Ping)) > 20
    assert not (host.sent(PingReq))
    assert not (host.happened(StreamProbe))
    assert not (host.happened(MemberSuspect))
    assert host.swim.health.score == 0
    host.receive(2, Suspect(host_id(1), EPOCH, host_id(2), facts(1)))
    assert host.state(1) == "alive"
    over = host.now + 1
    while not host.happened(MemberSuspect):
        host.step()
    assert over + PROBE_TIMEOUT_S < host.now <= over + 2 * PROBE_PERIOD_S


def test_a_probe_that_was_excused_is_no_evidence_when_the_time_is_up_before_it_ends():
    host = prober(peers=(1,))
    host.probe()
    host.receive(1, Restarting(host_id(1), EPOCH, int(1000 * (PROBE_TIMEOUT_S + 0.1))))
    finish_period(host)
    assert host.state(1) == "alive"
    assert host.swim.health.score == 0
    finish_period(host)
    assert host.state(1) == "suspect"


def test_a_restart_is_believed_for_a_minute_at_most_and_ends_with_the_new_life():
    host = prober(peers=(1, 2))
    member = host.swim.members[host_id(1)]
    host.receive(2, Restarting(host_id(1), EPOCH, 2**31))
    assert member.restarting(host.now + RESTART_MAX_S - 0.1)
    assert not member.restarting(host.now + RESTART_MAX_S)
    host.observe(claim(1, EPOCH + 1, life=1))
    assert not member.restarting(host.now)
    host.receive(2, Restarting(host_id(1), EPOCH, 2**31))
    assert not member.restarting(host.now), "nor does the old notice come back"


def test_a_restart_notice_ends_a_suspicion_but_not_a_verdict():
    host = prober(peers=(1, 2))
    host.receive(2, Suspect(host_id(1), EPOCH, host_id(2), facts(1)))
    host.receive(2, Restarting(host_id(1), EPOCH, 5000))
    assert host.state(1) == "alive"
    host.observe(claim(2, EPOCH, Rank.FAILED))
    host.receive(1, Restarting(host_id(2), EPOCH, 5000))
    assert host.state(2) == "failed"


def test_announcing_a_restart_floods_it():
    host = prober()
    host.swim.restarting(host.now, 500.0)
    host.drain()
    assert host.flood == [(Restarting(host_id(0), EPOCH, int(1000 * RESTART_MAX_S)), None)]


def test_a_host_alone_does_nothing_and_starts_when_it_meets_somebody_without_thinking_it_slept():
    host = prober(peers=())
    assert host.swim.deadline() == math.inf
    host.now += 1000
    host.observe(claim(1))
    assert host.now < host.swim.deadline() <= host.now + PROBE_PERIOD_S
    host.step()
    assert host.sent(Ping)
    assert not host.happened(Paused)
    host.observe(claim(1, EPOCH, Rank.LEFT))
    assert host.swim.deadline() == math.inf


def test_members_that_left_are_neither_probed_nor_retried_nor_asked():
    host = prober(peers=(1, 2))
    host.observe(claim(2, EPOCH, Rank.LEFT))
    host.run(20)
    assert {to for to, _ in host.sends} == {host_id(1)}
    assert host.swim.alive_ids() == [i for i in host.swim.alive_ids() if i != host_id(2)]


def test_health_never_leaves_its_bounds_however_many_probes_fail():
    host = prober(peers=range(1, 30))
    host.run(200)
    assert 0 <= host.swim.health.score <= HEALTH_MAX


def test_messages_of_other_parts_and_ones_own_are_ignored():
    host = prober()
    host.receive(1, News(()))
    host.receive(0, Ping(1, DIGEST, View(EPOCH, 3)))
    assert not (host.sends)
    assert not (host.flood)
    assert not (host.events)
    assert not (host.items[1:])
