"""How many a second of something cheap to ask for: a token bucket of one second's burst. Time comes in."""


class TokenBucket:
    """Lets ``per_s`` through each second on average, and as many at once after a quiet second."""

    __slots__ = ("_at", "_per_s", "_tokens")

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Take one token, if there is one. ``now`` in seconds, never going back."""
        if self._at is not None:
            self._tokens = min(self._per_s, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
