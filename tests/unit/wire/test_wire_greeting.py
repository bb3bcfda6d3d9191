import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_material import KEY, OLD_KEY, SOURCE, Host, acquainted

from meshd.config import CANDIDATE_SESSIONS, CHALLENGE_S, CHALLENGES_OPEN, HELLO_PER_S, WHO_PER_S
from meshd.wire.errors import UnknownSession, WireError
from meshd.wire.header import Type
from meshd.wire.keys import Keyring
from meshd.wire.opened import Data, Greeted, Greeting, Who

PING = bytes(41)  # a Ping is this long


def refused(host: Host, datagram: bytes, now: float = 0.0) -> WireError:
    with pytest.raises(WireError) as caught:
        host.open(datagram, now)
    error = caught.value
    assert error.answer is None or len(error.answer) <= len(datagram)
    return error


def greet(asker: Host, answerer: Host, now: float = 0.0) -> tuple[Greeting, Greeted]:
    greeting = answerer.open(asker.sealer.hello(now), now)
    return greeting, asker.open(greeting.reply, now)


# --- the flows ----------------------------------------------------------------------------------------------
def test_a_hello_and_its_answer_let_the_asker_send_and_its_first_datagram_proves_it():
    a, b = Host("a", incarnation=5), Host("b", incarnation=9)
    b.known[a.id] = 4
    hello = a.sealer.hello(0.0)
    greeting = b.open(hello)
    assert greeting == Greeting(a.id, a.session, 5, greeting.reply)
    assert len(greeting.reply) <= len(hello)
    assert b.sealer.session_of(a.id) is None  # it could be a recording
    with pytest.raises(UnknownSession):
        b.sealer.seal(a.id, PING)
    assert a.open(greeting.reply) == Greeted(b.id, b.session, 9, 4)
    assert a.sealer.session_of(b.id) == b.session
    assert b.open(a.sealer.seal(b.id, PING)) == Data(a.id, PING, first=True)
    assert b.sealer.session_of(a.id) == a.session
    assert b.open(a.sealer.seal(b.id, PING)) == Data(a.id, PING, first=False)
    assert a.open(b.sealer.seal(a.id, PING)) == Data(b.id, PING)


def test_a_restarted_sender_is_read_again_after_one_round_trip():
    a, b = Host("a"), Host("b")
    acquainted(a, b)
    b.open(a.sealer.seal(b.id, PING))
    old_tag = a.sealer.tag
    a.restart()
    a.sealer.learn(b.id, b.session)  # from its snapshot
    error = refused(b, a.sealer.seal(b.id, PING))
    assert error.reason == "unknown-session"
    assert error.answer is not None
    assert error.answer[1] == Type.WHO
    assert error.answer[4:8] == a.sealer.tag != old_tag  # so a's socket filter lets it in
    assert a.open(error.answer) == Who(SOURCE)
    greet(a, b)
    assert b.open(a.sealer.seal(b.id, PING)) == Data(a.id, PING, first=True)
    assert a.open(b.sealer.seal(a.id, PING)) == Data(b.id, PING)


def test_a_host_learns_from_an_answer_that_it_has_lived_before():
    a, b = Host("a", incarnation=1000), Host("b")
    b.known[a.id] = 5000
    greeting, greeted = greet(a, b)
    assert (greeting.incarnation, greeted.my_incarnation_there) == (1000, 5000)


def test_an_incarnation_from_before_is_answered_but_proves_nothing_until_it_is_raised():
    a, b = Host("a", incarnation=1000), Host("b")
    b.known[a.id] = 5000
    greet(a, b)
    assert refused(b, a.sealer.seal(b.id, PING)).reason == "unknown-session"
    a.incarnation = 5001
    greet(a, b)
    assert b.open(a.sealer.seal(b.id, PING)) == Data(a.id, PING, first=True)


