"""Who gets the blocks of a host that goes: decided by the deeds, the same whoever asks."""

from meshd.model import NO_PARENT, Deed
from meshd.state.deeds import DeedBook, deed_id, deed_item
from meshd.state.heirs import bequests, heir_of_forgotten, heir_of_leaving, line

NET = b"N" * 16
A, B, C, D, E = (bytes([letter]) * 16 for letter in b"ABCDE")

GENESIS = Deed(NET, 0, 256, A, A, NO_PARENT, (D, E))
TO_B = Deed(NET, 128, 64, B, A, deed_id(GENESIS))
TO_C = Deed(NET, 128, 16, C, B, deed_id(TO_B))


def book(*more: Deed) -> DeedBook:
    made = DeedBook()
    for deed in (GENESIS, TO_B, TO_C, *more):
        assert made.add(deed_item(deed))
    return made


def spans(items):
    return [(item.body.owner, item.body.start, item.body.size) for item in items]


def test_the_line_goes_up_from_the_nearest_and_ends_with_the_heirs():
    deeds = book()
    assert [*line(deeds, deed_id(TO_C))] == [B, A, D, E]
    assert [*line(deeds, deed_id(GENESIS))] == [D, E]
    assert [*line(deeds, b"?" * 16)] == []


def test_a_forgotten_hosts_space_goes_to_the_nearest_that_was_not_forgotten_itself():
    deeds = book()

    def heir(key, *forgotten):
        return heir_of_forgotten(deeds, deed_id(key), {*forgotten})

    assert heir(TO_C, C) == B
    assert heir(TO_C, C, B) == A
    assert heir(GENESIS, A) == D
    assert heir(TO_B, A, B, D) == E
    assert heir(TO_B, A, B, D, E) is None


def test_what_was_handed_on_is_not_the_givers_to_leave():
    deeds = book()
    found = bequests(deeds, [NET], B, lambda key: heir_of_forgotten(deeds, key, {B}))
    assert spans(found) == [(A, 144, 48)]
    assert found[0].body.donor == B
    for item in found:
        deeds.add(item)
    assert deeds.owned(NET, B) == []
    assert deeds.owner_of(NET, 150) == A
    assert deeds.owner_of(NET, 130) == C
    assert bequests(deeds, [NET], B, lambda _: A) == [], "a second time there is nothing left"
    assert deeds.quarantined(NET) == []


def test_two_heirs_that_both_take_over_are_found_and_nobody_allocates_there():
    deeds = book()
    for heir in (A, D):
        for item in bequests(book(), [NET], B, lambda _, heir=heir: heir):
            deeds.add(item)
    assert deeds.owner_of(NET, 150) is None
    assert [pair.holders for pair in deeds.quarantined(NET)] in ([(A, D)], [(D, A)])


def test_a_leaving_host_gives_to_who_is_alive_and_to_anybody_rather_than_nobody():
    deeds = book()
    key = deed_id(TO_C)
    assert heir_of_leaving(deeds, key, C, {A, B, C}, [A, B]) == B
    assert heir_of_leaving(deeds, key, C, {A, C}, [A]) == A
    assert heir_of_leaving(deeds, key, C, {C, b"x" * 16}, [b"x" * 16]) == b"x" * 16
    assert heir_of_leaving(deeds, key, C, {C}, []) is None
    assert heir_of_leaving(deeds, deed_id(GENESIS), A, {A, E}, [E]) == E


def test_without_a_receiver_space_stays():
    assert bequests(book(), [NET], A, lambda _: None) == []
