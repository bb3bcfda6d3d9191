import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_material import KEY, OLD_KEY, RING, Host, acquainted

from meshd.config import (
    DATAGRAM_MAX_BYTES,
    KEYS_CACHED,
    MTU_PROBE_MAX_BYTES,
    PLAINTEXT_MAX_BYTES,
    REPLAY_WINDOW,
    RETIRED_SESSIONS,
    SESSION_PACKETS_MAX,
)
from meshd.errors import PeerError
from meshd.wire import header, sessions
from meshd.wire.errors import REASONS, SessionExhausted, UnknownSession, WireError
from meshd.wire.keys import Keyring, data_key
from meshd.wire.opened import Data

HELLO = b"hello, this is a plaintext"


@pytest.fixture
def pair() -> tuple[Host, Host]:
    a, b = Host("a"), Host("b")
    acquainted(a, b)
    return a, b


def refused(host: Host, datagram: bytes, now: float = 0.0) -> WireError:
    with pytest.raises(WireError) as caught:
        host.open(datagram, now)
    error = caught.value
    assert error.reason in REASONS
    assert error.answer is None or len(error.answer) <= len(datagram)
    return error


def reason(host: Host, datagram: bytes) -> str:
    return refused(host, datagram).reason


# --- what goes in comes out ---------------------------------------------------------------------------------
@given(st.lists(st.binary(max_size=PLAINTEXT_MAX_BYTES), max_size=5))
def test_what_is_sealed_is_opened(plaintexts):
    a, b = Host("a"), Host("b")
    acquainted(a, b)
    for plaintext in plaintexts:
        datagram = a.sealer.seal(b.id, plaintext)
        assert len(datagram) == len(plaintext) + 40
        assert plaintext not in datagram[24:] or len(plaintext) < 4  # the counter before is zeros
        assert b.open(datagram) == Data(a.id, plaintext)


def test_the_layout_is_the_documented_one(pair):
    a, b = pair
    a.sealer.seal(b.id, b"")
    datagram = a.sealer.seal(b.id, HELLO)
    version, kind, key_id, destination, source, session, counter = struct.unpack(">BBH4s4s4sQ", datagram[:24])
    assert (version, kind, key_id, counter) == (0x51, 1, KEY.id, 1)
    assert destination == b.sealer.tag
    assert source == a.sealer.tag
    bound = datagram[:24] + b.id + b.session
    cipher = AESGCM(data_key(KEY, a.session, a.id))
    assert cipher.decrypt(session + struct.pack(">Q", counter), datagram[24:], bound) == HELLO


def test_the_largest_plaintext_fits_and_one_byte_more_does_not(pair):
    a, b = pair
    assert len(a.sealer.seal(b.id, bytes(PLAINTEXT_MAX_BYTES))) == DATAGRAM_MAX_BYTES
    with pytest.raises(ValueError):
        a.sealer.seal(b.id, bytes(PLAINTEXT_MAX_BYTES + 1))


def test_nothing_is_sealed_to_a_host_without_a_session():
    a, b = Host("a"), Host("b")
    with pytest.raises(UnknownSession) as caught:
        a.sealer.seal(b.id, HELLO)
    assert caught.value.host == b.id
    assert isinstance(caught.value, PeerError)


def test_no_nonce_repeats_under_one_key_whoever_it_is_sent_to():
    a, b, c = Host("a"), Host("b"), Host("c")
    acquainted(a, b, c)
    nonces = [a.sealer.seal(to.id, HELLO)[12:24] for _ in range(50) for to in (b, c)]
    a.restart()
    acquainted(a, b, c)
    nonces += [a.sealer.seal(to.id, HELLO)[12:24] for _ in range(50) for to in (b, c)]
    assert len(set(nonces)) == len(nonces)


def test_a_session_stops_before_its_counter_is_used_up(pair):
    a, b = pair
    a.sealer._counter = SESSION_PACKETS_MAX - 1
    assert b.open(a.sealer.seal(b.id, HELLO)) == Data(a.id, HELLO)
    with pytest.raises(SessionExhausted):
        a.sealer.seal(b.id, HELLO)


