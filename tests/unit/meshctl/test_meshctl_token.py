"""A token comes back as it went in, and anything else is one clear line: never a key that is almost right."""

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.errors import WrongUsage
from meshctl.token import Token, decode, encode, new_key

KEY = new_key(bytes(range(34)))
TOKEN = Token(("192.0.2.1:7947", "[2001:db8::1]:7947"), KEY, ("fd00:1:2::/48",))
TEXT = encode(TOKEN)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def sealed(document: object) -> str:
    """Make a token with a right checksum around any document."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    check = hashlib.sha256(body).digest()[:4]
    return "meshd1." + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


def refusal(text: str) -> str:
    with pytest.raises(WrongUsage) as caught:
        decode(text)
    assert "\n" not in caught.value.what
    assert "\n" not in caught.value.hint
    return caught.value.what


def test_a_token_comes_back_as_it_went_in():
    assert decode(TEXT) == TOKEN
    assert decode(f"  {TEXT}\n") == TOKEN


def test_a_key_is_an_id_and_32_bytes():
    key_id, encoded = KEY.split(":")
    assert (key_id, base64.b64decode(encoded)) == ("0001", bytes(range(2, 34)))


SEEDS = st.lists(
    st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")),
    min_size=1,
    max_size=16,
)


@given(SEEDS, st.integers(1, 65535), st.binary(min_size=34, max_size=34))
def test_every_token_comes_back(hosts, port, entropy):
    token = Token(tuple(f"{host}:{port}" for host in hosts), new_key(entropy))
    assert decode(encode(token)) == token


@given(st.integers(0, len(TEXT) - 1), st.sampled_from(ALPHABET))
def test_any_one_character_changed_is_noticed(place, character):
    mangled = TEXT[:place] + character + TEXT[place + 1 :]
    if mangled != TEXT:
        refusal(mangled)


@given(st.integers(0, len(TEXT) - 1))
def test_a_token_cut_short_anywhere_is_noticed(length):
    refusal(TEXT[:length])


@given(st.text(max_size=300))
def test_no_text_at_all_makes_anything_but_a_refusal(text):
    refusal(text)
    refusal("meshd1." + text)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["seeds", "key", "v6", "x"]), inner)))  # fmt: skip
def test_a_right_checksum_around_anything_else_is_refused(document):
    refusal(sealed(document))


MANGLED = [
    ("", "that is not a meshd token: it does not begin with meshd1."),
    ("SWMTKN-1-abc", "that is not a meshd token: it does not begin with meshd1."),
    ("meshd2.abcd", "the token is of another version of meshd: meshd2"),
    (TEXT + "=", "the token is damaged: it holds '='"),
    (TEXT[:40] + " " + TEXT[40:], "the token is damaged: it holds ' '"),
    (TEXT[:40] + "\n" + TEXT[40:], "the token is damaged: it holds '\\n'"),
    (TEXT[:-1], "the token is damaged: its checksum does not match"),
    (TEXT.swapcase().replace("MESHD1", "meshd1"), "the token is damaged: its checksum does not match"),
    ("meshd1.A", "the token is damaged: its length is impossible"),
    ("meshd1." + "A" * 5000, "the token is damaged: it is longer than 4096 characters"),
    (sealed(b"\xff"), "the token does not hold what it should: seeds or key are not what they should be"),
    (sealed({"seeds": [], "key": KEY}), "the token does not hold what it should: it must have 1 to 16 seeds"),
    (sealed({"seeds": ["192.0.2.1"], "key": KEY}), "the token does not hold what it should: seed '192.0.2.1' is not ADDRESS:PORT"),
    (sealed({"seeds": ["192.0.2.1:0"], "key": KEY}), "the token does not hold what it should: seed '192.0.2.1:0' is not ADDRESS:PORT"),
    (sealed({"seeds": ["192.0.2.1:65536"], "key": KEY}), "the token does not hold what it should: seed '192.0.2.1:65536' is not ADDRESS:PORT"),
    (sealed({"seeds": ["host:7947"], "key": KEY}), "the token does not hold what it should: seeds or key are not what they should be"),
    (sealed({"seeds": ["2001:db8::1:7947"], "key": KEY}), "the token does not hold what it should: seeds or key are not what they should be"),
    (sealed({"seeds": ["192.0.2.1:7947"], "key": "AAAA"}), "the token does not hold what it should: its key is not KEYID:BASE64"),
    (sealed({"seeds": ["192.0.2.1:7947"], "key": "1f2e:AAAA"}), "the token does not hold what it should: its key is not 32 bytes long"),
]  # fmt: skip


@pytest.mark.parametrize("text, what", MANGLED)
def test_a_mangled_token_is_one_clear_line_and_status_2(meshctl, tmp_path, text, what):
    assert refusal(text) == what
    result = meshctl("join", "--config-dir", str(tmp_path / "etc"), "--", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"error: {what}"
    assert not (tmp_path / "etc").exists()


@pytest.mark.parametrize("token", [Token((), KEY), Token(("h:1",), KEY), Token(("192.0.2.1:1",), "1:2")])
def test_what_could_not_be_read_is_never_written(token):
    with pytest.raises(ValueError):
        encode(token)
