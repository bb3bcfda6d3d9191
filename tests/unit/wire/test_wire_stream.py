import contextlib
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_material import KEY, OLD_KEY, RING, Host

from meshd.config import STREAM_BLOB_MAX_BYTES, STREAM_RECORD_BYTES
from meshd.wire.errors import REASONS, WireError
from meshd.wire.handshake import GREETING_BYTES
from meshd.wire.keys import Keyring
from meshd.wire.stream import Channel

BIG = random.Random(7).randbytes(STREAM_BLOB_MAX_BYTES)


@dataclass
class Pair:
    a: Host
    b: Host
    left: Channel
    right: Channel


def pair(expect: bytes | None = None, ring_a: Keyring = RING, ring_b: Keyring = RING) -> Pair:
    a, b = Host("a", ring_a), Host("b", ring_b)
    left = Channel.initiator(a.id, a.session, ring_a, a.rng.randbytes, expect)
    right = Channel.responder(b.id, b.session, ring_b, b.rng.randbytes)
    return Pair(a, b, left, right)


def shaken(**kw) -> Pair:
    """A pair after the greetings; the responder has not heard a record yet."""
    p = pair(**kw)
    p.right.receive(p.left.outgoing())
    p.left.receive(p.right.outgoing())
    return p


def open_pair() -> Pair:
    """A pair established both ways."""
    p = shaken()
    p.left.send(b"first")
    assert p.right.receive(p.left.outgoing()) == [b"first"]
    return p


def records(stream: bytes) -> list[bytes]:
    """Cut a direction's bytes at the record boundaries, by the documented layout."""
    cut, at = [], 0
    while at < len(stream):
        end = at + 4 + int.from_bytes(stream[at : at + 4], "big")
        cut.append(stream[at:end])
        at = end
    return cut


def reason(channel: Channel, data: bytes) -> str:
    with pytest.raises(WireError) as caught:
        channel.receive(data)
    assert caught.value.reason in REASONS
    with pytest.raises(WireError) as again:  # and that is final
        channel.receive(b"")
    assert again.value.reason == "broken"
    assert channel.outgoing() == b""
    return caught.value.reason


# --- what goes in comes out ---------------------------------------------------------------------------------
def test_both_ends_know_each_other_once_both_have_proved_themselves():
    p = pair()
    hello = p.left.outgoing()
    assert len(hello) == GREETING_BYTES
    assert p.right.receive(hello) == []
    assert (p.right.established, p.right.peer, p.right.peer_session) == (False, None, None)
    answer = p.right.outgoing()
    assert len(answer) == GREETING_BYTES
    p.left.receive(answer)
    assert (p.left.established, p.left.peer, p.left.peer_session) == (True, p.b.id, p.b.session)
    p.left.send(b"x")
    p.right.receive(p.left.outgoing())
    assert (p.right.established, p.right.peer, p.right.peer_session) == (True, p.a.id, p.a.session)


def test_what_is_sent_before_the_greetings_leaves_after_them():
    p = pair()
    p.left.send(b"one")
    p.left.send(b"two")
    p.right.send(b"three")
    p.right.receive(p.left.outgoing())
    p.left.receive(p.right.outgoing())
    assert p.right.outgoing() == b""  # nothing for a recording
    assert p.right.receive(p.left.outgoing()) == [b"one", b"two"]
    assert p.left.receive(p.right.outgoing()) == [b"three"]


BLOBS = st.lists(
    st.binary(max_size=100)
    | st.sampled_from(
        [0, 1, STREAM_RECORD_BYTES - 2, STREAM_RECORD_BYTES - 1, STREAM_RECORD_BYTES, STREAM_BLOB_MAX_BYTES]
    ).map(lambda size: BIG[:size]),
    max_size=5,
)


@settings(max_examples=50)
@given(BLOBS, BLOBS, st.randoms(use_true_random=False))
def test_blobs_come_out_as_they_went_in_however_the_bytes_are_cut(there, back, rng):
    p = shaken()
    for blob in there:
        p.left.send(blob)
    p.left.finish()
    for blob in back:
        p.right.send(blob)
    p.right.finish()
    for source, sink, blobs in ((p.left, p.right, there), (p.right, p.left, back)):
        data = source.outgoing()
        got, at = [], 0
        while at < len(data):
            size = rng.choice([1, 3, 100, 5000, 70000])
            got += sink.receive(data[at : at + size])
            at += size
        assert got == blobs
        assert sink.closed_cleanly


def test_the_greetings_may_come_byte_by_byte():
    p = pair()
    for source, sink in ((p.left, p.right), (p.right, p.left)):
        for byte in source.outgoing():
            sink.receive(bytes([byte]))
    assert p.left.established


