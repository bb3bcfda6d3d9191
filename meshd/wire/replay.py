"""Which counters of one sender's session have been seen: a sliding window, as in RFC 6479 and WireGuard,
held in one int. Knows nothing of keys; ``mark`` only what has verified, or a forger could close the window.
"""

from meshd.config import REPLAY_WINDOW

_MASK = (1 << REPLAY_WINDOW) - 1


class Window:
    """Accepts each counter once, and only those less than REPLAY_WINDOW behind the highest one marked."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._seen = 0  # bit i: counter _top - i has been seen

    def fresh(self, counter: int) -> bool:
        """Say whether ``counter`` (>= 0) is neither seen nor too old to tell. Changes nothing."""
        age = self._top - counter
        return age < 0 or (age < REPLAY_WINDOW and not self._seen >> age & 1)

    def mark(self, counter: int) -> None:
        """Remember a fresh ``counter``."""
        step = counter - self._top
        if step <= 0:
            self._seen |= 1 << -step
            return
        # A long jump would shift by as many bits as the sender likes: start over instead.
        self._seen = (self._seen << step & _MASK) | 1 if step < REPLAY_WINDOW else 1
        self._top = counter
