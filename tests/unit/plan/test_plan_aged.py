"""When rows of a failed host go."""

import pytest

from meshd.plan.aged import aged, failed_since
from tests.plan_world import B, C

HOUR = 3600.0


def test_a_host_is_failed_since_it_was_first_seen_so_and_being_alive_between_starts_anew():
    since = failed_since({}, [B], 10.0)
    since = failed_since(since, [B, C], 20.0)
    assert since == {B: 10.0, C: 20.0}
    assert failed_since(failed_since(since, [C], 30.0), [B, C], 40.0) == {B: 40.0, C: 20.0}


@pytest.mark.parametrize(
    "now, age_s, others_alive, expected",
    [
        (72 * HOUR - 1, 72 * HOUR, True, set()),
        (72 * HOUR, 72 * HOUR, True, {B}),
        (100 * HOUR, 72 * HOUR, True, {B, C}),
        (1e9, 0.0, True, set()),  # never
        (1e9, 72 * HOUR, False, set()),  # this host is the one cut off
    ],
)
def test_rows_age_by_the_hour(now, age_s, others_alive, expected):
    assert aged({B: 0.0, C: 20 * HOUR}, now, age_s, others_alive=others_alive) == expected
