"""Several hosts, each with its own books and disk, over a network that loses, repeats, reorders and parts:
no index is ever given to two live endpoints, and once all news is out all books agree.
"""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from meshd.config import DEED_DEPTH_MAX, DEED_DEPTH_MAX_ONE
from meshd.errors import BadRequest, Conflict, Unavailable
from meshd.model import NO_PARENT, Endpoint, Item, Key, Kind, Network, Released, Subnet, Version
from meshd.state.addresses import NeedBlock, choose
from meshd.state.blocks import deal, genesis, hand_on
from meshd.state.confirm import Unconfirmed
from meshd.state.deeds import DeedBook
from meshd.state.layout import Layout
from meshd.state.usage import Usage

NET = b"N" * 16
HOSTS = tuple(bytes([letter]) * 16 for letter in b"ABCD")
SPACE = Layout.build(NET, Network("blue", "overlay", (Subnet("10.1.0.0/28", "10.1.0.1"),))).spaces[0]
HOST = st.sampled_from(HOSTS)


class Host:
    """What one host has on disk, and what it makes of it in memory."""

    def __init__(self, me):
        self.me = me
        self.disk = {}
        self.confirmed = set()
        self.restart(random.Random(0), 0.0)

    def restart(self, rng, now):
        self.book, self.usage = DeedBook(), Usage()
        items = list(self.disk.values())
        rng.shuffle(items)
        for item in items:
            self.take(item, now)
        for key in self.confirmed:
            self.book.confirm(key)

    def take(self, item, now):
        self.book.add(item)
        self.usage.observe(item, now)

    def commit(self, item, now):
        """Journal and then hold; an endpoint's newer version replaces the older, as in the store."""
        before = self.disk.get(item.key)
        if before is None or before.version < item.version:
            self.disk[item.key] = item
            self.take(item, now)


