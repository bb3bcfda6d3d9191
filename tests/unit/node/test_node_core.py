"""Nodes in one process, joined by a list of datagrams: joining, news, repair, restart. Virtual time."""

from random import Random

import pytest

from meshd.config import ALONE_S, FETCH_AGAIN_S, SYNCS_AT_ONCE
from meshd.messages import DIGEST_BYTES, Announce, Nack, Stamp
from meshd.model import NO_PARENT, Address, Attachment, Deed, HostFacts, Item, Kind, MemberFacts, Version
from meshd.node import Alarm, Changed, FetchWanted, Node, PathChanged, StreamProbeWanted, SyncWanted
from meshd.state.deeds import deed_item
from meshd.state.store import Store
from meshd.wire.codec import decode_item, encode_item, encode_message, join
from meshd.wire.keys import Keyring, RingKey
from meshd.wire.pack import pack, plain

RING = Keyring(keys=(RingKey(id=0x1234, secret=b"k" * 32),))


class Net:
    """Hosts, and the datagrams between them; ``drop(source, destination)`` decides what is lost."""

    def __init__(self, *names):
        self.now = 0.0
        self.random = Random(7)
        self.nodes = {}
        self.stores = {}
        self.events = {}
        self.lost = lambda source, destination: False
        self.streams = True
        self.carries = {}  # (source, destination) -> largest IP packet
        self.moved = {}
        for name in names:
            self.boot(name)

    def address(self, name):
        return self.moved.get(name) or Address(f"192.0.2.{ord(name) - 96}", 7947)

    def move(self, name, host):
        self.moved[name] = Address(host, 7947)
        self.nodes[name].move(self.moved[name], self.now)

    def boot(self, name, seeds="a", incarnation=None):
        store = self.stores.setdefault(name, Store(b"secret"))
        address = self.address(name)
        facts = MemberFacts(name=name, address=address.packed, port=7947, session=self.random.randbytes(16))
        self.nodes[name] = Node(
            me=name.encode() * 16, facts=facts, incarnation=incarnation or 1000 + int(self.now * 1000), store=store,
            keyring=RING, entropy=self.random.randbytes, rng=self.random, now=self.now, wall_offset_s=0.0,
            seeds=[self.address(seed) for seed in seeds],
        )  # fmt: skip
        self.events[name] = []

    def kill(self, name):
        del self.nodes[name]

    def _exchange(self):
        """Carry datagrams and streams until nobody has anything to send."""
        for _ in range(200):
            moved = False
            for name, node in list(self.nodes.items()):
                for datagram, to in node.take_datagrams():
                    moved = True
                    target = next((n for n in self.nodes if self.address(n) == to), None)
                    if target is not None and not self.lost(name, target):
                        self.nodes[target].receive(datagram, self.address(name), self.now)
                for datagram, to in node.take_probes():
                    moved = True
                    target = next((n for n in self.nodes if self.address(n) == to), None)
                    if target is not None and len(datagram) + 28 <= self.carries.get((name, target), 9000):
                        self.nodes[target].receive(datagram, self.address(name), self.now)
                for event in node.take_events():
                    self.events[name].append(event)
                    if isinstance(event, SyncWanted):
                        self._stream(name, event)
                        moved = True
                    elif isinstance(event, StreamProbeWanted):
                        target = next((n for n in self.nodes if self.address(n) == event.address), None)
                        if self.streams and target is not None and not self.lost(name, target):
                            node.stream_pong(event.peer, event.nonce, self.now)
            if not moved:
                return
        raise AssertionError("the hosts never stop talking")

    def _stream(self, name, wanted):
        target = next((n for n in self.nodes if self.address(n) == wanted.address), None)
        node = self.nodes[name]
        if not self.streams or target is None or self.lost(name, target):
            node.sync_ended(wanted.peer, False, self.now)
            return
        opener = node.sync_session(wanted.peer, lambda: self.now)
        answerer = self.nodes[target].sync_session(node.me, lambda: self.now)
        queue = [(answerer, opener, message) for message in opener.open()]
        while queue:
            to, back, message = queue.pop(0)
            queue += [(back, to, reply) for reply in to.receive(message)]
        assert opener.finished
        assert answerer.finished
        node.sync_ended(wanted.peer, True, self.now)

    def run(self, seconds):
        end = self.now + seconds
        self._exchange()
        while True:
            due = min(node.deadline() for node in self.nodes.values())
            if due > end:
                break
            self.now = max(self.now, due)
            for node in list(self.nodes.values()):
                if node.deadline() <= self.now:
                    node.tick(self.now)
            self._exchange()
        self.now = end

    def put(self, name, number, version=1):
        facts = HostFacts(name="x", vtep=bytes(4), vxlan_port=1, underlay_mtu=number)
        item = Item(Kind.HOST, bytes([number]) * 16, Version(0, version, name.encode() * 16), facts)
        self.nodes[name].put([item], self.now)
        self._exchange()

    def digests(self):
        return {node.store.digest for node in self.nodes.values()}

    def states(self, name):
        return {m.facts.name: str(m.state) for m in self.nodes[name].swim.members.values()}


