import contextlib
from collections import Counter

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_material import GOSSIPED_ITEMS, LOCAL_ITEMS, MESSAGES, MESSAGES_OF

from meshd.config import ARRAY_MAX, ITEM_MAX_BYTES, MAP_MAX, MESSAGE_DEPTH, STREAM_BLOB_MAX_BYTES
from meshd.errors import BadRequest, PeerError
from meshd.messages import (
    MAX_ITEMS_PER_MESSAGE,
    MESSAGE_TYPES,
    Ack,
    Announce,
    BlockAnswer,
    Done,
    MtuProbe,
    Nack,
    News,
    Ping,
    Stamp,
    Suspect,
    View,
)
from meshd.model import (
    Attachment,
    Deed,
    Endpoint,
    HostFacts,
    Item,
    Kind,
    MemberFacts,
    Network,
    Released,
    Subnet,
    Version,
)
from meshd.wire.codec import (
    decode_item,
    decode_messages,
    encode_item,
    encode_message,
    encode_news,
    encode_probe,
    is_probe,
    join,
    joined_size,
)
from meshd.wire.errors import REASONS, WireError

A = bytes(range(16))
B = bytes(range(16, 32))
FACTS = MemberFacts("web-1", b"\xc0\x00\x02\x01", 7947, B, "meshd 0.1")
MEMBER = Item(Kind.MEMBER, A, Version(1700000000000, 0, B), FACTS)
NETWORK = Item(
    Kind.NETWORK,
    B,
    Version(0, 3, A),
    Network("blue", "overlay", (Subnet("10.1.0.0/20", "10.1.0.1"),), labels={"a": "b"}),
)
ENDPOINT = Item(
    Kind.ENDPOINT,
    A,
    Version(1, 2, B),
    Endpoint(B, A, "c1", 7, (b"\x0a\x01\x00\x07",), b"\x02" * 6, "eth0"),
    False,
    A,
    9,
)


def reason_of(data: bytes, **kw) -> str:
    with pytest.raises(WireError) as caught:
        decode_messages(data, **kw)
    assert isinstance(caught.value, PeerError)
    assert caught.value.reason in REASONS
    return caught.value.reason


def wire(*messages) -> bytes:
    """Encode raw values as a plaintext, independently of the codec."""
    return msgpack.packb(list(messages))


def raw_item(item: Item) -> list:
    return msgpack.unpackb(encode_item(item))


# --- what goes in comes out -------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", MESSAGE_TYPES, ids=lambda shape: shape.__name__)
def test_every_message_type_comes_back_as_it_was_sent(shape):
    @given(MESSAGES_OF[shape])
    def check(message):
        assert decode_messages(join([encode_message(message)])) == [message]

    check()


@given(st.integers(0, 2**63 - 1), st.integers(300, 65535 - 40))
def test_a_probe_has_exactly_the_size_asked_for(nonce, size):
    data = encode_probe(nonce, size)
    assert len(data) == size
    (message,) = decode_messages(data)
    assert (type(message), message.nonce) == (MtuProbe, nonce)
    assert is_probe([message])
    assert not is_probe([message, message])
    assert not is_probe([Nack(1)])


@given(st.lists(MESSAGES, max_size=20))
def test_messages_come_back_in_order(messages):
    parts = [encode_message(message) for message in messages]
    joined = join(parts)
    assert decode_messages(joined) == messages
    assert len(joined) == joined_size(len(parts), sum(map(len, parts)))


@given(GOSSIPED_ITEMS)
def test_every_gossiped_item_comes_back_from_wire_and_disk(item):
    assert decode_item(encode_item(item)) == item
    assert decode_item(encode_item(item), local=True) == item


@given(LOCAL_ITEMS)
def test_local_items_come_back_from_disk_and_are_refused_from_the_wire(item):
    assert decode_item(encode_item(item), local=True) == item
    with pytest.raises(WireError) as caught:
        decode_item(encode_item(item))
    assert caught.value.reason == "local-kind"
    assert reason_of(join([encode_news([encode_item(item)])])) == "local-kind"


