"""Three steps find any difference between two stores, however it came about."""

from hypothesis import given
from hypothesis import strategies as st

from meshd.messages import Want
from meshd.model import Item, Kind, MemberFacts, Version
from meshd.spread import repair
from meshd.state.store import Store


def item(number, version):
    facts = MemberFacts(name=f"h{number}", address=bytes(4), port=1, session=b"s" * 16)
    return Item(Kind.MEMBER, (number * 2**120).to_bytes(16, "big"), Version(version, 0, b"s" * 16), facts)


contents = st.dictionaries(st.integers(0, 255), st.integers(1, 3), max_size=120)


def filled(content):
    store = Store(b"k")
    for number, version in content.items():
        store.merge(item(number, version))
    return store


@given(contents, contents, st.sampled_from([1, 4, 16, 128]))
def test_after_one_repair_both_hold_the_newer_of_everything(left, right, count):
    a, b = filled(left), filled(right)
    differing = [n for message in repair.bucket_messages(a, count) for n in repair.differing(b, message)]
    for stamps in repair.stamp_messages(b, differing, count, 20):
        send, want = repair.compare(a, stamps)
        back = repair.wanted(b, Want(keys=tuple(want)))
        for found in send:
            b.merge(found)
        for found in back:
            a.merge(found)
    expected = {n: max(left.get(n, 0), right.get(n, 0)) for n in {*left, *right}}
    assert a.digest == b.digest == filled(expected).digest


@given(contents)
def test_equal_stores_have_no_differing_bucket(content):
    a, b = filled(content), filled(content)
    assert not [n for m in repair.bucket_messages(a, a.digests.count) for n in repair.differing(b, m)]


@given(contents, contents)
def test_only_the_difference_travels(left, right):
    both = {**left, **right}
    a, b = filled(both), filled(both)
    b.merge(item(7, 9))
    count = max(a.digests.count, b.digests.count)
    differing = [n for m in repair.bucket_messages(a, count) for n in repair.differing(b, m)]
    assert len(differing) == 1
    (stamps,) = repair.stamp_messages(b, differing, count, 1000)
    send, want = repair.compare(a, stamps)
    assert (send, want) == ([], [item(7, 9).key])


def test_a_message_naming_buckets_out_of_range_finds_nothing():
    store = filled({1: 1})
    (message,) = repair.bucket_messages(store, 1)
    import msgspec

    assert repair.differing(store, msgspec.structs.replace(message, first=5)) == []


def test_a_bucket_too_full_for_a_datagram_is_found_out_before_it_is_listed():
    store = filled(dict.fromkeys(range(200), 1))
    looked_up = []
    lookup = store.lookup
    store.lookup = lambda key: looked_up.append(key) or lookup(key)
    assert repair.few_stamps(store, [0], 1, most_buckets=8, limit=20) is None
    assert repair.few_stamps(store, range(16), 256, most_buckets=8, limit=20) is None
    assert looked_up == []
    few = repair.few_stamps(store, [0, 1, 2], 256, most_buckets=8, limit=20)
    assert [stamp.id[0] for message in few for stamp in message.stamps] == [0, 1, 2]
