"""Forwarding and router advertisements, with a router that really advertises."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshd.kernel.namespace import Namespace
from meshd.plan.forwarding import Device, advice

ADVERTISE = """
import socket, struct, sys
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 1800, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:1::"))
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, sys.argv[1].encode())
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix  # RFC 4861, 4.2
    raw.sendto(advertisement, ("ff02::1", 0, 0, socket.if_nametoindex(sys.argv[1])))
"""
DEVICE = "eth0.10"
ROOT = Path(__file__).parents[2]


def wait_for(what, holds):
    for _ in range(500):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


class Learner:
    """A host on whose ``eth0.10`` a router advertises."""

    def __init__(self, netns, router):
        self.netns, self.router = netns, router
        router.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", DEVICE, "netns", netns.name)
        for side, device in ((router, "lan0"), (netns, DEVICE)):
            side.run("sh", "-c", f"echo 0 >/proc/sys/net/ipv6/conf/{device}/accept_dad")
        self.set("all/forwarding", 0)
        self.set(f"{DEVICE}/accept_ra", 1)
        router.run("ip", "link", "set", "lan0", "up")
        netns.run("ip", "link", "set", DEVICE, "up")
        wait_for(
            "a link-local address", lambda: "tentative" not in self.addresses() and "fe80" in self.addresses()
        )

    def addresses(self):
        return self.router.run("ip", "-6", "addr", "show", "dev", "lan0").stdout

    def set(self, knob, value):
        self.netns.run("sh", "-c", f"echo {value} >/proc/sys/net/ipv6/conf/{knob}")

    def advertise(self):
        self.router.run(sys.executable, "-c", ADVERTISE, "lan0")

    def has_route(self):
        return "proto ra" in self.netns.run("ip", "-6", "route", "show", "default").stdout

    def read(self):
        def read():
            with Namespace() as namespace:
                return namespace.forwarding()

        return self.netns.call(read)

    def advice(self):
        return advice(self.read(), (), ("blue",))


@pytest.fixture
def learner(make_netns):
    made = Learner(make_netns(), make_netns())

    def learnt():
        made.advertise()
        return made.has_route()

    wait_for("a default route by advertisement", learnt)
    return made


def test_what_a_host_learnt_by_advertisement_is_seen(learner):
    seen = learner.read()
    assert not seen.v6
    assert seen.devices == (Device(DEVICE, False, 1, True, True),)


def test_forwarding_is_seen_per_family(netns):
    def set_and_read(v4, v6):
        netns.run(
            "sh",
            "-c",
            f"echo {v4} >/proc/sys/net/ipv4/ip_forward; echo {v6} >/proc/sys/net/ipv6/conf/all/forwarding",
        )
        with Namespace() as namespace:
            seen = namespace.forwarding()
        return seen.v4, seen.v6

    for v4, v6 in ((0, 0), (1, 0), (0, 1), (1, 1)):
        assert netns.call(set_and_read, v4, v6) == (bool(v4), bool(v6))


def test_turning_forwarding_on_as_sysctls_alone_would_costs_the_default_route_and_is_told(learner):
    learner.set("all/forwarding", 1)
    wait_for("the route goes", lambda: not learner.has_route())
    learner.advertise()
    assert not learner.has_route(), "and does not come back"
    (line,) = learner.advice()
    assert line.startswith(f"{DEVICE} ignores router advertisements")
    learner.set(*said(line)[0])
    wait_for("the route is back", lambda: (learner.advertise(), learner.has_route())[1])
    assert learner.advice() == []


def test_the_command_told_turns_forwarding_on_and_keeps_the_route(learner):
    (line,) = learner.advice()
    assert line.startswith("IPv6 is not forwarded on this host: endpoints of network blue ")
    for knob, value in said(line):
        learner.set(knob, value)
    assert learner.has_route()
    learner.advertise()
    assert learner.has_route()
    assert learner.read().v6
    assert learner.advice() == []


def test_the_installer_keeps_the_route_as_well(learner):
    script = [str(ROOT / "systemd" / "accept-ra")]
    (line,) = learner.netns.run(*script).stdout.splitlines()
    assert line == f"net/ipv6/conf/{DEVICE}/accept_ra = 2"
    path, _, value = line.partition(" = ")
    learner.set(path.removeprefix("net/ipv6/conf/"), value)
    learner.set("all/forwarding", 1)
    assert learner.has_route()
    assert learner.netns.run(*script).stdout.splitlines() == [line], "running it again forgets nothing"


def test_the_installer_leaves_devices_alone_whose_advertisements_another_program_handles(learner):
    learner.set(f"{DEVICE}/accept_ra", 0)
    assert learner.netns.run(str(ROOT / "systemd" / "accept-ra")).stdout == ""
    learner.set("all/forwarding", 1)
    assert learner.advice() == []


def test_a_host_without_advertisements_gets_no_lines(netns):
    assert (
        subprocess.run(
            ["ip", "netns", "exec", netns.name, str(ROOT / "systemd" / "accept-ra")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        == ""
    )


def said(line):
    """The knobs of the command that a line names."""
    words = line.partition("run: sysctl -w ")[2].split()
    return [word.removeprefix("net/ipv6/conf/").split("=") for word in words]
