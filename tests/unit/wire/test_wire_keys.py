import base64
import hashlib
import hmac
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_material import KEY, OLD_KEY

from meshd.config import RING_KEYS_MAX
from meshd.errors import ConfigError
from meshd.wire.keys import (
    Keyring,
    RingKey,
    cluster_secret,
    data_key,
    format_key,
    format_keyring,
    hello_key,
    new_key,
    parse_keyring,
    stream_keys,
)

SECRETS = st.binary(min_size=32, max_size=32)
RINGS = st.lists(
    st.builds(RingKey, st.integers(0, 0xFFFF), SECRETS),
    min_size=1,
    max_size=RING_KEYS_MAX,
    unique_by=lambda key: key.id,
).filter(lambda keys: len({key.secret for key in keys}) == len(keys))
TEXT = base64.b64encode(KEY.secret).decode()


@given(RINGS)
def test_a_keyring_comes_back_as_it_was_written(keys):
    ring = Keyring(tuple(keys))
    assert parse_keyring(format_keyring(ring), "keyring") == ring
    assert ring.primary is keys[0]
    assert all(ring.get(key.id) is key for key in keys)


def test_comments_blank_lines_and_capitals_are_allowed():
    text = f"# the ring\n\n  ABCD:{TEXT}  # primary\n\t\n{format_key(OLD_KEY)}"
    assert parse_keyring(text, "keyring").keys == (RingKey(0xABCD, KEY.secret), OLD_KEY)


def test_an_id_that_is_not_on_the_ring_has_no_key():
    assert Keyring((KEY,)).get(OLD_KEY.id) is None


OTHER = base64.b64encode(bytes(32)).decode()
LONG = base64.b64encode(bytes(33)).decode()
BAD = {
    "": "no key",
    "# nothing but a comment\n": "no key",
    f"# one\n1234{TEXT}": "line 2: not KEYID:BASE64",
    f"123:{TEXT}": "line 1: the key id is not 4",
    f"12345:{TEXT}": "line 1: the key id is not 4",
    f"wxyz:{TEXT}": "line 1: the key id is not 4",
    f"٣٣٣٣:{TEXT}": "line 1: the key id is not 4",
    f"+123:{TEXT}": "line 1: the key id is not 4",
    "1234:": "line 1: the key has 0 bytes",
    f"1234:{LONG}": "line 1: the key has 33 bytes; it must have 32",
    f"1234:{TEXT[:-1]}": "line 1: what follows the key id is not base64",
    f"1234:{TEXT[:-3]}-_=": "line 1: what follows the key id is not base64",
    f"1234: {TEXT} x": "line 1: what follows the key id is not base64",
    f"1234:ä{TEXT[1:]}": "line 1: what follows the key id is not base64",
    f"1234:{TEXT}\n1234:{OTHER}": "line 2: key id 1234 is on line 1 already",
    f"1234:{TEXT}\n\n4321:{TEXT}": "line 3: the same key is on the ring under another id",
}


@pytest.mark.parametrize("text, words", BAD.items(), ids=list(BAD.values()))
def test_a_bad_keyring_is_one_line_that_names_the_place_and_not_the_secret(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_keyring(text, "/etc/meshd/keyring")
    said = caught.value.what + caught.value.hint
    assert caught.value.what.startswith("/etc/meshd/keyring: ")
    assert words in caught.value.what
    assert "\n" not in said
    for line in text.splitlines():
        secret = line.partition(":")[2].strip()
        assert not secret or secret[:8] not in said


def test_too_many_keys_are_refused():
    text = "".join(format_key(RingKey(n, bytes([n] * 32))) + "\n" for n in range(RING_KEYS_MAX + 1))
    with pytest.raises(ConfigError, match="at most"):
        parse_keyring(text, "keyring")


def test_an_empty_ring_cannot_be_made():
    with pytest.raises(ValueError):
        Keyring(())


def test_no_repr_shows_a_secret():
    shown = repr(Keyring((KEY, OLD_KEY))) + str(KEY) + f"{OLD_KEY}"
    assert "1234" in shown
    assert KEY.secret[:4].hex() not in shown
    assert repr(KEY.secret)[2:10] not in shown


def test_a_new_key_avoids_the_ids_on_the_ring():
    ids = [b"\x00\x01", b"\x00\x02", b"\x00\x03"]

    def entropy(size: int) -> bytes:
        return ids.pop(0) if size == 2 else bytes(size)

    assert new_key(entropy, taken={1, 2}) == RingKey(3, bytes(32))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output, by hand: the oracle."""
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


@given(SECRETS, st.binary(min_size=128, max_size=128))
def test_derived_keys_follow_the_documented_schedule(secret, material):
    key = RingKey(1, secret)
    a, b, c, d, e, f = (material[at : at + 16] for at in range(0, 96, 16))
    assert data_key(key, a, b) == hkdf(secret, a, b"meshd/1 data" + b)
    assert hello_key(key, a[:4]) == hkdf(secret, b"", b"meshd/1 hello" + a[:4])
    assert cluster_secret(key) == hkdf(secret, b"", b"meshd/1 cluster")
    assert stream_keys(key, (a, b), (c, d), (e, f)) == (
        hkdf(secret, c + d + e + f, b"meshd/1 stream initiator" + a + b),
        hkdf(secret, c + d + e + f, b"meshd/1 stream responder" + a + b),
    )


def test_no_two_purposes_sessions_or_hosts_share_a_key():
    rng = random.Random(5)
    a, b, c, d = (rng.randbytes(16) for _ in range(4))
    keys = [
        data_key(KEY, a, c),
        data_key(KEY, b, c),
        data_key(KEY, a, d),
        data_key(OLD_KEY, a, c),
        hello_key(KEY, a[:4]),
        hello_key(KEY, b[:4]),
        cluster_secret(KEY),
        *stream_keys(KEY, (a, b), (c, d), (a, b)),
        *stream_keys(KEY, (b, a), (c, d), (a, b)),
        *stream_keys(KEY, (a, b), (c, d), (b, a)),
    ]
    assert len(set(keys)) == len(keys)
