"""What the rules do to frames: made by hand in a container's namespace and on the underlay, and looked for where they
would arrive. Each forgery is followed by an honest frame the same way; once that is there, the other is not coming."""

import contextlib
import functools
import ipaddress
import itertools
import socket
import time

import handmade as frames
import pytest
from layout import make_pair

from meshd.kernel.namespace import Namespace
from meshd.model import Attachment, Endpoint, HostFacts, Network, Subnet
from meshd.plan import names
from meshd.plan.desired import desired
from meshd.plan.diff import diff
from meshd.plan.firewall import link_local
from meshd.plan.view import View

ME, FRIEND = bytes([0xA1]) * 16, bytes([0xB2]) * 16
NETWORK = bytes(range(16))
MARK = "0badcafe"
VNI = 5001
WAIT_S = 5.0
_tokens = itertools.count(1)


def ip(text):
    return ipaddress.ip_address(text).packed


def end(n):
    return bytes([0xE0 + n]) * 16


UNDERLAY = {
    4: {"here": "192.0.2.1", "friend": "192.0.2.2", "stranger": "192.0.2.9", "prefix": 24},
    6: {"here": "2001:db8::1", "friend": "2001:db8::2", "stranger": "2001:db8::9", "prefix": 64},
}


def view(family=4, **published):
    """Two endpoints here, a third on the friend's host."""
    subnets = (Subnet("10.77.0.0/24", "10.77.0.1"), Subnet("fd77::/64", "fd77::1"))
    hosts = {
        host: HostFacts(name, ip(UNDERLAY[family][name]), 4789, 1500)
        for host, name in ((ME, "here"), (FRIEND, "friend"))
    }
    endpoints, attachments = {}, {}
    for n, host in ((1, ME), (2, ME), (3, FRIEND)):
        ips = (ip(f"10.77.0.1{n}"), ip(f"fd77::1{n}"))
        endpoints[end(n)] = Endpoint(
            NETWORK,
            host,
            f"e{n}",
            n,
            ips,
            names.endpoint_mac(end(n)),
            "eth0",
            published=published.get(f"e{n}", ()),
        )
        if host == ME:
            attachments[end(n)] = Attachment("boot", n, "/ns", "eth0", names.veth(end(n)), names.peer(end(n)))
    networks = {NETWORK: Network("blue", "overlay", subnets, vni=VNI, mtu=1400)}
    return View(ME, MARK, networks, endpoints, hosts, attachments, True, 4789, 7947)


class Site:
    """A host with two containers, programmed as the plan says, and a LAN with a friend and a stranger on it."""

    def __init__(self, make_netns, family, **published):
        self.family = family
        self.host, self.lan = make_netns(), make_netns()
        self.boxes = {n: make_netns() for n in (1, 2)}
        where = UNDERLAY[family]
        self.host.run("ip", "link", "add", "u0", "type", "veth", "peer", "name", "u1", "netns", self.lan.name)
        nodad = ["nodad"] if family == 6 else []
        self.host.run("ip", "addr", "add", f"{where['here']}/{where['prefix']}", "dev", "u0", *nodad)
        for who in ("friend", "stranger"):
            self.lan.run("ip", "addr", "add", f"{where[who]}/{where['prefix']}", "dev", "u1", *nodad)
        self.host.run("ip", "link", "set", "u0", "up")
        self.lan.run("ip", "link", "set", "u1", "up")
        self.view = view(family, **published)
        self.kernel = self.host.call(Namespace)
        want = desired(self.view)
        for n in (1, 2):
            link = want.links[names.veth(end(n))]
            bare = type(link)(link.name, "veth", link.alias, link.mtu)
            self.host.call(make_pair, self.kernel, bare, names.peer(end(n)), self.mac(n), 1400)
        have = self.host.call(self.kernel.dump, MARK).ours
        assert self.host.call(self.kernel.apply, diff(want, have, deletions=True)) == []
        for n, box in self.boxes.items():
            self.host.run("ip", "link", "set", names.peer(end(n)), "netns", box.name, "name", "eth0")
            box.run("ip", "link", "set", "eth0", "up")
        deadline = time.monotonic() + WAIT_S
        while not all(self.forwards(n) for n in self.boxes):  # the bridge hears of the carrier a moment later
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def forwards(self, n):
        (port,) = self.host.json("bridge", "-j", "link", "show", "dev", names.veth(end(n)))
        return port["state"] == "forwarding"

    def close(self):
        self.kernel.close()

    def mac(self, n):
        return self.view.endpoints[end(n)].mac

    def v4(self, n):
        return self.view.endpoints[end(n)].ips[0]

    def v6(self, n):
        return self.view.endpoints[end(n)].ips[1]


