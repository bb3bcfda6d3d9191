"""What the core's events and the disk's answers do to one host's cluster."""

import os
from random import Random

import pytest
import trio

from meshd.config import Settings
from meshd.errors import Unavailable
from meshd.messages import BlockAnswer
from meshd.model import Address, HostFacts, Item, Kind, MemberFacts, Opaque, Version
from meshd.node import Alarm, BlockAnswered, Node
from meshd.shell.cluster import Cluster
from meshd.shell.journal import DiskWriter, Journal
from meshd.state.store import Store
from meshd.wire.keys import Keyring, RingKey

ME, PEER, OTHER = b"m" * 16, b"p" * 16, b"o" * 16
FACTS = HostFacts("h", bytes(4), 4789, 1500)


class Quiet:
    """Stands for the socket: what the node says is handed to the cluster, what it sends goes nowhere."""

    def __init__(self, node, on_event):
        self.node, self._on_event = node, on_event
        self.send_errors = 0

    def now(self):
        return trio.current_time()

    def pump(self):
        self.node.take_datagrams()
        for event in self.node.take_events():
            self._on_event(event)


class Silent:
    def changed(self, *_):
        pass


@pytest.fixture
async def cluster(tmp_path, nursery, autojump_clock):
    journal = Journal(tmp_path)
    journal.load()
    disk, store = DiskWriter(journal), Store(b"secret")
    made = Cluster(
        me=ME, settings=Settings(), store=store, disk=disk, entropy=os.urandom, boot_id="b", mark="m",
        secret=b"secret", gossip_port=7947, nhid=True, kernel=None,
    )  # fmt: skip
    node = Node(
        me=ME, facts=MemberFacts("h", Address("192.0.2.1", 1).packed, 7947, b"s" * 16), incarnation=1, store=store,
        keyring=Keyring((RingKey(1, b"k" * 32),)), entropy=os.urandom, rng=Random(1),
        now=trio.current_time(), wall_offset_s=0.0,
    )  # fmt: skip
    made.gossip = Quiet(node, made.on_event)
    made.reconciler = Silent()
    made.journal = journal
    made.start(nursery)
    nursery.start_soon(disk.run, store.everything)
    await made.publish_facts(FACTS)
    yield made
    nursery.cancel_scope.cancel()


async def test_a_host_whose_state_was_rolled_back_gives_nothing_until_it_has_learnt_what_it_gave(cluster):
    cluster.on_event(Alarm("rolled-back", "lost"))
    assert cluster.allocation_stopped == "lost"
    cluster.on_event(Alarm("rolled-back", "lost"))
    cluster.on_event(Alarm("relearnt", "learnt"))
    assert cluster.allocation_stopped == ""
    assert cluster.health() == []
    cluster.on_event(Alarm("rolled-back", "lost"))
    assert cluster.allocation_stopped == "lost", "a second time is no less than the first"


async def test_what_a_newer_host_says_is_kept_and_followed_by_nothing(cluster):
    odd = Item(9, ME, Version(0, 1, PEER), Opaque(b"\xa3new"))
    views = [dict(view) for view in (cluster.networks, cluster.hosts, cluster.attachments)]
    cluster.node._take(odd, PEER, cluster.now())
    cluster.gossip.pump()
    assert cluster.store.get(9, ME) == odd
    assert [dict(view) for view in (cluster.networks, cluster.hosts, cluster.attachments)] == views
    assert cluster.health() == []
    await cluster._disk.flush()
    cluster.journal.close()
    assert odd in cluster.journal.load()


async def test_a_clone_gives_nothing_whatever_it_learns(cluster):
    cluster.alarm("cloned", "copied")
    cluster.on_event(Alarm("rolled-back", "lost"))
    cluster.on_event(Alarm("relearnt", "learnt"))
    assert cluster.allocation_stopped == "copied"


async def test_only_the_host_that_was_asked_answers_and_a_second_answer_is_nothing(cluster):
    async def peers():
        await trio.sleep(0.01)
        (request,) = cluster._asks
        for peer, why in ((OTHER, "no such"), (PEER, "busy"), (PEER, "busy again")):
            cluster.on_event(BlockAnswered(peer, BlockAnswer(request, (), why)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peers)
        with pytest.raises(Unavailable, match=r"not hand addresses on: busy$"):
            await cluster.ask_block(PEER, b"n" * 16, 1)


async def test_a_disk_that_refuses_does_not_end_the_daemon_when_a_peer_holds_newer_facts(
    cluster, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    newer = Item(Kind.HOST, ME, Version(1, 0, OTHER), FACTS)
    with monkeypatch.context() as patched:
        patched.setattr(cluster.journal, "append", full)
        cluster.node._take(newer, PEER, cluster.now())
        cluster.gossip.pump()
        await trio.sleep(1)
    await cluster.publish_facts(FACTS)
    held = cluster.store.get(Kind.HOST, ME)
    assert held.version > newer.version
    assert held.version.writer == ME


async def test_facts_published_after_the_disk_was_lost_are_newer_than_the_lost_ones(cluster, tmp_path):
    lost = cluster.store.get(Kind.HOST, ME)
    assert lost.version.counter > 1_700_000_000_000, "as wall time: an empty disk knows no counter"


async def test_a_leave_that_fails_leaves_a_host_that_works(cluster):
    async def refuse(_):
        raise Unavailable("the disk is full")

    cluster.attachments[b"e" * 16] = object()
    cluster.release = refuse
    with pytest.raises(Unavailable):
        await cluster.leave()
    assert cluster.allocation_stopped == ""
