"""What leaves in which datagram, and when: urgent messages at once, own news before relayed news, both packed
into full datagrams and paced by bytes a second (design.md, section 4). Nothing is dropped here.

Must not know sealing or addresses: plaintexts per host go in and out.
"""

from collections import deque
from collections.abc import Iterable

from meshd.config import NEWS_BURST_BYTES, NEWS_BYTES_PER_S, PLAINTEXT_MAX_BYTES
from meshd.messages import MAX_ITEMS_PER_MESSAGE
from meshd.model import HostId
from meshd.wire.codec import encode_news, join

_OVERHEAD = 16  # array headers of the datagram, of News and of its items, rounded up


class _Queue:
    """What waits for one host."""

    __slots__ = ("own", "relayed", "urgent")

    def __init__(self) -> None:
        self.urgent: deque[bytes] = deque()
        self.own: deque[bytes] = deque()
        self.relayed: deque[bytes] = deque()


class Outbox:
    """Queues per host and one token bucket for all news."""

    def __init__(self, now: float) -> None:
        self._queues: dict[HostId, _Queue] = {}
        self._tokens = float(NEWS_BURST_BYTES)
        self._filled_at = now
        self._blocked = False

    def urgent(self, to: HostId, message: bytes) -> None:
        """Queue one encoded message that is not paced (probes, answers, suspicions)."""
        self._queue(to).urgent.append(message)

    def news(self, to: Iterable[HostId], item: bytes, *, own: bool) -> None:
        """Queue one encoded item for several hosts."""
        for host in to:
            queue = self._queue(host)
            (queue.own if own else queue.relayed).append(item)

    def _queue(self, host: HostId) -> _Queue:
        queue = self._queues.get(host)
        if queue is None:
            queue = self._queues[host] = _Queue()
        return queue

    @property
    def waiting(self) -> int:
        """How many items wait for the pacing, all hosts together."""
        return sum(len(queue.own) + len(queue.relayed) for queue in self._queues.values())

    def deadline(self) -> float:
        """When ``pack`` can send more: infinity when nothing waits."""
        if not self._blocked:
            return float("inf")
        return self._filled_at + max(0.0, 1.0 - self._tokens) / NEWS_BYTES_PER_S + 0.001

    def pack(self, now: float) -> list[tuple[HostId, bytes]]:
        """Return the plaintexts to send now, urgent messages first; what pacing holds back stays queued."""
        self._tokens = min(NEWS_BURST_BYTES, self._tokens + (now - self._filled_at) * NEWS_BYTES_PER_S)
        self._filled_at = now
        sent: list[tuple[HostId, bytes]] = []
        for kind in ("own", "relayed"):  # own news of all hosts goes before anybody's relayed news
            for host, queue in self._queues.items():
                while queue.urgent or (self._tokens > 0 and getattr(queue, kind)):
                    sent.append((host, self._datagram(queue, getattr(queue, kind))))
        self._blocked = False
        for host in [h for h, q in self._queues.items() if not (q.urgent or q.own or q.relayed)]:
            del self._queues[host]
        self._blocked = bool(self._queues)
        return sent

    def _datagram(self, queue: _Queue, items: deque[bytes]) -> bytes:
        """Fill one datagram from ``queue``: urgent messages, then items while tokens last."""
        parts: list[bytes] = []
        room = PLAINTEXT_MAX_BYTES - _OVERHEAD
        while queue.urgent and (not parts or len(queue.urgent[0]) <= room):
            parts.append(queue.urgent.popleft())
            room -= len(parts[-1])
        news: list[bytes] = []
        while (
            items
            and len(news) < MAX_ITEMS_PER_MESSAGE
            and self._tokens > 0
            and (len(items[0]) <= room or not (parts or news))
        ):
            news.append(items.popleft())
            room -= len(news[-1])
            self._tokens -= len(news[-1])
        if news:
            parts.append(encode_news(news))
        return join(parts)
