"""How late the loop wakes: what everything else that runs on it, or on this machine, costs the gossip's timers.

Decides nothing: it sleeps for LAG_PERIOD_S, again and again, and notes by how much longer that took.
"""

from collections import deque

import trio

from meshd.config import LAG_PERIOD_S, LAG_WINDOW_S


class Lag:
    """``last_s``: the latest measure, seconds."""

    def __init__(self) -> None:
        self.last_s = 0.0
        self._worst: deque[tuple[float, float]] = deque()  # (when, lag): each smaller than the one before it

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            due = trio.current_time() + LAG_PERIOD_S
            await trio.sleep_until(due)
            now = trio.current_time()
            self.note(now, now - due)

    def note(self, now: float, lag: float) -> None:
        """Take in one measure."""
        self.last_s = lag
        while self._worst and self._worst[-1][1] <= lag:
            self._worst.pop()
        self._worst.append((now, lag))

    def worst_s(self, now: float) -> float:
        """Return the largest measure within LAG_WINDOW_S before ``now``, seconds; 0.0 where there is none."""
        while self._worst and now - self._worst[0][0] > LAG_WINDOW_S:
            self._worst.popleft()
        return self._worst[0][1] if self._worst else 0.0