def test_greeting_by_a_key_that_is_not_primary_is_answered_under_that_key():
    late, b = Host("late", Keyring((OLD_KEY,))), Host("b", Keyring((KEY, OLD_KEY)))
    greeting, greeted = greet(late, b)
    assert greeting.reply[2:4] == b"\x00\x42"
    assert greeted.host == b.id
    assert b.open(late.sealer.seal(b.id, PING)).host == late.id
    stranger = Host("stranger", Keyring((OLD_KEY,)))
    stranger.sealer.learn(b.id, b.session)
    answer = refused(b, stranger.sealer.seal(b.id, PING)).answer
    assert answer is not None
    assert stranger.open(answer) == Who(SOURCE)


def test_one_challenge_is_good_for_one_answer_but_each_hello_has_its_own():
    a, b, c = Host("a"), Host("b"), Host("c")
    hello = a.sealer.hello(0.0)
    from_b, from_c = b.open(hello).reply, c.open(hello).reply
    assert a.open(from_b).host == b.id
    assert refused(a, from_c).reason == "not-asked"
    assert greet(a, c)[1].host == c.id


# --- what is not believed -----------------------------------------------------------------------------------
def test_an_answer_is_believed_once_and_in_time_only():
    a, b = Host("a"), Host("b")
    reply = b.open(a.sealer.hello(100.0), 100.0).reply
    assert refused(a, reply, 100.0 + CHALLENGE_S + 0.1).reason == "not-asked"
    reply = b.open(a.sealer.hello(200.0), 200.0).reply
    assert isinstance(a.open(reply, 200.0 + CHALLENGE_S), Greeted)
    assert refused(a, reply, 200.0 + CHALLENGE_S).reason == "not-asked"


def test_an_answer_without_a_question_is_refused():
    a, b = Host("a"), Host("b")
    reply = b.open(a.sealer.hello(0.0)).reply
    a.sealer._greeter._questions.clear()
    assert refused(a, reply).reason == "not-asked"
    assert a.sealer.session_of(b.id) is None


def test_an_answer_with_a_wrong_challenge_is_refused():
    a, b = Host("a"), Host("b")
    a.sealer.hello(0.0)
    greeter = b.sealer._greeter
    key, seal = b.ring.primary, greeter._seal
    from meshd.wire.greet import HelloAck, pack_ack

    ack = pack_ack(HelloAck(b.id, b.session, bytes(16), 0, 1000))
    forged = seal(Type.HELLO_ACK, key, a.sealer.tag, ack, a.id + a.session)
    assert refused(a, forged).reason == "not-asked"
    assert a.sealer.session_of(b.id) is None


def test_an_answer_to_another_host_or_an_earlier_start_is_refused():
    a, b, c = Host("a"), Host("b"), Host("c")
    reply = b.open(a.sealer.hello(0.0)).reply
    assert refused(c, reply).reason == "not-for-me"
    assert refused(c, reply[:4] + c.sealer.tag + reply[8:]).reason == "bad-tag"
    a.restart()
    assert refused(a, reply[:4] + a.sealer.tag + reply[8:]).reason == "bad-tag"


def test_an_answer_from_before_a_known_incarnation_is_refused():
    a, b = Host("a"), Host("b", incarnation=1000)
    hello = a.sealer.hello(0.0)
    held_back = b.open(hello).reply
    b.restart()
    a.known[b.id] = b.incarnation
    a.sealer.learn(b.id, b.session)
    assert refused(a, held_back).reason == "stale"
    assert a.sealer.session_of(b.id) == b.session


def test_an_answer_in_a_retired_session_is_refused():
    a, b = Host("a"), Host("b")
    held_back = b.open(a.sealer.hello(0.0)).reply
    a.sealer.learn(b.id, b.session)
    b.restart()
    a.sealer.learn(b.id, b.session)
    assert refused(a, held_back).reason == "retired-session"
    assert a.sealer.session_of(b.id) == b.session


def test_a_replayed_hello_and_a_held_back_datagram_do_not_bring_a_dead_session_back():
    a, b = Host("a", incarnation=1000), Host("b")
    hello = a.sealer.hello(0.0)  # recorded on its way elsewhere: b never sees it
    a.sealer.learn(b.id, b.session)
    held_back = a.sealer.seal(b.id, PING)
    a.restart()
    b.known[a.id] = a.incarnation
    acquainted(a, b)
    b.open(hello)
    assert refused(b, held_back).reason == "unknown-session"
    assert b.sealer.session_of(a.id) == a.session


