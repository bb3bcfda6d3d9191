"""A small cluster to plan for: hosts A, B and C, an overlay, a ``bridge`` network, and live mappings to change."""

import hashlib

from meshd.model import Attachment, Endpoint, HostFacts, Network, Subnet
from meshd.plan import names
from meshd.plan.desired import View

A, B, C = (bytes([n]) * 16 for n in (0xA1, 0xB2, 0xC3))
BLUE, RED, LAN = (bytes([n]) * 16 for n in (0x11, 0x22, 0x33))
MARK = "c1c2c3c4"

OVERLAY = Network("blue", "overlay", (Subnet("10.1.0.0/20", "10.1.0.1"),), vni=5001, mtu=1450)
BRIDGE = Network("lan", "bridge", (Subnet("172.20.0.0/24", "172.20.0.1"),), mtu=1500)


def ip4(text):
    return bytes(map(int, text.split(".")))


def id_of(name):
    return hashlib.sha256(name.encode()).digest()[:16]


def facts(vtep, name="h"):
    return HostFacts(name, vtep, 4789, 1500)


HOSTS = {A: facts(ip4("192.0.2.1")), B: facts(ip4("192.0.2.2")), C: facts(ip4("192.0.2.3"))}


class World:
    """Mappings that a View shares, and what the daemon does to them."""

    def __init__(self, *, nhid=True, hosts=HOSTS):
        self.networks, self.endpoints, self.attachments, self.hosts = {}, {}, {}, dict(hosts)
        self.nhid = nhid
        self.aged = frozenset()

    def view(self):
        return View(
            me=A,
            cluster=MARK,
            networks=self.networks,
            endpoints=self.endpoints,
            hosts=self.hosts,
            attachments=self.attachments,
            nhid=self.nhid,
            vxlan_port=4789,
            gossip_port=7947,
            aged=self.aged,
        )

    def endpoint(self, name, network, host, *ips, mac=None):
        """Record an endpoint, with its attachment if it is local; returns its id."""
        id_ = id_of(name)
        packed = tuple(ip4(ip) if isinstance(ip, str) else ip for ip in ips)
        index = packed[0][-1]
        self.endpoints[id_] = Endpoint(
            network, host, name, index, packed, mac or names.endpoint_mac(id_), "eth0", created_ms=1
        )
        if host == A:
            self.attachments[id_] = Attachment("boot", 7, "/ns", "eth0", names.veth(id_), names.peer(id_))
        else:
            self.attachments.pop(id_, None)
        return id_

    def release(self, name):
        self.endpoints.pop(id_of(name), None)
        self.attachments.pop(id_of(name), None)


def blue_on_two_hosts(**options):
    """One overlay, ``web`` here and ``db`` on host B."""
    world = World(**options)
    world.networks[BLUE] = OVERLAY
    world.endpoint("web", BLUE, A, "10.1.0.2")
    world.endpoint("db", BLUE, B, "10.1.0.66")
    return world