def test_no_record_is_longer_than_the_bound_and_no_plaintext_shows():
    p = shaken()
    p.left.send(BIG)
    data = p.left.outgoing()
    assert max(map(len, records(data))) == 4 + STREAM_RECORD_BYTES + 16
    assert BIG[:16] not in data


def test_a_blob_above_the_bound_is_not_sent_and_not_taken():
    p = open_pair()
    with pytest.raises(ValueError):
        p.left.send(BIG + b"x")
    for _ in range(6):  # as a peer would that does not check
        p.left._queue(0, BIG[: STREAM_RECORD_BYTES - 1])
    assert reason(p.right, p.left.outgoing()) == "blob-length"


# --- the end ------------------------------------------------------------------------------------------------
def test_an_end_is_clean_only_after_an_end_record_at_every_cut():
    p = open_pair()
    p.left.send(b"last words")
    p.left.finish()
    p.left.finish()
    data = p.left.outgoing()
    for byte in data:
        assert not p.right.closed_cleanly
        p.right.receive(bytes([byte]))
    assert p.right.closed_cleanly
    assert not p.left.closed_cleanly
    with pytest.raises(ValueError):
        p.left.send(b"after")
    p.right.send(b"the other direction goes on")
    assert p.left.receive(p.right.outgoing()) == [b"the other direction goes on"]


def test_a_record_after_the_end_is_refused():
    p = open_pair()
    p.left.finish()
    p.right.receive(p.left.outgoing())
    p.left._queue(1, b"after")
    assert reason(p.right, p.left.outgoing()) == "record-order"


@pytest.mark.parametrize("flag, part", [(3, b""), (255, b"x"), (2, b"x"), (0, b"")])
def test_a_record_that_says_nothing_sensible_is_refused(flag, part):
    p = open_pair()
    p.left._queue(flag, part)
    assert reason(p.right, p.left.outgoing()) == "record-order"


def test_an_end_within_a_blob_is_refused():
    p = open_pair()
    p.left._queue(0, b"half")
    p.left._queue(2, b"")
    assert reason(p.right, p.left.outgoing()) == "record-order"


# --- damage -------------------------------------------------------------------------------------------------
def test_every_bit_flip_in_a_record_is_refused_or_never_completes():
    plain = open_pair()
    plain.left.send(b"payload")
    data = plain.left.outgoing()
    seen = set()
    for bit in range(8 * len(data)):
        p = open_pair()  # seeded: the same bytes each time
        p.left.send(b"payload")
        damaged = bytearray(p.left.outgoing())
        assert damaged == data
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert p.right.receive(bytes(damaged)) == []  # a length that grew: waits for more
            p.left.send(bytes(STREAM_RECORD_BYTES))
            with pytest.raises(WireError) as caught:
                p.right.receive(p.left.outgoing())
        except WireError as error:
            seen.add(error.reason)
        else:
            seen.add(caught.value.reason)
    assert seen == {"bad-tag", "record-length"}


