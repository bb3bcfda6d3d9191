"""Whether the service manager's watchdog is fed (sd_watchdog_enabled(3)): only while every loop that the daemon rests on
goes round. Knows loops by name; not what they do, nor how the manager is told.

A loop waits no longer than ``every_s`` at a time, and says so each time round; one that waits for something else, a
kernel call that does not return, say, says nothing.
"""

import math
from collections.abc import Callable, Mapping

import structlog
import trio

from meshd.config import WATCHDOG_FEED_SHARE, WATCHDOG_PATIENCE, WATCHDOG_ROUND_SHARE
from meshd.errors import ConfigError

log = structlog.get_logger()


class Loop:
    """One loop. ``every_s``: it goes round at least so often, seconds; infinity where nobody watches."""

    def __init__(self, every_s: float = math.inf) -> None:
        self.every_s = every_s
        self.last = 0.0  # trio.current_time()

    def goes_round(self) -> None:
        """Say that the loop goes round."""
        self.last = trio.current_time()


def period_of(environ: Mapping[str, str], pid: int) -> float:
    """Return the time after which the manager ends an unfed daemon, seconds; infinity where it does not. Raises
    ConfigError for a period that is none."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return math.inf
    text = environ.get("WATCHDOG_USEC", "")
    if not text:
        return math.inf
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"WATCHDOG_USEC={text}: not a time in microseconds")
    return int(text) / 1e6


class Watchdog:
    """Loops and the hand that feeds. ``period_s``: see ``period_of``. Only loops that were asked for count: without Docker
    there is none of Docker's."""

    def __init__(self, period_s: float = math.inf) -> None:
        self.period_s = period_s
        self._loops: dict[str, Loop] = {}
        self._said: list[str] = []

    def loop(self, name: str) -> Loop:
        """Return the loop of that name, one of WATCHDOG_PATIENCE."""
        return self._loops.setdefault(name, Loop(self.period_s * WATCHDOG_ROUND_SHARE))

    def stalled(self, now: float) -> list[str]:
        """Name the loops that have not gone round for longer than their share of the period."""
        return [
            name
            for name, loop in self._loops.items()
            if now - loop.last > self.period_s * WATCHDOG_PATIENCE[name]
        ]

    async def run(self, feed: Callable[[str], object], food: str) -> None:
        """Feed for ever, or, where nobody watches, return."""
        if math.isinf(self.period_s):
            return
        for loop in self._loops.values():
            loop.goes_round()  # from now on
        while True:
            stalled = self.stalled(trio.current_time())
            if not stalled:
                feed(food)
            if stalled != self._said:
                self._said = stalled
                if stalled:
                    log.error("the watchdog is not fed: these loops have stalled", loops=stalled)
                else:
                    log.warning("the watchdog is fed again")
            await trio.sleep(self.period_s * WATCHDOG_FEED_SHARE)