def test_a_candidate_that_was_overtaken_is_retired():
    a, b = Host("a"), Host("b")
    hello = a.sealer.hello(0.0)
    b.open(hello)
    a.sealer.learn(b.id, b.session)
    held_back = a.sealer.seal(b.id, PING)
    a.restart()
    acquainted(a, b)
    assert refused(b, held_back).reason == "retired-session"
    assert refused(b, hello).reason == "retired-session"
    assert b.sealer.session_of(a.id) == a.session


def test_a_replay_window_survives_the_proof_of_a_candidate():
    a, b = Host("a"), Host("b")
    greet(a, b)
    datagram = a.sealer.seal(b.id, PING)
    b.open(datagram)
    b.sealer.learn(a.id, a.session)
    assert refused(b, datagram).reason == "replayed"


def test_ones_own_hello_is_told_from_a_clones():
    a = Host("a")
    hello = a.sealer.hello(0.0)
    assert refused(a, hello).reason == "own-session"
    a.restart()
    assert refused(a, hello).reason == "own-id"


def test_a_who_for_a_datagram_that_is_not_mine_is_refused():
    a, b, c = Host("a"), Host("b"), Host("c")
    for host in (a, c):
        host.sealer.learn(b.id, b.session)
    answer = refused(b, a.sealer.seal(b.id, PING)).answer
    assert answer is not None
    assert refused(c, answer).reason == "not-for-me"
    b.sealer._counter = 0
    greeter = b.sealer._greeter
    forged = greeter._seal(Type.WHO, KEY, c.sealer.tag, c.sealer._source[4:] + (7).to_bytes(8, "big"))
    assert refused(c, forged).reason == "not-asked"  # c has sealed nothing with counter 7
    forged = greeter._seal(Type.WHO, KEY, c.sealer.tag, bytes(12))
    assert refused(c, forged).reason == "not-asked"


def test_a_replayed_who_causes_no_second_greeting():
    a, b = Host("a"), Host("b")
    a.sealer.learn(b.id, b.session)
    first = refused(b, a.sealer.seal(b.id, PING)).answer
    second = refused(b, a.sealer.seal(b.id, PING)).answer
    assert first is not None
    assert second is not None
    assert a.open(second) == a.open(first) == Who(SOURCE)
    assert refused(a, first).reason == refused(a, second).reason == "replayed"


GREETINGS = ("hello", "ack", "who")


def one_of_each() -> dict[str, tuple[Host, bytes]]:
    a, b, c = Host("a"), Host("b"), Host("c")
    hello = a.sealer.hello(0.0)
    ack = b.open(hello).reply
    c.sealer.learn(b.id, b.session)
    who = refused(b, c.sealer.seal(b.id, PING)).answer
    assert who is not None
    return {"hello": (Host("d"), hello), "ack": (a, ack), "who": (c, who)}


@pytest.mark.parametrize("which", GREETINGS)
def test_every_bit_flip_of_a_greeting_is_refused_and_the_original_still_counts(which):
    host, datagram = one_of_each()[which]
    for bit in range(8 * len(datagram)):
        damaged = bytearray(datagram)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(host, bytes(damaged), float(bit))
    host.sealer._greeter._questions.update(dict.fromkeys(host.sealer._greeter._questions, 1e6))
    assert isinstance(host.open(datagram, 1e6), Greeting | Greeted | Who)


@pytest.mark.parametrize("which", GREETINGS)
def test_every_truncation_of_a_greeting_is_refused(which):
    host, datagram = one_of_each()[which]
    for size in range(len(datagram)):
        assert refused(host, datagram[:size], float(size)).reason == ("short" if size < 40 else "bad-tag")