@given(st.lists(GOSSIPED_ITEMS, max_size=20))
def test_news_of_encoded_items_is_the_same_as_news_of_items(items):
    assert encode_news([encode_item(item) for item in items]) == encode_message(News(tuple(items)))


def test_the_layout_is_the_documented_one():
    assert msgpack.unpackb(join([encode_message(Ping(7, A, View(5, 1)))])) == [[1, 7, A, [5, 1]]]
    assert raw_item(ENDPOINT) == [
        4, A, 1, 2, B, False, A, 9,
        [B, A, "c1", 7, [b"\x0a\x01\x00\x07"], b"\x02" * 6, "eth0", [], [], 0],
    ]  # fmt: skip
    dead = Item(Kind.ATTACHMENT, A, Version(1, 1, B), None, True)
    assert raw_item(dead) == [34, A, 1, 1, B, True, bytes(16), 0, None]


def test_as_many_parts_as_an_array_holds_are_joined_and_no_more():
    done = encode_message(Done())
    assert decode_messages(join([done] * ARRAY_MAX)) == [Done()] * ARRAY_MAX
    with pytest.raises(ValueError):
        join([done] * (ARRAY_MAX + 1))
    with pytest.raises(ValueError):
        encode_news([encode_item(MEMBER)] * (MAX_ITEMS_PER_MESSAGE + 1))


def test_an_item_that_no_stream_would_carry_is_the_callers_fault():
    labels = {f"{n:0255}": "x" * 1024 for n in range(60)}
    huge = Item(Kind.NETWORK, A, Version(0, 1, B), Network("blue", "overlay", (), labels=labels))
    with pytest.raises(BadRequest) as caught:
        encode_item(huge)
    assert caught.value.code == "too-large"
    assert str(ITEM_MAX_BYTES) in caught.value.what


# --- room for newer hosts ---------------------------------------------------------------------------------
def test_messages_with_unknown_tags_are_skipped_and_counted():
    skipped: Counter[str] = Counter()
    data = wire([99, "whatever", {"a": 1}], [4, 7], [-1], [2**64 - 1])
    assert decode_messages(data, skipped) == [Nack(7)]
    assert skipped == {"unknown-tag": 3}


def test_items_of_unknown_kinds_are_kept_and_go_on_as_they_came():
    odd = [17, *raw_item(MEMBER)[1:-1], {"of": "a newer host", "with": [1, [b"x", None]]}]
    data = wire([8, [odd, raw_item(MEMBER), odd]])
    (news,) = decode_messages(data)
    assert news.items[1] == MEMBER
    assert (news.items[0].kind, news.items[0].version) == (17, MEMBER.version)
    assert join([encode_message(news)]) == data
    assert join([encode_news([encode_item(item) for item in news.items])]) == data


@pytest.mark.parametrize("kind", [0, 256, -1, 2**40])
def test_a_number_that_no_kind_can_have_is_refused(kind):
    with pytest.raises(WireError, match="wrong fields"):
        decode_item(msgpack.packb([kind, *raw_item(MEMBER)[1:]]), local=True)


def test_an_unknown_local_kind_is_taken_from_the_disk_and_from_nobody_else():
    encoded = msgpack.packb([99, *raw_item(MEMBER)[1:-1], None])
    assert encode_item(decode_item(encoded, local=True)) == encoded
    with pytest.raises(WireError) as caught:
        decode_item(encoded)
    assert caught.value.reason == "local-kind"


def test_fields_of_a_message_beyond_those_known_are_ignored():
    assert decode_messages(wire([1, 7, A, [5, 1, "new"], "new", [1]])) == [Ping(7, A, View(5, 1))]
    assert decode_messages(wire([14, 5, [], "no space", "new"])) == [BlockAnswer(5, (), "no space")]
    assert decode_messages(wire([8, [[*raw_item(MEMBER), 5, "beyond the body"]], "new"])) == [News((MEMBER,))]


