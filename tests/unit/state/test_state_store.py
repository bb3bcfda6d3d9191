"""Which item stands, and what a floor makes void."""

import ipaddress
from itertools import permutations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import TOMBSTONES_MIN
from meshd.model import (
    Attachment,
    Endpoint,
    HostFacts,
    Item,
    Key,
    Kind,
    MemberFacts,
    Rank,
    Released,
    Version,
)
from meshd.state.store import Store

ME, OTHER, NET = b"m" * 16, b"o" * 16, b"n" * 16
FACTS = MemberFacts(name="h", address=bytes(4), port=7947, session=b"s" * 16)


def store():
    return Store(b"secret")


def endpoint(number, *, counter=0, dead=False, seq=None, origin=ME):
    eid = number.to_bytes(16, "big")
    body = (
        Released(network=NET, index=number)
        if dead
        else Endpoint(
            network=NET, host=origin, name=f"e{number}", index=number,
            ips=(ipaddress.ip_address("10.0.0.1").packed,), mac=bytes(6), ifname="eth0",
        )
    )  # fmt: skip
    return Item(
        Kind.ENDPOINT,
        eid,
        Version(1, counter, origin),
        body,
        dead=dead,
        origin=origin,
        seq=number if seq is None else seq,
    )


def host(floor, counter, host_id=ME):
    facts = HostFacts(name="h", vtep=bytes(4), vxlan_port=4789, underlay_mtu=1500, floor=floor)
    return Item(Kind.HOST, host_id, Version(0, counter, host_id), facts)


def member(incarnation, rank):
    return Item(Kind.MEMBER, OTHER, Version(incarnation, rank, FACTS.session), FACTS)


def test_the_higher_version_wins_whatever_the_order():
    claims = [member(1, Rank.ALIVE), member(1, Rank.FAILED), member(10, Rank.FAILED), member(2, Rank.ALIVE)]
    for order in permutations(claims):
        s = store()
        for item in order:
            s.merge(item)
        assert s.get(Kind.MEMBER, OTHER) == member(10, Rank.FAILED), (
            "Dead@1, Dead@10, Alive@2 must not resurrect"
        )


def test_merging_the_same_item_again_changes_nothing():
    s = store()
    assert len(s.merge(endpoint(1))) == 1
    digest = s.digest
    assert s.merge(endpoint(1)) == []
    assert s.digest == digest


items = st.one_of(
    st.builds(
        lambda n, c, d: endpoint(n, counter=c, dead=d, seq=n * 4 + c),
        st.integers(1, 6),
        st.integers(0, 3),
        st.booleans(),
    ),
    st.builds(lambda f: host(f, f), st.integers(0, 30)),
    st.builds(member, st.integers(1, 4), st.sampled_from(list(Rank))),
)


def _unambiguous(batch):
    """Versions name contents: of two items with one key and version only the first can ever have been written."""
    seen = {}
    for item in batch:
        seen.setdefault((item.key, item.version), item)
    return list(seen.values())


