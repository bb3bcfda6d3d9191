"""Which address carries the overlay, and what the host routes itself."""

import pytest
from layout import ALIAS, MARK

from meshd.errors import ConfigError
from meshd.kernel.namespace import Namespace


@pytest.fixture
def host(netns):
    """eth0 (MTU 1400) with 192.0.2.10/24, eth1 with 198.51.100.10/24 and 2001:db8::10/64, without routes beyond."""
    for n, mtu in enumerate((1400, 9000)):
        netns.run("ip", "link", "add", f"eth{n}", "mtu", str(mtu), "type", "veth", "peer", "name", f"far{n}")
        netns.run("ip", "link", "set", f"far{n}", "up")
        netns.run("ip", "link", "set", f"eth{n}", "up")
    netns.run("ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
    netns.run("ip", "addr", "add", "198.51.100.10/24", "dev", "eth1")
    netns.run("ip", "addr", "add", "2001:db8::10/64", "dev", "eth1", "nodad")
    with netns.call(Namespace) as namespace:
        netns.kernel = namespace
        yield netns


def route(host, *words):
    host.run("ip", *(["-6"] if ":" in " ".join(words) else []), "route", "add", *words)


def underlay(host, bind=None):
    return host.call(host.kernel.underlay, bind, MARK)


@pytest.mark.parametrize(
    "bind, device, mtu",
    [("192.0.2.10", "eth0", 1400), ("198.51.100.10", "eth1", 9000), ("2001:db8::10", "eth1", 9000)],
)
def test_a_given_address_decides_the_device(host, bind, device, mtu):
    found = underlay(host, bind)
    assert (found.address, found.device, found.mtu) == (bind, device, mtu)


def test_a_given_address_is_known_however_it_is_written(host):
    assert underlay(host, "2001:0DB8:0::10").address == "2001:db8::10"


def test_an_address_on_lo_has_the_mtu_of_the_way_out(host):
    host.run("ip", "link", "set", "lo", "up")
    host.run("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
    assert underlay(host, "203.0.113.1").mtu == 1500, "with no way out, Ethernet's: lo's own is no link's"
    route(host, "default", "nexthop", "via", "198.51.100.1", "nexthop", "via", "192.0.2.1")
    found = underlay(host, "203.0.113.1")
    assert (found.device, found.mtu) == ("lo", 1400)


@pytest.mark.parametrize("bind", ["192.0.2.11", "2001:db8::11"])
def test_an_address_that_no_interface_has_is_an_error_that_names_it(host, bind):
    with pytest.raises(ConfigError, match=f"gossip.bind: no interface of this host has {bind}"):
        underlay(host, bind)


def test_without_a_default_route_the_operator_has_to_say(host):
    with pytest.raises(ConfigError, match=r"gossip\.bind: this host has no default route"):
        underlay(host)


def test_the_default_routes_source_is_taken(host):
    route(host, "default", "via", "198.51.100.1", "metric", "200")
    assert underlay(host).address == "198.51.100.10"
    route(host, "default", "via", "192.0.2.1", "metric", "100")
    assert underlay(host).address == "192.0.2.10"


def test_a_preferred_source_goes_before_the_devices_first_address(host):
    host.run("ip", "addr", "add", "192.0.2.20/24", "dev", "eth0")
    route(host, "default", "via", "192.0.2.1", "src", "192.0.2.20")
    assert underlay(host).address == "192.0.2.20"


def test_v4_goes_before_v6(host):
    route(host, "default", "via", "2001:db8::1", "dev", "eth1")
    assert underlay(host).address == "2001:db8::10"
    route(host, "default", "via", "192.0.2.1")
    assert underlay(host).address == "192.0.2.10"


def test_a_family_that_was_asked_for_is_never_left_for_the_other(host):
    route(host, "default", "via", "2001:db8::1")
    assert host.call(host.kernel.underlay, None, MARK).address == "2001:db8::10"
    with pytest.raises(ConfigError, match="no IPv4 default route"):
        host.call(host.kernel.underlay, None, MARK, 4)
    route(host, "default", "via", "192.0.2.1")
    assert host.call(host.kernel.underlay, None, MARK, 4).address == "192.0.2.10"
    assert host.call(host.kernel.underlay, None, MARK, 6).address == "2001:db8::10"


def test_a_multipath_default_route_has_devices_too(host):
    route(host, "default", "nexthop", "via", "198.51.100.1", "nexthop", "via", "192.0.2.1")
    assert underlay(host).address in ("192.0.2.10", "198.51.100.10")


def test_temporary_and_deprecated_addresses_are_not_taken(host):
    host.run("ip", "addr", "del", "2001:db8::10/64", "dev", "eth1")
    host.run("ip", "addr", "add", "2001:db8::10/64", "dev", "eth1", "nodad", "preferred_lft", "0")
    host.run("ip", "addr", "add", "2001:db8::11/64", "dev", "eth1", "nodad")
    route(host, "default", "via", "2001:db8::1", "dev", "eth1")
    assert underlay(host).address == "2001:db8::11"


def test_the_hosts_own_prefixes_are_told_and_nothing_that_all_have(host):
    route(host, "10.1.0.0/16", "via", "192.0.2.1")
    route(host, "10.2.0.0/16", "nexthop", "via", "192.0.2.1", "nexthop", "via", "198.51.100.1")
    route(host, "2001:db8:7::/48", "via", "2001:db8::1")
    route(host, "203.0.113.7", "dev", "eth0")
    route(host, "default", "via", "192.0.2.1")
    route(host, "169.254.0.0/16", "dev", "eth0")
    route(host, "blackhole", "10.3.0.0/16")
    route(host, "10.4.0.0/16", "dev", "eth0", "table", "77")
    assert underlay(host).routes == (
        "10.1.0.0/16",
        "10.2.0.0/16",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.7/32",
        "2001:db8::/64",
        "2001:db8:7::/48",
    )


def test_prefixes_on_our_own_devices_are_not_the_hosts_and_those_on_another_clusters_are(host):
    host.run("ip", "link", "add", "mo00000001", "type", "bridge")
    host.run("ip", "addr", "add", "10.9.0.1/24", "dev", "mo00000001")
    host.run("ip", "link", "set", "mo00000001", "up")
    assert "10.9.0.0/24" in underlay(host, "192.0.2.10").routes
    host.run("ip", "link", "set", "mo00000001", "alias", ALIAS)
    assert "10.9.0.0/24" not in underlay(host, "192.0.2.10").routes
    host.run("ip", "link", "set", "mo00000001", "alias", ALIAS.replace(MARK, "ffffffff"))
    assert "10.9.0.0/24" in underlay(host, "192.0.2.10").routes
