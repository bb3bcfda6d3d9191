"""A hand-on is used once its witnesses have it on disk: the bookkeeping, and what it is for, with donors whose disk was
restored from an old copy or that run twice, partitions and lost messages."""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshd.config import HOLD_IDS_MAX, HOLD_RETRY_S
from meshd.errors import Unavailable
from meshd.model import NO_PARENT, Deed, Network, Subnet
from meshd.state.blocks import deal, genesis, hand_on
from meshd.state.confirm import Confirming
from meshd.state.deeds import DeedBook, deed_id, deed_item
from meshd.state.layout import Layout

NET = b"N" * 16
A, B, C, D, E = HOSTS = tuple(bytes([letter]) * 16 for letter in b"ABCDE")
SPACE = Layout.build(NET, Network("blue", "overlay", (Subnet("10.1.0.0/28", "10.1.0.1"),))).spaces[0]
GENESIS = Deed(NET, 0, 16, A, A, NO_PARENT, (D, E))
TO_B = Deed(NET, 8, 4, B, A, deed_id(GENESIS))
TO_C = Deed(NET, 8, 1, C, B, deed_id(TO_B))


def book_of(*deeds):
    book = DeedBook()
    for deed in deeds:
        assert book.add(deed_item(deed))
    return book


def watched(me, book, *deeds):
    waiting = Confirming(me, book)
    for deed in deeds:
        waiting.watch(deed_id(deed))
    return waiting


def test_witnesses_are_the_owners_up_the_chain_and_the_heirs_but_neither_giver_nor_taker():
    book = book_of(GENESIS, TO_B, TO_C)
    assert book.witnesses(deed_id(GENESIS)) == frozenset()
    assert book.witnesses(deed_id(TO_B)) == {D, E}
    assert book.witnesses(deed_id(TO_C)) == {A, D, E}
    to_heir = Deed(NET, 9, 1, D, B, deed_id(TO_B))
    assert book.add(deed_item(to_heir))
    assert book.witnesses(deed_id(to_heir)) == {A, E}
    back = Deed(NET, 8, 1, B, C, deed_id(TO_C))
    assert book.add(deed_item(back))
    assert book.witnesses(deed_id(back)) == {A, D, E}
    assert book.chain(deed_id(back)) == (A, B)


def test_a_deed_is_asked_about_until_every_witness_has_spoken():
    book = book_of(GENESIS, TO_B)
    waiting, key = watched(B, book, TO_B), deed_id(TO_B)
    assert not book.valid(key)
    assert waiting.due(0.0, {A, B, D}, ()) == {D: [key]}, "E is not alive"
    assert waiting.due(HOLD_RETRY_S / 2, {D, E}, ()) == {E: [key]}, "D was asked just now"
    assert waiting.due(HOLD_RETRY_S, {D}, ()) == {D: [key]}
    waiting.heard(D, [key, b"another"])
    waiting.heard(C, [key])
    assert waiting.take_confirmed(()) == []
    assert waiting.missing(key, ()) == {E}
    assert waiting.due(9.0, {D, E}, ()) == {E: [key]}
    waiting.heard(E, [key])
    assert waiting.take_confirmed(()) == [key]
    assert book.valid(key)
    assert (len(waiting), waiting.due(20.0, {D, E}, ())) == (0, {})


def test_a_host_that_has_left_is_no_witness_any_more():
    book = book_of(GENESIS, TO_B)
    waiting, key = watched(B, book, TO_B), deed_id(TO_B)
    waiting.heard(D, [key])
    assert waiting.due(0.0, {A, B, D}, {E}) == {}
    assert waiting.take_confirmed({E}) == [key]


def test_what_is_not_ours_or_confirmed_or_without_its_ancestors_is_not_asked_about():
    book = book_of(GENESIS, TO_B)
    assert len(watched(C, book, TO_B, GENESIS)) == 0
    book.confirm(deed_id(TO_B))
    assert len(watched(B, book, TO_B)) == 0
    orphan = DeedBook()
    orphan.add(deed_item(TO_C))
    waiting = watched(C, orphan, TO_C)
    assert (len(waiting), waiting.due(0.0, HOSTS, ()), waiting.take_confirmed(())) == (1, {}, [])
    for deed in (GENESIS, TO_B):
        orphan.add(deed_item(deed))
    assert set(waiting.due(0.0, HOSTS, ())) == {A, D, E}


def test_no_question_is_longer_than_a_message_may_be():
    first = Deed(NET, 0, 64, A, A, NO_PARENT, (D,))
    deeds = [Deed(NET, at, 1, B, A, deed_id(first)) for at in range(40)]
    book = book_of(first, *deeds)
    waiting = watched(B, book, *deeds)
    asked = [key for _ in range(3) for key in waiting.due(0.0, {D}, ()).get(D, [])]
    assert len(asked) == len({*asked}) == 40
    assert HOLD_IDS_MAX == 16


def test_a_witness_that_knows_of_another_deed_for_the_space_is_not_sound_about_it():
    other = Deed(NET, 10, 4, C, A, deed_id(GENESIS))
    book = book_of(GENESIS, TO_B)
    assert book.sound(deed_id(TO_B))
    book.add(deed_item(other))
    assert not book.sound(deed_id(TO_B))
    assert not book.sound(deed_id(other))
    assert not book.sound(b"unknown")


class Host:
    """A daemon: a disk of deeds and what it makes of it. ``doubtful``: its disk is not what it was, or it runs twice."""

    def __init__(self, me):
        self.me, self.disk, self.doubtful = me, {}, False
        self.restart()

    def restart(self):
        self.book = DeedBook()
        self.waiting = Confirming(self.me, self.book)
        for item in self.disk.values():
            self.book.add(item)
        for key in self.disk:
            self.waiting.watch(key)

    def commit(self, item):
        self.disk[item.id] = item
        self.book.add(item)
        self.waiting.watch(item.id)

    def usable(self):
        owned = self.book.owned(NET, self.me)
        return {i for block in owned if self.book.valid(block.deed) for i in range(block.start, block.end)}


