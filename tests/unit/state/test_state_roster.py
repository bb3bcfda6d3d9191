"""The index says what a walk over all endpoints would, and is asked for less."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from meshd.model import Endpoint
from meshd.state.roster import Roster

IDS = [bytes([n]) * 16 for n in range(8)]
NETWORKS, HOSTS = [b"N" * 16, b"O" * 16, b"P" * 16], [b"a" * 16, b"b" * 16, b"c" * 16]
placed = st.tuples(st.sampled_from(IDS), st.sampled_from(NETWORKS), st.sampled_from(HOSTS))
gone = st.tuples(st.sampled_from(IDS), st.booleans())


def endpoint(network, host):
    return Endpoint(network, host, "web", 2, (), bytes(6), "eth0")


@given(st.lists(placed | gone, max_size=60))
def test_whatever_comes_moves_and_goes_the_index_says_what_a_walk_would(steps):
    roster, plain = Roster(), {}
    for id_, *where in steps:
        if len(where) == 2:
            roster[id_] = plain[id_] = endpoint(*where)
        elif where[0] and id_ in plain:
            del roster[id_], plain[id_]
        else:
            assert roster.pop(id_, None) == plain.pop(id_, None)
        assert roster == plain
    for network in NETWORKS:
        there = {id_: e for id_, e in plain.items() if e.network == network}
        assert sorted(roster.on(network)) == sorted(there)
        assert roster.users(network) == Counter(e.host for e in there.values())
        for host in HOSTS:
            assert sorted(roster.at(network, host)) == sorted(i for i, e in there.items() if e.host == host)
    for host in HOSTS:
        assert sorted(roster.of(host)) == sorted(id_ for id_, e in plain.items() if e.host == host)
        assert roster.networks_of(host) == {e.network for e in plain.values() if e.host == host}
    assert roster.hosts() == {e.host for e in plain.values()}
    assert bool(roster._index) == bool(plain), "what has emptied is not kept"


def test_a_copy_is_a_plain_dict_and_stays_as_it_was():
    roster = Roster()
    roster[IDS[0]] = endpoint(NETWORKS[0], HOSTS[0])
    copy = roster.copy()
    del roster[IDS[0]]
    assert type(copy) is dict
    assert list(copy) == [IDS[0]]