@pytest.mark.parametrize("kind", [Type.HELLO, Type.HELLO_ACK, Type.WHO])
@pytest.mark.parametrize("size", [0, 1, 11])
def test_a_sealed_greeting_with_too_small_a_body_is_refused(kind, size):
    a, b = Host("a"), Host("b")
    destination = bytes(4) if kind == Type.HELLO else a.sealer.tag
    binding = a.id + a.session if kind == Type.HELLO_ACK else b""
    datagram = b.sealer._greeter._seal(kind, KEY, destination, bytes(size), binding)
    assert refused(a, datagram).reason == "malformed"


def test_bytes_that_a_newer_host_adds_to_a_greeting_are_ignored():
    from meshd.wire.greet import Hello, pack_hello

    a, b = Host("a"), Host("b")
    body = pack_hello(Hello(b.id, b.session, 7, bytes(16))) + b"something new"
    greeting = a.open(b.sealer._greeter._seal(Type.HELLO, KEY, bytes(4), body))
    assert (greeting.host, greeting.incarnation) == (b.id, 7)


def test_unknown_and_stream_types_are_refused():
    a = Host("a")
    hello = a.sealer.hello(0.0)
    for kind in range(256):
        if kind not in (Type.DATA, Type.HELLO, Type.HELLO_ACK, Type.WHO):
            assert refused(Host("b"), hello[:1] + bytes([kind]) + hello[2:]).reason == "type"


# --- amounts ------------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(st.integers(0, 60))
def test_no_answer_is_longer_than_what_it_answers(size):
    a, b = Host("a"), Host("b")
    a.sealer.learn(b.id, b.session)
    datagram = a.sealer.seal(b.id, bytes(size))
    answer = refused(b, datagram).answer
    assert (answer is None) == (size < 12)
    assert answer is None or len(answer) <= len(datagram)
    hello = a.sealer.hello(0.0)
    assert len(b.open(hello).reply) <= len(hello)


def test_whos_are_limited_in_rate_by_time_alone():
    a, b = Host("a"), Host("b")
    a.sealer.learn(b.id, b.session)

    def answers(count: int, now: float) -> int:
        return sum(refused(b, a.sealer.seal(b.id, PING), now).answer is not None for _ in range(count))

    assert answers(100, 50.0) == WHO_PER_S
    assert answers(100, 50.0) == 0
    assert answers(100, 51.0) == WHO_PER_S


def test_a_flood_of_hellos_is_cut_off_and_leaves_answers_and_data_readable():
    a, b, c = Host("a"), Host("b"), Host("c")
    acquainted(b, c)
    asked = b.sealer.hello(0.0)
    junk = bytearray(a.sealer.hello(0.0))
    junk[-1] ^= 1
    assert [refused(b, bytes(junk)).reason for _ in range(int(HELLO_PER_S))] == ["bad-tag"] * int(HELLO_PER_S)
    assert refused(b, a.sealer.hello(0.0)).reason == "rate-limited"
    assert b.open(a.open(asked).reply).host == a.id
    assert b.open(c.sealer.seal(b.id, PING)) == Data(c.id, PING)
    assert isinstance(b.open(a.sealer.hello(0.0), 1.0), Greeting)


def test_candidates_and_open_challenges_are_bounded_and_the_oldest_go_first():
    b = Host("b")
    first, last = Host("first"), Host("last")
    greet(first, b)
    for n in range(CANDIDATE_SESSIONS - 1):
        b.sealer._sessions.consider(b"%016d" % n, b"%016d" % n)
    greet(first, b, 10.0)  # heard of again: no longer the oldest
    greet(last, b, 10.0)
    assert len(b.sealer._sessions._candidates) == len(b.sealer._sessions._by_source) == CANDIDATE_SESSIONS
    assert b.open(first.sealer.seal(b.id, PING)).first
    assert b.open(last.sealer.seal(b.id, PING)).first

    oldest = b.sealer.hello(0.0)
    for _ in range(CHALLENGES_OPEN):
        b.sealer.hello(0.0)
    assert refused(b, first.open(oldest, 20.0).reply, 0.0).reason == "not-asked"
