"""Encrypted streams between hosts: sync, fetch and the fallback probe, over TCP on the gossip port.

A stream serves one purpose, named by its first message. Every read has a deadline, and nothing is buffered
beyond one record before the peer has authenticated (wire/stream.py). Two hosts that differ notice it together; one
sync settles it for both, so where each has opened one, that of the lower id goes on.
"""

from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager

import structlog
import trio

from meshd.config import (
    ITEMS_AT_ONCE,
    STREAM_CONNECT_S,
    STREAM_RECORD_BYTES,
    STREAMS_INBOUND,
    STREAMS_OUTBOUND,
    SYNC_TIMEOUT_S,
)
from meshd.messages import Done, Message, News, StreamPing, StreamPong, SyncOpen, Want
from meshd.model import Address, HostId, Key
from meshd.node.sync import SyncSession, pages
from meshd.shell.gossip import Gossip
from meshd.spread import repair
from meshd.wire.codec import decode_messages, encode_message, join
from meshd.wire.errors import WireError
from meshd.wire.stream import Channel

log = structlog.get_logger()

ChannelMaker = Callable[[HostId | None], Channel]
"""Makes the channel to an expected peer, or with None the answering end."""

_KEYS_PER_WANT = 512

FAILURES = (WireError, trio.BrokenResourceError, trio.TooSlowError, trio.WouldBlock, OSError)
"""How a stream ends that does not end well: no failure of this host."""


class Streams:
    """Both ends of all streams of this host."""

    def __init__(self, gossip: Gossip, make_channel: ChannelMaker, listener: trio.SocketListener) -> None:
        self._gossip = gossip
        self._node = gossip.node
        self._make = make_channel
        self._listener = listener
        self._accepting = trio.CancelScope()
        self._inbound = trio.CapacityLimiter(STREAMS_INBOUND)
        self._outbound = trio.CapacityLimiter(STREAMS_OUTBOUND)
        self._opened: set[HostId] = set()  # with whom a sync is under way that this host opened
        self._answered: Counter[HostId] = Counter()  # or that they opened

    async def serve(self) -> None:
        """Answer peers' streams, for ever."""
        async with trio.open_nursery() as handlers:
            while True:
                with trio.CancelScope() as self._accepting:
                    await trio.serve_listeners(self._serve_one, [self._listener], handler_nursery=handlers)

    def rebind(self, listener: trio.SocketListener) -> None:
        """Accept at another socket from now on; the one before is closed, streams under way go on."""
        self._listener = listener
        self._accepting.cancel()

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        try:
            self._inbound.acquire_nowait()
        except trio.WouldBlock:
            self._node.counters["streams refused"] += 1
            await stream.aclose()
            return
        try:
            async with stream:
                conversation = Conversation(stream, self._make(None))
                await conversation.establish()
                await self._answer(conversation)
        except FAILURES as error:
            self._node.counters[f"stream: {getattr(error, 'reason', type(error).__name__)}"] += 1
        finally:
            self._inbound.release()

    async def _answer(self, conversation: "Conversation") -> None:
        async with aclosing(conversation.messages()) as messages:
            async for message in messages:
                match message:
                    case StreamPing():
                        await conversation.send([StreamPong(nonce=message.nonce)])
                        await conversation.finish()
                        return
                    case Want():
                        for page in pages(repair.wanted(self._node.store, message)):
                            await conversation.send([page])
                    case Done():
                        await conversation.finish()
                        return
                    case SyncOpen():
                        await self._answer_sync(conversation, message)
                        await conversation.finish()
                        return
                    case _:
                        raise WireError("out-of-turn")

    async def _answer_sync(self, conversation: "Conversation", message: SyncOpen) -> None:
        peer = conversation.peer
        if peer in self._opened and self._node.me < peer:
            self._node.counters["syncs left to the other stream"] += 1
            return
        self._answered[peer] += 1
        try:
            await self._run_sync(conversation, self._session(conversation), message)
        finally:
            self._answered[peer] -= 1

    def _session(self, conversation: "Conversation") -> SyncSession:
        return self._node.sync_session(conversation.peer, self._gossip.now)

    async def _run_sync(
        self, conversation: "Conversation", session: SyncSession, first: Message | None = None
    ) -> None:
        if first is not None:
            await self._react(conversation, session, first)
        async with aclosing(conversation.messages()) as messages:
            async for message in messages:
                await self._react(conversation, session, message)
                if session.finished:
                    return
        raise WireError("cut-short")

    async def _react(self, conversation: "Conversation", session: SyncSession, message: Message) -> None:
        """Send each answer as it is made, take a page a few items at a time: all pages of 100,000 items at once would
        hold up the loop for a second, and one page of 256 for 25 ms."""
        for part in _parts(message):
            for answer in session.receive(part):
                await conversation.send([answer])
            self._gossip.pump()
            await trio.lowlevel.checkpoint()

    # --- this host opens ------------------------------------------------------------------------------------
    async def sync(self, peer: HostId, address: Address) -> None:
        """Compare everything with ``peer`` and report to the node."""
        ok = False
        try:
            if self._answered[peer] > 0:
                return  # it is being settled; if not for good, the digest says so again
            async with self._open(peer, address) as conversation:
                self._opened.add(peer)  # not before: where we cannot connect, their stream is the only one
                session = self._session(conversation)
                await conversation.send(session.open())
                await self._run_sync(conversation, session)
                ok = True
                log.debug("synced", peer=peer.hex(), items=session.received)
                await conversation.finish()
        except FAILURES as error:
            log.info("sync failed", peer=peer.hex(), address=str(address), error=_words(error))
        finally:
            self._opened.discard(peer)
            self._node.sync_ended(peer, ok, self._gossip.now())
            self._gossip.pump()

    async def fetch(self, peer: HostId, address: Address, keys: Sequence[Key]) -> None:
        """Ask for items that no datagram can carry."""
        try:
            async with self._open(peer, address) as conversation:
                wants = [
                    Want(keys=tuple(keys[i : i + _KEYS_PER_WANT]))
                    for i in range(0, len(keys), _KEYS_PER_WANT)
                ]
                await conversation.send([*wants, Done()])
                async with aclosing(conversation.messages()) as messages:
                    async for message in messages:
                        if not isinstance(message, News):
                            raise WireError("out-of-turn")
                        for item in message.items:
                            self._node.take_fetched(item, peer, self._gossip.now())
                        self._gossip.pump()
        except FAILURES as error:
            log.info("fetch failed; the digest will find it", peer=peer.hex(), error=_words(error))

    async def probe(self, peer: HostId, address: Address, nonce: int) -> None:
        """Try whether ``peer`` answers over TCP where UDP did not."""
        try:
            with trio.fail_after(STREAM_CONNECT_S):
                async with self._open(peer, address) as conversation:
                    await conversation.send([StreamPing(nonce=nonce)])
                    async with aclosing(conversation.messages()) as messages:
                        async for message in messages:
                            if isinstance(message, StreamPong) and message.nonce == nonce:
                                self._node.stream_pong(peer, nonce, self._gossip.now())
                                self._gossip.pump()
                                return
        except FAILURES:
            return  # no answer is an answer: the probe round goes on to suspicion

    @asynccontextmanager
    async def _open(self, peer: HostId, address: Address) -> AsyncIterator["Conversation"]:
        """Open a stream on which ``peer`` has shown who it is."""
        self._outbound.acquire_nowait()
        try:
            with trio.fail_after(STREAM_CONNECT_S):
                stream = await trio.open_tcp_stream(address.host, address.port)
            async with stream:
                conversation = Conversation(stream, self._make(peer))
                await conversation.establish()
                yield conversation
        finally:
            self._outbound.release()