@pytest.fixture
def net():
    made = Net("a", "b", "c", "d")
    made.run(2.0)
    return made


def test_hosts_that_know_one_seed_become_one_cluster(net):
    for name in "abcd":
        assert net.states(name) == dict.fromkeys("abcd", "alive")
    assert len(net.digests()) == 1
    assert len(net.digests().pop()) == DIGEST_BYTES


def test_a_join_works_where_tcp_is_blocked_but_udp_is_not():
    net = Net()
    net.streams = False
    for name in "abc":
        net.boot(name)
    net.run(5.0)
    assert net.states("c") == dict.fromkeys("abc", "alive")
    assert len(net.digests()) == 1


def test_news_is_everywhere_before_any_timer_fires(net):
    net.put("c", 9)
    assert all(node.store.get(Kind.HOST, bytes([9]) * 16) for node in net.nodes.values())


def test_a_local_item_never_leaves_its_host_and_does_not_spoil_what_goes_with_it(net):
    body = Attachment(
        boot_id="b", netns_cookie=1, netns_path="/p", ifname="eth0", host_if="mh1", peer_if="mp1"
    )
    local = Item(Kind.ATTACHMENT, b"e" * 16, Version(0, 0, b"c" * 16), body)
    facts = HostFacts(name="x", vtep=bytes(4), vxlan_port=1, underlay_mtu=1)
    told = Item(Kind.HOST, bytes([9]) * 16, Version(0, 1, b"c" * 16), facts)
    for node in net.nodes.values():
        node.counters.clear()
    net.nodes["c"].put([local, told], net.now)
    net._exchange()
    for name, node in net.nodes.items():
        assert node.store.get(Kind.HOST, told.id) == told
        assert (node.store.get(Kind.ATTACHMENT, local.id) is not None) == (name == "c")
        assert not [reason for reason in node.counters if reason.startswith("refused")]


def test_news_that_a_host_missed_is_repaired_within_a_few_periods(net):
    net.lost = lambda source, destination: destination == "d"
    net.put("a", 9)
    assert len(net.digests()) == 2
    net.lost = lambda source, destination: False
    net.run(4.0)
    assert len(net.digests()) == 1
    assert net.nodes["d"].store.get(Kind.HOST, bytes([9]) * 16)


def test_a_dead_host_is_noticed_by_all_and_its_return_too(net):
    net.kill("d")
    net.run(8.0)
    assert net.states("a")["d"] == net.states("b")["d"] == "failed"
    net.boot("d", seeds="")  # from its disk it knows the others
    net.run(2.0)
    assert net.states("a")["d"] == "alive"
    assert len(net.digests()) == 1


def test_a_host_that_returns_with_a_clock_far_behind_is_alive_again(net):
    net.kill("d")
    net.run(8.0)
    net.boot("d", incarnation=5)
    net.run(3.0)
    assert net.states("a")["d"] == "alive"
    assert net.nodes["d"].swim.incarnation > 5


def test_a_host_that_restarts_at_once_is_never_failed(net):
    net.kill("d")
    net.boot("d", seeds="")
    net.run(6.0)
    for name in "abcd":
        assert net.states(name) == dict.fromkeys("abcd", "alive")
    assert not [e for e in net.events["a"] if type(e).__name__ == "MemberFailed"]


def test_a_partition_heals_without_help_even_when_both_sides_restarted_meanwhile(net):
    left, right = set("ab"), set("cd")
    net.lost = lambda source, destination: (source in left) != (destination in left)
    net.run(10.0)
    assert net.states("a") == {"a": "alive", "b": "alive", "c": "failed", "d": "failed"}
    net.put("a", 9)
    net.put("c", 8)
    for name in "abcd":
        net.kill(name)
        net.boot(name, seeds="")
    net.run(5.0)
    net.lost = lambda source, destination: False
    net.run(15.0)
    for name in "abcd":
        assert net.states(name) == dict.fromkeys("abcd", "alive"), name
    assert len(net.digests()) == 1
    assert right


