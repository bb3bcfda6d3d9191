"""Streams between two cores over real TCP on loopback: how a large difference is settled."""

import os
from itertools import pairwise
from random import Random
from types import SimpleNamespace

import pytest
import trio

from meshd.config import ITEMS_AT_ONCE
from meshd.model import Address, Item, Kind, MemberFacts, Network, Subnet, Version
from meshd.node import Node
from meshd.shell.streams import Streams
from meshd.state.store import Store
from meshd.wire.keys import Keyring, RingKey
from meshd.wire.stream import Channel

RING = Keyring(keys=(RingKey(id=0x1234, secret=b"k" * 32),))
ITEMS = 1500


class End:
    """One host's streams, and how many items each of its syncs took in."""

    def __init__(self, number, listener):
        self.me, session = bytes([number]) * 16, os.urandom(16)
        self.store, self.rng = Store(b"secret"), Random(number)
        self.address = Address(*listener.socket.getsockname())
        for _ in range(ITEMS):
            network = Network("n", "overlay", (Subnet("10.1.0.0/24", "10.1.0.1"),), vni=5000)
            self.store.merge(Item(Kind.NETWORK, self.rng.randbytes(16), Version(0, 1, self.me), network))
        facts = MemberFacts(
            name=f"h{number}", address=bytes((127, 0, 0, 1)), port=self.address.port, session=session
        )
        self.node = Node(
            me=self.me, facts=facts, incarnation=number, store=self.store, keyring=RING, entropy=os.urandom,
            rng=self.rng, now=trio.current_time(), wall_offset_s=0.0,
        )  # fmt: skip
        self.ended, self.sessions = [], []
        self.node.sync_ended = lambda peer, ok, now: self.ended.append(ok)
        make_session = self.node.sync_session

        def sync_session(peer, now):
            self.sessions.append(make_session(peer, now))
            return self.sessions[-1]

        self.node.sync_session = sync_session

        def channel(peer):
            if peer is None:
                return Channel.responder(self.me, session, RING, os.urandom)
            return Channel.initiator(self.me, session, RING, os.urandom, peer)

        self.pumped = [0]  # items received by then
        gossip = SimpleNamespace(
            node=self.node, now=trio.current_time, pump=lambda: self.pumped.append(self.received)
        )
        self.streams = Streams(gossip, channel, listener)

    @property
    def received(self):
        return sum(session.received for session in self.sessions)


@pytest.fixture
async def ends(nursery):
    made = []
    for number in (1, 2):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.append(End(number, listener))
        nursery.start_soon(made[-1].streams.serve)
    return made


@pytest.mark.parametrize("openers", [(0,), (1,), (0, 1)])
async def test_two_hosts_that_notice_the_difference_together_settle_it_once(ends, openers):
    held = [len(list(end.store.all(Kind.NETWORK))) for end in ends]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in openers:
                peer = ends[1 - number]
                nursery.start_soon(ends[number].streams.sync, peer.me, peer.address)
    assert ends[0].store.digest == ends[1].store.digest
    for end, count in zip(ends, held, strict=True):
        # also the member items: each end has made its own
        assert end.received == len(list(end.store.everything())) - count - 1
    assert [end.ended.count(True) for end in ends] == [int(0 in openers), int(openers == (1,))]


async def test_where_we_cannot_connect_theirs_goes_on(ends):
    one, two = ends
    with trio.fail_after(20):
        await one.streams.sync(two.me, Address("127.0.0.1", 1))  # nobody listens there
        assert one.ended == [False]
        await two.streams.sync(one.me, one.address)
    assert one.store.digest == two.store.digest


async def test_the_loop_has_its_turn_every_few_items_of_a_page(ends, nursery):
    one, two = ends
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(other)
    await one.streams.sync(two.me, two.address)
    while two.received < ITEMS:
        await trio.lowlevel.checkpoint()
    for end in ends:
        assert max(b - a for a, b in pairwise(end.pumped)) <= ITEMS_AT_ONCE
    assert turns >= ITEMS / ITEMS_AT_ONCE
    assert one.store.digest == two.store.digest
    nursery.cancel_scope.cancel()