def test_fields_of_a_body_beyond_those_known_are_kept_and_stay_when_the_others_change():
    newer = raw_item(MEMBER)
    newer[-1] = [*newer[-1], "new", {"a": [1]}]
    encoded = msgpack.packb(newer)
    item = decode_item(encoded)
    assert (item.body, item.rest) == (MEMBER.body, ("new", {"a": (1,)}))
    assert encode_item(item) == encoded
    moved = msgspec.structs.replace(item, body=msgspec.structs.replace(item.body, port=1))
    assert msgpack.unpackb(encode_item(moved))[-1][-2:] == ["new", {"a": [1]}]


def test_fields_with_defaults_may_be_missing():
    short = raw_item(MEMBER)
    short[-1] = short[-1][:4]
    assert decode_item(msgpack.packb(short)).body == MemberFacts("web-1", FACTS.address, 7947, B)
    assert decode_messages(wire([14, 5, []])) == [BlockAnswer(5, ())]


# --- what is refused --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not-msgpack"),
        (b"\xc1", "not-msgpack"),
        (b"\x92\x91", "not-msgpack"),  # cut short
        (b"\x90\x90", "not-msgpack"),  # something follows
        (b"\xdd\xff\xff\xff\xff", "not-msgpack"),  # 4 Gi elements, announced only
        (b"\xdc\x04\x01" + b"\xc0" * 1025, "not-msgpack"),  # ARRAY_MAX + 1 elements, all there
        (b"\x91\xc6\xff\xff\xff\xff", "not-msgpack"),
        (b"\x91\x91\xd4\x01\x00", "not-msgpack"),  # extension type
        (b"\x91\x91\xc7\x00\x05", "not-msgpack"),  # empty extension type
        (b"\x91\xd6\xff\x00\x00\x00\x00", "not-msgpack"),  # timestamp
        (b"\x91\x92\x63\xa1\xff", "not-msgpack"),  # not UTF-8
        (b"\x91\x92\x63\x81\x01\x01", "not-msgpack"),  # a key that is no string
        (b"\x91\x92\x63\x81\x90\x01", "not-msgpack"),  # a key that is an array
        (wire([99, {str(n): n for n in range(MAP_MAX + 1)}]), "not-msgpack"),
        (b"\x91" * 2000 + b"\xc0", "not-msgpack"),  # deeper than msgpack itself goes
        (b"\x91" * 1000 + b"\xc0", "too-deep"),
        (b"\x91\x92\x63" + b"\x81\xa1a" * 900 + b"\xc0", "too-deep"),
        (b"\x91" * (MESSAGE_DEPTH + 1) + b"\xc0", "too-deep"),
        (msgpack.packb(5), "not-messages"),
        (msgpack.packb({"a": 1}), "not-messages"),
        (msgpack.packb(None), "not-messages"),
        (wire(5), "not-messages"),
        (wire([]), "not-messages"),
        (wire([True, 7]), "not-messages"),
        (wire([4.0, 7]), "not-messages"),
        (wire(["4", 7]), "not-messages"),
        (wire([4]), "bad-message"),
        (wire([4, -1]), "bad-message"),
        (wire([4, 2**63]), "bad-message"),
        (wire([4, True]), "bad-message"),
        (wire([4, 7.0]), "bad-message"),
        (wire([4, "7"]), "bad-message"),
        (wire([1, 7, A[:15], [5, 1]]), "bad-message"),
        (wire([1, 7, A + b"x", [5, 1]]), "bad-message"),
        (wire([1, 7, "AAAAAAAAAAAAAAAAAAAAAA==", [5, 1]]), "bad-message"),  # base64 is no bytes
        (wire([1, 7, A, [5, 4]]), "bad-message"),
        (wire([8]), "bad-message"),
        (wire([8, 5]), "bad-message"),
        (wire([8, [raw_item(MEMBER)] * (MAX_ITEMS_PER_MESSAGE + 1)]), "bad-message"),
        (wire([8, [5]]), "bad-item"),
        (wire([8, [raw_item(MEMBER)[:8]]]), "bad-item"),
        (wire([9, [[1, A, [-1, 0, B]]]]), "bad-message"),
        (wire([9, [[1, A, [2**63, 0, B]]]]), "bad-message"),
        (wire([9, [[1, A, [0, 2**64 - 1, B]]]]), "bad-message"),
        (wire([9, [[1, A, [0, 0, B + b"x"]]]]), "bad-message"),
        (wire([9, [[1, A, [0, 0]]]]), "bad-message"),
        (wire([9, [[32, A, [0, 0, B]]]]), "bad-message"),
        (wire([11, 64, [], [[1, A, [0, -5, B]]]]), "bad-message"),
        (wire([6, A, 5, B, ["n", b"12345", 7947, B]]), "bad-message"),
        (wire([14]), "bad-message"),
        (wire([14, 5, [raw_item(MEMBER)] * 17]), "bad-message"),
        (wire([14, 5, [], "x" * 201]), "bad-message"),
        (wire([14, "5", []]), "bad-message"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_reason(data, reason):
    assert reason_of(data) == reason


def test_one_bad_message_refuses_the_whole_datagram():
    assert reason_of(wire([4, 7], [4, "x"])) == "bad-message"


def test_nesting_up_to_the_bound_is_taken():
    deepest = b"\xc0"
    for _ in range(MESSAGE_DEPTH - 2):  # the array of messages and the message are the other two
        deepest = b"\x91" + deepest
    assert decode_messages(b"\x91\x92\x63" + deepest) == []
    assert reason_of(b"\x91\x92\x63\x91" + deepest) == "too-deep"


BAD_ITEMS = {
    "id too short": {1: A[:15]},
    "negative incarnation": {2: -1},
    "counter beyond 63 bits": {3: 2**63},
    "writer too long": {4: A + b"x"},
    "dead that is a number": {5: 1},
    "origin missing": {6: None},
    "negative sequence": {7: -1},
    "no body": {8: None},
    "body of another kind": {8: [1, 2, 3]},
    "kind that is a bool": {0: True},
    "kind that is negative": {0: -1},
    "dead member": {5: True},
}


@pytest.mark.parametrize("changes", BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
def test_an_item_with_a_wrong_field_is_refused(changes):
    raw = raw_item(MEMBER)
    for index, value in changes.items():
        raw[index] = value
    for local in (False, True):
        with pytest.raises(WireError) as caught:
            decode_item(msgpack.packb(raw), local=local)
        assert caught.value.reason == "bad-item"
    assert reason_of(wire([8, [raw]])) == "bad-item"


@pytest.mark.parametrize("size", [4, 5, 6, 15, 16])
@pytest.mark.parametrize(
    "make",
    [
        lambda ip: Item(Kind.MEMBER, A, Version(1, 0, B), MemberFacts("n", ip, 7947, B)),
        lambda ip: Item(Kind.HOST, A, Version(0, 1, B), HostFacts("n", ip, 4789, 1500)),
        lambda ip: Item(
            Kind.ENDPOINT,
            A,
            Version(1, 1, B),
            Endpoint(A, B, "n", 7, (bytes(4), ip), bytes(6), "eth0"),
            False,
            B,
            1,
        ),
    ],
    ids=["member", "host", "endpoint"],
)
def test_addresses_have_exactly_4_or_16_bytes(make, size):
    data = encode_item(make(bytes(size)))
    if size in (4, 16):
        assert decode_item(data) == make(bytes(size))
    else:
        with pytest.raises(WireError, match="neither 4 nor 16"):
            decode_item(data)


@pytest.mark.parametrize(
    "item",
    [
        Item(Kind.DEED, A, Version(0, 0, b""), None, True),
        Item(Kind.HOST, A, Version(0, 1, B), Released(A, 5), True),
        Item(Kind.ENDPOINT, A, Version(1, 1, B), None, True),
        Item(Kind.ATTACHMENT, A, Version(1, 1, B), Released(A, 5), True),
        Item(Kind.ATTACHMENT, A, Version(1, 1, B), None, False),
    ],
    ids=[
        "dead deed",
        "dead host",
        "dead endpoint without body",
        "dead attachment with body",
        "attachment without",
    ],
)
def test_the_body_must_be_what_kind_and_deadness_say(item):
    with pytest.raises(WireError) as caught:
        decode_item(encode_item(item), local=True)
    assert caught.value.reason == "bad-item"


def test_network_maps_are_bounded_in_count_and_length():
    def with_labels(labels) -> bytes:
        raw = raw_item(NETWORK)
        raw[8][11] = labels
        return msgpack.packb(raw)

    full = {str(n): "x" for n in range(64)}
    assert decode_item(with_labels(full)).body.labels == full
    for labels in (
        {"k" * 256: ""},
        {"k": "v" * 1025},
        {b"k": "v"},
        {"k": 5},
        {"k": {"k": "v"}},
        {str(n): "" for n in range(65)},
    ):
        with pytest.raises(WireError):
            decode_item(with_labels(labels))


# --- nothing but WireError --------------------------------------------------------------------------------
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def only_wire_errors(data: bytes) -> None:
    for decode in (decode_messages, decode_item, lambda raw: decode_item(raw, local=True)):
        with contextlib.suppress(WireError):
            decode(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_wire_errors(data):
    only_wire_errors(data)


@given(
    st.lists(st.one_of(_ANYTHING, st.tuples(st.integers(0, 20), _ANYTHING, _ANYTHING, _ANYTHING)), max_size=4)
)
def test_arbitrary_objects_raise_nothing_but_wire_errors(value):
    only_wire_errors(msgpack.packb(value))


@given(MESSAGES, st.data())
def test_a_message_with_one_value_replaced_raises_nothing_but_wire_errors(message, data):
    raw = msgpack.unpackb(encode_message(message))
    where = raw
    while True:
        index = data.draw(st.integers(0, len(where) - 1))
        if not isinstance(where[index], list) or not where[index] or data.draw(st.booleans()):
            break
        where = where[index]
    where[index] = data.draw(_ANYTHING)
    only_wire_errors(wire(raw))


@given(GOSSIPED_ITEMS | LOCAL_ITEMS, st.data())
def test_a_damaged_item_raises_nothing_but_wire_errors(item, data):
    encoded = bytearray(encode_item(item))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    only_wire_errors(bytes(encoded))


@given(st.lists(MESSAGES, min_size=1, max_size=3))
def test_every_truncation_is_refused(messages):
    data = join([encode_message(message) for message in messages])
    for size in range(len(data)):
        assert reason_of(data[:size]) == "not-msgpack"


def test_what_is_longer_than_any_blob_is_refused_unread():
    assert reason_of(b"\x91\x92\x63\xc6\x00\x02\x00\x00" + bytes(1 << 17)) == "not-msgpack"


def test_the_largest_stamps_message_and_deeds_fit():
    stamps = tuple(Stamp(4, A, Version(2**63 - 1, 2**63 - 1, B)) for _ in range(1024))
    assert decode_messages(join([encode_message(Announce(stamps))])) == [Announce(stamps)]
    deed = Item(Kind.DEED, A, Version(0, 0, b""), Deed(A, 0, 64, B, A, A, (A, B)))
    assert decode_messages(join([encode_message(BlockAnswer(1, (deed,) * 16))])) == [
        BlockAnswer(1, (deed,) * 16)
    ]


def test_an_attachment_with_a_long_request_is_kept():
    attachment = Attachment("boot", 5, "/run/netns/x", "eth0", "mh1", "mp1", "r" * 4096)
    item = Item(Kind.ATTACHMENT, A, Version(1, 1, B), attachment)
    assert decode_item(encode_item(item), local=True) == item


def test_suspicions_and_acks_name_versions_as_they_are():
    messages = [Suspect(A, 2**63 - 1, B, FACTS), Ack(0, A, View(0, 0))]
    assert decode_messages(join([encode_message(message) for message in messages])) == messages


def test_an_item_that_could_not_be_passed_on_is_refused_at_the_door():
    """A stream's blob has room for a little more than the largest item."""
    labels = {f"{n:03d}": "x" * 1021 for n in range(64)}
    while True:
        item = msgspec.structs.replace(NETWORK, body=msgspec.structs.replace(NETWORK.body, labels=labels))
        try:
            encode_item(item)
        except BadRequest:
            break
        labels = {f"{key}x": value for key, value in labels.items()}
    blob = join([encode_message(News((item,)))])
    assert len(blob) < STREAM_BLOB_MAX_BYTES
    with pytest.raises(WireError, match="too large"):
        decode_messages(blob)
