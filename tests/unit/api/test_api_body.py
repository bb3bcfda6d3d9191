import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd import config
from meshd.api.body import decode, depth
from meshd.errors import BadRequest


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    cookie: int


class Form(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    mtu: int | None = None
    netns: Inner | None = None


def nesting(value) -> int:
    """The oracle: depth of a decoded value, counted on the value instead of the text."""
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.booleans())
def test_depth_of_text_is_depth_of_the_value(value, ascii_only):
    assert depth(json.dumps(value, ensure_ascii=ascii_only).encode(), 1000) == nesting(value)


@pytest.mark.parametrize(
    "body, line",
    [
        (b"", "the request has no body"),
        (b"{}", "name: missing"),
        (b'{"name":1}', "name: expected `str`, got `int`"),
        (b'{"name":"a","mtu":"x"}', "mtu: expected `int | null`, got `str`"),
        (b'{"name":"a","mtU":1}', "mtU: unknown field"),
        (b'{"name":"a","netns":{"cookie":"1"}}', "netns.cookie: expected `int`, got `str`"),
        (b'{"name":"a","netns":{}}', "netns.cookie: missing"),
        (b'{"name":"a","netns":{"cookie":1,"x":2}}', "netns.x: unknown field"),
        (b"[]", "body: expected `object`, got `array`"),
    ],
)
def test_an_error_is_one_line_that_names_the_field(body, line):
    with pytest.raises(BadRequest) as caught:
        decode(body, Form)
    assert caught.value.what == line


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"name":"a"} {"name":"b"}',
        b'{"name":"a"}garbage',
        b'{"name":"\xff"}',
        b'{"name":"a","mtu":' + b"9" * 30_000 + b"}",
        b'{"name":"a","mtu":1e999}',
        b'"' + b'\\"' * 30_000,
        b"\x00" * 100,
        b'{"name":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"x":' * 10_000,
    ],
)
def test_hostile_bodies_are_bad_requests_of_one_line(body):
    with pytest.raises(BadRequest) as caught:
        decode(body, Form)
    assert "\n" not in caught.value.what
    assert len(caught.value.what) < 200


def test_the_depth_limit_is_exact():
    def nested(levels: int) -> bytes:
        return b"[" * levels + b"]" * levels

    decode(nested(config.API_JSON_DEPTH), list)
    with pytest.raises(BadRequest, match="nested deeper"):
        decode(nested(config.API_JSON_DEPTH + 1), list)
