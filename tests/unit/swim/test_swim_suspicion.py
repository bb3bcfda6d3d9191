"""How long a suspicion lasts."""

import math

import pytest

from meshd.config import SUSPICION_CONFIRMATIONS, SUSPICION_MAX_S, SUSPICION_MIN_S
from meshd.swim.suspicion import Suspicion, Suspicions, timeout, wanted_confirmations


@pytest.mark.parametrize(
    "confirmations,k,expected_ms",
    [(0, 3, 1000), (1, 3, 750), (2, 3, 604), (3, 3, 500), (4, 3, 500), (0, 0, 500), (7, 0, 500), (0, 1, 1000), (1, 1, 500)],
)  # fmt: skip
def test_the_timeout_table_of_memberlists_dogpile_test_holds(confirmations, k, expected_ms):
    assert round(1000 * timeout(confirmations, k, 0.5, 1.0)) == expected_ms


@pytest.mark.parametrize("participants,k", [(1, 0), (2, 0), (3, 1), (4, 2), (5, 2), (1000, 2)])
def test_no_more_confirmations_are_wanted_than_there_are_others_to_give_them(participants, k):
    assert min(k, SUSPICION_CONFIRMATIONS) == wanted_confirmations(participants)


def test_each_new_accuser_shortens_it_and_a_repeated_one_does_not():
    suspicion = Suspicion(1, 10.0, 1)
    assert suspicion.accuse(b"a", 2)
    assert suspicion.remaining(10.0, 2) == SUSPICION_MAX_S
    assert not suspicion.accuse(b"a", 2)
    assert suspicion.remaining(10.0, 2) == SUSPICION_MAX_S
    assert suspicion.accuse(b"b", 2)
    assert SUSPICION_MIN_S < suspicion.remaining(10.0, 2) < SUSPICION_MAX_S
    assert suspicion.accuse(b"c", 2)
    assert suspicion.remaining(10.0, 2) == SUSPICION_MIN_S


def test_accusers_beyond_the_wanted_ones_are_not_passed_on():
    suspicion = Suspicion(1, 0.0, 1)
    assert [suspicion.accuse(bytes([n]), 2) for n in range(5)] == [True, True, True, False, False]


def test_an_unhealthy_host_gives_more_time():
    healthy, unhealthy = Suspicion(1, 0.0, 1), Suspicion(1, 0.0, 4)
    for suspicion in (healthy, unhealthy):
        suspicion.accuse(b"a", 2)
    assert unhealthy.deadline(2) == 4 * healthy.deadline(2)


def test_the_first_verdict_follows_every_change():
    all_of_them = Suspicions()
    assert all_of_them.first(2) == math.inf
    first, second = Suspicion(1, 0.0, 1), Suspicion(1, 1.0, 1)
    for suspicion in (first, second):
        suspicion.accuse(b"a", 2)
    all_of_them.start(b"x", first)
    all_of_them.start(b"y", second)
    assert all_of_them.first(2) == SUSPICION_MAX_S
    second.accuse(b"b", 2)
    second.accuse(b"c", 2)
    all_of_them.changed()
    assert all_of_them.first(2) == 1.0 + SUSPICION_MIN_S
    assert all_of_them.due(1.0 + SUSPICION_MIN_S, 2) == [b"y"]
    all_of_them.push_back(10.0)
    assert all_of_them.first(2) == 11.0 + SUSPICION_MIN_S
    all_of_them.stop(b"y")
    assert all_of_them.first(2) == 10.0 + SUSPICION_MAX_S
    assert all_of_them.first(0) == 10.0 + SUSPICION_MIN_S, "fewer others: nobody to wait for"
