"""Arithmetic of index ranges: a map from index ranges to values, gaps between indices, and cutting a range
into aligned powers of two (the buddies of Knowlton's allocator, CACM 1965). Must not know what a deed is.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

SPACE_END = 1 << 64
"""No index of any network is at or above this."""


class SpanMap:
    """A value for every index in ``[0, SPACE_END)``, kept as sorted runs of equal values."""

    def __init__(self, value: bytes) -> None:
        self._starts = [0]
        self._values = [value]

    def at(self, index: int) -> bytes:
        """Give the value of one index. O(log n)."""
        return self._values[bisect_right(self._starts, index) - 1]

    def change(self, start: int, end: int, rule: Callable[[bytes], bytes]) -> None:
        """Replace every value in ``[start, end)`` by ``rule(value)``; touches only the runs that meet it."""
        first = bisect_right(self._starts, start) - 1
        last = bisect_left(self._starts, end)
        runs: list[tuple[int, bytes]] = []
        if first > 0:
            runs.append((self._starts[first - 1], self._values[first - 1]))
        for at in range(first, last):
            run_start, value = self._starts[at], self._values[at]
            run_end = self._starts[at + 1] if at + 1 < len(self._starts) else SPACE_END
            if run_start < start:
                runs.append((run_start, value))
            runs.append((max(run_start, start), rule(value)))
            if run_end > end:
                runs.append((end, value))
        if last < len(self._starts):
            runs.append((self._starts[last], self._values[last]))
        kept = [run for at, run in enumerate(runs) if at == 0 or run[1] != runs[at - 1][1]]
        self._starts[max(0, first - 1) : last + 1] = [run_start for run_start, _ in kept]
        self._values[max(0, first - 1) : last + 1] = [value for _, value in kept]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
        """Give the runs that meet ``[start, end)``, cut to it: (start, end, value)."""
        at = bisect_right(self._starts, start) - 1
        while at < len(self._starts) and self._starts[at] < end:
            run_end = self._starts[at + 1] if at + 1 < len(self._starts) else SPACE_END
            yield max(self._starts[at], start), min(run_end, end), self._values[at]
            at += 1


def power_below(number: int) -> int:
    """Give the largest power of two that is not above ``number``; 0 for 0."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0


def gaps(start: int, end: int, barriers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the non-empty ranges of ``[start, end)`` that hold none of ``barriers`` (sorted)."""
    for at in range(bisect_left(barriers, start), bisect_left(barriers, end)):
        if start < barriers[at]:
            yield start, barriers[at]
        start = barriers[at] + 1
    if start < end:
        yield start, end


def highest_aligned(start: int, end: int, most: int) -> tuple[int, int] | None:
    """Find the largest aligned power-of-two block in ``[start, end)`` of at most ``most``; the highest such
    one: (start, size), or None for an empty range."""
    size = min(power_below(most), power_below(end - start))
    while size:
        at = end // size * size - size
        if at >= start:
            return at, size
        size //= 2
    return None


def aligned(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut ``[start, end)`` into the fewest aligned power-of-two blocks: (start, size), ascending."""
    while start < end:
        size = power_below(end - start)
        if start:
            size = min(size, start & -start)
        yield start, size
        start += size


def count(numbers: Sequence[int], start: int, end: int) -> int:
    """Count the members of a sorted sequence in ``[start, end)``."""
    return bisect_left(numbers, end) - bisect_left(numbers, start)
