"""Limits of the kernel that are named before they bite."""

import socket

import pytest

from meshd.config import BRIDGE_PORTS_MAX
from meshd.errors import Unavailable
from meshd.kernel.neighlimits import NeighLimit
from meshd.model import Attachment, Endpoint
from meshd.shell import networks
from meshd.shell.attach import AttachRequest, Netns, attach
from meshd.shell.limits import check_ports, neighbour_trouble, neighbours_needed
from meshd.state.networks import NetworkRequest
from tests.unit.shell.fake_cluster import BOOT, World

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("driver", "room"), [("bridge", BRIDGE_PORTS_MAX), ("overlay", BRIDGE_PORTS_MAX - 1)]
)
async def test_a_bridge_without_a_free_port_refuses_the_next_endpoint_and_says_why(driver, room):
    (host,) = World().hosts
    network = await networks.create_network(host, NetworkRequest("blue", driver, ("10.1.0.0/20",)))
    for number in range(room - 1):
        id_ = number.to_bytes(16, "big")
        ips = (bytes((10, 1, 8 + number // 256, number % 256)),)
        host.endpoints[id_] = Endpoint(
            network.id, host.me, f"e{number}", 2048 + number, ips, bytes(6), "eth0"
        )
        host.attachments[id_] = Attachment(BOOT, 1000 + number, "", "eth0", f"mh{number}", f"mp{number}")
    await attach(host, AttachRequest("blue", Netns(7, BOOT)))
    links = len(host.kernel.links)
    with pytest.raises(Unavailable, match=rf"network blue has {room} endpoints .* Linux allows 1023"):
        await attach(host, AttachRequest("blue", Netns(8, BOOT)))
    assert len(host.kernel.links) == links
    await attach(host, AttachRequest("blue", Netns(7, BOOT)))  # what is there already is no new port


def test_a_network_that_is_the_lan_has_no_bridge_and_no_limit_of_ports():
    (host,) = World().hosts
    network = bytes(range(16))
    for number in range(BRIDGE_PORTS_MAX):
        id_ = number.to_bytes(16, "big")
        host.endpoints[id_] = Endpoint(network, host.me, f"e{number}", number, (bytes(4),), bytes(6), "eth0")
        host.attachments[id_] = Attachment(BOOT, 1000 + number, "", "eth0", f"mu{number}", f"mu{number}")
    check_ports(host, network, "yard", "macvlan")
    with pytest.raises(Unavailable):
        check_ports(host, network, "yard", "bridge")


async def test_other_hosts_and_own_endpoints_count_as_neighbours_to_learn():
    world = World(hosts=3)
    host = world.hosts[0]
    await networks.create_network(host, NetworkRequest("blue", "overlay", ("10.1.0.0/24",)))
    before = neighbours_needed(host)
    await attach(host, AttachRequest("blue", Netns(7, BOOT)))
    assert neighbours_needed(host) == {V4: before[V4] + 1, V6: before[V6]}


def test_a_small_table_is_named_with_the_setting_that_makes_it_larger():
    limits = {V4: NeighLimit(1024, 0), V6: NeighLimit(1024, 0)}
    assert neighbour_trouble({V4: 819, V6: 0}, limits, limits) == ""
    assert "820 hosts" in neighbour_trouble({V4: 820, V6: 0}, limits, limits)
    assert "net.ipv6.neigh.default.gc_thresh3" in neighbour_trouble({V4: 0, V6: 900}, limits, limits)
    assert neighbour_trouble({V4: 900}, {V4: NeighLimit(32768, 0)}, {}) == ""


def test_a_table_that_was_full_is_named_but_not_for_what_was_before_the_start():
    before = {V4: NeighLimit(1024, 5)}
    assert neighbour_trouble({}, {V4: NeighLimit(1024, 5)}, before) == ""
    assert "was full 2 times" in neighbour_trouble({}, {V4: NeighLimit(1024, 7)}, before)