class Cluster(RuleBasedStateMachine):
    endpoints = Bundle("endpoints")

    def __init__(self):
        super().__init__()
        self.hosts = {me: Host(me) for me in HOSTS}
        self.now = 0.0
        self.made = 0
        self.live = {}  # endpoint id -> (host, index): what the containers really have
        self.sides = dict.fromkeys(HOSTS, 0)

    @initialize(dealt=st.booleans())
    def create(self, dealt):
        first = genesis(NET, SPACE.size, HOSTS[0], HOSTS)
        for item in [first, *(deal(first, SPACE, HOSTS[:3]) if dealt else ())]:
            self.hosts[HOSTS[0]].commit(item, self.now)

    @rule(me=HOST, count=st.integers(1, 5))
    def attach_several(self, me, count):
        for _ in range(count):
            self.attach_one(me, None, False)

    @rule(target=endpoints, me=HOST, want=st.none() | st.integers(0, SPACE.size - 1), crash=st.booleans())
    def attach(self, me, want, crash):
        return self.attach_one(me, want, crash)

    def attach_one(self, me, want, crash):
        host = self.hosts[me]
        self.made += 1
        endpoint = self.made.to_bytes(16, "big")
        tried = set()
        while True:
            try:
                index = choose(SPACE, host.book, host.usage, me, self.now, want=want, tried=tried)
                break
            except Unconfirmed as unconfirmed:
                if not self.confirm(me, unconfirmed.deeds):
                    if want is not None:
                        return endpoint
                    tried.add(me)
            except NeedBlock as need:
                owner = need.owners[0]
                tried.add(owner)
                if self.sides[owner] == self.sides[me]:
                    self.ask(me, owner, need.size, need.exact)
            except (Unavailable, BadRequest, Conflict):
                return endpoint
        host.usage.reserve(NET, index, endpoint)
        if crash:
            host.usage.unreserve(endpoint)
            return endpoint
        body = Endpoint(NET, me, "web", index, SPACE.ips(index), bytes(6), "eth0")
        host.commit(Item(Kind.ENDPOINT, endpoint, Version(1, 1, me), body), self.now)
        self.live[endpoint] = (me, index)
        return endpoint

    def confirm(self, me, deeds):
        """Ask all witnesses; True where each has said that it has it on disk."""
        host = self.hosts[me]
        for key in deeds:
            if Key(Kind.DEED, key) not in host.disk:
                return False  # it was only heard of, by gossip that did not reach the disk yet
            silent = [w for w in host.book.witnesses(key) if self.sides[w] != self.sides[me]]
            for witness in host.book.witnesses(key) - set(silent):
                self.hosts[witness].commit(host.disk[Key(Kind.DEED, key)], self.now)
                silent += [] if self.hosts[witness].book.sound(key) else [witness]
            if silent:
                return False
            host.confirmed.add(key)
            host.book.confirm(key)
        return True

    def ask(self, me, owner, size, exact, heard=True):
        giver = self.hosts[owner]
        unsure = [block.deed for block in giver.book.owned(NET, owner) if not giver.book.valid(block.deed)]
        self.confirm(owner, [key for key in unsure if Key(Kind.DEED, key) in giver.disk])
        try:
            items = hand_on(
                giver.book,
                SPACE,
                owner,
                me,
                size=size,
                exact=exact,
                busy=giver.usage.of(NET).busy(self.now),
                live=len(HOSTS),
                alive=[host for host in HOSTS if self.sides[host] == self.sides[owner]],
            )
        except Unavailable:
            return
        for item in items:
            giver.book.add(item)  # before anything is awaited
            giver.commit(item, self.now)
            if heard:
                self.hosts[me].commit(item, self.now)

    @rule(me=HOST, owner=HOST, exact=st.none() | st.integers(0, SPACE.size - 1), heard=st.booleans())
    def fetch_ahead(self, me, owner, exact, heard):
        if me != owner:
            self.ask(me, owner, 0 if exact is None else 1, exact, heard)

    @rule(me=HOST, rng=st.randoms(use_true_random=False))
    def ask_for_a_used_address(self, me, rng):
        if self.live:
            owner, index = self.live[rng.choice(sorted(self.live))]
            if owner != me:
                self.ask(me, owner, 1, index)

    @rule(endpoint=endpoints)
    def detach(self, endpoint):
        self.detach_one(endpoint)

    def detach_one(self, endpoint):
        if endpoint in self.live:
            me, index = self.live.pop(endpoint)
            gone = Item(Kind.ENDPOINT, endpoint, Version(1, 2, me), Released(NET, index), dead=True)
            self.hosts[me].commit(gone, self.now)

    @rule(source=HOST, to=HOST, rng=st.randoms(use_true_random=False), kept=st.booleans())
    def gossip(self, source, to, rng, kept):
        """Some of the source's items arrive, in any order, some twice; ``kept``: journalled before a crash."""
        if self.sides[source] != self.sides[to]:
            return
        news = [item for item in self.hosts[source].disk.values() if rng.random() < 0.6]
        news += rng.sample(news, len(news) // 3)
        rng.shuffle(news)
        for item in news:
            if kept or item.kind != Kind.DEED:
                self.hosts[to].commit(item, self.now)
            else:
                self.hosts[to].take(item, self.now)

    @rule(rng=st.randoms(use_true_random=False))
    def detach_any(self, rng):
        if self.live:
            self.detach_one(rng.choice(sorted(self.live)))

    @rule(me=HOST, rng=st.randoms(use_true_random=False))
    def restart(self, me, rng):
        self.hosts[me].restart(rng, self.now)

    @rule(sides=st.lists(st.integers(0, 1), min_size=len(HOSTS), max_size=len(HOSTS)))
    def part_or_heal(self, sides):
        self.sides = dict(zip(HOSTS, sides, strict=True))

    @rule(seconds=st.sampled_from([1.0, 60.0, 500.0]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def no_index_has_two_live_endpoints(self):
        indices = [index for _, index in self.live.values()]
        assert len(indices) == len(set(indices))
        assert not {*SPACE.reserved} & {*indices}

    @invariant()
    def a_host_owns_what_its_endpoints_have(self):
        for me, index in self.live.values():
            owner = self.hosts[me].book.owner_of(NET, index)
            assert owner in (
                me,
                None,
            )  # None: it restarted before the deed was on disk, and is yet to hear it again

    @invariant()
    def no_two_hosts_think_that_they_own_one_index(self):
        mine = [
            i
            for host in self.hosts.values()
            for b in host.book.owned(NET, host.me)
            for i in range(b.start, b.end)
        ]
        assert len(mine) == len(set(mine))

    def teardown(self):
        items = {item.key: item for host in self.hosts.values() for item in host.disk.values()}
        rng = random.Random(self.made)
        views = set()
        for host in self.hosts.values():
            news = [item for item in items.values() if item.kind == Kind.DEED]
            rng.shuffle(news)
            for item in news:
                assert host.book.add(item)
            assert not host.book.invalid
            assert not host.book.quarantined(NET)
            views.add(tuple(host.book.owner_of(NET, index) for index in range(SPACE.size)))
            for _, block in host.book.blocks(NET):
                assert block.depth <= (DEED_DEPTH_MAX_ONE if block.size == 1 else DEED_DEPTH_MAX)
        assert len(views) == 1
        if any(item.kind == Kind.DEED and item.body.parent == NO_PARENT for item in items.values()):
            assert None not in views.pop()
        for endpoint, (me, index) in self.live.items():
            assert self.hosts[me].book.owner_of(NET, index) == me, endpoint


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_donor_restored_from_an_old_disk_is_found_out_and_what_it_gave_twice_is_given_to_nobody():
    """Both receivers stop allocating in the contested block as soon as they have heard of each other's deed."""
    first = genesis(NET, SPACE.size, HOSTS[0], ())
    donor, one, two = (Host(me) for me in HOSTS[:3])
    for host in (donor, one, two):
        host.commit(first, 0.0)
    backup = dict(donor.disk)
    given = [*hand_on(donor.book, SPACE, donor.me, one.me, exact=8, size=4, busy=(), live=3)]
    donor.commit(given[0], 0.0)
    donor.disk = backup
    donor.restart(random.Random(1), 0.0)
    given += hand_on(donor.book, SPACE, donor.me, two.me, exact=10, size=4, busy=(), live=3)
    assert one.book.add(given[0])
    assert choose(SPACE, one.book, one.usage, one.me, 0.0) == 8
    for host in (one, two, donor):
        for item in random.Random(2).sample(given, 2):
            host.commit(item, 0.0)
        assert [host.book.owner_of(NET, i) for i in range(8, 14)] == [one.me] * 2 + [None] * 2 + [two.me] * 2
        (found,) = host.book.quarantined(NET)
        assert (found.start, found.size, found.donor, {*found.holders}) == (10, 2, donor.me, {one.me, two.me})
    assert choose(SPACE, two.book, two.usage, two.me, 0.0) == 12