@given(st.lists(items, max_size=25), st.randoms())
def test_any_order_any_repetition_ends_in_the_same_state(batch, random):
    batch = _unambiguous(batch)
    again = batch + random.sample(batch, len(batch) // 2)
    random.shuffle(again)
    one, two = store(), store()
    for item in batch:
        one.merge(item)
    for item in again:
        two.merge(item)
    assert one.digest == two.digest
    assert set(map(repr, one.everything())) == set(map(repr, two.everything()))


def test_a_floor_drops_what_is_at_or_below_it_and_nothing_else():
    s = store()
    for item in (
        endpoint(1),
        endpoint(2, dead=True),
        endpoint(3),
        endpoint(3, origin=OTHER, seq=1, counter=9),
    ):
        s.merge(item)
    changes = s.merge(host(floor=2, counter=1))
    assert {c.before.id[-1] for c in changes if c.item is None} == {1, 2}
    assert s.get(Kind.ENDPOINT, (3).to_bytes(16, "big")) is not None


def test_a_void_item_that_arrives_late_is_not_resurrected():
    s = store()
    s.merge(host(floor=5, counter=1))
    assert s.void(endpoint(4))
    assert s.merge(endpoint(4)) == []
    assert s.merge(endpoint(6)) != []


def test_collecting_keeps_what_lives_and_drops_every_tombstone_everywhere():
    mine, theirs = store(), store()
    mine.merge(host(floor=0, counter=0))
    alive = [endpoint(n) for n in range(1, 4)]
    dead = [endpoint(n, dead=True) for n in range(10, 10 + TOMBSTONES_MIN + 1)]
    for item in (*alive, *dead):
        mine.merge(item)
        theirs.merge(item)
    late = store()  # was away: still holds an endpoint that has died since
    late.merge(endpoint(10, counter=-1 + 1, seq=9))
    for _ in range(2):
        written = mine.collect(ME)
        assert written
        for s in (mine, theirs, late):
            for item in written:
                s.merge(item)
    assert mine.digest == theirs.digest == late.digest
    assert {i.id for i in mine.all(Kind.ENDPOINT)} == {i.id for i in alive}
    assert mine.own_sequence(ME) > max(i.seq for i in dead)
    assert mine.collect(ME) == []


def test_the_floor_is_raised_only_after_what_lives_was_written_above_it():
    """In one go, a host that missed the first of the two datagrams would take down what lives."""
    s = store()
    s.merge(host(floor=0, counter=0))
    for item in (endpoint(1), *(endpoint(n, dead=True) for n in range(10, 11 + TOMBSTONES_MIN))):
        s.merge(item)
    rewritten = s.collect(ME)
    assert {item.kind for item in rewritten} == {Kind.ENDPOINT}
    for item in rewritten:
        s.merge(item)
    s.merge(endpoint(500, seq=500))  # attached meanwhile, and an older one is on its way to the disk
    (raised,) = s.collect(ME)
    assert raised.kind == Kind.HOST
    assert not any(s.void(item) for item in s.live(Kind.ENDPOINT))
    assert raised.body.floor < min(item.seq for item in s.live(Kind.ENDPOINT))
    s.merge(raised)
    assert {item.id[-2:] for item in s.all(Kind.ENDPOINT)} == {b"\x00\x01", b"\x01\xf4"}


def test_churn_does_not_keep_the_floor_from_rising():
    s = store()
    s.merge(host(floor=0, counter=0))
    number, most = 0, 0
    for _ in range(200):
        for _ in range(10):  # ten come and go between two calls, five stay
            number += 1
            s.merge(endpoint(number, seq=s.own_sequence(ME) + 1, counter=number % 2, dead=bool(number % 2)))
        for item in [*s.live(Kind.ENDPOINT)][:5]:
            dead = endpoint(int.from_bytes(item.id, "big"), counter=99, dead=True, seq=s.own_sequence(ME) + 1)
            s.merge(dead)
        for item in s.collect(ME):
            s.merge(item)
        most = max(most, sum(item.dead for item in s.all(Kind.ENDPOINT)))
    assert most < 4 * TOMBSTONES_MIN


def test_few_tombstones_are_not_worth_a_rewrite():
    s = store()
    s.merge(host(floor=0, counter=0))
    for n in range(TOMBSTONES_MIN):
        s.merge(endpoint(n + 1, dead=True))
    assert s.collect(ME) == []


def test_local_items_are_not_in_the_digest_and_can_be_forgotten():
    s = store()
    empty = s.digest
    body = Attachment(
        boot_id="b", netns_cookie=1, netns_path="/p", ifname="eth0", host_if="mh1", peer_if="mp1"
    )
    item = Item(Kind.ATTACHMENT, NET, Version(0, 0, ME), body)
    s.merge(item)
    assert s.digest == empty
    assert s.drop(item.key) == item
    assert s.get(Kind.ATTACHMENT, NET) is None


def test_a_gossiped_item_cannot_be_forgotten():
    s = store()
    s.merge(endpoint(1))
    try:
        s.drop(Key(Kind.ENDPOINT, (1).to_bytes(16, "big")))
    except ValueError:
        assert s.get(Kind.ENDPOINT, (1).to_bytes(16, "big")) is not None
    else:
        raise AssertionError("gossiped items die, they are never dropped")


def test_a_changed_body_under_an_old_version_is_not_taken():
    s = store()
    s.merge(endpoint(1))
    other = msgspec.structs.replace(endpoint(1), body=msgspec.structs.replace(endpoint(1).body, name="other"))
    assert s.merge(other) == []