class Donors(RuleBasedStateMachine):
    """Any host but one heir may lose state or be cloned at any time; confirmations are not kept over a restart."""

    def __init__(self):
        super().__init__()
        self.hosts = [Host(me) for me in HOSTS]
        self.copies = {}
        self.sides = {}
        self.now = 0.0

    @initialize(heirs=st.sampled_from([(D, E), (B, E), (E,)]), dealt=st.booleans())
    def create(self, heirs, dealt):
        first = deed_item(Deed(NET, 0, 16, A, A, NO_PARENT, heirs))
        for host in self.hosts:
            host.commit(first)
        for item in deal(first, SPACE, HOSTS) if dealt else ():
            self.hosts[0].commit(item)

    def together(self, one, other):
        return self.sides.get(id(one), 0) == self.sides.get(id(other), 0)

    @rule(rng=st.randoms(use_true_random=False), exact=st.none() | st.integers(0, 15), heard=st.booleans())
    def give(self, rng, exact, heard):
        self.give_from(rng.choice(self.hosts), rng.choice(self.hosts), exact, heard=heard)

    def give_from(self, giver, taker, exact, *, heard):
        if not self.together(giver, taker) or giver.me == taker.me:
            return
        alive = {host.me for host in self.hosts}
        try:
            items = hand_on(giver.book, SPACE, giver.me, taker.me, exact=exact, busy=(), live=2, alive=alive)
        except Unavailable:
            return
        for item in items:
            giver.commit(item)
            if heard:
                taker.commit(item)

    @rule(rng=st.randoms(use_true_random=False), exact=st.none() | st.integers(2, 14), asked=st.booleans())
    def give_forget_and_give_again(self, rng, exact, asked):
        owning = [host for host in self.hosts if host.me != E and host.book.owned(NET, host.me)]
        giver = rng.choice(owning)
        one, other = rng.sample([host for host in self.hosts if host.me != giver.me], 2)
        before = dict(giver.disk)
        self.give_from(giver, one, exact, heard=True)
        if asked:
            self.ask_about(one)
        giver.disk, giver.doubtful = before, True
        giver.restart()
        self.give_from(giver, other, exact, heard=True)
        self.ask_about(other)

    @rule(rng=st.randoms(use_true_random=False))
    def ask_witnesses(self, rng):
        for me in rng.sample(self.hosts, 3):
            self.ask_about(me, rng.random() * 0.5, rng)

    def ask_about(self, me, loss=0.0, rng=random):
        self.now += HOLD_RETRY_S
        due = me.waiting.due(self.now, HOSTS, ())
        for witness in self.hosts:
            if not self.together(me, witness) or rng.random() < loss:
                continue
            for key in due.get(witness.me, ()):
                witness.commit(me.disk[key])
                if witness.book.sound(key) and rng.random() >= loss:
                    me.waiting.heard(witness.me, [key])
        me.waiting.take_confirmed(())

    @rule(rng=st.randoms(use_true_random=False))
    def gossip(self, rng):
        source, to = rng.sample(self.hosts, 2)
        if self.together(source, to):
            for item in rng.sample(list(source.disk.values()), len(source.disk)):
                if rng.random() < 0.7:
                    to.commit(item)

    @rule(rng=st.randoms(use_true_random=False))
    def part(self, rng):
        self.sides = {id(host): rng.randint(0, 1) for host in self.hosts}

    @rule()
    def heal(self):
        self.sides = {}

    @rule(rng=st.randoms(use_true_random=False))
    def restart(self, rng):
        rng.choice(self.hosts).restart()

    @rule(rng=st.randoms(use_true_random=False))
    def back_up(self, rng):
        host = rng.choice(self.hosts)
        self.copies[id(host)] = dict(host.disk)

    @rule(rng=st.randoms(use_true_random=False))
    def restore(self, rng):
        host = rng.choice([host for host in self.hosts if host.me != E])
        if id(host) in self.copies:
            host.disk, host.doubtful = dict(self.copies[id(host)]), True
            host.restart()

    @rule(rng=st.randoms(use_true_random=False))
    def clone(self, rng):
        host = rng.choice([host for host in self.hosts if host.me != E])
        if len(self.hosts) < 8:
            twin = Host(host.me)
            twin.disk = dict(host.disk)
            twin.restart()
            twin.doubtful = host.doubtful = True
            self.hosts.append(twin)

    @invariant()
    def no_two_hosts_in_their_right_mind_use_one_index(self):
        used = [index for host in self.hosts if not host.doubtful for index in host.usable()]
        assert len(used) == len({*used})

    def teardown(self):
        """Once all have heard all and asked all, whatever is not contradicted is confirmed: nothing is lost."""
        items = {key: item for host in self.hosts for key, item in host.disk.items()}
        order = random.Random(1).sample(list(items.values()), len(items))
        for host in self.hosts:
            for item in order:
                host.commit(item)
        for host in self.hosts:
            for witness, keys in host.waiting.due(1e9, HOSTS, ()).items():
                there = next(other for other in self.hosts if other.me == witness)
                host.waiting.heard(witness, [key for key in keys if there.book.sound(key)])
            host.waiting.take_confirmed(())
            for block in host.book.owned(NET, host.me):
                assert host.book.valid(block.deed) or not host.book.sound(block.deed)


TestDonors = Donors.TestCase
TestDonors.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_genesis_deed_names_its_heirs():
    assert {*genesis(NET, 16, A, HOSTS).body.heirs} < {B, C, D, E}