def test_a_host_whose_address_changes_is_reached_there_at_once_and_never_failed(net):
    net.move("c", "192.0.2.77")
    net._exchange()
    assert {node.address_of(b"c" * 16) for name, node in net.nodes.items() if name != "c"} == {
        Address("192.0.2.77", 7947)
    }
    net.run(20.0)
    assert all(net.states(name) == dict.fromkeys("abcd", "alive") for name in "abcd")
    assert not [e for events in net.events.values() for e in events if type(e).__name__ == "MemberFailed"]


def test_a_host_that_moves_while_nobody_hears_is_found_again(net):
    net.lost = lambda source, destination: "c" in (source, destination)
    net.move("c", "192.0.2.77")
    net.run(12.0)
    net.lost = lambda source, destination: False
    net.run(20.0)
    assert all(net.states(name) == dict.fromkeys("abcd", "alive") for name in "abcd")
    assert len(net.digests()) == 1


def test_a_host_that_leaves_is_gone_at_once_and_not_retried(net):
    net.nodes["d"].leave(net.now)
    net._exchange()
    assert net.states("a")["d"] == "left"
    net.kill("d")
    net.run(5.0)
    assert net.states("b")["d"] == "left"


def test_an_announced_restart_is_not_a_failure(net):
    net.nodes["d"].restarting(net.now, 30.0)
    net._exchange()
    net.kill("d")
    net.run(15.0)
    assert net.states("a")["d"] == "alive"
    net.run(30.0)
    assert net.states("a")["d"] == "failed", "but not for ever"


def test_a_host_that_agreed_with_its_peer_stays_in_sync_when_that_is_gone_before_anybody_asked(net):
    two = Net("a", "b")
    two.run(4)
    two.kill("b")
    two.run(20)
    assert two.nodes["a"].in_sync(two.now)


def test_rows_may_be_deleted_only_once_in_sync():
    net = Net("a")
    net.run(1.0)
    assert not net.nodes["a"].in_sync(net.now)
    assert net.nodes["a"].in_sync(net.now + 61), "alone for long enough"
    net.boot("b")
    net.run(3.0)
    assert net.nodes["a"].in_sync(net.now)
    assert net.nodes["b"].in_sync(net.now)


def test_a_change_is_told_once_with_who_brought_it(net):
    net.put("c", 9)
    changes = [e for e in net.events["a"] if isinstance(e, Changed) and e.change.key.id == bytes([9]) * 16]
    assert len(changes) == 1
    assert changes[0].source in {name.encode() * 16 for name in "bcd"}


def test_junk_is_counted_and_changes_nothing(net):
    digest = net.nodes["a"].store.digest
    for junk in (b"", b"\x51", bytes(40), bytes(2000), Random(1).randbytes(200)):
        net.nodes["a"].receive(junk, Address("192.0.2.9", 1), net.now)
    assert net.nodes["a"].store.digest == digest
    assert sum(n for reason, n in net.nodes["a"].counters.items() if reason.startswith("refused")) == 5


def alarms(net, name):
    return [event.kind for event in net.events[name] if isinstance(event, Alarm)]


def own_item(name, kind):
    if kind == Kind.HOST:
        facts = HostFacts(name=name, vtep=bytes(4), vxlan_port=1, underlay_mtu=1500)
        return Item(kind, name.encode() * 16, Version(0, 7, name.encode() * 16), facts)
    me = name.encode() * 16
    return deed_item(Deed(b"n" * 16, 0, 256, me, me, NO_PARENT))


@pytest.mark.parametrize("kind", [Kind.HOST, Kind.DEED])
def test_a_host_whose_disk_is_older_than_what_peers_hold_of_it_says_so_until_it_has_learnt_it(net, kind):
    net.run(3)
    item = own_item("c", kind)
    net.nodes["c"].put([item], net.now)
    net.run(1)
    assert not alarms(net, "c"), "what it wrote itself is no news to it"
    net.kill("c")
    net.stores["c"] = Store(b"secret")
    net.boot("c")
    net.run(5)
    assert alarms(net, "c") == ["rolled-back", "relearnt"]
    assert net.stores["c"].get(item.kind, item.id) == item
    assert net.nodes["c"].in_sync(net.now)


def test_a_host_that_lost_its_state_does_not_trust_itself_for_being_alone_while_others_are_known():
    net = Net("a", "b")
    net.run(3)
    net.nodes["a"].distrust("lost", net.now)
    net.kill("b")
    net.run(3 * ALONE_S)
    assert not net.nodes["a"].in_sync(net.now)
    net.boot("b")
    net.run(10)
    assert alarms(net, "a") == ["rolled-back", "relearnt"]


def test_a_host_that_lost_its_state_and_knows_nobody_trusts_itself_after_a_while():
    net = Net("a")
    net.nodes["a"].distrust("lost", net.now)
    net.run(ALONE_S - 1)
    assert alarms(net, "a") == ["rolled-back"]
    net.run(2)
    assert alarms(net, "a") == ["rolled-back", "relearnt"]


