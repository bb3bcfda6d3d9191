"""Decides how far this host trusts its own observations (Lifeguard IV-A, "local health multiplier").

A score of 0 is healthy; each point makes probe periods, timeouts and new suspicions longer by their base
value. This file must not know why the score moves: probe.py and core.py say by how much.
"""

from meshd.config import HEALTH_MAX

PROBE_OK = -1
SELF_REFUTED = 1  # others could not reach this host in time
NO_HELPERS = 1  # a failed probe that nobody could second
PAUSED = 1


class Health:
    """The score, 0..HEALTH_MAX."""

    __slots__ = ("score",)

    def __init__(self) -> None:
        self.score = 0

    @property
    def scale(self) -> int:
        """The factor for periods and timeouts, 1..HEALTH_MAX + 1."""
        return self.score + 1

    def note(self, delta: int) -> None:
        """Move the score; it stays in its bounds."""
        self.score = max(0, min(HEALTH_MAX, self.score + delta))


def failed_probe(helpers: int, nacks: int) -> int:
    """Points for a probe without any ack: each helper that was asked and said nothing is a reason to doubt
    this host's own network rather than the target; a helper's NACK shows that network to work.
    """
    return helpers - nacks if helpers else NO_HELPERS
