"""Index ranges against a plain list."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from meshd.state.spans import SPACE_END, SpanMap, aligned, count, gaps, highest_aligned, power_below

N = 40
RANGES = st.tuples(st.integers(0, N), st.integers(0, N)).map(sorted)


@given(st.lists(st.tuples(RANGES, st.sampled_from([b"a", b"b", b"c"]))), RANGES)
def test_a_span_map_is_a_list_of_values(changes, window):
    spans, plain = SpanMap(b"-"), [b"-"] * (N + 1)

    def rule(letter):
        return lambda value: value if value == b"c" else letter

    for (start, end), letter in changes:
        if start < end:
            spans.change(start, end, rule(letter))
            plain[start:end] = [rule(letter)(value) for value in plain[start:end]]
    assert [spans.at(index) for index in range(N + 1)] == plain
    runs = list(spans.within(0, SPACE_END))
    assert runs[0][0] == 0
    assert runs[-1][1] == SPACE_END
    assert all(left[1] == right[0] and left[2] != right[2] for left, right in itertools.pairwise(runs))
    seen = {index: value for start, end, value in spans.within(*window) for index in range(start, end)}
    assert seen == {index: plain[index] for index in range(*window)}


@given(RANGES, st.sets(st.integers(0, N)))
def test_gaps_cover_all_but_the_barriers(window, barriers):
    found = list(gaps(*window, sorted(barriers)))
    assert all(start < end for start, end in found)
    assert [index for start, end in found for index in range(start, end)] == [
        index for index in range(*window) if index not in barriers
    ]
    assert len(found) == sum(
        i - 1 not in range(*window) or i - 1 in barriers for i in set(range(*window)) - barriers
    )


@given(RANGES, st.integers(0, 64))
def test_highest_aligned_is_the_largest_then_highest(window, most):
    start, end = window
    options = [
        (size, at)
        for size in (1, 2, 4, 8, 16, 32)
        for at in range(0, N, size)
        if size <= most and start <= at and at + size <= end
    ]
    assert highest_aligned(start, end, most) == (max(options)[::-1] if options else None)


@given(RANGES)
def test_aligned_cuts_a_range_into_whole_buddies(window):
    blocks = list(aligned(*window))
    assert [index for at, size in blocks for index in range(at, at + size)] == list(range(*window))
    assert all(size & (size - 1) == 0 and at % size == 0 for at, size in blocks)
    assert all(
        not (left[1] == right[1] and left[0] % (2 * left[1]) == 0)
        for left, right in itertools.pairwise(blocks)
    )


@given(st.integers(0, 1 << 70))
def test_power_below_is_within_a_factor_of_two(number):
    power = power_below(number)
    assert power <= number < 2 * power or number == power == 0
    assert power & (power - 1) == 0


@given(st.lists(st.integers(0, N)).map(sorted), RANGES)
def test_count_counts(numbers, window):
    assert count(numbers, *window) == sum(number in range(*window) for number in numbers)
