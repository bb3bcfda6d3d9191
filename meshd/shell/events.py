"""What happened, for people and programs that watch. Publishing never waits: a watcher that falls behind
loses what it missed and is told so (``resync``). Knows nothing of who watches or why.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from meshd import config

Event = dict[str, Any]
"""``{"time": unix seconds, "kind": str, ...}``, JSON-able."""


class Subscription:
    """An endless async iterator of events, at most EVENTS_KEPT behind."""

    def __init__(self, wall: Callable[[], float], first: list[Event]) -> None:
        self._wall = wall
        self._queue: deque[Event] = deque(first)
        self._more = trio.Event()

    def push(self, event: Event) -> None:
        """Hand an event over without waiting. One too many empties the queue: the watcher must look anew."""
        if len(self._queue) >= 2 * config.EVENTS_KEPT:
            self._queue.clear()
            self._queue.append({"time": self._wall(), "kind": "resync"})
        self._queue.append(event)
        self._more.set()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            self._more = trio.Event()
            await self._more.wait()
        return self._queue.popleft()


class EventBus:
    """The last EVENTS_KEPT events and those who watch for more. ``wall``: unix seconds."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._kept: deque[Event] = deque(maxlen=config.EVENTS_KEPT)
        self._watchers: set[Subscription] = set()

    def publish(self, kind: str, **fields: Any) -> None:
        """Record an event and hand it to all watchers; call from the trio thread."""
        event: Event = {"time": self._wall(), "kind": kind, **fields}
        self._kept.append(event)
        for watcher in self._watchers:
            watcher.push(event)

    def kept(self) -> list[Event]:
        """Return the last events, oldest first."""
        return list(self._kept)

    @contextmanager
    def subscribe(self, *, history: bool = False) -> Iterator[Subscription]:
        """Watch from now on; with ``history`` after all that is kept, without a gap."""
        watcher = Subscription(self._wall, self.kept() if history else [])
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
