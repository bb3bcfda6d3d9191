from hypothesis import given
from hypothesis import strategies as st

from meshd.config import REPLAY_WINDOW
from meshd.wire.rate import TokenBucket
from meshd.wire.replay import Window


def accepts(window: Window, counter: int) -> bool:
    fresh = window.fresh(counter)
    if fresh:
        window.mark(counter)
    return fresh


@given(
    st.lists(
        st.integers(0, 3 * REPLAY_WINDOW)
        | st.integers(0, 2**48)
        | st.sampled_from([0, 1, REPLAY_WINDOW - 1, REPLAY_WINDOW, REPLAY_WINDOW + 1]),
        max_size=200,
    )
)
def test_the_window_agrees_with_a_set_of_all_that_was_seen(counters):
    window = Window()
    seen: set[int] = set()
    for counter in counters:
        expected = counter not in seen and counter > max(seen, default=-1) - REPLAY_WINDOW
        assert accepts(window, counter) is expected
        if expected:
            seen.add(counter)


@given(st.permutations(range(REPLAY_WINDOW // 8)))
def test_any_order_within_the_window_is_accepted_exactly_once(counters):
    window = Window()
    assert all(accepts(window, counter) for counter in counters)
    assert not any(accepts(window, counter) for counter in counters)


def test_the_edge_of_the_window_is_exact():
    window = Window()
    window.mark(REPLAY_WINDOW)
    assert window.fresh(1)
    assert not window.fresh(0)


def test_asking_changes_nothing():
    window = Window()
    assert window.fresh(10**12)
    assert window.fresh(0)
    assert accepts(window, 0)


def test_the_window_does_not_grow_with_the_jump():
    window = Window()
    for counter in (0, REPLAY_WINDOW - 1, 2**47, 2**48):
        window.mark(counter)
        assert window._seen.bit_length() <= REPLAY_WINDOW


def test_a_bucket_lets_its_rate_through_on_average_and_no_burst_above_a_second():
    bucket = TokenBucket(20.0)
    assert sum(bucket.take(100.0) for _ in range(100)) == 20
    assert sum(bucket.take(100.5) for _ in range(100)) == 10
    assert sum(bucket.take(1000.0) for _ in range(100)) == 20
    assert not bucket.take(1000.01)
    assert sum(bucket.take(1001.0 + n / 100) for n in range(1000)) <= 20 + 200