@pytest.fixture
def site(make_netns):
    with contextlib.ExitStack() as stack:

        def build(family=4, **published):
            made = Site(make_netns, family, **published)
            stack.callback(made.close)
            return made

        yield build


def packet_socket(netns, device):
    def work():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((device, 0))
        sock.settimeout(WAIT_S)
        return sock

    return netns.call(work)


def token():
    return b"frame-%08d" % next(_tokens)


def arrives(listener, send, honest):
    """Send a frame made by ``send(token)`` and then ``honest(token)``; say whether the first came before the second."""
    first, second = token(), token()
    send(first)
    honest(second)
    seen = False
    while True:
        data = listener.recv(2048)
        seen |= first in data
        if second in data:
            return seen


# --- what comes back by the port that it came from -----------------------------------------------------------------
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23


def test_what_an_endpoint_with_published_ports_sends_to_all_does_not_come_back_to_it(site):
    """Its port is in hairpin mode: that alone would have duplicate address detection hear itself."""
    s = site(e1=("8080:80/tcp",))
    own, near = (packet_socket(s.boxes[n], "eth0") for n in (1, 2))
    with own, near:
        own.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        for group in (b"\xff" * 6, bytes.fromhex("333300000001"), bytes.fromhex("01005e000001")):
            to_all = functools.partial(lambda group, mark: own.send(group + honest(s, mark)[6:]), group)
            assert arrives(near, to_all, lambda mark: own.send(honest(s, mark))), "its neighbours hear it"
            assert not arrives(own, to_all, lambda mark: near.send(
                frames.ether(s.mac(1), s.mac(2), frames.IP, frames.ip4(s.v4(2), s.v4(1), frames.udp(1, 2, mark)))
            ))  # fmt: skip


# --- what a container sends ---------------------------------------------------------------------------------------
def honest(s, mark):
    return frames.ether(s.mac(2), s.mac(1), frames.IP, frames.ip4(s.v4(1), s.v4(2), frames.udp(1, 2, mark)))


def from_mac(s, src):
    return lambda mark: honest(s, mark)[:6] + src + honest(s, mark)[12:]


def v4(s, src, sport=1, dport=2):
    return lambda mark: frames.ether(
        s.mac(2), s.mac(1), frames.IP, frames.ip4(src, s.v4(2), frames.udp(sport, dport, mark))
    )


def v6(s, src, payload, protocol=17):
    return lambda mark: frames.ether(
        s.mac(2), s.mac(1), frames.IP6, frames.ip6(src, s.v6(2), payload(mark), protocol)
    )


def arp(s, sender_mac, sender, operation=2):
    return lambda mark: frames.ether(
        s.mac(2), s.mac(1), frames.ARP, frames.arp(operation, sender_mac, sender, s.mac(2), s.v4(2)) + mark
    )


def nd(s, src, kind, target):
    return v6(s, src, lambda mark: frames.neighbour(kind, target, mark), 58)


def tagged(frame):
    """With a VLAN tag 0, which a receiver takes off without a word."""
    return lambda mark: frame(mark)[:12] + b"\x81\x00\x00\x00" + frame(mark)[12:]


NOBODY4, NOBODY6 = bytes(4), bytes(16)
GATEWAY4, GATEWAY6 = ip("10.77.0.1"), ip("fd77::1")
RA = 134