def test_a_counter_beyond_the_limit_is_refused(pair):
    a, b = pair
    datagram = bytearray(a.sealer.seal(b.id, HELLO))
    datagram[16:24] = SESSION_PACKETS_MAX.to_bytes(8, "big")
    assert reason(b, bytes(datagram)) == "counter"


# --- damage and forgery -------------------------------------------------------------------------------------
def test_every_single_bit_flip_is_refused_and_the_original_still_opens(pair):
    a, b = pair
    datagram = a.sealer.seal(b.id, HELLO)
    reasons = set()
    for bit in range(8 * len(datagram)):
        damaged = bytearray(datagram)
        damaged[bit // 8] ^= 1 << bit % 8
        reasons.add(reason(b, bytes(damaged)))
    assert {"version", "not-for-me", "unknown-key", "unknown-session", "bad-tag"} <= reasons
    assert b.open(datagram) == Data(a.id, HELLO)


def test_every_truncation_and_extension_is_refused(pair):
    a, b = pair
    datagram = a.sealer.seal(b.id, HELLO)
    for size in range(len(datagram)):
        assert reason(b, datagram[:size]) == ("short" if size < 40 else "bad-tag")
    assert reason(b, datagram + b"\0") == "bad-tag"
    assert b.open(datagram) == Data(a.id, HELLO)


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x51", *(bytes((0x51, kind)) for kind in range(8))]))
def test_arbitrary_bytes_are_refused_with_wire_errors(junk, start):
    b = Host("b")
    for datagram in (
        start + junk,
        start + junk[:2] + b.sealer.tag + junk,
        start + b"\x12\x34" + b.sealer.tag + junk,
    ):
        refused(b, datagram)


def test_a_forged_tag_does_not_move_the_replay_window(pair):
    a, b = pair
    datagrams = [a.sealer.seal(b.id, HELLO) for _ in range(3)]
    forged = bytearray(datagrams[0])
    forged[16:24] = (2**40).to_bytes(8, "big")
    assert reason(b, bytes(forged)) == "bad-tag"
    assert [b.open(datagram) for datagram in datagrams] == [Data(a.id, HELLO)] * 3


def test_a_host_cannot_be_spoken_for_with_another_session_of_the_same_ring(pair):
    """Every holder of the ring key can make datagrams, but under a learnt session they are of its host."""
    _, b = pair
    c = Host("c")
    assert b.sealer.learn(c.id, c.session)
    c.sealer.learn(b.id, b.session)
    assert b.open(c.sealer.seal(b.id, HELLO)).host == c.id


# --- replay -------------------------------------------------------------------------------------------------
def test_a_replay_to_the_same_receiver_is_refused(pair):
    a, b = pair
    datagrams = [a.sealer.seal(b.id, bytes([n])) for n in range(50)]
    for datagram in datagrams:
        b.open(datagram)
    assert {reason(b, datagram) for datagram in datagrams} == {"replayed"}


def test_a_replay_to_another_receiver_is_refused_whatever_its_header_says():
    a, b, c = Host("a"), Host("b"), Host("c")
    acquainted(a, b, c)
    datagram = a.sealer.seal(b.id, HELLO)
    assert reason(c, datagram) == "not-for-me"
    assert reason(c, datagram[:4] + c.sealer.tag + datagram[8:]) == "bad-tag"


def test_a_replay_to_the_restarted_receiver_is_refused_whatever_its_header_says(pair):
    a, b = pair
    datagram = a.sealer.seal(b.id, HELLO)
    b.restart()
    b.sealer.learn(a.id, a.session)
    assert reason(b, datagram) == "not-for-me"
    assert reason(b, datagram[:4] + b.sealer.tag + datagram[8:]) == "bad-tag"


def test_a_replay_after_the_senders_restart_is_refused_without_an_answer(pair):
    a, b = pair
    opened, held = a.sealer.seal(b.id, HELLO), a.sealer.seal(b.id, HELLO)
    b.open(opened)
    a.restart()
    assert b.sealer.learn(a.id, a.session)
    for datagram in (opened, held):
        error = refused(b, datagram)
        assert (error.reason, error.answer) == ("retired-session", None)


def test_a_retired_session_is_never_learnt_again(pair):
    a, b = pair
    old = a.session
    a.restart()
    assert b.sealer.learn(a.id, a.session)
    assert not b.sealer.learn(a.id, old)
    assert b.sealer.session_of(a.id) == a.session


def test_learning_the_current_session_again_keeps_the_window(pair):
    a, b = pair
    datagram = a.sealer.seal(b.id, HELLO)
    b.open(datagram)
    assert b.sealer.learn(a.id, a.session)
    assert reason(b, datagram) == "replayed"


def test_a_forgotten_host_is_neither_read_nor_written(pair):
    a, b = pair
    datagram = a.sealer.seal(b.id, HELLO)
    b.sealer.forget(a.id)
    assert b.sealer.session_of(a.id) is None
    assert reason(b, datagram) == "retired-session"
    with pytest.raises(UnknownSession):
        b.sealer.seal(a.id, HELLO)
    a.restart()
    acquainted(a, b)
    assert b.open(a.sealer.seal(b.id, HELLO)) == Data(a.id, HELLO)
    b.sealer.forget(Host("never heard of").id)


def test_a_session_that_another_host_has_proved_is_not_taken_from_it(pair):
    a, b = pair
    assert not b.sealer.learn(Host("thief").id, a.session)
    assert b.open(a.sealer.seal(b.id, HELLO)) == Data(a.id, HELLO)


def test_a_host_does_not_learn_itself():
    a = Host("a")
    assert not a.sealer.learn(a.id, a.session)
    assert not a.sealer.learn(a.id, bytes(16))
    assert a.sealer.session_of(a.id) is None


def test_retired_sessions_are_remembered_up_to_a_bound(monkeypatch):
    assert RETIRED_SESSIONS >= 10_000
    monkeypatch.setattr(sessions, "RETIRED_SESSIONS", 3)
    table = sessions.Sessions(bytes(16))
    host = b"h" * 16
    for n in range(6):
        assert table.learn(host, bytes([n] * 16))
    assert [table.is_retired(sessions.source_tags(bytes([n] * 16))) for n in range(6)] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]