class Conversation:
    """Messages over one channel over one TCP stream."""

    def __init__(self, stream: trio.SocketStream, channel: Channel) -> None:
        self._stream = stream
        self._channel = channel
        self._blobs: deque[bytes] = deque()

    @property
    def peer(self) -> HostId:
        """Who is at the other end; known once the handshake is done."""
        if self._channel.peer is None:
            raise WireError("out-of-turn")
        return self._channel.peer

    async def send(self, messages: Sequence[Message]) -> None:
        """Send messages, one blob each, once ``establish`` is done."""
        for message in messages:
            self._channel.send(join([encode_message(message)]))
            await self._flush()

    async def finish(self) -> None:
        """End our direction so that the peer can tell an end from a cut."""
        self._channel.finish()
        await self._flush()

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Yield what the peer sends until it ends its direction. Raises WireError on a cut."""
        while True:
            while self._blobs:
                for message in decode_messages(self._blobs.popleft()):
                    yield message
            if self._channel.closed_cleanly:
                return
            with trio.fail_after(SYNC_TIMEOUT_S):  # a whole message: a byte now and then is no progress
                while not (self._blobs or self._channel.closed_cleanly):
                    await self._read()

    async def establish(self) -> None:
        """Finish the handshake, within STREAM_CONNECT_S however often a byte comes: only then it is known who is
        at the other end, and nobody else may hold one of STREAMS_INBOUND for longer."""
        if self._channel.established:
            return
        with trio.fail_after(STREAM_CONNECT_S):
            await self._flush()
            while not self._channel.established:
                await self._read()
                await self._flush()

    async def _read(self) -> None:
        data = await self._stream.receive_some(STREAM_RECORD_BYTES)
        if not data:
            raise WireError("cut-short")
        self._blobs += self._channel.receive(data)

    async def _flush(self) -> None:
        out = self._channel.outgoing()
        if out:
            with trio.fail_after(SYNC_TIMEOUT_S):
                await self._stream.send_all(out)


def _parts(message: Message) -> Iterator[Message]:
    """Cut a page of items into some of ITEMS_AT_ONCE."""
    if not isinstance(message, News):
        yield message
        return
    for start in range(0, len(message.items), ITEMS_AT_ONCE):
        yield News(items=message.items[start : start + ITEMS_AT_ONCE])


def _words(error: BaseException) -> str:
    """Say what went wrong in one phrase."""
    return str(getattr(error, "reason", "") or getattr(error, "strerror", "") or type(error).__name__)
