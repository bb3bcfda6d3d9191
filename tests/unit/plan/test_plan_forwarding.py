"""What an operator is told about forwarding."""

import pytest

from meshd.plan.forwarding import Device, Forwarding, advice

LEARNS = Device("eth0", False, 1, True, True)


@pytest.mark.parametrize("device", [None, LEARNS])
def test_nothing_is_said_where_no_network_needs_forwarding(device):
    assert advice(Forwarding(False, False, (device,) if device else ()), (), ()) == []


def test_each_family_that_is_off_is_told_with_its_command():
    v4, v6 = advice(Forwarding(False, False), ["red", "blue", "bridge"], ["blue"])
    assert v4 == (
        "IPv4 is not forwarded on this host: endpoints of network blue and 2 more networks do not reach the outside; "
        "run: sysctl -w net/ipv4/ip_forward=1"
    )
    assert v6.endswith(
        "endpoints of network blue do not reach the outside; run: sysctl -w net/ipv6/conf/all/forwarding=1"
    )
    assert advice(Forwarding(True, True), ["red"], ["red"]) == []


def test_what_keeps_the_default_route_goes_first():
    (line,) = advice(Forwarding(True, False, (LEARNS,)), (), ["blue"])
    assert line.endswith("run: sysctl -w net/ipv6/conf/eth0/accept_ra=2 net/ipv6/conf/all/forwarding=1")


@pytest.mark.parametrize(
    ("forwarding", "accept_ra", "ra_route", "autoconf", "told"),
    [
        (True, 1, True, True, True),
        (True, 1, False, True, True),  # the kernel dropped the route already
        (True, 1, False, False, False),  # nothing ever came from advertisements
        (True, 2, True, True, False),
        (True, 0, True, True, False),  # another program listens
        (False, 1, True, True, False),
    ],
)
def test_a_device_is_told_of_only_if_it_loses_what_it_learnt(forwarding, accept_ra, ra_route, autoconf, told):
    device = Device("eth0", forwarding, accept_ra, ra_route, autoconf)
    lines = advice(Forwarding(True, True, (device,)), ["blue"], ["blue"])
    assert bool(lines) == told
    assert all("run: sysctl -w net/ipv6/conf/eth0/accept_ra=2" in line for line in lines)
