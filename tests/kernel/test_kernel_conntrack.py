"""Connections that the kernel remembers: which are forgotten, seen in /proc/net/nf_conntrack, and whether a datagram
from the same port then goes where the rules say now."""

import contextlib
import ipaddress
import re
import socket
from pathlib import Path

import pytest

from meshd.kernel.conntrack import Conntrack
from meshd.plan import elements
from meshd.plan.tracked import Doubt, Published, doubt

WAIT_S = 5.0
UDP = 17
PORT = 4000
"""Where the asker asks from, each time."""

TRACKING = """
table inet t {
    chain c { type nat hook prerouting priority dstnat;
    }
    chain f { type filter hook forward priority 0;
        ct state established counter
    }
}
"""

needs_proc = pytest.mark.skipif(
    not Path("/proc/net/nf_conntrack").exists(), reason="/proc/net/nf_conntrack (CONFIG_NF_CONNTRACK_PROCFS)"
)
pytestmark = needs_proc


def ip(text):
    return ipaddress.ip_address(text).packed


class Site:
    """A router that tracks connections, an asker before it and servers behind it."""

    def __init__(self, make_netns):
        self.router, self.asker, self.servers = make_netns(), make_netns(), [make_netns(), make_netns()]
        for n, ns in enumerate((self.asker, *self.servers), 1):
            self.router.run(
                "ip", "link", "add", f"r{n}", "type", "veth", "peer", "name", "e", "netns", ns.name
            )
            self.router.run("ip", "link", "set", f"r{n}", "up")
            for prefix, bits, extra in ((f"10.0.{n}", 24, []), (f"fd00:{n}:", 64, ["nodad"])):
                dot = "." if bits == 24 else ":"
                self.router.run("ip", "addr", "add", f"{prefix}{dot}1/{bits}", "dev", f"r{n}", *extra)
                ns.run("ip", "addr", "add", f"{prefix}{dot}2/{bits}", "dev", "e", *extra)
            ns.run("ip", "link", "set", "e", "up")
            ns.run("ip", "route", "add", "default", "via", f"10.0.{n}.1")
            ns.run("ip", "-6", "route", "add", "default", "via", f"fd00:{n}::1")
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.router.run("nft", "-f", "-", input=TRACKING)
        self.conntrack = self.router.call(Conntrack)

    def publish(self, to):
        """Lead port 8080 of the router to a server, or nowhere."""
        family, to = ("ipv6", f"[{to}]") if ":" in to else ("ipv4", to)
        rule = f"add rule inet t c meta nfproto {family} udp dport 8080 dnat to {to}:80\n" if to else ""
        self.router.run("nft", "-f", "-", input=f"flush chain inet t c\n{rule}")

    def forget(self, changed, *local):
        return self.router.call(self.conntrack.forget, changed, lambda: {ip(text) for text in local})

    def entries(self):
        text = self.router.run("cat", "/proc/net/nf_conntrack").stdout
        return [line for line in text.splitlines() if f"sport={PORT}" in line]


@pytest.fixture(params=["one dump", "filtered"])
def site(make_netns, request, monkeypatch):
    if request.param == "filtered":
        monkeypatch.setattr("meshd.kernel.conntrack.CONNTRACK_ALL_MAX", 0)
    made = Site(make_netns)
    yield made
    made.conntrack.close()


def bound(netns, family, port):
    def work():
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0" if family == 4 else "::", port))
        sock.settimeout(WAIT_S)
        return sock

    return netns.call(work)


WHERE = {
    4: ("10.0.1.1", ("10.0.2.2", "10.0.3.2")),
    6: ("fd00:1::1", ("fd00:2::2", "fd00:3::2")),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("how", ["everywhere", "named"])
def test_a_published_port_that_leads_elsewhere_now_is_believed_at_once(site, family, how):
    front, (first, second) = WHERE[family]
    key = [bytes((UDP,)), (8080).to_bytes(2, "big")]
    of = (
        elements.element(f"everywhere{family}", *key)
        if how == "everywhere"
        else elements.element(f"publish{family}", ip(front), *key)
    )
    now = lambda to: doubt({of: elements.data(of.set, ip(to), (80).to_bytes(2, "big"))}, ())  # noqa: E731
    with contextlib.ExitStack() as stack:
        asker = stack.enter_context(bound(site.asker, family, PORT))
        servers = [stack.enter_context(bound(each, family, 80)) for each in site.servers]

        def ask(server, text):
            asker.sendto(text, (front, 8080))
            assert server.recv(100) == text

        site.publish("")
        asker.sendto(b"too early", (front, 8080))  # remembered as one for the router itself
        site.publish(first)
        asker.sendto(b"past the publication", (front, 8080))
        assert site.forget(now(first), front) == 1
        ask(servers[0], b"one")
        assert site.forget(now(first), front) == 0  # right, so it stays
        site.publish(second)
        ask(servers[0], b"still the first")  # what this is all about
        assert site.forget(now(second), front) == 1
        ask(servers[1], b"two")
        assert len(site.entries()) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_what_an_address_that_is_given_up_had_is_forgotten_and_nothing_else(site, family):
    front, (first, second) = WHERE[family]
    asker = WHERE[family][0][:-1] + "2"
    with (
        bound(site.asker, family, PORT) as out,
        bound(site.servers[0], family, PORT) as one,
        bound(site.servers[1], family, PORT) as two,
    ):
        site.publish(first)
        out.sendto(b"published", (front, 8080))  # asker -> front, answered from first
        one.sendto(b"out", (asker, 9))  # first -> asker
        two.sendto(b"other", (asker, 9))  # second -> asker
        two.sendto(b"within", (first, 9))  # second -> first, answered from first
        other = "10.9.9.77" if family == 4 else "fd09::77"
        assert len(site.entries()) == 4
        assert site.forget(Doubt(given_up=frozenset({ip(other)}))) == 0
        assert site.forget(Doubt(given_up=frozenset({ip(first)}))) == 3
        (left,) = site.entries()
        assert "dport=9 " in left
        assert re.search(rf"src={ipaddress.ip_address(second).exploded} ", left)


def test_connections_to_elsewhere_with_the_same_port_stay(site):
    """Those that are only passed on have nothing to do with a port that is published on every address of the host."""
    with bound(site.asker, 4, PORT) as out, bound(site.servers[0], 4, 8080) as server:
        out.sendto(b"through", ("10.0.2.2", 8080))
        assert server.recv(100) == b"through"
        published = Published(None, UDP, 8080, ip("10.0.3.2"), 80)
        assert site.forget(Doubt((published,)), "10.0.1.1") == 0
        assert site.forget(Doubt((published._replace(address=ip("10.0.1.1")),))) == 0
        assert site.forget(Doubt((published._replace(protocol=6),)), "10.0.2.2") == 0
        assert len(site.entries()) == 1


def test_nothing_in_doubt_asks_nothing(site):
    assert site.forget(Doubt()) == 0
    assert (
        doubt({elements.element("bridges", b"mo01234567"): b""}, [elements.element("ports", b"mh1")])
        == Doubt()
    )
