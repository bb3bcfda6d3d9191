"""What --publish says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import PUBLISHED_PORTS_MAX
from meshd.errors import BadRequest
from meshd.plan.publish import Publication, parse_all

WRITTEN = {
    "8080:80": "8080:80/tcp",
    "8080:80/udp": "8080:80/udp",
    "192.0.2.1:8080:80": "192.0.2.1:8080:80/tcp",
    "127.0.0.1:8080:80/sctp": "127.0.0.1:8080:80/sctp",
    "[2001:DB8::1]:8080:80": "[2001:db8::1]:8080:80/tcp",
    "0.0.0.0:8080:80": "0.0.0.0:8080:80/tcp",
    "[::]:8080:80": "[::]:8080:80/tcp",
    "8000-8009:80-89/udp": "8000-8009:80-89/udp",
    "8000-8000:80": "8000:80/tcp",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_said_is_written_down_in_one_way_and_reads_the_same_again(text):
    assert str(Publication.parse(text)) == WRITTEN[text]
    assert Publication.parse(WRITTEN[text]) == Publication.parse(text)


WRONG = {
    "80": "not of the form",
    "": "not of the form",
    "8080:80:90:91": "not of the form",
    ":8080:80": "not of the form",
    "8080:80/": "not of the form",
    "8080:80/icmp": "protocol icmp is not one of",
    "0:80": "ports go from 1 to 65535",
    "70000:80": "ports go from 1 to 65535",
    "81-80:1-2": "lower one first",
    "80-82:80-81": "differ in length",
    f"1-{PUBLISHED_PORTS_MAX + 1}:1-{PUBLISHED_PORTS_MAX + 1}": "are more than",
    "300.0.2.1:80:80": "not an address",
    "[1.2.3.4]:80:80": r"write a v6 address in \[ \]",
    "[::1]:80:80": "does not route ::1",
    "224.0.0.1:80:80": "not a host's address",
    "２:80": "not of the form",  # digits to Python, not to anybody else
}


@pytest.mark.parametrize("text", WRONG)
def test_what_makes_no_sense_is_refused_in_one_line(text):
    with pytest.raises(BadRequest, match=WRONG[text]) as refused:
        Publication.parse(text)
    assert "\n" not in refused.value.what


CLASHES = {
    ("80:80", "80:81"): 80,
    ("80:80", "80:80/udp"): None,
    ("80:80", "0.0.0.0:80:80"): 80,
    ("0.0.0.0:80:80", "[::]:80:80"): None,
    ("192.0.2.1:80:80", "192.0.2.2:80:80"): None,
    ("192.0.2.1:80:80", "80:80"): 80,
    ("192.0.2.1:80:80", "[2001:db8::1]:80:80"): None,
    ("70-80:1-11", "80-90:1-11"): 80,
    ("70-79:1-10", "80-90:1-11"): None,
}


@pytest.mark.parametrize("pair", CLASHES)
def test_two_clash_where_they_want_one_port_of_one_address(pair):
    one, other = map(Publication.parse, pair)
    assert one.clash(other) == other.clash(one) == CLASHES[pair]


def test_several_are_each_taken_once_and_must_not_clash_nor_be_too_many():
    assert list(map(str, parse_all(("80:80", "80:80/tcp", "81:80")))) == ["80:80/tcp", "81:80/tcp"]
    with pytest.raises(BadRequest, match=r"80:80/tcp and 0\.0\.0\.0:80:90/tcp both want port 80"):
        parse_all(("80:80", "0.0.0.0:80:90"))
    with pytest.raises(BadRequest, match="are more than"):
        parse_all((f"1-{PUBLISHED_PORTS_MAX}:1-{PUBLISHED_PORTS_MAX}", "60000:80"))


@given(
    st.integers(1, 65000), st.integers(1, 65000), st.integers(1, 300), st.sampled_from(("tcp", "udp", "sctp"))
)
def test_a_range_pairs_its_ports_in_order(first, inner, count, protocol):
    one = Publication.parse(f"{first}-{first + count - 1}:{inner}-{inner + count - 1}/{protocol}")
    assert list(one.ports()) == [(first + n, inner + n) for n in range(count)]