# --- order --------------------------------------------------------------------------------------------------
@settings(max_examples=30)
@given(st.permutations(range(40)))
def test_datagrams_in_any_order_within_the_window_are_opened_once(order):
    a, b = Host("a"), Host("b")
    acquainted(a, b)
    datagrams = [a.sealer.seal(b.id, bytes([n])) for n in range(40)]
    assert [b.open(datagrams[n]).plaintext for n in order] == [bytes([n]) for n in order]
    assert {reason(b, datagram) for datagram in datagrams} == {"replayed"}


def test_a_datagram_older_than_the_window_is_refused(pair):
    a, b = pair
    datagrams = [a.sealer.seal(b.id, HELLO) for _ in range(REPLAY_WINDOW + 1)]
    b.open(datagrams[-1])
    assert reason(b, datagrams[0]) == "replayed"
    assert b.open(datagrams[1]) == Data(a.id, HELLO)


# --- the ring -----------------------------------------------------------------------------------------------
def test_every_key_on_the_ring_is_read_and_the_primary_one_is_sent_with():
    a, b = Host("a", Keyring((OLD_KEY, KEY))), Host("b", Keyring((KEY, OLD_KEY)))
    acquainted(a, b)
    from_a, from_b = a.sealer.seal(b.id, HELLO), b.sealer.seal(a.id, HELLO)
    assert (from_a[2:4], from_b[2:4]) == (b"\x00\x42", b"\x12\x34")
    assert b.open(from_a) == Data(a.id, HELLO)
    assert a.open(from_b) == Data(b.id, HELLO)


