"""Measuring paths, against a network that carries what the test says. Virtual time."""

import itertools
import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import MTU_MIN_V4, MTU_PROBE_GAP_S, MTU_PROBE_PERIOD_S, MTU_PROBE_TRIES
from meshd.node.pathmtu import PathMtu

PEER, OTHER = b"p" * 16, b"o" * 16
SEARCH_S = 20.0  # more than any search takes


class Wire:
    """``carries[peer]``: bytes; ``lost``: share of probes lost by chance."""

    def __init__(self, *peers, mine=1500, seed=1):
        self.now = 0.0
        self.random = Random(seed)
        self.carries = dict.fromkeys(peers, 1500)
        self.silent = set()
        self.lost = 0.0
        self.sent = []
        self.changed = []
        self.paths = PathMtu(self.random, lambda peer: MTU_MIN_V4)
        for peer in peers:
            self.paths.add(peer, 0.0)
        if mine:
            self.paths.underlay(mine, 0.0)

    def run(self, seconds):
        end = self.now + seconds
        while (due := self.paths.deadline()) <= end:
            self.now = max(self.now, due)
            self.paths.tick(self.now)
            while probes := self.paths.take_probes():
                for probe in probes:
                    self.sent.append((self.now, probe.peer, probe.size))
                    passes = probe.size <= self.carries[probe.peer] and probe.peer not in self.silent
                    if passes and self.random.random() >= self.lost:
                        self.paths.answered(probe.peer, probe.nonce, self.now)
            self.changed += self.paths.take_changed()
        self.now = end

    def mtu(self, peer=PEER):
        found = self.paths.paths.get(peer)
        return None if found is None else found.mtu

    def sizes(self):
        sizes, self.sent = [size for _, _, size in self.sent], []
        return sizes


def test_nothing_is_sent_before_the_underlay_is_known():
    wire = Wire(PEER, mine=0)
    wire.run(100)
    assert wire.sent == []
    assert math.isinf(wire.paths.deadline())


def test_a_path_that_carries_everything_costs_one_packet_a_period():
    wire = Wire(PEER)
    wire.run(1.0)
    assert (wire.mtu(), wire.sizes()) == (1500, [1500])
    wire.run(MTU_PROBE_PERIOD_S)
    assert wire.sizes() == [1500]
    assert wire.changed == [PEER]


@given(st.integers(MTU_MIN_V4, 9000), st.integers(MTU_MIN_V4, 9000))
def test_whatever_the_path_carries_is_found_to_the_byte(mine, carries):
    wire = Wire(PEER, mine=mine)
    wire.carries[PEER] = carries
    wire.run(SEARCH_S)
    assert wire.mtu() == min(mine, carries)
    assert max(wire.sizes()) == mine


def test_no_more_is_tried_than_the_peer_says_that_it_has():
    wire = Wire(PEER, mine=9000)
    wire.carries[PEER] = 1500
    wire.paths.told(PEER, 1500, wire.now)
    wire.run(1.0)
    assert wire.sizes() == [1500]
    assert wire.paths.paths[PEER].tried == 1500


def test_a_path_that_narrows_and_widens_is_noticed_within_a_period_and_a_search():
    wire = Wire(PEER, OTHER)
    wire.run(MTU_PROBE_PERIOD_S)
    wire.carries[PEER] = 1400
    wire.run(MTU_PROBE_PERIOD_S + SEARCH_S)
    assert (wire.mtu(), wire.mtu(OTHER)) == (1400, 1500)
    wire.carries[PEER] = 1500
    wire.run(MTU_PROBE_PERIOD_S + 1)
    assert wire.mtu() == 1500


def test_a_path_known_to_be_narrow_is_not_searched_again():
    wire = Wire(PEER)
    wire.carries[PEER] = 1234
    wire.run(SEARCH_S)
    wire.sizes()
    wire.run(MTU_PROBE_PERIOD_S)
    assert wire.sizes() == [1500] * MTU_PROBE_TRIES + [MTU_MIN_V4, 1234] + [1235] * 2 * MTU_PROBE_TRIES


def test_a_peer_that_answers_nothing_says_nothing_about_its_path():
    wire = Wire(PEER)
    wire.silent.add(PEER)
    wire.run(SEARCH_S)
    assert wire.mtu() is None
    wire.silent.clear()
    wire.run(MTU_PROBE_PERIOD_S + 1)
    wire.silent.add(PEER)
    wire.run(SEARCH_S)
    assert wire.mtu() == 1500, "what was known stays, as long as it is alive"
    wire.paths.remove(PEER)
    wire.run(1.0)
    assert wire.mtu() is None
    assert wire.changed[-1] == PEER


@pytest.mark.parametrize("seed", range(5))
def test_a_path_that_loses_a_tenth_is_not_taken_for_a_narrow_one(seed):
    wire = Wire(PEER, seed=seed)
    wire.lost = 0.1
    wire.run(100 * MTU_PROBE_PERIOD_S)
    assert wire.mtu() == 1500
    assert wire.changed == [PEER]


def test_a_thousand_paths_are_begun_no_faster_than_the_gap_allows():
    peers = [n.to_bytes(16, "big") for n in range(1000)]
    wire = Wire(*peers)
    wire.run(1000 * MTU_PROBE_GAP_S + 1)
    assert all(wire.mtu(peer) == 1500 for peer in peers)
    times = [at for at, _, _ in wire.sent]
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.99 * MTU_PROBE_GAP_S


def test_a_changed_underlay_is_measured_at_once():
    wire = Wire(PEER)
    wire.run(1.0)
    wire.sizes()
    wire.paths.underlay(1400, wire.now)
    wire.paths.told(PEER, 1400, wire.now)
    wire.run(1.0)
    assert (wire.mtu(), wire.sizes()) == (1400, [1400])


def test_a_late_or_foreign_answer_counts_for_nothing():
    wire = Wire(PEER, OTHER)
    wire.silent |= {PEER, OTHER}
    wire.run(0.15)
    ((_, peer, _),) = wire.sent
    for nonce in (0, 1):
        wire.paths.answered(peer, nonce, wire.now)
    assert wire.mtu(peer) is None