PASS = {
    "udp": lambda s: v4(s, s.v4(1)),
    "udp v6": lambda s: v6(s, s.v6(1), lambda mark: frames.udp(1, 2, mark)),
    "udp v6 link-local": lambda s: v6(s, link_local(s.mac(1)), lambda mark: frames.udp(1, 2, mark)),
    "arp reply": lambda s: arp(s, s.mac(1), s.v4(1)),
    "arp request": lambda s: arp(s, s.mac(1), s.v4(1), 1),
    "arp probe": lambda s: arp(s, s.mac(1), NOBODY4, 1),
    "solicitation": lambda s: nd(s, s.v6(1), 135, s.v6(2)),
    "duplicate address detection": lambda s: nd(s, NOBODY6, 135, s.v6(1)),
    "advertisement": lambda s: nd(s, s.v6(1), 136, s.v6(1)),
    "dhcp request": lambda s: v4(s, s.v4(1), 68, 67),
}
DROP = {
    "a neighbour's mac": lambda s: from_mac(s, s.mac(2)),
    "the gateway's mac": lambda s: from_mac(s, names.gateway_mac(NETWORK)),
    "a made-up mac": lambda s: from_mac(s, b"\x02\x01\x02\x03\x04\x05"),
    "a neighbour's address": lambda s: v4(s, s.v4(2)),
    "the gateway's address": lambda s: v4(s, GATEWAY4),
    "no address": lambda s: v4(s, NOBODY4, 68, 67),
    "a neighbour's v6 address": lambda s: v6(s, s.v6(2), lambda mark: frames.udp(1, 2, mark)),
    "a neighbour's link-local address": lambda s: v6(
        s, link_local(s.mac(2)), lambda mark: frames.udp(1, 2, mark)
    ),
    "no v6 address": lambda s: v6(s, NOBODY6, lambda mark: frames.udp(1, 2, mark)),
    "arp for the gateway": lambda s: arp(s, s.mac(1), GATEWAY4),
    "arp for a neighbour": lambda s: arp(s, s.mac(1), s.v4(2)),
    "arp with another mac": lambda s: arp(s, s.mac(2), s.v4(1)),
    "advertisement of the gateway": lambda s: nd(s, s.v6(1), 136, GATEWAY6),
    "advertisement of a neighbour": lambda s: nd(s, s.v6(1), 136, s.v6(2)),
    "advertisement from the gateway": lambda s: nd(s, GATEWAY6, 136, GATEWAY6),
    "detection of a neighbour's address": lambda s: nd(s, NOBODY6, 135, s.v6(2)),
    "router advertisement": lambda s: v6(
        s, link_local(s.mac(1)), lambda mark: frames.icmp6(RA, bytes(12) + mark), 58
    ),
    "redirect": lambda s: v6(s, s.v6(1), lambda mark: frames.icmp6(137, bytes(36) + mark), 58),
    "dhcp offer": lambda s: v4(s, s.v4(1), 67, 68),
    "dhcp offer from another port": lambda s: v4(s, s.v4(1), 1067, 68),
    "dhcpv6 reply": lambda s: v6(s, s.v6(1), lambda mark: frames.udp(547, 546, mark)),
    "tagged router advertisement": lambda s: tagged(
        v6(s, link_local(s.mac(1)), lambda mark: frames.icmp6(RA, bytes(12) + mark), 58)
    ),
    "tagged arp for the gateway": lambda s: tagged(arp(s, s.mac(1), GATEWAY4)),
    "neither arp nor ip": lambda s: lambda mark: frames.ether(s.mac(2), s.mac(1), 0x88CC, mark.ljust(50)),
}


def test_what_a_container_sends_in_its_own_name_passes_and_nothing_else_does(site):
    s = site()
    with packet_socket(s.boxes[1], "eth0") as out, packet_socket(s.boxes[2], "eth0") as into:
        came = {
            name: arrives(
                into, lambda mark, make=make: out.send(make(s)(mark)), lambda mark: out.send(honest(s, mark))
            )
            for name, make in {**PASS, **DROP}.items()
        }
    assert came == dict.fromkeys(PASS, True) | dict.fromkeys(DROP, False)


# --- what comes by the underlay -----------------------------------------------------------------------------------
def tunnelled(s, lan, vni, frame, port=4789):
    lan.sendto(frames.vxlan(vni, frame), (UNDERLAY[s.family]["here"], port))


def udp_from(s, who):
    def work():
        family = socket.AF_INET if s.family == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((UNDERLAY[s.family][who], 0))
        return sock

    return s.lan.call(work)


def inner(s, mark, src=None):
    packet = frames.ip4(s.v4(3), s.v4(2), frames.udp(1, 2, mark))
    return frames.ether(s.mac(2), src or s.mac(3), frames.IP, packet)


@pytest.mark.parametrize("family", [4, 6])
def test_frames_with_our_vnis_come_from_members_only(site, family):
    s = site(family)
    with (
        udp_from(s, "friend") as friend,
        udp_from(s, "stranger") as stranger,
        packet_socket(s.boxes[2], "eth0") as into,
    ):

        def good(mark):
            tunnelled(s, friend, VNI, inner(s, mark))

        def came(sock, vni=VNI, **more):
            return arrives(into, lambda mark: tunnelled(s, sock, vni, inner(s, mark, **more)), good)

        assert came(friend)
        assert not came(stranger)
        assert not came(friend, vni=VNI + 1)
        assert not came(stranger, vni=VNI + 1)
        assert not came(friend, src=b"\x02\x01\x02\x03\x04\x05")  # nobody's
        assert not came(friend, src=s.mac(1))  # a local endpoint's
        assert not came(friend, src=names.gateway_mac(NETWORK))