def announce(net, source, target, *stamps):
    net.nodes[source].send(target.encode() * 16, Announce(stamps), now=net.now)
    net._exchange()
    return [event for event in net.events[target] if isinstance(event, FetchWanted)]


def test_what_many_announce_is_fetched_once_and_again_after_a_while(net):
    net.run(3)
    stamp = Stamp(Kind.NETWORK, b"n" * 16, Version(0, 1, b"w" * 16))
    assert len(announce(net, "b", "a", stamp)) == 1
    assert len(announce(net, "c", "a", stamp)) == 1
    newer = Stamp(Kind.NETWORK, b"n" * 16, Version(0, 2, b"w" * 16))
    assert len(announce(net, "c", "a", newer)) == 2
    net.run(FETCH_AGAIN_S)
    assert len(announce(net, "c", "a", newer)) == 3


def test_what_is_announced_is_fetched_of_a_newer_hosts_kind_too_and_of_a_local_kind_never(net):
    net.run(3)
    version = Version(0, 1, b"w" * 16)
    assert announce(net, "b", "a", Stamp(Kind.ATTACHMENT, b"n" * 16, version)) == []
    assert len(announce(net, "b", "a", Stamp(9, b"n" * 16, version))) == 1


def newer(kind, number, counter, *more):
    """An item as a host of a later version sends it."""
    return decode_item(pack([kind, bytes([number]) * 16, 0, counter, b"w" * 16, False, bytes(16), 0, *more]))


def test_hosts_of_two_versions_agree_on_what_only_the_newer_one_understands(net):
    facts = [*plain(HostFacts("x", bytes(4), 1, 1500)), "a field of the next version", {"b": [1]}]
    odd = [newer(9, 1, 1, {"a": "body"}), newer(9, 2, 1, None), newer(Kind.HOST, 3, 1, facts)]
    net.lost = lambda source, destination: destination == "d"
    net.nodes["a"].put(odd, net.now)
    net.nodes["a"].put([newer(9, 1, 2, {"a": "later"}), newer(9, ord("b"), 1, "about b, by a")], net.now)
    net.run(1)
    net.lost = lambda source, destination: False
    net.run(4)
    assert len(net.digests()) == 1
    for name, node in net.nodes.items():
        held = [encode_item(item) for item in node.store.everything() if item.kind == 9 or item.rest]
        assert len(held) == 4, name
        assert encode_item(newer(9, 1, 2, {"a": "later"})) in held
        assert encode_item(odd[2]) in held
        assert node.in_sync(net.now)
    assert all(alarms(net, name) == [] for name in net.nodes)
    net.kill("c")  # which has all of it on disk
    net.boot("c")
    net.run(4)
    assert len(net.digests()) == 1


def test_one_host_opens_a_few_syncs_at_once_however_many_differ():
    net = Net(*"abcdefghijklmnop")
    net.run(5)
    node = net.nodes["a"]
    node.take_events()
    for name in "bcdefghijklmnop":
        node.stream_pong(name.encode() * 16, 1, net.now)
    assert sum(isinstance(event, SyncWanted) for event in node.take_events()) == SYNCS_AT_ONCE


def test_each_direction_of_a_path_is_measured_up_to_what_both_underlays_carry(net):
    net.carries = {("a", "b"): 1400, ("b", "a"): 1450}
    for name, mtu in (("a", 1500), ("b", 9000), ("c", 1500), ("d", 1500)):
        net.nodes[name].underlay(mtu, net.now)
        facts = HostFacts(name, net.address(name).packed, 4789, mtu)
        net.nodes[name].put(
            [Item(Kind.HOST, name.encode() * 16, Version(0, 1, name.encode() * 16), facts)], net.now
        )
    net.run(15.0)
    measured = {
        (name, peer): node.paths[peer.encode() * 16].mtu
        for name, node in net.nodes.items()
        for peer in "abcd"
        if peer != name
    }
    expected = dict.fromkeys(measured, 1500) | net.carries
    assert measured == expected
    net.kill("b")
    net.run(8.0)
    assert b"b" * 16 not in net.nodes["a"].paths
    assert net.events["a"].count(PathChanged(b"b" * 16)) >= 2, "found, and gone"


def test_a_long_datagram_with_anything_but_a_probe_is_refused(net):
    a, b = net.nodes["a"], net.nodes["b"]
    plaintext = join([encode_message(Nack(n)) for n in range(1000)])
    datagram = a.sealer.seal(b.me, plaintext, probe=True)
    assert len(datagram) > 1232
    b.receive(datagram, net.address("a"), net.now)
    assert b.counters["refused long"] == 1
