"""What a peer that says little, or nothing, costs the one it connected to. Virtual time."""

import os

import pytest
import trio
import trio.lowlevel
import trio.testing

from meshd.config import STREAM_CONNECT_S, SYNC_TIMEOUT_S
from meshd.messages import StreamPing
from meshd.shell.streams import Conversation
from meshd.wire.keys import Keyring, RingKey
from meshd.wire.stream import Channel

RING = Keyring((RingKey(1, b"k" * 32),))
A, B = b"a" * 16, b"b" * 16


def both_ends():
    near, far = trio.testing.memory_stream_pair()
    asked = Conversation(near, Channel.responder(A, A, RING, os.urandom))
    return asked, Conversation(far, Channel.initiator(B, B, RING, os.urandom, A)), far


async def trickle(stream):
    while True:
        await stream.send_all(b"\x01")
        await trio.sleep(STREAM_CONNECT_S / 3)


async def test_who_connects_and_shows_nothing_is_dropped_however_often_a_byte_comes(autojump_clock):
    asked, _, far = both_ends()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle, far)
        with pytest.raises(trio.TooSlowError):
            await asked.establish()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(STREAM_CONNECT_S)


async def test_a_message_that_comes_byte_by_byte_is_no_progress(autojump_clock):
    asked, asker, far = both_ends()

    async def greet():
        await asker.establish()
        await asker.send([StreamPing(1)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        await asked.establish()
        messages = asked.messages()
        assert await messages.__anext__() == StreamPing(1)
        began = trio.current_time()

        async def a_record_in_pieces():
            asker._channel.send(b"\x90")
            for byte in asker._channel.outgoing()[:-1]:
                await far.send_all(bytes([byte]))
                await trio.sleep(SYNC_TIMEOUT_S / 4)

        nursery.start_soon(a_record_in_pieces)
        with pytest.raises(trio.TooSlowError):
            await messages.__anext__()
        assert trio.current_time() - began == pytest.approx(SYNC_TIMEOUT_S)
        nursery.cancel_scope.cancel()
