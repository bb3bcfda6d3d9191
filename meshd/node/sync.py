"""Anti-entropy over a stream: all differences between two stores, paged, without a size limit (design.md,
section 4; networkdb's bulk sync cuts off at 20 MB).

Opener O, responder R, after the channel's mutual HELLO:
  O: SyncOpen              R: SyncOpen            (the larger bucket count is used)
  O: Buckets... Done       R: Stamps... Done      (what R holds in the buckets that differ)
  O: News... Want... Done  R: News... Done        (each now holds the union)
Both sides are a generator-free state machine over messages; the shell and the simulator carry them.
"""

from collections.abc import Callable, Iterable, Iterator

from meshd.config import STREAM_RECORD_BYTES
from meshd.messages import Buckets, Done, Message, News, Stamps, SyncOpen, Want
from meshd.model import HostId, Item, Key
from meshd.spread import repair
from meshd.state.store import Store
from meshd.wire.codec import encode_item
from meshd.wire.errors import WireError

_STAMPS_PER_MESSAGE = 256
_KEYS_PER_WANT = 512
_PAGE_BYTES = 2 * STREAM_RECORD_BYTES
_ITEMS_PER_PAGE = 256

Take = Callable[[Item, HostId], None]
"""How a received item enters the node."""


class SyncSession:
    """One side of one sync. ``finished`` once both sides have all."""

    def __init__(self, store: Store, peer: HostId, take: Take) -> None:
        self._store = store
        self._peer = peer
        self._take = take
        self._opener = False
        self._phase = "open"
        self._differing: list[int] = []
        self._own_count = store.digests.count  # as announced: the store may grow while this runs
        self._count = 1
        self._send: list[Item] = []
        self._want: list[Key] = []
        self.received = 0
        self.finished = False

    def open(self) -> list[Message]:
        """Start as the opener: what to send first."""
        self._opener = True
        return [self._greeting()]

    def _greeting(self) -> SyncOpen:
        return SyncOpen(buckets=self._own_count, digest=self._store.digest)

    def receive(self, message: Message) -> Iterator[Message]:
        """Take one message and yield what to send back. Raises WireError for one that does not fit here."""
        match self._phase, message:
            case "open", SyncOpen():
                self._count = max(self._own_count, message.buckets)
                if self._count & (self._count - 1):
                    raise WireError("bucket-count")
                if self._opener:
                    self._phase = "stamps"
                    yield from repair.bucket_messages(self._store, self._count)
                    yield Done()
                else:
                    self._phase = "buckets"
                    yield self._greeting()
            case "buckets", Buckets() if message.count == self._count:
                self._differing += repair.differing(self._store, message)
            case "buckets", Done():
                self._phase = "items"
                yield from repair.stamp_messages(
                    self._store, self._differing, self._count, _STAMPS_PER_MESSAGE
                )
                yield Done()
            case "stamps", Stamps() if message.count == self._count:
                send, want = repair.compare(self._store, message)
                self._send += send
                self._want += want
            case "stamps", Done():
                self._phase = "items"
                yield from pages(self._send)
                for start in range(0, len(self._want), _KEYS_PER_WANT):
                    yield Want(keys=tuple(self._want[start : start + _KEYS_PER_WANT]))
                yield Done()
            case "items", News():
                self.received += len(message.items)
                for item in message.items:
                    self._take(item, self._peer)
            case "items", Want() if not self._opener:
                self._send += repair.wanted(self._store, message)
            case "items", Done():
                self.finished = True
                if not self._opener:
                    yield from pages(self._send)
                    yield Done()
            case _:
                raise WireError("out-of-turn")


def pages(items: Iterable[Item]) -> Iterator[News]:
    """Cut items into News of about two stream records each."""
    page: list[Item] = []
    size = 0
    for item in items:
        length = len(encode_item(item))
        if page and (size + length > _PAGE_BYTES or len(page) >= _ITEMS_PER_PAGE):
            yield News(items=tuple(page))
            page, size = [], 0
        page.append(item)
        size += length
    if page:
        yield News(items=tuple(page))