def test_an_unknown_key_is_refused_without_an_answer(pair):
    _, b = pair
    stranger = Host("stranger", Keyring((OLD_KEY,)))
    stranger.sealer.learn(b.id, b.session)
    error = refused(b, stranger.sealer.seal(b.id, HELLO))
    assert (error.reason, error.answer) == ("unknown-key", None)


def test_a_wrong_secret_under_a_known_id_is_refused(pair):
    a, b = pair
    a.sealer.keyring = Keyring((type(KEY)(KEY.id, bytes(32)),))
    assert reason(b, a.sealer.seal(b.id, HELLO)) == "bad-tag"


def test_a_rotation_loses_nothing_and_a_removed_key_is_gone_at_once(pair):
    a, b = pair
    for ring_a, ring_b in (
        (Keyring((KEY, OLD_KEY)), RING),  # installed on one
        (Keyring((KEY, OLD_KEY)), Keyring((KEY, OLD_KEY))),
        (Keyring((OLD_KEY, KEY)), Keyring((KEY, OLD_KEY))),  # promoted on one
        (Keyring((OLD_KEY, KEY)), Keyring((OLD_KEY, KEY))),
    ):
        a.sealer.keyring, b.sealer.keyring = ring_a, ring_b
        assert b.open(a.sealer.seal(b.id, HELLO)) == Data(a.id, HELLO)
        assert a.open(b.sealer.seal(a.id, HELLO)) == Data(b.id, HELLO)
    a.sealer.keyring = Keyring((KEY, OLD_KEY))
    assert b.open(a.sealer.seal(b.id, HELLO)) == Data(a.id, HELLO)
    b.sealer.keyring = Keyring((OLD_KEY,))
    assert reason(b, a.sealer.seal(b.id, HELLO)) == "unknown-key"


def test_more_peers_than_cached_keys_are_all_read():
    b = Host("b")
    peers = [Host(f"peer {n}") for n in range(KEYS_CACHED + 20)]
    for peer in peers:
        acquainted(peer, b)
    for _ in range(2):
        for peer in peers:
            assert b.open(peer.sealer.seal(b.id, HELLO)).host == peer.id
    assert len(b.sealer._aeads) == KEYS_CACHED


def test_a_retired_session_is_no_candidate():
    table = sessions.Sessions(b"m" * 16)
    host, old, new = b"h" * 16, b"o" * 16, b"n" * 16
    table.learn(host, old)
    table.learn(host, new)
    table.consider(host, old)
    assert table.find(sessions.source_tags(old)) is None
    assert table.current(host).session == new


def test_no_session_has_the_tag_that_means_nobody(monkeypatch):
    class Zeros:
        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(header.hashlib, "sha256", lambda data: Zeros())
    assert header.source_tags(b"s" * 16)[:4] != header.NOBODY


# --- padded probes ------------------------------------------------------------------------------------------
def test_a_probe_may_be_as_large_as_any_packet_and_nothing_else_may(pair):
    a, b = pair
    most = MTU_PROBE_MAX_BYTES - 40
    probe = a.sealer.seal(b.id, bytes(most), probe=True)
    assert len(probe) == MTU_PROBE_MAX_BYTES
    assert b.open(probe) == Data(a.id, bytes(most))
    with pytest.raises(ValueError, match="65496 bytes do not fit a datagram"):
        a.sealer.seal(b.id, bytes(most + 1), probe=True)
    with pytest.raises(ValueError, match="do not fit a datagram"):
        a.sealer.seal(b.id, bytes(PLAINTEXT_MAX_BYTES + 1))


def test_what_is_longer_than_its_type_may_be_is_refused_before_any_key_is_tried(pair):
    a, b = pair
    hello = a.sealer.hello(0.0)
    assert reason(b, hello + bytes(DATAGRAM_MAX_BYTES + 1 - len(hello))) == "long"
    probe = a.sealer.seal(b.id, bytes(MTU_PROBE_MAX_BYTES - 40), probe=True)
    assert reason(b, probe + b"x") == "long"
