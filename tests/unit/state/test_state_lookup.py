"""Which network a name or the beginning of an id means."""

import pytest

from meshd.errors import Conflict, NotFound
from meshd.model import Item, Kind, Network, Removed, Subnet, Version
from meshd.state.lookup import display_names, hosts_meant, resolve


def net(hex_id, name, kind=Kind.NETWORK):
    key = bytes.fromhex(hex_id.ljust(32, "0"))
    return Item(
        kind, key, Version(1, 0, bytes(16)), Network(name, "overlay", (Subnet("10.0.0.0/24", "10.0.0.1"),))
    )


BLUE, BLUE2, BLUE3 = net("1111", "blue"), net("ab12", "blue"), net("ab12ff", "blue")
RED, BEEF, LOCAL = net("cafe01", "red"), net("0123", "beef"), net("cafe02", "bridge", Kind.LOCAL_NETWORK)
GONE = Item(Kind.NETWORK, b"G" * 16, Version(9, 0, bytes(16)), Removed("grey"), dead=True)
ALL = [BLUE3, RED, BLUE2, BEEF, BLUE, LOCAL, GONE]


def test_the_lower_id_keeps_the_name_and_others_show_enough_of_theirs():
    shown = display_names(ALL)
    assert shown == {
        BLUE.id: "blue",
        BLUE2.id: "blue~ab120",
        BLUE3.id: "blue~ab12f",
        RED.id: "red",
        BEEF.id: "beef",
        LOCAL.id: "bridge",
    }
    assert display_names([BLUE2, BLUE])[BLUE2.id] == "blue~ab12"
    assert display_names(reversed(ALL)) == shown


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("red", RED),
        ("blue", BLUE),
        ("blue~ab12f", BLUE3),
        ("bridge", LOCAL),
        ("1111", BLUE),
        ("AB12FF", BLUE3),
        (BLUE2.id.hex(), BLUE2),
        ("beef", BEEF),  # a name before the beginning of an id
        ("0123", BEEF),
    ],
)
def test_a_network_is_found_by_shown_name_or_beginning_of_its_id(text, item):
    assert resolve(text, ALL) is item


def test_a_name_of_hex_digits_wins_over_an_id():
    other = net("beef", "green")
    assert resolve("beef", [*ALL, other]) is BEEF
    assert resolve("beef0", [*ALL, other]) is other


@pytest.mark.parametrize("text", ["111", "grey", "", "1112", "blue~1111", "x" * 200])
def test_what_is_no_network_is_not_found(text):
    with pytest.raises(NotFound) as caught:
        resolve(text, ALL)
    assert caught.value.what == f"no network {text[:80]!r}"


def test_the_hint_names_what_comes_near():
    with pytest.raises(NotFound) as caught:
        resolve("rad", ALL)
    assert caught.value.hint == "did you mean red?"
    with pytest.raises(NotFound) as caught:
        resolve("zzzz", ALL)
    assert caught.value.hint == "meshctl network ls lists them"


def test_a_beginning_that_fits_several_names_them():
    with pytest.raises(Conflict) as caught:
        resolve("ab12", ALL)
    assert caught.value.what == "ab12 is the beginning of 2 network ids"
    assert caught.value.hint == "one of blue~ab120 (ab1200000000), blue~ab12f (ab12ff000000)"


def test_a_host_is_meant_by_its_name_its_id_or_the_beginning_of_that():
    one, two, three = (bytes.fromhex(text.ljust(32, "0")) for text in ("abcd1234", "abcd99", "0123"))
    names = {one: "host1", two: "twin", three: "twin"}
    assert hosts_meant("host1", names) == {one}
    assert hosts_meant(one.hex(), names) == hosts_meant("ABCD1234", names) == {one}
    assert hosts_meant("twin", names) == {two, three}
    assert hosts_meant("abcd", names) == {one, two}
    assert hosts_meant("abc", names) == hosts_meant("", names) == hosts_meant("nobody", names) == set()
    assert hosts_meant("abcd", {**names, three: "abcd"}) == {three}, (
        "a name goes before the beginning of an id"
    )