def test_every_bit_flip_in_a_greeting_is_refused():
    for bit in range(8 * GREETING_BYTES):
        p = pair()
        hello = bytearray(p.left.outgoing())
        hello[bit // 8] ^= 1 << bit % 8
        # the destination tag is the only part that is not looked at by value; it is authenticated
        assert reason(p.right, bytes(hello)) in {"version", "type", "unknown-key", "bad-tag"}
        q = pair()
        q.right.receive(q.left.outgoing())
        answer = bytearray(q.right.outgoing())
        answer[bit // 8] ^= 1 << bit % 8
        assert reason(q.left, bytes(answer)) in {"version", "type", "unknown-key", "bad-tag"}
        assert not q.left.established


@given(st.permutations(range(4)).filter(lambda order: order != [0, 1, 2, 3]))
def test_records_in_another_order_are_refused(order):
    p = open_pair()
    for n in range(4):
        p.left.send(bytes([n]) * 5)
    cut = records(p.left.outgoing())
    assert reason(p.right, b"".join(cut[n] for n in order)) == "bad-tag"


def test_a_repeated_and_a_missing_record_are_refused():
    for pick in ([0, 0], [1], [0, 2]):
        p = open_pair()
        for n in range(3):
            p.left.send(bytes([n]))
        cut = records(p.left.outgoing())
        assert reason(p.right, b"".join(cut[n] for n in pick)) == "bad-tag"


def test_a_record_sent_back_to_its_sender_is_refused():
    p = open_pair()
    p.left.send(b"echo?")
    assert reason(p.left, p.left.outgoing()) == "bad-tag"


@pytest.mark.parametrize("length", [0, 16, STREAM_RECORD_BYTES + 17, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_its_body_comes(length):
    for p in (shaken(), open_pair()):
        assert reason(p.right, length.to_bytes(4, "big")) == "record-length"


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_wire_errors(junk, greeted, to_left):
    p = shaken() if greeted else pair()
    channel = p.left if to_left else p.right
    with contextlib.suppress(WireError):
        assert channel.receive(junk) == []


# --- greetings ----------------------------------------------------------------------------------------------
def test_a_recorded_stream_opens_nothing():
    p = pair()
    p.left.send(b"a secret order")
    hello = p.left.outgoing()
    p.right.receive(hello)
    p.left.receive(p.right.outgoing())
    first = p.left.outgoing()
    assert p.right.receive(first) == [b"a secret order"]
    again = Channel.responder(p.b.id, p.b.session, RING, p.b.rng.randbytes)  # the same process, later
    assert again.receive(hello) == []
    again.send(b"reply")
    assert len(again.outgoing()) == len(hello)  # never more than what came in
    assert not again.established
    assert reason(again, first) == "bad-tag"


def test_a_recorded_answer_is_refused():
    p = shaken()
    q = pair()
    q.right.receive(q.left.outgoing())
    answer = q.right.outgoing()
    fresh = Channel.initiator(p.a.id, p.a.session, RING, random.Random(99).randbytes, None)
    fresh.outgoing()
    assert reason(fresh, answer) == "not-asked"


def test_an_answer_to_another_asker_is_refused():
    c = Host("c")
    p = pair()
    p.right.receive(p.left.outgoing())
    other = Channel.initiator(c.id, c.session, RING, c.rng.randbytes, None)
    assert reason(other, p.right.outgoing()) == "bad-tag"


def test_a_greeting_sent_back_is_refused():
    p = pair()
    hello = p.left.outgoing()
    assert reason(p.left, hello) == "type"
    self_to_self = Channel.responder(p.a.id, p.a.session, RING, p.a.rng.randbytes)
    assert reason(self_to_self, hello) == "own-id"


def test_the_expected_host_is_talked_to_and_no_other():
    b, c = Host("b"), Host("c")
    assert shaken(expect=b.id).left.peer == b.id
    p = pair(expect=c.id)
    assert reason(p.right, p.left.outgoing()) == "wrong-host"


def test_an_initiator_does_not_take_a_host_that_it_did_not_ask_for():
    """Where the responder lets it pass: the initiator's own check."""
    p = pair(expect=Host("c").id)
    p.right._handshake._host = Host("c").id  # takes the greeting as its own
    hello = p.left.outgoing()
    p.right.receive(hello)
    p.left._handshake._expect = Host("d").id
    assert reason(p.left, p.right.outgoing()) == "wrong-host"
    assert p.left.peer is None


def test_data_behind_a_greeting_that_is_not_answered_yet_is_refused():
    p = pair()
    assert reason(p.right, p.left.outgoing() + b"\0") == "early-data"
    q = pair()
    q.right.receive(q.left.outgoing())
    assert reason(q.left, q.right.outgoing() + b"\0") == "early-data"


def test_nothing_beyond_a_greeting_is_buffered_for_a_stranger():
    p = pair()
    p.right.receive(bytes(GREETING_BYTES - 1))
    assert reason(p.right, bytes(1)) == "version"
    q = pair()
    assert reason(q.right, bytes(100_000)) == "early-data"
    assert len(q.right._in) == 0


def test_a_stream_works_while_the_ring_rotates():
    both, swapped = Keyring((KEY, OLD_KEY)), Keyring((OLD_KEY, KEY))
    for ring_a, ring_b in ((both, swapped), (swapped, both), (Keyring((OLD_KEY,)), both)):
        p = shaken(ring_a=ring_a, ring_b=ring_b)
        p.left.send(b"x")
        assert p.right.receive(p.left.outgoing()) == [b"x"]
    p = pair(ring_a=Keyring((OLD_KEY,)))
    assert reason(p.right, p.left.outgoing()) == "unknown-key"


def test_two_streams_of_the_same_hosts_share_no_key():
    p, q = open_pair(), open_pair()
    q = pair()
    q.right = Channel.responder(q.b.id, q.b.session, RING, random.Random(3).randbytes)
    q.right.receive(q.left.outgoing())
    q.left.receive(q.right.outgoing())
    q.left.send(b"first")
    q.right.receive(q.left.outgoing())
    p.left.send(b"same")
    q.left.send(b"same")
    assert p.left.outgoing() != q.left.outgoing()
