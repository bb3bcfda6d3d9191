"""Which indices are in use, and since when others are free, from endpoint items alone."""

import random

import msgspec
import pytest

from meshd.config import COOLDOWN_S
from meshd.model import Endpoint, Item, Kind, Released, Version
from meshd.state.usage import Usage

NET, OTHER, HOST = b"N" * 16, b"O" * 16, b"H" * 16
E1, E2 = b"1" * 16, b"2" * 16


def live(endpoint, index, network=NET, kind=Kind.ENDPOINT):
    body = Endpoint(network, HOST, "web", index, (), b"\x02" + bytes(5), "eth0")
    return Item(kind, endpoint, Version(1, 1, HOST), body)


def dead(endpoint, index, network=NET, kind=Kind.ENDPOINT):
    return Item(kind, endpoint, Version(1, 2, HOST), Released(network, index), dead=True)


def view(usage, now, network=NET):
    use = usage.of(network)
    return list(use.used), sorted(use.busy(now) - set(use.used))


@pytest.mark.parametrize("kind", [Kind.ENDPOINT, Kind.LOCAL_ENDPOINT])
def test_an_index_is_used_then_cools_then_is_free(kind):
    usage = Usage()
    usage.observe(live(E1, 9, kind=kind), 0.0)
    assert view(usage, 0.0) == ([9], [])
    usage.observe(dead(E1, 9, kind=kind), 50.0)
    assert view(usage, 50.0 + COOLDOWN_S - 0.1) == ([], [9])
    assert view(usage, 50.0 + COOLDOWN_S) == ([], [])
    assert usage.of(NET).released == {9: 50.0}


def test_a_tombstone_alone_cools_its_index():
    usage = Usage()
    usage.observe(dead(E1, 9), 5.0)
    assert view(usage, 6.0) == ([], [9])


def test_who_had_an_index_is_known_as_long_as_the_tombstone_is_there():
    usage = Usage()
    usage.observe(dead(E1, 9), 5.0)
    usage.observe(dead(E2, 9), 5.0)
    former = usage.of(NET).former
    assert former == {9: (E1, E2)}
    usage.observe(dead(E2, 9), 6.0)
    assert former == {9: (E1, E2)}
    usage.observe(live(E1, 7), 7.0)
    assert former == {9: (E2,)}
    usage.observe(dead(E1, 7), 8.0)
    assert former == {9: (E2,), 7: (E1,)}
    for endpoint in (E2, E1, E1):
        usage.forget(endpoint, 9.0)
    assert former == {}


def test_a_late_tombstone_of_another_endpoint_does_not_free_a_used_index():
    usage = Usage()
    usage.observe(live(E2, 9), 0.0)
    usage.observe(dead(E1, 9), 5.0)
    assert view(usage, 6.0) == ([9], [])


def test_an_index_with_two_holders_stays_used_until_both_are_gone():
    usage = Usage()
    usage.observe(live(E1, 9), 0.0)
    usage.observe(live(E2, 9), 0.0)
    usage.observe(dead(E1, 9), 1.0)
    assert view(usage, 1.0) == ([9], [])
    usage.observe(dead(E2, 9), 2.0)
    assert view(usage, 2.0) == ([], [9])


def test_an_endpoint_that_changes_its_index_or_network_frees_the_old_one():
    usage = Usage()
    usage.observe(live(E1, 9), 0.0)
    usage.observe(live(E1, 10), 1.0)
    assert view(usage, 1.0) == ([10], [9])
    usage.observe(live(E1, 10, OTHER), 2.0)
    assert view(usage, 2.0) == ([], [9, 10])
    assert view(usage, 2.0, OTHER) == ([10], [])


def test_seeing_an_item_again_changes_nothing():
    usage = Usage()
    for now in (0.0, 1.0):
        usage.observe(live(E1, 9), now)
    assert view(usage, 1.0) == ([9], [])
    assert usage.of(NET).released == {}


def test_an_item_dropped_without_a_tombstone_frees_its_index():
    usage = Usage()
    usage.observe(live(E1, 9), 0.0)
    usage.forget(E1, 3.0)
    usage.forget(E2, 3.0)
    assert view(usage, 3.0) == ([], [9])


def test_other_kinds_are_no_use():
    usage = Usage()
    usage.observe(msgspec.structs.replace(live(E1, 9), kind=Kind.NETWORK), 0.0)
    assert view(usage, 0.0) == ([], [])


def test_a_reservation_holds_the_index_and_becomes_the_endpoint():
    usage = Usage()
    usage.reserve(NET, 9, E1)
    assert view(usage, 0.0) == ([9], [])
    usage.observe(live(E1, 9), 0.0)
    usage.observe(dead(E1, 9), 1.0)
    assert view(usage, 1.0) == ([], [9])


def test_an_undone_reservation_leaves_what_was_known_before():
    usage = Usage()
    usage.reserve(NET, 9, E1)
    usage.unreserve(E1)
    usage.unreserve(E1)
    assert view(usage, 0.0) == ([], [])
    usage.observe(dead(E2, 9), 5.0)
    usage.reserve(NET, 9, E1)
    usage.unreserve(E1)
    assert view(usage, 6.0) == ([], [9])


def test_the_indices_in_use_are_sorted_however_many_come_at_once_and_whatever_goes_between():
    usage, rng = Usage(), random.Random(5)
    indices = rng.sample(range(5000), 1000)
    held = set()
    for number, index in enumerate(indices):
        usage.observe(live(number.to_bytes(16, "big"), index), 0.0)
        held.add(index)
        if number % 97 == 0:
            usage.observe(dead(number.to_bytes(16, "big"), index), 0.0)
            held.discard(index)
        if number % 311 == 0:
            assert list(usage.of(NET).used) == sorted(held)
    assert list(usage.of(NET).used) == sorted(held)
