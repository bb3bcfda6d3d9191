"""Which remembered connections are true no more."""

import ipaddress

import pytest

from meshd.model import Endpoint
from meshd.plan import elements
from meshd.plan.firewall import own_port_elements
from meshd.plan.tracked import Doubt, Published, Tracked, doubt, is_stale

TCP, UDP = 6, 17
MAC = b"\x02" * 6


def ip(text):
    return ipaddress.ip_address(text).packed


def port(number):
    return number.to_bytes(2, "big")


HOST = {ip("192.0.2.1"), ip("2001:db8::1")}
WEB, OLD, CLIENT = ip("10.0.0.2"), ip("10.0.0.3"), ip("198.51.100.9")
NOW = Doubt((Published(None, UDP, 53, WEB, 5353),))


def connection(dst, answered_from, *, protocol=UDP, dport=53, from_port=5353, src=CLIENT):
    return Tracked(protocol, src, ip(dst), dport, answered_from, from_port)


@pytest.mark.parametrize(
    ("tracked", "stale"),
    [
        (connection("192.0.2.1", WEB), False),
        (connection("192.0.2.1", OLD), True),
        (connection("192.0.2.1", WEB, from_port=53), True),
        (connection("192.0.2.1", ip("192.0.2.1"), from_port=53), True),
        (connection("127.0.0.1", OLD), True),
        (connection("203.0.113.7", ip("203.0.113.7"), from_port=53), False),
        (connection("192.0.2.1", OLD, protocol=TCP), False),
        (connection("192.0.2.1", OLD, dport=54), False),
        (connection("2001:db8::1", ip("2001:db8::1"), from_port=53), False),
    ],
)
def test_what_comes_to_a_published_port_of_the_host_leads_where_it_is_published(tracked, stale):
    assert is_stale(tracked, NOW, HOST) is stale


def test_published_on_one_address_it_is_that_address_s():
    now = Doubt((Published(ip("192.0.2.1"), UDP, 53, WEB, 5353),))
    assert is_stale(connection("192.0.2.1", OLD), now, set())
    assert not is_stale(connection("127.0.0.1", OLD), now, HOST)


def test_an_address_that_is_given_up_is_on_neither_side():
    gone = Doubt(given_up=frozenset({OLD}))
    assert is_stale(connection("192.0.2.1", OLD), gone, HOST)
    assert is_stale(connection("203.0.113.7", ip("203.0.113.7"), src=OLD), gone, HOST)
    assert not is_stale(connection("192.0.2.1", WEB), gone, HOST)


def test_elements_say_what_is_in_doubt():
    leads = elements.data("everywhere4", WEB, port(5353))
    everywhere = elements.element("everywhere4", bytes((UDP,)), port(53))
    named = elements.element("publish6", ip("::2"), bytes((TCP,)), port(80))
    puts = {
        everywhere: leads,
        named: elements.data("publish6", ip("fd00::2"), port(81)),
        elements.element("targets4", b"mhaaaaaaaa", WEB): b"",
        elements.element("bridges", b"mobbbbbbbb"): b"",
    }
    gone = [
        elements.element("targets4", b"mhcccccccc", OLD),
        elements.element("targets6", b"mhcccccccc", ip("fd00::3")),
        elements.element("targets4", b"mhdddddddd", WEB),  # the address is another port's now
        elements.element("macs", b"mhcccccccc", MAC),
    ]
    assert doubt(puts, gone) == Doubt(
        (Published(None, UDP, 53, WEB, 5353), Published(ip("::2"), TCP, 80, ip("fd00::2"), 81)),
        frozenset({OLD, ip("fd00::3")}),
    )
    assert doubt({}, []) == Doubt()


def test_a_virtual_address_is_given_up_with_its_network_and_not_with_an_endpoint():
    """Whoever had it may be another one."""
    for vip, version in ((ip("10.0.0.240"), 4), (ip("fd00::f0"), 6)):
        gone = [elements.element(f"targets{version}", b"mhcccccccc", vip)]
        assert doubt({}, gone, {elements.element(f"vips{version}", vip)}) == Doubt()
        assert doubt({}, gone, ()) == Doubt(given_up=frozenset({vip}))


def test_what_the_host_itself_had_on_a_network_is_given_up_with_its_port():
    mine = Endpoint(bytes(16), bytes(16), "host1", 2, (WEB, ip("fd00::2")), MAC, "mox11111111")
    assert doubt({}, own_port_elements("mh11111111", mine)) == Doubt(given_up=frozenset(mine.ips))
