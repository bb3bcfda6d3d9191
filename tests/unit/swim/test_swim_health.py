"""How far a host trusts itself."""

import pytest

from meshd.config import HEALTH_MAX
from meshd.swim.health import Health, failed_probe


def test_the_score_stays_within_its_bounds():
    health = Health()
    health.note(-1)
    assert (health.score, health.scale) == (0, 1)
    health.note(HEALTH_MAX + 5)
    assert (health.score, health.scale) == (HEALTH_MAX, HEALTH_MAX + 1)
    health.note(-1)
    assert health.score == HEALTH_MAX - 1


@pytest.mark.parametrize("helpers,nacks,points", [(0, 0, 1), (3, 3, 0), (3, 1, 2), (3, 0, 3), (1, 1, 0)])
def test_a_failed_probe_costs_a_point_for_each_helper_that_was_silent(helpers, nacks, points):
    assert failed_probe(helpers, nacks) == points
