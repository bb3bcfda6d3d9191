"""Neighbours are derived alike by everybody, and the overlay they make is connected."""

from random import Random

import pytest

from meshd.config import RANDOM_NEIGHBOURS, RINGS
from meshd.spread.rings import Rings

HOSTS = [Random(n).randbytes(16) for n in range(64)]


def rings_of(me, hosts):
    rings = Rings(me)
    for host in hosts:
        rings.add(host)
    return rings


def test_all_hosts_derive_the_same_edges_from_the_same_membership():
    neighbours = {host: set(rings_of(host, HOSTS).neighbours()) for host in HOSTS}
    for host, mine in neighbours.items():
        assert 0 < len(mine) <= 2 * RINGS
        assert all(host in neighbours[other] for other in mine)


def test_the_overlay_stays_connected_when_a_tenth_of_the_hosts_is_gone():
    dead = set(HOSTS[::10])
    neighbours = {host: rings_of(host, HOSTS).neighbours() for host in HOSTS}
    seen, todo = set(), [HOSTS[1]]
    while todo:
        host = todo.pop()
        if host not in seen and host not in dead:
            seen.add(host)
            todo += neighbours[host]
    assert seen == set(HOSTS) - dead


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (2, 1), (3, 2), (4, 3)])
def test_a_small_cluster_has_everybody_or_as_many_as_there_are(size, expected):
    rings = rings_of(HOSTS[0], HOSTS[:size])
    assert len(rings.targets(Random(1), None)) == expected


def test_what_came_from_a_host_does_not_go_back_to_it():
    rings = rings_of(HOSTS[0], HOSTS)
    source = rings.neighbours()[0]
    targets = rings.targets(Random(1), source)
    assert source not in targets
    assert HOSTS[0] not in targets
    assert len(targets) == len(rings.neighbours()) - 1 + RANDOM_NEIGHBOURS


def test_removing_and_adding_again_is_as_if_nothing_happened():
    rings = rings_of(HOSTS[0], HOSTS)
    before = rings.neighbours()
    rings.remove(before[0])
    assert before[0] not in rings.neighbours()
    rings.add(before[0])
    assert rings.neighbours() == before
    rings.remove(HOSTS[0])
    assert len(rings) == len(HOSTS), "this host never leaves its own rings"