def test_a_container_is_no_member_even_with_a_member_s_address(site):
    s = site()
    s.host.run("nft", "add", "element", "inet", "meshd", "members4", "{ 10.77.0.11 }")
    with (
        udp_from(s, "friend") as friend,
        packet_socket(s.boxes[1], "eth0") as out,
        packet_socket(s.boxes[2], "eth0") as into,
    ):

        def injected(mark):
            datagram = frames.udp(4000, 4789, frames.vxlan(VNI, inner(s, mark)))
            out.send(
                frames.ether(
                    names.gateway_mac(NETWORK), s.mac(1), frames.IP, frames.ip4(s.v4(1), GATEWAY4, datagram)
                )
            )

        def came():
            return arrives(into, injected, lambda mark: tunnelled(s, friend, VNI, inner(s, mark)))

        assert not came()
        s.host.run("nft", "flush", "chain", "inet", "meshd", "containers")
        assert came()  # so the rule was what held it back


def test_other_vxlan_traffic_is_left_alone_and_our_own_machine_cannot_inject(site):
    s = site()
    for name, vni, port in (("other0", VNI + 7, 4789), ("other1", VNI, 8472)):
        s.host.run(
            "ip",
            "link",
            "add",
            name,
            "type",
            "vxlan",
            "id",
            str(vni),
            "dstport",
            str(port),
            "local",
            "192.0.2.1",
        )
        s.host.run("ip", "link", "set", name, "up")
    with udp_from(s, "stranger") as stranger, udp_from(s, "friend") as friend:
        for name, vni, port in (("other0", VNI + 7, 4789), ("other1", VNI, 8472)):
            with packet_socket(s.host, name) as into:
                frame = lambda mark, vni=vni, port=port: tunnelled(s, stranger, vni, inner(s, mark), port)  # noqa: E731
                assert arrives(into, frame, frame)

        def local(mark):
            def work():
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    tunnelled(s, sock, VNI, inner(s, mark))

            s.host.call(work)

        with packet_socket(s.boxes[2], "eth0") as into:
            assert not arrives(into, local, lambda mark: tunnelled(s, friend, VNI, inner(s, mark)))


@pytest.mark.parametrize("family", [4, 6])
def test_a_machine_of_the_lan_cannot_send_with_a_container_s_address(site, family):
    """Nothing in the kernel keeps an IPv6 packet back for where it came from, and for IPv4 only strict rp_filter."""
    s = site(family)
    (card,) = s.host.json("ip", "-j", "link", "show", "dev", "u0")
    to = bytes.fromhex(card["address"].replace(":", ""))

    def listening():
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind((UNDERLAY[family]["here"], 4000))
        sock.settimeout(WAIT_S)
        return sock

    def from_(source):
        where = (source, ip(UNDERLAY[family]["here"]))
        kind = frames.IP if family == 4 else frames.IP6
        return lambda mark: out.send(
            frames.ether(to, b"\x02" * 6, kind, frames.checked(*where, 17, frames.udp(1, 4000, mark)))
        )

    honest = from_(ip(UNDERLAY[family]["stranger"]))
    address = s.v4 if family == 4 else s.v6
    with packet_socket(s.lan, "u1") as out, s.host.call(listening) as into:
        came = {n: arrives(into, from_(address(n)), honest) for n in (1, 2, 3)}
        assert came == {1: False, 2: False, 3: False}  # 3 is another host's
        assert arrives(into, from_(ip("198.51.100.7" if family == 4 else "2001:db8:1::7")), honest)
        s.host.run("nft", "flush", "chain", "inet", "meshd", "raw")
        assert arrives(into, from_(address(1)), honest)  # so the rule was what held it back


def test_a_flush_is_undone_and_a_forgery_is_dropped_again(site):
    s = site()
    want = desired(s.view)
    with packet_socket(s.boxes[1], "eth0") as out, packet_socket(s.boxes[2], "eth0") as into:

        def forged():
            send = DROP["a neighbour's address"](s)
            return arrives(into, lambda mark: out.send(send(mark)), lambda mark: out.send(honest(s, mark)))

        s.host.run("nft", "add table inet theirs")
        assert not forged()
        s.host.run("nft", "delete table bridge meshd")
        assert forged()  # so the rule was what held it back
        found = s.host.call(s.kernel.dump, MARK, want.firewall).ours
        assert s.host.call(s.kernel.apply, diff(want, found, deletions=True)) == []
        assert not forged()
        assert "theirs" in s.host.run("nft", "list", "tables").stdout
