"""A sync ends with the union at both ends, whatever the sizes; a message out of turn ends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.messages import Done, News, StreamPing, SyncOpen, Want
from meshd.model import HostFacts, Item, Kind, Version
from meshd.node.sync import SyncSession
from meshd.state.store import Store
from meshd.wire.codec import decode_messages, encode_message, join
from meshd.wire.errors import WireError

PEER = b"p" * 16


def item(number, version):
    facts = HostFacts(name=f"h{number}", vtep=bytes(4), vxlan_port=1, underlay_mtu=1)
    return Item(Kind.HOST, (number * 2**112).to_bytes(16, "big"), Version(0, version, PEER), facts)


def filled(content):
    store = Store(b"k")
    for number, version in content.items():
        store.merge(item(number, version))
    return store


def session(store):
    return SyncSession(store, PEER, lambda found, source: store.merge(found))


def run(a, b):
    """Carry messages, as bytes, until both are done; returns how many went each way."""
    opener, answerer = session(a), session(b)
    queue = [(answerer, opener, message) for message in opener.open()]
    carried = 0
    while queue:
        to, back, message = queue.pop(0)
        carried += 1
        for received in decode_messages(join([encode_message(message)])):
            queue += [(back, to, reply) for reply in to.receive(received)]
    assert opener.finished
    assert answerer.finished
    return carried


contents = st.dictionaries(st.integers(0, 65535), st.integers(1, 3), max_size=80)


@given(contents, contents)
def test_both_ends_hold_the_union_of_the_newer(left, right):
    a, b = filled(left), filled(right)
    run(a, b)
    expected = {n: max(left.get(n, 0), right.get(n, 0)) for n in {*left, *right}}
    assert a.digest == b.digest == filled(expected).digest


def test_thousands_of_items_go_to_an_empty_host_in_pages():
    full = filled(dict.fromkeys(range(5000), 1))
    empty = filled({})
    assert run(empty, full) > 50
    assert empty.digest == full.digest


def test_a_store_that_grows_during_its_sync_does_not_break_it():
    a, b = filled({}), filled(dict.fromkeys(range(3), 1))
    opener, answerer = session(a), session(b)
    queue = [(answerer, opener, message) for message in opener.open()]
    for number in range(100, 200):
        a.merge(item(number, 1))  # now it would announce more buckets
    while queue:
        to, back, message = queue.pop(0)
        queue += [(back, to, reply) for reply in to.receive(message)]
    assert opener.finished
    assert a.digest == b.digest


def test_equal_ends_exchange_no_item():
    same = dict.fromkeys(range(3000), 1)
    assert run(filled(same), filled(same)) < 12


@pytest.mark.parametrize(
    "first",
    [Done(), News(items=()), Want(keys=()), StreamPing(nonce=1), SyncOpen(buckets=3, digest=bytes(16))],
)
def test_a_message_out_of_turn_or_a_crooked_count_ends_the_session(first):
    with pytest.raises(WireError):
        list(session(filled({})).receive(first))
