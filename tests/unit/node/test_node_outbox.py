"""What leaves first, how full datagrams are, and that pacing delays but never drops."""

import math

from meshd.config import NEWS_BURST_BYTES, PLAINTEXT_MAX_BYTES
from meshd.messages import Nack, News
from meshd.model import HostFacts, Item, Kind, Version
from meshd.node.outbox import Outbox
from meshd.wire.codec import decode_messages, encode_item, encode_message

A, B = b"a" * 16, b"b" * 16


def item(number):
    facts = HostFacts(name=f"host{number}", vtep=bytes(4), vxlan_port=4789, underlay_mtu=1500)
    return Item(Kind.HOST, number.to_bytes(16, "big"), Version(0, 1, A), facts)


def items_of(sent, host):
    return [
        found.id[-1]
        for to, plaintext in sent
        if to == host
        for message in decode_messages(plaintext)
        if isinstance(message, News)
        for found in message.items
    ]


def test_urgent_messages_go_first_and_share_a_datagram_with_news():
    outbox = Outbox(0.0)
    outbox.news([A], encode_item(item(1)), own=True)
    outbox.urgent(A, encode_message(Nack(nonce=5)))
    ((to, plaintext),) = outbox.pack(0.0)
    assert to == A
    messages = decode_messages(plaintext)
    assert isinstance(messages[0], Nack)
    assert isinstance(messages[1], News)


def test_own_news_of_all_hosts_goes_before_anybodys_relayed_news():
    outbox = Outbox(0.0)
    outbox.news([A], encode_item(item(1)), own=False)
    outbox.news([B], encode_item(item(2)), own=True)
    assert [to for to, _ in outbox.pack(0.0)] == [B, A]


def test_a_burst_is_packed_into_full_datagrams_that_fit():
    outbox = Outbox(0.0)
    for number in range(100):
        outbox.news([A], encode_item(item(number)), own=True)
    sent = outbox.pack(0.0)
    assert items_of(sent, A) == list(range(100))
    assert all(len(plaintext) <= PLAINTEXT_MAX_BYTES for _, plaintext in sent)
    size = len(encode_item(item(99)))
    assert len(sent) <= math.ceil(100 / ((PLAINTEXT_MAX_BYTES - 32) // size))


def test_pacing_holds_back_and_loses_nothing():
    outbox = Outbox(0.0)
    encoded = encode_item(item(1))
    count = 2 * NEWS_BURST_BYTES // len(encoded)
    for _ in range(count):
        outbox.news([A], encoded, own=True)
    now, received = 0.0, len(items_of(outbox.pack(0.0), A))
    assert 0 < received < count
    for _ in range(10_000):
        if not outbox.waiting:
            break
        now = outbox.deadline()
        received += len(items_of(outbox.pack(now), A))
    assert received == count
    assert outbox.deadline() == math.inf


def test_urgent_messages_are_not_paced():
    outbox = Outbox(0.0)
    encoded = encode_item(item(1))
    for _ in range(2 * NEWS_BURST_BYTES // len(encoded)):
        outbox.news([A], encoded, own=True)
    outbox.pack(0.0)
    outbox.urgent(B, encode_message(Nack(nonce=1)))
    assert B in [to for to, _ in outbox.pack(0.0)]
