"""What a card is left to compute, read from real devices whose features are switched; what a device stands on."""

import pytest

from meshd.kernel.namespace import Namespace
from meshd.kernel.offload import CHECKSUMS, Device
from tests.ethtool import ETHTOOL_STXCSUM, switch


@pytest.fixture
def host(netns):
    netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    netns.kernel = netns.call(Namespace)
    yield netns
    netns.kernel.close()


def test_a_device_whose_checksums_are_switched_off_computes_none(host):
    (on,) = host.call(host.kernel.offload, ["eth0"])
    assert (on.name, on.driver, on.computes) == ("eth0", "veth", True)
    assert "tx-udp_tnl-segmentation" in on.active
    host.call(switch, "eth0", ETHTOOL_STXCSUM, 0)
    (off,) = host.call(host.kernel.offload, ["eth0"])
    assert (off.computes, set(off.active) & set(CHECKSUMS)) == (False, set())
    host.call(switch, "eth0", ETHTOOL_STXCSUM, 1)
    assert host.call(host.kernel.offload, ["eth0"]) == [on]


def test_a_device_that_is_gone_is_left_out(host):
    assert [each.name for each in host.call(host.kernel.offload, ["gone", "eth0"])] == ["eth0"]


def test_what_is_no_checksum_does_not_count():
    assert not Device("eth0", "", ("tx-udp_tnl-segmentation",)).computes


def test_a_bridge_stands_on_its_card_and_not_on_containers_ports(host):
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "link", "add", "card", "type", "ifb")
    for port in ("card", "eth0"):
        host.run("ip", "link", "set", port, "master", "br0")
    host.run("ip", "addr", "add", "192.0.2.10/24", "dev", "br0")
    assert host.call(host.kernel.underlay, "192.0.2.10", "6d657368").cards == ("br0", "card")
    host.run("ip", "addr", "add", "192.0.2.11/24", "dev", "eth0")
    assert host.call(host.kernel.underlay, "192.0.2.11", "6d657368").cards == ("eth0",)
